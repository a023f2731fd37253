"""A folder with one small good file of every kind, and the ways in which a file can be bad."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lkv.cli.main import main
from lkv.data.frozen import freeze
from lkv.files.json_files import HASH
from lkv.files.sums import beside as sums

Change = Callable[[Path], object]
ON_CPU = "--device cpu --dtype float32"
TEXT = "Rain fell on the harbour, and the boats stayed in. " * 4
STUDY = {
    "study": "s", "seed": 1, "models": ["tiny"], "device": "cpu", "dtype": "float32",
    "methods": ["full", "snapkv"], "budgets": [40],
    "ruler": {"tasks": ["niah_single_1"], "lengths": [512], "samples": 2},
    "latency": {"lengths": [64], "budgets": [40], "methods": ["full", "snapkv"], "repeats": 1},
}  # fmt: skip
SPEC = {"name": "tiny", "licence": "none", "source": {"kind": "random", "family": "llama", "context": 4096}}
RECORD = {
    "benchmark": "ruler", "task": "niah_single_1", "length": 256, "planned": 2, "haystack": "noise",
    "protocol": "official", "question_aware": True, "template": True, "input": TEXT, "question_at": 0,
    "answer_prefix": "It is", "outputs": ["x"], "classes": [], "metric": "all", "max_new_tokens": 4,
    "stops": [], "min_new_tokens": 0, "prompt_tokens": 140,
}  # fmt: skip
PROMPT = {"kind": "log", "length": 64, "ids": list(range(64)), "documents": [], "response": [1, 2]}
PAGE = {
    "task_id": "a", "website_id": "w", "html_path": "html_to_tsv/page.html", "task_topic": "plants",
    "task_description": "(1) plant", "gt": "Plant\tHeight\nOak\t20", "tsv_header": "Plant\tHeight",
    "filtering_instruction": "",
}  # fmt: skip
SQUAD = {"data": [{"title": "t", "paragraphs": [
    {"context": "Oak is a tree.", "qas": [{"question": "What is oak?", "id": "q", "is_impossible": False,
                                           "answers": [{"text": "a tree", "answer_start": 7}]}]},
    {"context": "Ash is a tree too.", "qas": []}]}]}  # fmt: skip
HOTPOT = [{"question": "What is oak?", "answer": "a tree", "supporting_facts": [["Oak", 0]],
           "context": [["Oak", ["Oak is a tree."]], ["Ash", ["Ash is a tree."]]]}]  # fmt: skip
READY = {"context": "Oak is a tree. ", "question": "What is oak?", "answer_prefix": "It is",
         "answer": ["a tree"], "task": "qa_1", "max_new_tokens": 8}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command that has to be refused in a copy of the good folder, after `changes` to some of its files."""

    name: str
    command: str
    says: str  # what the one line must hold
    changes: Mapping[str, Change] = field(default_factory=dict)


def make_world(root: Path) -> None:
    """Fills `root`, the working directory, through the verbs themselves where they make such a file."""
    dump(root / "tiny.yaml", SPEC)
    dump(root / "config/models/tiny.yaml", SPEC)
    dump(root / "study.yaml", STUDY)
    freeze(root / "ruler.jsonl", [RECORD | {"sample": i} for i in range(2)], task="niah_single_1", length=256)
    freeze(root / "train.jsonl", [PROMPT | {"id": i} for i in range(4)], mixture={"log": 1})
    (root / "out").mkdir()
    (root / "prompt.txt").write_text(TEXT)
    _benchmarks(root)
    of_study = f"{ON_CPU} --methods full snapkv --budgets 40"
    done = [
        "model --spec tiny.yaml --out model",
        f"train --model model --data train.jsonl --steps 2 --batch 2 --held-out 2 {ON_CPU} --out adapter "
        "--csv results/training.csv",
        f"evaluate --model model --data ruler.jsonl {of_study} --study s --journal journal.jsonl "
        "--out samples.csv",
        "summarise --parts samples.csv --out results/accuracy.csv --paired results/paired.csv",
        f"inspect --model model --data ruler.jsonl {of_study} --study s --recall results/recall_by_layer.csv "
        "--kept results/kept.csv",
        f"latency --model model {of_study} --lengths 64 --repeats 1 --warmups 0 --study s "
        "--out results/latency.csv",
        f"throughput --model model --data ruler.jsonl {of_study} --out throughput.csv",
        f"mtbench --model model --questions questions.jsonl --max-new-tokens 4 {of_study} --study s "
        "--journal answers.journal.jsonl --out answers.jsonl",
        "provenance --config study.yaml --models model --data ruler.jsonl --adapters adapter "
        "--device cpu --dtype float32 --out results/provenance.json",
        "arms --cards adapter/lookahead.json --out results/arms.csv",
    ]
    for command in done:
        assert main(command.split()) == 0, command


