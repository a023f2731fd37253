"""Scores of what others made: official LongBench predictions, and RULER predictions of kvpress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from lkv.bench import longbench, ruler, ruler_csv
from lkv.bench.longbench_metrics import CODE_VARIANTS, share
from lkv.errors import UserError, one_of
from lkv.records import atomic_write, read_jsonl, require

CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
PREDICTION = ("pred", "answers", "all_classes")
COLUMNS = ("task", "answer", "predicted_answer")

# The four pairs of official LongBench records that agree in answers and length: first digits of a SHA-256.
TWINS = {"7ebb71cf477f15ed", "7cd38d54c483f06b", "265e2e020fc5830b", "28e567a1cdd19c79"}


class Row(TypedDict):
    """One task's score: 0 to 100, two decimals, over n predictions."""

    task: str
    n: int
    score: float


def score_published(
    benchmark: str,
    path: str | Path,
    out: str | Path | None = None,
    code: str = "difflib",
    cleaning: str = "kvpress",
) -> tuple[str, list[str]]:
    """(CSV text with `task,n,score`, notices) for `longbench`, a folder, or for `ruler`, a CSV.

    The text is written to `out` too, if given, but not when anything is wrong with the predictions.
    """
    if benchmark == "longbench":
        scored, notices = score_longbench(path, code)
    elif benchmark == "ruler":
        scored, notices = score_ruler(path, cleaning)
    else:
        raise one_of("benchmark", benchmark, ("longbench", "ruler"))
    text = "".join(["task,n,score\n", *(f"{row['task']},{row['n']},{row['score']:.2f}\n" for row in scored)])
    if out is not None:
        with atomic_write(out) as stream:
            stream.write(text)
    return text, notices


def score_longbench(folder: str | Path, code: str = "difflib") -> tuple[list[Row], list[str]]:
    """(rows in table order, notices) of a folder with TASK.jsonl files as LongBench's pred.py writes them.

    `code` is the variant of code_sim. Chinese tasks, LongBench-E and whatever is no JSONL are left out.
    """
    if code not in CODE_VARIANTS:
        raise one_of("variant of code_sim", code, CODE_VARIANTS)
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that holds LongBench's TASK.jsonl files")
    files, left_out = {}, []
    for path in sorted(folder.iterdir()):
        task = path.stem
        if path.suffix != ".jsonl" or task.removesuffix("_e") != task or task in CHINESE:
            left_out.append(path.name)
        elif task in longbench.TASKS:
            files[task] = path
        else:
            raise one_of("LongBench task", task, longbench.TASKS, f"rename {path} or move it away")
    if not files:
        raise UserError(f"{folder} has no file of a LongBench task, such as qasper.jsonl; correct the path")
    scored = [_longbench_task(task, files[task], code) for task in longbench.TASKS if task in files]
    planned = {task: row.samples for task, row in longbench.TASKS.items()}
    return scored, [*([f"left out: {', '.join(left_out)}"] if left_out else []), *_gaps(scored, planned)]


def score_ruler(path: str | Path, cleaning: str = "kvpress") -> tuple[list[Row], list[str]]:
    """(rows in table order, notices) of kvpress's predictions.csv, or the folder that holds it.

    `cleaning` is what becomes of control characters: kvpress deletes them, RULER makes them newlines.
    """
    if cleaning not in ruler.CLEANINGS:
        raise one_of("cleaning", cleaning, ruler.CLEANINGS)
    path = Path(path)
    path = path / "predictions.csv" if path.is_dir() else path
    scores: dict[str, list[float]] = {}
    seen: dict[bytes, str] = {}
    for place, row in ruler_csv.rows(path, COLUMNS):
        task, answers = row["task"], ruler_csv.references(row["answer"])
        if task not in ruler.TASKS:
            raise one_of(f"RULER task in {place}:", task, ruler.TASKS)
        if not answers or not all(answers):
            raise UserError(
                f"{place}: answer must be a list of texts, none empty; found {row['answer'][:40]!r}"
            )
        _once(row, place, seen)
        metric = ruler.TASKS[task].metric
        scores.setdefault(task, []).append(
            ruler.string_match(row["predicted_answer"], answers, metric, cleaning)
        )
    if not scores:
        raise UserError(f"{path} has no predictions; give a predictions.csv as kvpress writes it")
    scored = [_row(task, scores[task], 1) for task in ruler.TASKS if task in scores]
    return scored, _gaps(scored, dict.fromkeys(ruler.TASKS, ruler.SAMPLES))


def _longbench_task(task: str, path: Path, code: str) -> Row:
    official = longbench.TASKS[task].samples
    shares: list[float] = []
    seen: dict[bytes, str] = {}
    for number, record in enumerate(read_jsonl(path, halves=True), 1):
        place = f"{path}, line {number}"
        require(record, PREDICTION, place, "LongBench's pred.py")
        prediction, answers, classes = (record[name] for name in PREDICTION)
        if not isinstance(prediction, str):
            raise UserError(f"{place}: pred must be a text, found {type(prediction).__name__}")
        if not _texts(answers) or not any(answer.strip() for answer in answers):
            raise UserError(f"{place}: answers must be a list of texts and hold one that is not empty")
        if classes is not None and not _texts(classes):
            raise UserError(f"{place}: all_classes must be a list of texts or null")
        if number > official:
            raise UserError(
                f"{path} has more than LongBench's {official} predictions of {task}; "
                "a second run was appended to it, or it is LongBench-E: give one run of LongBench"
            )
        gold = json.dumps([answers, record.get("length")]).encode()
        _once(record, place, seen, twice=hashlib.sha256(gold).hexdigest()[:16] in TWINS)
        try:
            shares.append(share(task, prediction, answers, classes or (), code))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not shares:
        raise UserError(f"{path} has no predictions; run the task again, or move the file away")
    return _row(task, shares, 100)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _once(record: Mapping[str, Any], place: str, seen: dict[bytes, str], twice: bool = False) -> None:
    """Notes a record in `seen`; refuses one that stands there, but once where it may come twice."""
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()
    if twice and key in seen:
        key = b"twin" + key
    if key in seen:
        raise UserError(f"{place}: the same record as in {seen[key]}; give each prediction once")
    seen[key] = place


def _row(task: str, scores: list[float], scale: float) -> Row:
    # LongBench's own order of operations, so that the second decimal is its own.
    return {"task": task, "n": len(scores), "score": round(scale * sum(scores) / len(scores), 2)}


def _gaps(scored: Iterable[Row], planned: Mapping[str, int]) -> list[str]:
    """Notices of tasks that are not there, or not with all their samples."""
    found = {row["task"]: row["n"] for row in scored}
    short = [
        f"{task} {found[task]} of {n}" for task, n in planned.items() if task in found and found[task] < n
    ]
    absent = [task for task in planned if task not in found]
    return [
        *([f"incomplete, fewer predictions than the task has: {', '.join(short)}"] if short else []),
        *([f"no predictions of {', '.join(absent)}"] if absent else []),
    ]
