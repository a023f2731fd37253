"""Training prompts, made offline from a seed: look-ups in records, documents, code, repeat-a-sentence.

In most of them, where something is looked up, the whole context is records (tables, JSON, dictionaries,
definitions, logs). Two kinds come nearer to a needle in a haystack: `block`, documents that hold small blocks
of records, and, for a labelled arm, `hidden`, facts scattered in filler text. Documents come from the
training side of lkv.data.documents alone.

Every prompt has an exact length in tokens, so that batches need no padding: its body is cut to fit. Where the
context holds the one right answer to the question, the prompt brings it along.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from lkv.chat import chat_text, token_ids
from lkv.data.documents import documents, side
from lkv.errors import UserError, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORTH_A_PROCESS = 500  # prompts: it takes about a second to start

GIVEN = [
    "Ada", "Bela", "Carlo", "Dina", "Emre", "Fatou", "Goran", "Hana", "Ivo", "Jamal", "Kira", "Luan",
    "Mina", "Noor", "Otto", "Pia", "Rui", "Sara", "Tove", "Uma",
]  # fmt: skip
FAMILY = [
    "Abel", "Boone", "Castro", "Dahl", "Egger", "Fuchs", "Grau", "Hegde", "Ito", "Jensen", "Kovac",
    "Lund", "Moreau", "Novak", "Okoye", "Perez", "Quist",
]  # fmt: skip
CITIES = [
    "Aarhus", "Bergen", "Cusco", "Dakar", "Essen", "Faro", "Graz", "Hue", "Izmir", "Jena", "Kyoto",
    "Lviv", "Murcia", "Nantes", "Oslo", "Porto",
]  # fmt: skip
THINGS = [
    "anchor", "basket", "candle", "drill", "engine", "funnel", "gasket", "hammer", "kettle", "ladder",
    "mirror", "needle", "pump", "ribbon",
]  # fmt: skip
TEAMS = [
    "audit", "billing", "catering", "design", "energy", "finance", "gardens", "housing", "imports",
    "kitchen", "logistics",
]  # fmt: skip
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]


class Fact(NamedTuple):
    """What can be asked of an item: `ask` is told the key; the answer is as the item writes it."""

    key: Any
    answer: str | None = None  # None: the question has no one right answer


Items = Iterator[tuple[str, Fact | None]]  # text of one item, and its fact (None: not asked about)


@dataclass(frozen=True)
class Sketch:
    """A prompt before it is sized: `items` make up the body; `ask` words the question about some of them."""

    head: str
    items: Items
    ask: Callable[[list[Any]], str]
    documents: list[str] = field(default_factory=list)  # SHA-256 of the documents used
    first_alone: bool = False  # `ask` words the first of its keys only
    begin: Callable[[Any], str] | None = None  # of the first key: how the answer begins, inside the prompt


def build(
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    lengths: Sequence[int],
    mixture: Mapping[str, float],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """`samples` prompts of exactly `lengths` tokens in turn.

    Each is {"id", "kind", "length", "ids", "documents", "answer"}; the answer: the true one's text, or None.
    `mixture` weighs the kinds. Prompt i is the same however many are built, and by how many processes.
    """
    for kind in mixture:
        if kind not in KINDS:
            raise one_of("kind of training prompt", kind, KINDS)
    kinds, weights = list(mixture), list(mixture.values())
    if not kinds or not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
        raise UserError(f"the mixture {dict(mixture)} has no positive weight; give at least one kind=weight")
    given = tokenizer, lengths, kinds, weights, seed
    processes = min(os.cpu_count() or 1, samples // WORTH_A_PROCESS)
    if processes < 2:
        yield from (_prompt(i, *given) for i in range(samples))
        return
    context = get_context("forkserver")  # a fork of this process would copy what a GPU's driver has open
    context.set_forkserver_preload([__name__, type(tokenizer).__module__])  # imported once for all
    with context.Pool(processes, _Worker.start, given) as pool:
        yield from pool.imap(_Worker.prompt, range(samples), chunksize=16)


def _prompt(
    i: int,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    kinds: Sequence[str],
    weights: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    rng = Random(f"{seed}/train/{i}")
    kind = rng.choices(kinds, weights)[0]
    length = lengths[i % len(lengths)]
    ids, used, answer = sized(tokenizer, KINDS[kind](rng), length, rng)
    return {"id": i, "kind": kind, "length": length, "ids": ids, "documents": used, "answer": answer}


class _Worker:
    """A process' own copy of what all its prompts share."""

    given: tuple[Any, ...] = ()

    @classmethod
    def start(cls, *given: Any) -> None:
        cls.given = given

    @classmethod
    def prompt(cls, i: int) -> dict[str, Any]:
        return _prompt(i, *cls.given)


