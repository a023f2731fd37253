"""Training prompts of natural length out of public instruction sets: the paper's mixture (training data).

A conversation is cut before its last answer by position, and the tokenizer's own chat template writes what is
left: nothing searches the text for the template's marks. The model then answers for itself
(lkv.lookahead.responses). What the paper does not say is ours: the number and the wording of few-shot
examples, and that those prompts are one user turn.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lkv.data.frozen import facts_of, freeze, sidecar
from lkv.data.shards import Stored
from lkv.data.tables import FORMS, File, Records, locate
from lkv.errors import UserError, one_of
from lkv.files.json_files import fingerprint
from lkv.files.reading import KINDS, shown
from lkv.files.sums import sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from lkv.data.schemas import SCHEMAS, Unusable

log = logging.getLogger("lkv")


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
