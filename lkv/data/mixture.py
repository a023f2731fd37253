"""Training prompts of natural length out of public instruction sets: the paper's mixture (training data).

A conversation is cut before its last answer by position, and the tokenizer's own chat template writes what is
left: nothing searches the text for the template's marks. The model then answers for itself (lkv.responses).
What the paper does not say is ours: the number and the wording of few-shot examples, and that those prompts
are one user turn.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from lkv.chat import Unrendered, chat_ids, conversation_text
from lkv.data.frozen import facts_of, freeze, sidecar
from lkv.data.shards import Stored
from lkv.data.tables import FORMS, File, Record, Records, locate
from lkv.errors import UserError, one_of
from lkv.reading import KINDS, shown
from lkv.records import fingerprint, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lkv")

Turns = list[dict[str, str]]
T = TypeVar("T")


class Malformed(ValueError):
    """A record that is not of its schema."""


class Unusable(Exception):
    """A record of which no prompt can be made; says why, for the tally."""


@dataclass(frozen=True)
class Example:
    """A question, ready for its answer to be written behind it; no answer where the set keeps it back."""

    question: str
    answer: str | None


@dataclass(frozen=True)
class Drawn:
    """A prompt, with the texts that it is made of: the first is what makes it a duplicate of another."""

    texts: tuple[str, ...]
    ids: Callable[[], list[int]]


@dataclass(frozen=True)
class Source:
    """One set of the mixture: `count` prompts out of what lies at the addresses `data` (lkv.data.tables)."""

    name: str
    schema: str
    data: tuple[str, ...]
    count: int
    split: str = "train"
    shots: int = 5  # solved examples before the question, in few-shot schemas
    licence: str = "unknown"

    @staticmethod
    def of(description: Mapping[str, Any]) -> Source:
        """From a config's entry, whose `data` is one address or a list of them; null is as good as absent."""
        description = {key: value for key, value in description.items() if value is not None}
        for key in description:
            if key not in SOURCE:
                raise one_of("key of a training source", key, SOURCE)
        for key in ("name", "schema", "data", "count"):
            if key not in description:
                raise UserError(f"the training source {dict(description)} has no {key!r}; add it")
        data = description["data"]
        listed = {**description, "data": [data] if isinstance(data, str) else data}
        for key, value in listed.items():
            if not KINDS[SOURCE[key]].fits(value):
                wanted, found = KINDS[SOURCE[key]].words, shown(value)
                name = shown(description["name"])
                raise UserError(f"the training source {name}: {key} must be {wanted}, found {found}")
        source = Source(**{**listed, "data": tuple(listed["data"])})
        if source.schema not in SCHEMAS:
            raise one_of(f"schema of the training source {source.name}:", source.schema, SCHEMAS)
        if not source.data or source.count < 1 or source.shots < 0:
            raise UserError(
                f"the training source {source.name} needs data ({FORMS}), a count of 1 or more and shots "
                "of 0 or more"
            )
        return source


# The keys of a training source, and of which kind they are.
SOURCE = {
    "name": "name", "schema": "name", "data": "texts", "count": "count", "split": "name", "shots": "count",
    "licence": "text",
}  # fmt: skip

# How a prompt is drawn from a record: (tokenizer, records, index, shots, the record's own random numbers).
Draw = Callable[["PreTrainedTokenizerBase", Records, int, int, Random], Drawn]


@dataclass(frozen=True)
class Schema:
    """The fields that are read of a record, and what is made of it."""

    fields: tuple[str, ...]
    draw: Draw
    few_shot: bool = False