def sized(
    tokenizer: PreTrainedTokenizerBase, sketch: Sketch, length: int, rng: Random
) -> tuple[list[int], list[str], str | None]:
    """The templated prompt in exactly `length` token ids, its documents and its true answer.

    What is asked about lies inside the cut body.
    """
    before, after = chat_text(tokenizer, "\ue000").split("\ue000")

    def encode(text: str) -> list[int]:
        return token_ids(tokenizer, [text], special=False)[0]

    start, body = encode(before + sketch.head), []
    facts: list[tuple[int, Fact]] = []  # where a record ends in the body, and what can be asked of it
    for text, fact in sketch.items:
        body += encode(text)
        if fact is not None:
            facts.append((len(body), fact))
        if len(body) >= length:
            break
    asked = min(len(facts), rng.choices((1, 2, 3), (6, 3, 1))[0])
    while facts:
        chosen = rng.sample(facts, k=min(asked, len(facts)))
        begun = sketch.begin(chosen[0][1].key) if sketch.begin else ""
        end = encode("\n" + sketch.ask([fact.key for _, fact in chosen]) + after + begun)
        room = length - len(start) - len(end)
        if all(ends <= room for ends, _ in chosen):
            answered = [fact.answer for _, fact in chosen[: 1 if sketch.first_alone else None]]
            return start + body[:room] + end, sketch.documents, _joined(answered)
        if asked == 1:  # the cut that this question needs would lose what it asks about
            facts.remove(chosen[0])
        asked = 1
    raise UserError(
        f"{length} tokens hold no whole record between question and template with this tokenizer; "
        "give longer training lengths, or leave this kind out of the mixture"
    )


def name(rng: Random) -> str:
    return f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"


def value(rng: Random) -> str:
    """An answer worth looking up: digits, a dashed number, hexadecimal, a made-up word, a date, a price."""
    forms: list[Callable[[], str]] = [
        lambda: str(rng.randrange(1000, 10**9)),
        lambda: f"{rng.randrange(100, 999)}-{rng.randrange(1000, 9999)}",
        lambda: f"{rng.getrandbits(32):08x}",
        lambda: "".join(rng.choices(SYLLABLES, k=3)),
        lambda: f"{rng.randrange(1950, 2050)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
        lambda: f"{rng.randrange(1, 900)}.{rng.randrange(100):02}",
    ]
    return rng.choice(forms)()


def _joined(answers: Sequence[str | None]) -> str | None:
    known = [answer for answer in answers if answer is not None]
    return ", ".join(known) if known else None


def _asked(keys: list[str]) -> str:
    return ", ".join(keys[:-1]) + " and " + keys[-1] if len(keys) > 1 else keys[0]


def table(rng: Random) -> Sketch:
    """A delimited table; a column of one to three rows is asked for."""
    columns = rng.sample(
        ["badge", "city", "extension", "room", "score", "team", "joined"], k=rng.randrange(2, 5)
    )
    mark = rng.choice([" | ", ",", "\t", "; "])
    column = rng.choice(columns)

    def rows() -> Items:
        seen = set()
        while True:
            who = f"{name(rng)} {rng.randrange(10, 99)}"
            if who not in seen:
                seen.add(who)
                cells = [
                    {"city": rng.choice(CITIES), "team": rng.choice(TEAMS)}.get(c, value(rng))
                    for c in columns
                ]
                yield mark.join([who, *cells]) + "\n", Fact(who, cells[columns.index(column)])

    ask = rng.choice([
        lambda keys: f"Which {column} does the table give for {_asked(keys)}?",
        lambda keys: f"Read off the {column} of {_asked(keys)}. Reply with the entry only.",
    ])  # fmt: skip
    return Sketch(f"Staff table.\n{mark.join(['name', *columns])}\n", rows(), ask)


