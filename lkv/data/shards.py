"""Large frozen files: read record by record, and written in shards that a killed run goes on from.

A shard is finished once its sidecar is there (lkv.data.frozen): its SHA-256, and the run that it is part of.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

from lkv.data.frozen import facts_of, freeze, load, sidecar
from lkv.errors import UserError
from lkv.files.json_files import parse_line
from lkv.files.reading import require
from lkv.files.sums import sha256_file

log = logging.getLogger("lkv")

Notify = Callable[[str], None]


# What a prompt holds, and of which kind; then what one holds that can be trained on.
PROMPT = {"id": "count", "kind": "name", "length": "some", "ids": "counts"}
ANSWERED = PROMPT | {"response": "counts"}


class Stored(Sequence[dict[str, Any]]):
    """A frozen file of prompts, checked once and then read from disk: `lengths` are their tokens, `answers`
    those of their responses, 0 where there are none yet, `largest` is the largest token of all."""

    def __init__(self, path: str | Path, holds: Mapping[str, str] = PROMPT) -> None:
        load(path)  # the check; its records are not read here
        self.path = Path(path)
        self.sha256: str = facts_of(path)["sha256"]
        self.lengths, self.answers, self._starts = array("q"), array("q"), array("q", [0])
        self.largest = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                place = f"{path}, line {number}"
                record = require(parse_line(line, place), holds, place, "lkv data train")
                if record["length"] != len(record["ids"]):
                    found = f"{len(record['ids'])} ids, its length is {record['length']}"
                    raise UserError(f"{place} has {found}; make the prompts again with lkv data train")
                response = record.get("response", ())
                self.largest = max(self.largest, *record["ids"], *response)
                self.lengths.append(record["length"])
                self.answers.append(len(response))
                self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        with self.path.open("rb") as stream:
            stream.seek(self._starts[place])
            record: dict[str, Any] = json.loads(stream.read(self._starts[place + 1] - self._starts[place]))
        return record

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as stream:
            yield from map(json.loads, stream)


def finished(path: Path, run: Mapping[str, Any], notify: Notify = log.warning) -> bool:
    """Whether a shard of `run` is there and whole; a damaged one is announced, another run's refused."""
    if not sidecar(path).is_file():
        return False
    try:
        facts = facts_of(path, run="object")
        made = facts["run"]
    except (UserError, LookupError):
        notify(f"{sidecar(path)} is damaged; its answers are generated again")
        return False
    if made != run:
        key = next(key for key in [*run, *made] if made.get(key) != run.get(key))
        raise UserError(
            f"{path} is of another run ({key}: {made.get(key)!r}, now {run.get(key)!r}); "
            f"delete {path.parent}, or go back to those settings"
        )
    if not path.is_file() or sha256_file(path) != facts["sha256"]:
        notify(f"{path} is damaged or missing; its answers are generated again")
        return False
    return True


def join(path: str | Path, prompts: Stored, shards: Sequence[Path], **facts: Any) -> None:
    """Freezes the prompts in their order, each with the response that one of `shards` holds for its id."""
    where: dict[int, tuple[int, int]] = {}
    with ExitStack() as stack:
        streams = [stack.enter_context(shard.open("rb")) for shard in shards]
        for number, stream in enumerate(streams):
            start = 0
            for line in stream:
                where[json.loads(line)["id"]] = number, start
                start += len(line)

        def answered() -> Iterator[dict[str, Any]]:
            for prompt in prompts:
                number, start = where[prompt["id"]]
                streams[number].seek(start)
                yield {**prompt, "response": json.loads(streams[number].readline())["response"]}

        freeze(path, answered(), **facts)