def build_mixture(
    sources: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 16_384,
    seed: int = 0,
    tally: list[dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Prompts of at most `max_tokens` tokens: {"id", "kind", "length", "ids", "documents"}, sets well mixed.

    `kind` is the source's name, `documents` are the SHA-256 of the texts used. Each source is drawn from in a
    random order that depends on `seed` and its name alone; longer prompts and duplicates (of any source) are
    skipped, and counted in `tally`: an entry a source, complete when the iterator is. A source that runs out
    early is a warning; a malformed record, or a source that cannot be had, is a UserError.
    """
    chosen = [Source.of(source) for source in sources]
    if len({source.name for source in chosen}) < len(chosen) or not chosen:
        raise UserError("train.sources needs at least one entry, and a name of its own for each")
    located = [[file for at in source.data for file in locate(at, source.split)] for source in chosen]
    opened = [
        Records(files, SCHEMAS[source.schema].fields) for source, files in zip(chosen, located, strict=True)
    ]
    counts = [] if tally is None else tally
    counts[:] = [_entry(*parts) for parts in zip(chosen, located, opened, strict=True)]
    return _mixed(chosen, opened, tokenizer, max_tokens, seed, counts)


def frozen_mixture(
    path: str | Path,
    sources: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 16_384,
    seed: int = 0,
    version: int = 1,
) -> Stored:
    """build_mixture frozen at `path`; what is there already is used if it was made from the same.

    "The same" is: sources, local files, tokenizer and its template, max_tokens, seed, version. A hub data set
    that has been used stays the commit that it was, and needs no network any more.
    """
    addresses = [at for source in sources for at in Source.of(source).data]
    local = [file for at in addresses if at.startswith("file:") for file in locate(at)]
    settings = {
        "sources": [{**source} for source in sources],
        "files": {file.name: sha256_file(file.path) for file in local},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_tokens": max_tokens,
        "seed": seed,
        "version": version,
    }
    try:
        if sidecar(path).is_file() and facts_of(path).get("settings") == settings:
            return Stored(path)
    except UserError as error:
        log.warning("%s; it is built again", error)
    tally: list[dict[str, Any]] = []
    prompts = build_mixture(sources, tokenizer, max_tokens, seed, tally)
    freeze(path, prompts, settings=settings, sources=tally)  # the tally is complete by when it is written
    return Stored(path)


def notices(tally: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each source that gave fewer prompts than it was asked for."""
    return [
        f"{entry['name']}: {entry['prompts']} of {entry['asked']} prompts; its {entry['records']} records "
        f"gave no more (skipped: {', '.join(f'{n} {why}' for why, n in entry['skipped'].items()) or 'none'})"
        for entry in tally
        if entry["prompts"] < entry["asked"]
    ]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes with the vocabulary, how text is split, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return fingerprint(backend.to_str() if backend else tokenizer.get_vocab(), tokenizer.chat_template)


def _entry(source: Source, files: Sequence[File], records: Records) -> dict[str, Any]:
    return {
        "name": source.name,
        "schema": source.schema,
        "licence": source.licence,
        **({"shots": source.shots} if SCHEMAS[source.schema].few_shot else {}),
        "files": {file.name: sha256_file(file.path) for file in files},
        "records": len(records),
        "asked": source.count,
        "prompts": 0,
        "skipped": {},
    }


def _mixed(
    sources: Sequence[Source],
    opened: Sequence[Records],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    seed: int,
    tally: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Source after source by what each still owes: any order of the sets is as likely as any other."""
    rng, seen, number = Random(f"{seed}/mixture"), set[str](), 0
    streams = [
        _prompts(source, records, tokenizer, max_tokens, seed, seen, entry["skipped"])
        for source, records, entry in zip(sources, opened, tally, strict=True)
    ]
    owed = [source.count for source in sources]
    while any(owed):
        [k] = rng.choices(range(len(owed)), owed)
        prompt = next(streams[k], None)
        owed[k] = owed[k] - 1 if prompt else 0
        if prompt:
            tally[k]["prompts"] += 1
            yield {"id": number, **prompt}
            number += 1
    for notice in notices(tally):
        log.warning(notice)
    if not number:
        raise UserError(f"no prompt came out of the training sources ({'; '.join(notices(tally))})")


def _prompts(
    source: Source,
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    seed: int,
    seen: set[str],
    skipped: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """All prompts of a source in its random order, less their ids."""
    draw = SCHEMAS[source.schema].draw
    for index in Random(f"{seed}/{source.name}").sample(range(len(records)), len(records)):
        try:
            drawn = draw(tokenizer, records, index, source.shots, Random(f"{seed}/{source.name}/{index}"))
            used = [_digest(text) for text in drawn.texts]
            if used[0] in seen:
                raise Unusable("duplicate")
            seen.add(used[0])
            ids = drawn.ids()
            if len(ids) > max_tokens:
                raise Unusable("too_long")
        except Unusable as reason:
            skipped[str(reason)] = skipped.get(str(reason), 0) + 1
            continue
        yield {"kind": source.name, "length": len(ids), "ids": ids, "documents": used}


def _digest(text: str) -> str:
    try:
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write but no tokenizer reads
        raise Unusable("not_unicode") from None


def _read(read: Callable[[Record], T], records: Records, index: int) -> T:
    place, record = records[index]
    try:
        return read(record)
    except Malformed as error:
        raise UserError(f"{place}: {error}; correct the record, or the source's schema") from None


def conversation(read: Callable[[Record], Turns]) -> Draw:
    """The turns up to and with the last user turn, then the assistant's header, as the template writes it."""

    def draw(
        tokenizer: PreTrainedTokenizerBase, records: Records, index: int, shots: int, rng: Random
    ) -> Drawn:
        turns = _read(read, records, index)
        while turns and turns[-1]["role"] != "user":
            turns = turns[:-1]
        return _templated(tokenizer, turns)

    return draw


def raw_text(read: Callable[[Record], str]) -> Draw:
    """The text's tokens, without a template, up to a random one; at least two, and never all of them."""

    def draw(
        tokenizer: PreTrainedTokenizerBase, records: Records, index: int, shots: int, rng: Random
    ) -> Drawn:
        text = _read(read, records, index)

        def ids() -> list[int]:
            whole = chat_ids(tokenizer, text, template=False)
            if len(whole) < 3:
                raise Unusable("too_short")
            return whole[: rng.randrange(2, len(whole))]

        return Drawn((text,), ids)

    return draw


def few_shot(read: Callable[[Record], Example]) -> Draw:
    """One user turn: `shots` solved examples, drawn from the other records of the set, and the question."""

    def draw(
        tokenizer: PreTrainedTokenizerBase, records: Records, index: int, shots: int, rng: Random
    ) -> Drawn:
        asked = _read(read, records, index).question
        solved, tried = dict[str, str](), {index}
        while len(solved) < shots:
            if len(tried) == len(records):
                raise Unusable("too_few_examples")
            other = rng.randrange(len(records))
            if other not in tried:
                tried.add(other)
                example = _read(read, records, other)
                if example.answer and example.question != asked:
                    solved[example.question] = example.answer
        examples = [f"{question} {answer}" for question, answer in solved.items()]
        templated = _templated(tokenizer, [{"role": "user", "content": "\n\n".join([*examples, asked])}])
        return Drawn((asked, *examples), templated.ids)

    return draw


def _templated(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> Drawn:
    if not turns or not turns[-1]["content"].strip():
        raise Unusable("no_user_turn")
    try:
        text = conversation_text(tokenizer, turns)
    except Unrendered:  # some templates know no system turn, or want user and assistant in turn
        raise Unusable("refused_by_template") from None
    return Drawn((text,), lambda: list(tokenizer(text, add_special_tokens=False).input_ids))


def _field(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if not isinstance(value, kind):
        found = f"is a {type(value).__name__}" if key in record else "is missing"
        raise Malformed(f"the field {key!r} {found}, expected a {kind.__name__}")
    return value


def _texts(record: Mapping[str, Any], key: str) -> list[str]:
    values = _field(record, key, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise Malformed(f"the field {key!r} is not a list of str")
    return values


def messages(record: Record) -> Turns:
    """Tulu-3: messages [{role, content}]."""
    turns = _field(record, "messages", list)
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "content")):
            raise Malformed("the field 'messages' is not a list of {role, content} in text")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def chatqa2(record: Record) -> Turns:
    """ChatQA2: `question` holds document and question in long_sft, `sub-paragraphs` the document elsewhere.

    The set writes its own "User: " before the question and "Assistant:" behind it; both go, whatever is
    between them stays.
    """
    question = (
        _field(record, "question", str).strip().removeprefix("User:").removesuffix("Assistant:").strip()
    )
    document = _field(record, "sub-paragraphs", str).strip() if record.get("sub-paragraphs") else ""
    return [{"role": "user", "content": f"{document}\n\n{question}" if document else question}]


def text(record: Record) -> str:
    """The Stack: content."""
    return _field(record, "content", str)


def metamath(record: Record) -> Example:
    """MetaMathQA: query, response."""
    query, response = _field(record, "query", str), _field(record, "response", str)
    return Example(f"Problem: {query.strip()}\nSolution:", response.strip())


def arc(record: Record) -> Example:
    """ARC: question, choices {text, label}, answerKey (a label)."""
    choices = _field(record, "choices", dict)
    options = dict(zip(_texts(choices, "label"), _texts(choices, "text"), strict=False))
    if len(options) != len(choices["label"]) or len(options) != len(choices["text"]):
        raise Malformed("the field 'choices' has not one text for each label")
    key = _field(record, "answerKey", str).strip()
    if key and key not in options:
        raise Malformed(f"the field 'answerKey' is {key!r}, no label of its choices")
    listed = "\n".join(f"({label}) {option}" for label, option in options.items())
    question = _field(record, "question", str).strip()
    return Example(f"Question: {question}\n{listed}\nAnswer:", f"({key}) {options[key]}" if key else None)


def hellaswag(record: Record) -> Example:
    """HellaSwag: ctx, endings, label (an ending's number as text; empty in the test split)."""
    endings, label = _texts(record, "endings"), str(record.get("label", ""))
    if label and label not in map(str, range(len(endings))):
        raise Malformed(f"the field 'label' is {label!r}, no number of one of {len(endings)} endings")
    listed = "\n".join(f"({number}) {ending}" for number, ending in enumerate(endings))
    context = _field(record, "ctx", str).strip()
    return Example(
        f"Beginning: {context}\n{listed}\nBest ending:", f"({label}) {endings[int(label)]}" if label else None
    )


SCHEMAS = {
    "chatqa2": Schema(("question", "sub-paragraphs"), conversation(chatqa2)),
    "messages": Schema(("messages",), conversation(messages)),
    "text": Schema(("content",), raw_text(text)),
    "metamath": Schema(("query", "response"), few_shot(metamath), few_shot=True),
    "arc": Schema(("question", "choices", "answerKey"), few_shot(arc), few_shot=True),
    "hellaswag": Schema(("ctx", "endings", "label"), few_shot(hellaswag), few_shot=True),
}
