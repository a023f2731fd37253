"""Predictions that others made, by the harness that wrote them: where they lie, and one record at a time.

- LongBench's pred.py and NVIDIA's RULER: a folder of TASK.jsonl (RULER also in parts, TASK-0.jsonl, …).
- KVCache-Factory: a folder MODEL_C with TASK/METHOD.json, which are JSONL too.
- kvpress: predictions.csv, all tasks in one file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lkv.bench.ruler import kvpress_csv as ruler_csv
from lkv.errors import UserError, one_of
from lkv.files.json_files import read_jsonl
from lkv.files.reading import require

COINCIDING = 5  # different rows in a row, from which on repeating a file's beginning is no coincidence


class Prediction(NamedTuple):
    """One answer, its references and class names; `record` is all that was written, `place` where.

    `named`: the record holds what tells it from every other sample's, such as the question.
    """

    task: str
    text: str
    answers: list[str]
    classes: list[str] | None
    place: str
    record: Mapping[str, Any]
    named: bool = True


class Files(NamedTuple):
    """Each task's files, what else lies there, and whether they are KVCache-Factory's."""

    of_task: dict[str, list[Path]]
    left_out: list[str]
    by_method: bool = False


def table(path: Path) -> Path | None:
    """The CSV that a path names or a folder holds; None if it is a folder without one."""
    if not path.is_dir():
        return path
    found = [path / name for name in ("predictions.csv", "predictions.csv.gz") if (path / name).is_file()]
    return found[0] if found else None


def files(
    folder: Path, benchmark: str, tasks: Iterable[str], method: str | None, others: Sequence[str] = ()
) -> Files:
    """The predictions of `tasks` in a folder. `others`: tasks that are left out without a word of refusal."""
    known = list(tasks)
    if any((folder / task).is_dir() for task in known):
        return _by_method(folder, known, method)
    if method is not None:
        raise UserError(f"--method {method}: {folder} has no TASK/METHOD.json; leave --method out")
    of_task: dict[str, list[Path]] = {}
    left_out = []
    for path in sorted(folder.iterdir()):
        task = path.stem if path.stem in known else re.sub(r"-\d+$", "", path.stem)
        if path.suffix != ".jsonl" or path.stem.endswith("_e") or path.stem in others:
            left_out.append(path.name)
        elif task in known:
            of_task.setdefault(task, []).append(path)
        else:
            raise one_of(f"{benchmark} task", path.stem, known, f"rename {path} or move it away")
    return Files(of_task, left_out)


def _by_method(folder: Path, tasks: Sequence[str], method: str | None) -> Files:
    there = {task: sorted((folder / task).glob("*.json")) for task in tasks}
    names = sorted({path.stem for paths in there.values() for path in paths} - {"metrics"})  # eval.py's own
    if method is None and len(names) > 1:
        raise UserError(f"{folder} has predictions of {', '.join(names)}; give one as --method")
    chosen = method or next(iter(names), "METHOD")
    of_task = {task: [path] for task, paths in there.items() for path in paths if path.stem == chosen}
    if not of_task:
        raise one_of(f"method in {folder}:", chosen, names, "the files are TASK/METHOD.json")
    return Files(of_task, sorted(path.name for path in folder.iterdir() if path.name not in tasks), True)


def records(task: str, path: Path, answers: str, maker: str) -> Iterator[Prediction]:
    """A task's JSONL; `answers` names the field of the references, without its s that of a single one."""
    for number, record in enumerate(read_jsonl(path, halves=True), 1):
        place = f"{path}, line {number}"
        if answers not in record and (single := record.get(answers.removesuffix("s"))) is not None:
            record = record | {answers: [single]}  # RULER's own older field
        require(record, ("pred", answers), place, maker)
        if not isinstance(record["pred"], str):
            raise UserError(f"{place}: pred must be a text, found {type(record['pred']).__name__}")
        if not texts(record[answers]) or not any(answer.strip() for answer in record[answers]):
            raise UserError(f"{place}: {answers} must be a list of texts and hold one that is not empty")
        classes = record.get("all_classes")
        if classes is not None and not texts(classes):
            raise UserError(f"{place}: all_classes must be a list of texts or null")
        yield Prediction(task, record["pred"], record[answers], classes, place, record)


def rows(path: Path, benchmark: str, tasks: Iterable[str], answers: str) -> Iterator[Prediction]:
    """kvpress's CSV, `answers` being the name of the references' column."""
    known = list(tasks)
    for place, row in ruler_csv.rows(path, ("task", answers, "predicted_answer")):
        if row["task"] not in known:
            raise one_of(f"{benchmark} task in {place}:", row["task"], known)
        found = ruler_csv.references(row[answers])
        if not found or not all(found):
            given = row[answers][:40]
            raise UserError(f"{place}: {answers} must be a list of texts, none empty; found {given!r}")
        classes = ruler_csv.references(row.get("all_classes", ""))
        named = bool(row.get("question") or row.get("_id"))
        yield Prediction(row["task"], row["predicted_answer"], found, classes or None, place, row, named)


def texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class Once:
    """Refuses a prediction that was given before, where two can be told apart.

    kvpress's query-aware rows hold no question: there equal rows may be two samples with one answer. They
    are counted, and refused only where a file goes on with its own beginning.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}
        self._nameless: list[tuple[bytes, str]] = []
        self._alike: dict[str, int] = {}

    def note(self, of: Prediction, twice: bool = False) -> None:
        """`twice`: it may stand there once more."""
        index = of.record.get("index")
        key = _hash([of.task, dict(of.record) if index is None else index])
        if not of.named:
            self._nameless.append((key, of.place))
            self._alike[of.task] = self._alike.get(of.task, 0) + (key in self._seen)
            self._seen[key] = of.place
            return
        if twice and key in self._seen:
            key = b"twin" + key
        if key in self._seen:
            what = "the same record as in" if index is None else f"index {index} again, as in"
            raise UserError(f"{of.place}: {what} {self._seen[key]}; give each prediction once")
        self._seen[key] = of.place

    def notices(self) -> list[str]:
        """What to say of equal rows, after the last one."""
        keys = [key for key, _ in self._nameless]
        again = _border(keys)
        if len(set(keys[:again])) >= COINCIDING:
            first, begins = self._nameless[len(keys) - again][1], self._nameless[0][1]
            raise UserError(
                f"{first}: from here on the rows are those from {begins} on; give each prediction once"
            )
        alike = [f"{task} {count}" for task, count in self._alike.items() if count]
        if not alike:
            return []
        return [f"rows equal to an earlier one, counted as they hold no question: {', '.join(alike)}"]


def _hash(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _border(keys: Sequence[bytes]) -> int:
    """The length of their longest end, not all, that is the beginning too (Knuth, Morris, Pratt)."""
    lengths = [0] * len(keys)
    for at in range(1, len(keys)):
        length = lengths[at - 1]
        while length and keys[at] != keys[length]:
            length = lengths[length - 1]
        lengths[at] = length + (keys[at] == keys[length])
    return lengths[-1] if keys else 0