def json_records(rng: Random) -> Sketch:
    """A list of JSON objects; one field is asked for by another."""
    fields = rng.sample(["price", "stock", "serial", "weight", "supplier", "shelf"], k=rng.randrange(2, 5))
    wanted = rng.choice(fields)

    def records() -> Items:
        for number in iter(lambda: rng.randrange(10**5, 10**6), None):
            sku = f"{rng.choice(THINGS)}-{number}"
            record = {"sku": sku, **{f: value(rng) for f in fields}}
            yield json.dumps(record) + ",\n", Fact(sku, record[wanted])

    return Sketch(
        "The following is an inventory export.\n[\n",
        records(),
        lambda keys: f"]\nGive the value of {json.dumps(wanted)} where sku is {_asked(keys)}.",
    )


def dictionary(rng: Random) -> Sketch:
    """A word list with codes, as a Python, YAML or plain mapping."""
    form = rng.choice(['    "{}": "{}",\n', "{}: {}\n", "{} -> {}\n"])

    def entries() -> Items:
        seen = set()
        while True:
            word = "".join(rng.choices(SYLLABLES, k=4))
            if word not in seen:
                seen.add(word)
                meaning = value(rng)
                yield form.format(word, meaning), Fact(word, meaning)

    return Sketch(
        rng.choice(["mapping = {\n", "Glossary of entries:\n", "Translation file\n"]),
        entries(),
        lambda keys: f"Look up {_asked(keys)} and answer with what it maps to.",
    )


def definitions(rng: Random) -> Sketch:
    """Constants and small functions; what one of them holds is asked for."""

    def lines() -> Items:
        while True:
            symbol = f"{rng.choice(THINGS)}_{rng.choice(TEAMS)}_{rng.randrange(1000)}"
            constant, held = rng.random() < 0.5, repr(value(rng))
            if constant:
                yield f"{symbol.upper()} = {held}\n", Fact(symbol.upper(), held)
            else:
                yield f"def {symbol}():\n    return {held}\n\n", Fact(f"{symbol}()", held)

    return Sketch("# settings.py\n", lines(), lambda keys: f"# What does {_asked(keys)} evaluate to?")


def log(rng: Random) -> Sketch:
    """Log lines in order; what was recorded for a request is asked for."""
    clock = rng.randrange(86_400)

    def lines() -> Items:
        nonlocal clock
        while True:
            clock = (clock + rng.randrange(1, 90)) % 86_400
            stamp = f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}"
            request = f"r{rng.getrandbits(20):05x}"
            team, result = rng.choice(TEAMS), value(rng)
            yield f"{stamp} {team} request={request} result={result}\n", Fact(request, result)

    return Sketch("server.log\n", lines(), lambda keys: f"Report the result logged for {_asked(keys)}.")


def _training_documents(kind: str, rng: Random) -> Iterator[tuple[str, str, str]]:
    """(name, text, SHA-256) of training-side documents in random order, over and over."""
    allowed = [d for d in documents(kind) if side(d) == "train" and len(d.text) > 400]
    while True:
        for document in rng.sample(allowed, k=len(allowed)):
            yield document.name, document.text, document.sha256


def _reading(rng: Random, kind: str, heads: Sequence[str], questions: Sequence[str]) -> Sketch:
    used: list[str] = []

    def parts() -> Items:
        for title, text, digest in _training_documents(kind, rng):
            used.append(digest)
            lines = text.splitlines(keepends=True)
            start = rng.randrange(max(1, len(lines) - 20))
            for line in lines[start:]:
                yield line, Fact(title)

    question = rng.choice(questions)
    return Sketch(rng.choice(heads), parts(), lambda _: question, used)


def summary(rng: Random) -> Sketch:
    """A document to be summed up."""
    return _reading(
        rng,
        "topics",
        ["Read this text.\n\n", "", "Document:\n"],
        [
            "Summarise the text above in one sentence.",
            "What is this text about?",
            "List three points that the text makes.",
            "Explain the main idea of the passage to a beginner.",
        ],
    )


def code(rng: Random) -> Sketch:
    """Library source to be continued or explained."""
    return _reading(
        rng,
        "code",
        ["```python\n", "Here is a source file.\n\n"],
        [
            "```\nWhat does this code do?",
            "```\nWrite the next lines of this file.",
            "```\nName one function above.",
        ],
    )