def _benchmarks(root: Path) -> None:
    pages = root / "longproc/html_to_tsv"
    pages.mkdir(parents=True)
    (pages / "page.html").write_text("<td>Oak</td>")
    jsons(pages / "html_to_tsv_0.5k.json", [PAGE])
    dump(pages / "prompts.yaml", {"USER_PROMPT": "PAGE {html_str} END {task_description}"})
    record = {"input": "What?", "context": "Oak.", "answers": ["oak"], "all_classes": None, "_id": "1"}
    lines(root / "longbench/qasper.jsonl", [record | {"dataset": "qasper"}])
    lines(root / "ready/512.jsonl", [READY])
    jsons(root / "squad.json", SQUAD)
    jsons(root / "hotpot.json", HOTPOT)
    jsons(root / "essays.json", {"text": TEXT * 40})
    lines(root / "questions.jsonl", [{"question_id": 1, "category": "writing", "turns": ["Hi.", "Again."]}])
    lines(root / "references.jsonl", [{"question_id": 1, "choices": [{"turns": ["a", "b"]}]}])
    names = [base + turn for base in ("single-v1", "single-math-v1") for turn in ("", "-multi-turn")]
    wording = {"system_prompt": "Grade.", "prompt_template": "{question_1}"}
    lines(root / "wordings.jsonl", [wording | {"name": name} for name in names])
    lines(root / "pred/qasper.jsonl", [{"pred": "oak", "answers": ["oak"], "all_classes": None, "length": 3}])
    (root / "predictions.csv").write_text("task,answer,predicted_answer\nqa_1,\"['a tree']\",a tree\n")
    lines(root / "chats.jsonl", [{"messages": [{"role": "user", "content": f"Hi {i}"}]} for i in range(3)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def jsons(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def listing(root: Path) -> dict[str, str]:
    """Every path below `root`, with its kind and mode, and the SHA-256 of what is a file."""
    found, folders = {}, [str(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    folders.append(entry.path)
                found[os.path.relpath(entry.path, root)] = f"{mode:o} {_digest(entry)}"
    return found


SETTLED = 50_000_000  # nanoseconds after which a write has a time stamp of its own
_digests: dict[tuple[str, int, int, int, int], str] = {}


def _digest(entry: os.DirEntry[str]) -> str:
    """The SHA-256 of a file, or of the file behind a link; what nobody has written to is not read again."""
    if not os.path.isfile(entry.path):
        return ""
    now, facts = time.time_ns(), os.stat(entry.path)
    state = (entry.path, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if state not in _digests:
        digest = sha256(Path(entry.path))
        if now - facts.st_ctime_ns < SETTLED:
            return digest
        _digests[state] = digest
    return _digests[state]


def restore(good: Path, used: Path) -> None:
    """Makes `used` the same as `good` again."""
    wanted, found = listing(good), listing(used)
    for name in sorted(found, reverse=True):  # what is in a folder before the folder
        if wanted.get(name) != found.get(name):
            path = used / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            found = {other: of for other, of in found.items() if not f"{other}/".startswith(f"{name}/")}
    for name in sorted(wanted):
        if name not in found:
            twin, path = good / name, used / name
            path.mkdir() if twin.is_dir() else shutil.copy(twin, path)


# Changes: each takes the path of a good file and leaves a bad one there.


def content(value: bytes | str) -> Change:
    return lambda path: path.write_bytes(value if isinstance(value, bytes) else value.encode("utf-8"))


def removed(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def binary(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(400) + b"\0\xff\n")


def utf16(path: Path) -> None:
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))


def latin(path: Path) -> None:
    path.write_bytes(path.read_bytes() + "Größe".encode("latin-1") + b"\n")


def broken_gz(path: Path) -> None:
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(packed[: len(packed) // 2])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def added(text: str) -> Change:
    return lambda path: path.write_bytes(path.read_bytes() + text.encode("utf-8"))


def cell(column: str, value: str, row: int = 0) -> Change:
    """One cell of a CSV."""

    def change(path: Path) -> None:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows = list(reader)
        rows[row][column] = value
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, reader.fieldnames or [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    return change


def key(*places: str | int, value: object) -> Change:
    """One value of a JSON or YAML file, at a path of keys; `...` drops it."""

    def change(path: Path) -> None:
        read, write = (yaml.safe_load, dump) if path.suffix == ".yaml" else (json.loads, jsons)
        whole = inner = read(path.read_text(encoding="utf-8"))
        for place in places[:-1]:
            inner = inner[place]
        if value is ...:
            del inner[places[-1]]
        else:
            inner[places[-1]] = value
        write(path, whole)

    return change


def line(name: str, value: object, number: int = 0) -> Change:
    """One field of one line of a JSONL file; `...` drops it. A sidecar's hash is mended."""

    def change(path: Path) -> None:
        found = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        if value is ...:
            del found[number][name]
        else:
            found[number][name] = value
        lines(path, found)
        rehashed(path)

    return change


def rehashed(path: Path) -> None:
    """A frozen file's sidecar says that it is whole, and nothing says what a result's bytes were: bad content
    must be found as such."""
    if path.suffix in (".csv", ".gz"):
        sums(path).unlink(missing_ok=True)
    facts = path.with_suffix(".json")
    if path.suffix == ".jsonl" and facts.is_file():
        made = json.loads(facts.read_text(encoding="utf-8"))
        made.pop(HASH, None)  # as somebody would write it who makes such files
        jsons(facts, made | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def also(*changes: Change) -> Change:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


HUGE = 10**30
DEEP = "[" * 200_000
MANY_DIGITS = "9" * 5_000
HALF = '"\\ud800"'
