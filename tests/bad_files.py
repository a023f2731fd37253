"""The campaign's cases: which command reads which file, and every way in which that file can be bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bad_input import (
    DEEP,
    HALF,
    MANY_DIGITS,
    ON_CPU,
    Case,
    Change,
    added,
    binary,
    broken_gz,
    cell,
    content,
    cut,
    dangling,
    endless,
    fifo,
    folder,
    latin,
    removed,
    to_itself,
    utf16,
)  # fmt: skip

METHODS = f"{ON_CPU} --methods full snapkv --budgets 40"
COMMANDS = {
    "model": "model --spec tiny.yaml --out out/model",
    "data train": "data train --model model --samples 2 --lengths 256 --mixture log=1 --response-tokens 2 "
    f"{ON_CPU} --out out/train.jsonl",
    "data sources": "data train --model model --response-tokens 2 "
    '--sources {"name":"c","schema":"messages","data":"file:chats.jsonl","count":3} '
    f"{ON_CPU} --out out/train.jsonl",
    "data ruler": "data ruler --model model --task niah_single_1 --length 1024 --samples 1 --out out/r.jsonl",
    "data essays": "data ruler --model model --task niah_single_2 --length 2048 --samples 1 "
    "--haystack essays.json --out out/r.jsonl",
    "data squad": "data ruler --model model --task qa_1 --length 512 --samples 1 --squad squad.json "
    "--out out/r.jsonl",
    "data hotpot": "data ruler --model model --task qa_2 --length 512 --samples 1 --hotpotqa hotpot.json "
    "--out out/r.jsonl",
    "data ready": "data ruler --model model --task qa_1 --length 512 --samples 1 --ready folder:ready "
    "--out out/r.jsonl",
    "data longbench": "data longbench --model model --task qasper --source folder:longbench "
    "--max-new-tokens 4 --out out/l.jsonl",
    "data longproc": "data longproc --model model --task html_to_tsv_0.5k --data-folder longproc "
    "--max-new-tokens 4 --out out/l.jsonl",
    "train": f"train --model model --data train.jsonl --steps 1 --batch 2 --held-out 2 {ON_CPU} "
    "--out out/adapter --csv out/training.csv",
    "evaluate": f"evaluate --model model --data ruler.jsonl {METHODS} --study s --journal out/j.jsonl "
    "--out out/s.csv",
    "evaluate adapted": "evaluate --model model --data ruler.jsonl --adapter adapter --methods lookaheadkv "
    f"--budgets 40 {ON_CPU} --study s --journal out/j.jsonl --out out/s.csv",
    "inspect": f"inspect --model model --data ruler.jsonl {METHODS} --study s --recall out/r.csv "
    "--kept out/k.csv",
    "mtbench": f"mtbench --model model --questions questions.jsonl --references references.jsonl {METHODS} "
    "--max-new-tokens 4 --study s --journal out/j.jsonl --out out/a.jsonl",
    "score longbench": "score --benchmark longbench pred --out out/s.csv",
    "score ruler": "score --benchmark ruler predictions.csv --out out/s.csv",
    "plan": "plan --config study.yaml",
    "latency": f"latency --model model {METHODS} --lengths 64 --repeats 1 --warmups 0 --study s "
    "--out out/l.csv",
    "throughput": f"throughput --model model --data ruler.jsonl {METHODS} --against throughput.csv "
    "--out out/t.csv",
    "summarise": "summarise --parts samples.csv --out out/a.csv --paired out/p.csv",
    "ablation": "ablation --parts samples.csv --out out/a.csv",
    "arms": "arms --cards adapter/lookahead.json --out out/a.csv",
    "share": "share --adapter adapter --licence MIT --out out/shared",
    "gather": "gather latency --parts results/latency.csv --out out/l.csv",
    "provenance": "provenance --config study.yaml --models model --data ruler.jsonl --adapters adapter "
    f"{ON_CPU} --out out/p.json",
    "table": "table --results results --out out/t",
    "plot latency": "plot latency --results results --out out/p",
    "plot pareto": "plot pareto --results results --out out/p",
    "plot training": "plot training --results results --out out/p",
    "plot averages": "plot averages --results results --out out/p",
    "plot accuracy": "plot accuracy --results results --out out/p",
    "plot recall": "plot recall --results results --out out/p",
    "plot kept": "plot kept --results results --out out/p",
    "claims": "claims --results results --out out/claims.md",
    "generate": f"generate --model model --adapter adapter --budget 40 --prompt-file prompt.txt {ON_CPU} "
    "--max-new-tokens 4",
}
JUDGE = (
    "judge --answers answers.jsonl --url http://127.0.0.1:9/v1 --model j --key-variable none "
    "--journal out/j.jsonl --judgements out/j.csv --out out/m.csv"
)  # succeeds with a server alone

# Which command reads a JSON or JSONL file, what the line on stderr holds, and which kinds are no fault there.
FILES = {
    "model/model.json": ("data ruler", "model.json", ()),
    "model/config.json": ("generate", "model", ()),
    "model/tokenizer.json": ("data ruler", "model", ()),
    "adapter/lookahead.json": ("arms", "lookahead.json", ()),
    "ruler.json": ("evaluate", "ruler.json", ()),
    "train.json": ("train", "train.json", ()),
    "results/provenance.json": ("table", "provenance.json", ("another object", "gone")),
    "squad.json": ("data squad", "squad.json", ()),
    "hotpot.json": ("data hotpot", "hotpot.json", ()),
    "essays.json": ("data essays", "essays.json", ()),
    "longproc/html_to_tsv/html_to_tsv_0.5k.json": ("data longproc", "html_to_tsv_0.5k.json", ()),
    "ruler.jsonl": ("evaluate", "ruler.jsonl", ()),
    "train.jsonl": ("train", "train.jsonl", ()),
    "questions.jsonl": ("mtbench", "questions.jsonl", ()),
    "references.jsonl": ("mtbench", "references.jsonl", ()),
    "answers.jsonl": ("judge", "answers.jsonl", ()),
    "wordings.jsonl": ("judge wordings", "wordings.jsonl", ()),
    "pred/qasper.jsonl": ("score longbench", "qasper.jsonl", ()),
    "longbench/qasper.jsonl": ("data longbench", "qasper|longbench", ()),
    "ready/512.jsonl": ("data ready", "ready", ("in Latin-1",)),  # the first line is enough
    "chats.jsonl": ("data sources", "chats.jsonl|no prompt came out", ()),
}
NO_JSON: dict[str, Change] = {
    "empty": content(b""),
    "binary": binary,
    "in UTF-16": utf16,
    "in Latin-1": latin,
    "cut": cut,
    "nested without end": content(DEEP),
    "a number of 5,000 digits": content(MANY_DIGITS),
    "half a character": content(HALF),
    "half a character inside": content('{"name": "\\uD83d", "sha256": {}}'),
    "a list": content("[1, 2]"),
    "a text": content('"text"'),
    "null": content("null"),
    "another object": content("{}"),
    "a folder": folder,
    "a pipe": fifo,
    "endless": endless,
    "a link to nowhere": dangling,
    "a link to itself": to_itself,
    "gone": removed,
}
# Which command reads a CSV.
TABLES = {
    "samples.csv": "summarise",
    "results/accuracy.csv": "plot averages",
    "results/paired.csv": "table",
    "results/latency.csv": "gather",
    "results/training.csv": "plot training",
    "results/recall_by_layer.csv": "plot recall",
    "results/kept.csv": "plot kept",
    "throughput.csv": "throughput",
}
NO_CSV: dict[str, Change] = {
    "empty": content(b""),
    "binary": binary,
    "in UTF-16": utf16,
    "in Latin-1": latin,
    "with an open quote": added('"open,1\n'),
    "with extra cells": added("1," * 60 + "\n"),
    "with a NUL": added("\0\0\n"),
    "of other columns": content("a,b\n1,2\n"),
    "JSON": content('{"a": 1}\n'),
    "a broken .gz": broken_gz,
    "a folder": folder,
    "a pipe": fifo,
    "endless": endless,
    "a link to nowhere": dangling,
}
# Cells that no run of ours writes.
CELLS = {
    "samples.csv": {
        "score": ("good", "inf", "-inf", "999", "-50", "1e308", "1,5"),
        "recall": ("1.5", "-0.1", "x"),
        "budget": ("-40", "x", "1e30", "40.5", "nan"),
        "sample": ("1.5", "x", "-1"),
        "planned": ("0", "x", "-2"),
        "length": ("x", "-1"),
        "kept_mean": ("-3", "inf"),
        "kept_bytes": ("-3", "x", "inf"),
        "status": ("fine", ""),
        "method": ("",),
    },
    "results/accuracy.csv": {"mean": ("x", "inf", "999"), "n": ("x", "-1"), "budget": ("x", "-1", "inf")},
    "results/latency.csv": {"median_ms": ("x", "inf"), "length": ("x", "-1"), "budget": ("x", "inf")},
    "results/training.csv": {"kl": ("x", "inf"), "step": ("x", "inf", "-1")},
    "results/recall_by_layer.csv": {"recall": ("x", "inf", "1.5", "-1"), "layer": ("x", "-1", "inf")},
    "results/kept.csv": {"kept": ("x", "inf"), "start": ("x", "-5")},
    "throughput.csv": {"seconds": ("x", "inf", "-1", "0"), "cells": ("x", "-1")},
}


def json_cases() -> Iterator[Case]:
    for file, (verb, says, fine) in FILES.items():
        for kind, change in NO_JSON.items():
            if kind not in fine:
                yield Case(f"{verb}: {file} is {kind}", command(verb), says, {file: change})


def csv_cases() -> Iterator[Case]:
    """Of a CSV that others wrote."""
    yield from _csv("predictions.csv", "score ruler")


def table_cases() -> Iterator[Case]:
    """Of our own result tables."""
    for file, verb in TABLES.items():
        yield from _csv(file, verb)


def _csv(file: str, verb: str) -> Iterator[Case]:
    for kind, change in NO_CSV.items():
        yield Case(f"{verb}: {file} is {kind}", command(verb), Path(file).name, {file: change})


def cell_cases() -> Iterator[Case]:
    for file, columns in CELLS.items():
        for column, values in columns.items():
            for value in values:
                name = f"{TABLES[file]}: {file} holds {value!r} as {column}"
                says = f"{Path(file).name}.*{column}"
                yield Case(name, command(TABLES[file]), says, {file: cell(column, value)})


def command(verb: str) -> str:
    if verb == "judge wordings":
        return f"{JUDGE} --prompts wordings.jsonl"
    return JUDGE if verb == "judge" else COMMANDS[verb]
