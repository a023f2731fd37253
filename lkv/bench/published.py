"""Scores of what others made: LongBench and RULER predictions of the official code and of other harnesses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from lkv.bench import predictions
from lkv.bench.longbench import tasks as longbench
from lkv.bench.longbench.metrics import CODE_VARIANTS, FIRST_LINE, share
from lkv.bench.predictions import Once, Prediction
from lkv.bench.ruler import tasks as ruler
from lkv.errors import UserError, one_of
from lkv.files.atomic import atomic_write

CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
KVPRESS, OFFICIAL = "kvpress", "ruler"  # ways to clean an answer

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
    cleaning: str | None = None,
    method: str | None = None,
) -> tuple[str, list[str]]:
    """(CSV text with `task,n,score`, notices) for `longbench` or `ruler`: see lkv.bench.predictions.

    The text is written to `out` too, if given, but not when anything is wrong with the predictions.
    """
    if benchmark == "longbench":
        scored, notices = score_longbench(path, code, cleaning, method)
    elif benchmark == "ruler":
        scored, notices = score_ruler(path, cleaning, method)
    else:
        raise one_of("benchmark", benchmark, ("longbench", "ruler"))
    text = "".join(["task,n,score\n", *(f"{row['task']},{row['n']},{row['score']:.2f}\n" for row in scored)])
    if out is not None:
        with atomic_write(out) as stream:
            stream.write(text)
    return text, notices


def score_longbench(
    path: str | Path, code: str = "difflib", cleaning: str | None = None, method: str | None = None
) -> tuple[list[Row], list[str]]:
    """(rows in table order, notices). `code` is the variant of code_sim, `method` one of KVCache-Factory's.

    Chinese tasks, LongBench-E and whatever is no JSONL are left out. Before the first line of few-shot tasks
    kvpress strips all blanks, the official code newlines alone: `cleaning`, by default that of the harness.
    """
    if code not in CODE_VARIANTS:
        raise one_of("variant of code_sim", code, CODE_VARIANTS)
    _known(cleaning)
    folder, shares, once = Path(path), dict[str, list[float]](), Once()

    def add(of: Prediction, by: str) -> None:
        _check_number(of, len(shares.get(of.task, [])) + 1)
        text = of.text.lstrip() if by == KVPRESS and of.task in FIRST_LINE else of.text
        gold = json.dumps([of.answers, of.record.get("length")]).encode()
        once.note(of, twice=hashlib.sha256(gold).hexdigest()[:16] in TWINS)
        try:
            shares.setdefault(of.task, []).append(share(of.task, text, of.answers, of.classes or (), code))
        except UserError as error:
            raise UserError(f"{of.place}: {error}") from None

    left_out: list[str] = []
    if csv := predictions.table(folder) if folder.suffix in (".csv", ".gz") or folder.is_dir() else None:
        for of in predictions.rows(csv, "LongBench", longbench.TASKS, "answers"):
            add(of, cleaning or KVPRESS)
    else:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give the folder that holds LongBench's TASK.jsonl files")
        found = predictions.files(folder, "LongBench", longbench.TASKS, method, CHINESE)
        left_out = found.left_out
        for task, file in ((task, file) for task, listed in found.of_task.items() for file in listed):
            for of in predictions.records(task, file, "answers", "LongBench's pred.py"):
                if "all_classes" not in of.record:
                    raise UserError(f"{of.place} lacks all_classes; give a file made by LongBench's pred.py")
                add(of, cleaning or OFFICIAL)
            if task not in shares:
                raise UserError(f"{file} has no predictions; run the task again, or move the file away")
    if not shares:
        raise UserError(f"{folder} has no file of a LongBench task, such as qasper.jsonl; correct the path")
    scored = [_row(task, shares[task], 100) for task in longbench.TASKS if task in shares]
    planned = {task: row.samples for task, row in longbench.TASKS.items()}
    said = [f"left out: {', '.join(left_out)}"] if left_out else []
    return scored, [*said, *once.notices(), *_gaps(scored, planned)]


def score_ruler(
    path: str | Path, cleaning: str | None = None, method: str | None = None
) -> tuple[list[Row], list[str]]:
    """(rows in table order, notices). `method` is one of KVCache-Factory's.

    `cleaning` is what becomes of control characters: kvpress deletes them, RULER makes them newlines; by
    default what the harness does whose predictions these are.
    """
    _known(cleaning)
    path, scores, once = Path(path), dict[str, list[float]](), Once()

    def add(of: Prediction, by: str) -> None:
        once.note(of)
        metric = ruler.TASKS[of.task].metric
        scores.setdefault(of.task, []).append(ruler.string_match(of.text, of.answers, metric, by))

    left_out: list[str] = []
    if csv := predictions.table(path):
        for of in predictions.rows(csv, "RULER", ruler.TASKS, "answer"):
            add(of, cleaning or KVPRESS)
    else:
        lengths = sorted(item.name for item in path.iterdir() if item.name.isdecimal() and item.is_dir())
        if lengths:
            raise UserError(f"{path} holds several lengths; give one of them: {path / lengths[0]}")
        found = predictions.files(path, "RULER", ruler.TASKS, method)
        left_out = found.left_out
        answers, maker = ("answers", "KVCache-Factory") if found.by_method else ("outputs", "RULER")
        for task, file in ((task, file) for task, listed in found.of_task.items() for file in listed):
            for of in predictions.records(task, file, answers, f"{maker}'s runner"):
                add(of, cleaning or OFFICIAL)
    if not scores:
        raise UserError(
            f"{path} has no predictions; give a predictions.csv as kvpress writes it, a folder with RULER's "
            "TASK.jsonl, or one with KVCache-Factory's TASK/METHOD.json"
        )
    scored = [_row(task, scores[task], 1) for task in ruler.TASKS if task in scores]
    said = [f"left out: {', '.join(left_out)}"] if left_out else []
    return scored, [*said, *once.notices(), *_gaps(scored, dict.fromkeys(ruler.TASKS, ruler.SAMPLES))]


def _known(cleaning: str | None) -> None:
    if cleaning is not None and cleaning not in ruler.CLEANINGS:
        raise one_of("cleaning", cleaning, ruler.CLEANINGS)


def _check_number(of: Prediction, number: int) -> None:
    if number > (official := longbench.TASKS[of.task].samples):
        file = of.place.rpartition(", line ")[0]
        raise UserError(
            f"{file} has more than LongBench's {official} predictions of {of.task}; "
            "a second run was appended to it, or it is LongBench-E: give one run of LongBench"
        )


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
