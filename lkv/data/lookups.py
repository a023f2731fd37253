"""Training prompts in which something is looked up: tables, records, dictionaries, logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from lkv.data.reading import sentences, training_documents
from lkv.data.sketch import Fact, Items, Sketch

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


def joined_lines(answers: Sequence[str | None]) -> str | None:
    known = [answer for answer in answers if answer is not None]
    return ", ".join(known) if known else None


def asked_for(keys: list[str]) -> str:
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
        lambda keys: f"Which {column} does the table give for {asked_for(keys)}?",
        lambda keys: f"Read off the {column} of {asked_for(keys)}. Reply with the entry only.",
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
        lambda keys: f"]\nGive the value of {json.dumps(wanted)} where sku is {asked_for(keys)}.",
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
        lambda keys: f"Look up {asked_for(keys)} and answer with what it maps to.",
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

    return Sketch("# settings.py\n", lines(), lambda keys: f"# What does {asked_for(keys)} evaluate to?")


def block(rng: Random) -> Sketch:
    """Documents with a block of two or three records here and there; the answer is begun as the record is.

    SmolLM2 finds such a value in half of the cases, and one among many records alike hardly ever: answers
    that look nothing up teach no look-up (docs/training.md).
    """
    used: list[str] = []

    def items() -> Items:
        wait = rng.randrange(6)
        for _, text, digest in training_documents(rng.choice(["topics", "code"]), rng):
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
        for sentence in sentences(rng, used):
            if wait == 0 and (who := name(rng)) not in seen:
                seen.add(who)
                kept = value(rng)
                yield f"{who} keeps {kept} in the drawer. ", Fact(who, kept)
            wait = wait - 1 if wait else rng.randrange(4, 20)
            yield sentence, None

    def ask(people: list[Any]) -> str:
        return f"What does {asked_for(people)} keep in the drawer?"

    return Sketch("Somewhere below it says what people keep.\n", lines(), ask, used)


LOOK_UPS = ("table", "json_records", "dictionary", "definitions", "log")