def _sentences(rng: Random, used: list[str]) -> Iterator[str]:
    """Sentences of training-side topics; what the text runs together over 200 characters is no sentence."""
    for _, text, digest in _training_documents("topics", rng):
        used.append(digest)
        yield from (s + ". " for s in " ".join(text.split()).split(". ") if 20 < len(s) < 200)


def repeat(rng: Random) -> Sketch:
    """Sentences of a document; the one that begins in a given way is to be repeated."""
    used: list[str] = []

    def ask(starts: list[Any]) -> str:
        return f'Repeat word for word the sentence that begins with "{starts[0]}".'

    items = ((s, Fact(" ".join(s.split()[:4]), s.strip())) for s in _sentences(rng, used))
    return Sketch("", items, ask, used, first_alone=True)


def block(rng: Random) -> Sketch:
    """Documents with a block of two or three records here and there; the answer is begun as the record is.

    SmolLM2 finds such a value in half of the cases, and one among many records alike hardly ever: answers
    that look nothing up teach no look-up (docs/training.md).
    """
    used: list[str] = []

    def items() -> Items:
        wait = rng.randrange(6)
        for _, text, digest in _training_documents(rng.choice(["topics", "code"]), rng):
            used.append(digest)
            for line in text.splitlines(keepends=True):
                if len(line) > 100:  # what little fits into a short prompt is not to be one line
                    continue
                if wait == 0:
                    yield from _records(rng)
                    wait = rng.randrange(25, 80)
                wait -= 1
                yield line, None

    def ask(keys: list[Any]) -> str:
        return str(keys[0][0])

    return Sketch("", items(), ask, used, first_alone=True, begin=lambda key: str(key[1]))


def _records(rng: Random) -> Items:
    """A block of records of one form; a key is the question, and what stands before the value."""
    what = rng.choice(["phone number", "locker code", "badge", "account", "extension", "order number"])
    head, form, question = rng.choice([
        ("Directory", "{key}'s {what}: {value}", "What is the {what} of {key}?"),
        ("Notes", "The {what} of {key} is {value}", "Which {what} does {key} have?"),
        ("# settings", "{key}_{what} = {value}", "# What is {key}_{what} set to?"),
        ("Index", "{key} -> {value}", "Look up {key} and answer with what it maps to."),
        ("[export]", '{{"id": "{key}", "{what}": "{value}"}}', "Give the {what} where id is {key}."),
        ("Staff | {what}", "{key} | {value}", "Which {what} does the table give for {key}?"),
    ])  # fmt: skip
    code = head.startswith("#")
    words = {"what": what.replace(" ", "_").upper() if code else what}
    yield f"\n{head.format(**words)}\n", None
    for _ in range(rng.randrange(2, 4)):
        key = f"{name(rng)} {rng.randrange(10, 99)}"
        if code:
            key = f"{rng.choice(THINGS)}_{rng.choice(TEAMS)}".upper()
        known = value(rng)
        record = form.format(key=key, value=known, **words)
        before = record[: record.rindex(known)].rstrip(" ")
        yield f"{record}\n", Fact((question.format(key=key, **words), before), known)
    yield "\n", None


def hidden(rng: Random) -> Sketch:
    """A fact hidden in filler text: near RULER's needles, so for a labelled arm only, never by default."""
    used: list[str] = []

    def lines() -> Items:
        seen, wait = set(), rng.randrange(3)
        for sentence in _sentences(rng, used):
            if wait == 0 and (who := name(rng)) not in seen:
                seen.add(who)
                kept = value(rng)
                yield f"{who} keeps {kept} in the drawer. ", Fact(who, kept)
            wait = wait - 1 if wait else rng.randrange(4, 20)
            yield sentence, None

    def ask(people: list[Any]) -> str:
        return f"What does {_asked(people)} keep in the drawer?"

    return Sketch("Somewhere below it says what people keep.\n", lines(), ask, used)


KINDS: dict[str, Callable[[Random], Sketch]] = {
    "table": table,
    "json_records": json_records,
    "dictionary": dictionary,
    "definitions": definitions,
    "log": log,
    "summary": summary,
    "code": code,
    "repeat": repeat,
    "block": block,
    "hidden": hidden,
}
LOOK_UPS = ("table", "json_records", "dictionary", "definitions", "log")
