"""The files that each command writes, and a check before any work that nothing of the user's is lost.

A path given to a command is an input unless the table below lists it as an output. No output may be an input,
another output, a file that lkv did not write, or what a later run would read as part of an input.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lkv.bench.longbench import tasks as longbench
from lkv.data.documents import PIN
from lkv.errors import UserError
from lkv.files import sums
from lkv.files.atomic import is_stream, sweep, target
from lkv.files.reading import expanded
from lkv.registry import SELF
from lkv.results import columns, recognise
from lkv.results.paths import PATHS
from lkv.results.recognise import Ours, csv_of, json_of, jsonl_of

Arguments = argparse.Namespace


@dataclass(frozen=True)
class Output:
    """One file or folder that a command writes, and how a file that lkv wrote before is recognised."""

    path: Path
    ours: Ours | None  # True for a file of lkv's; None: a folder, which the command itself checks
    alone: bool = True  # one file, written once and not read again: it may as well be a stream
    holds: tuple[Output, ...] = ()  # of a folder: what lies in it and is written again


# What `lkv gather` joins: kind → columns.
GATHERED = {
    "training": columns.TRAINING_COLUMNS,
    "latency": columns.LATENCY_COLUMNS,
    "recall": columns.RECALL_COLUMNS,
    "kept": columns.KEPT_COLUMNS,
}
Writes = Callable[[Path, Arguments], list[Output]]


def _file(ours: Ours, alone: bool = True) -> Writes:
    return lambda path, args: [Output(path, ours, alone)]


def _csv(*columns: str, alone: bool = True) -> Writes:
    return _file(csv_of(columns), alone)


def _frozen(*keys: str) -> Writes:
    """Frozen data: a JSONL file, and a JSON file with its facts."""
    facts = json_of("sha256", "records")
    return lambda path, args: [
        Output(path, jsonl_of(*keys), alone=False),
        Output(path.with_suffix(".json"), facts, alone=False),
    ]


def _training_data(path: Path, args: Arguments) -> list[Output]:
    prompts = _frozen("id", "length", "ids")
    unanswered = prompts(path.with_suffix(".prompts.jsonl"), args)
    answers = path.with_suffix(".answers")
    shards = [*answers.glob("shard-?????.jsonl"), *answers.glob("shard-?????.json")]
    holds = tuple(Output(shard, recognise.shard) for shard in sorted(shards))
    return [*prompts(path, args), *unanswered, Output(answers, None, holds=holds)]


def _adapter(*others: tuple[str, Ours]) -> Writes:
    """A folder with trained modules, and with `others`."""
    parts = {
        **dict.fromkeys(recognise.PEFT_FILES, recognise.adapter_part),
        recognise.LEARNED: recognise.text_of(r'^(?s:.){8}[^\n]*"tokens"'),
        recognise.LOOKAHEAD: json_of("base_model", "sha256"),
        **dict(others),
    }
    return lambda path, args: [Output(path / name, ours, alone=False) for name, ours in parts.items()]


def _rendered(**suffixes: Ours) -> Writes:
    """Files side by side, each with its suffix behind what is given."""

    def writes(path: Path, args: Arguments) -> list[Output]:
        if is_stream(path):
            raise UserError(
                f"--out {path} is no file, and {', '.join(suffixes)} are written; give a path without suffix"
            )
        return [Output(Path(f"{path}.{suffix}"), ours) for suffix, ours in suffixes.items()]

    return writes


def _gathered(path: Path, args: Arguments) -> list[Output]:
    return [Output(path, csv_of(GATHERED[args.kind]))]


BENCHMARK = _frozen("benchmark", "task", "sample", "planned")
JOURNAL = _file(recognise.journal, alone=False)
SAMPLES = _csv(*columns.SAMPLE_COLUMNS)
# Command → flag → the outputs at its path. Flags that are not listed are inputs.
WRITES: Mapping[str, Mapping[str, Writes]] = {
    "model": {"out": lambda path, args: [Output(path, None)]},
    "data_train": {"out": _training_data},
    "data_ruler": {"out": BENCHMARK},
    "data_longbench": {"out": BENCHMARK},
    "data_longproc": {"out": BENCHMARK},
    "train": {
        "out": _adapter(("checkpoint.pt", recognise.checkpoint)),
        "csv": _csv(*columns.TRAINING_COLUMNS),
    },
    "evaluate": {"journal": JOURNAL, "out": SAMPLES},
    "inspect": {"recall": _csv(*columns.RECALL_COLUMNS), "kept": _csv(*columns.KEPT_COLUMNS)},
    "mtbench": {"journal": JOURNAL, "out": _file(jsonl_of("question_id", "questions", "method"))},
    "judge": {
        "journal": JOURNAL,
        "judgements": _csv(*columns.JUDGEMENT_COLUMNS, alone=False),
        "out": SAMPLES,
    },
    "score": {"out": _csv("task", "n", "score")},
    "plan": {},
    "latency": {"out": _csv(*columns.LATENCY_COLUMNS, alone=False)},
    "throughput": {"out": _csv(*columns.THROUGHPUT_COLUMNS)},
    "summarise": {"out": _csv(*columns.ACCURACY_COLUMNS), "paired": _csv(*columns.PAIRED_COLUMNS)},
    "ablation": {"out": _csv(*columns.ABLATION_COLUMNS)},
    "arms": {"out": _csv(*columns.ARMS_COLUMNS)},
    "share": {"out": _adapter(("README.md", recognise.model_card))},
    "gather": {"out": _gathered},
    "provenance": {"out": _file(json_of("study", "commit", "config"))},
    "table": {
        "out": _rendered(
            pdf=recognise.table_pdf,
            md=recognise.markdown_table,
            tex=recognise.latex_table,
            html=recognise.html_table,
            csv=csv_of(columns.TABLE_COLUMNS),
        )
    },
    "plot": {"out": _rendered(pdf=recognise.plot_pdf, svg=recognise.plot_svg, png=recognise.plot_png)},
    "claims": {"out": _file(recognise.claims)},
    "generate": {},
    "ls": {},
}
LOG = _file(recognise.log)
NAMING = ("arms", "draft", "haystack", "hotpotqa", "ready", "source", "sources", "squad")  # paths in words
# Flags whose folder holds one thing, and nothing else may come into it.
WHOLE = dict.fromkeys(("model", "models", "draft"), "model")
WHOLE |= dict.fromkeys(("adapter", "adapters", "arms"), "adapter")
# What is read of the other folders that a flag names, by its path in them.
OF_A_STUDY = [Path(path).name for path in PATHS.values() if path.count("/") == 2]
STUDY = "|".join(map(re.escape, [*OF_A_STUDY, sums.LIST]))
READ = dict.fromkeys(("results", "latency", "also"), STUDY) | {
    "path": r"[^/]+\.jsonl|predictions\.csv(\.gz)?|[^/]+/[^/]+\.json",
    "ready": r"\d+\.(jsonl|csv|csv\.gz|parquet)|\d+/[^/]+\.jsonl|\d+/data/[^/]+/validation\.jsonl",
    "source": rf"({'|'.join(map(re.escape, longbench.TASKS))})\.jsonl",
    "data_folder": r"(data/)?(html_to_tsv/)?(html_to_tsv_[^/]+\.json|prompts\.yaml)",
}


def check(args: Arguments) -> None:
    """Refuses outputs that would do damage, and removes what killed processes left in their folders."""
    written, reads = list(_written(args)), list(_reads(args))
    for i, (flag, output) in enumerate(written):
        if _is_stream(flag, output):
            continue
        for other, found in reads:
            _unread(flag, output, other, found)
        for other, earlier in written[:i]:
            if not is_stream(earlier.path):
                _apart(flag, output, other, earlier)
        _check_place(flag, output)
    for folder in {_real(output.path).parent for _, output in written}:
        sweep(folder)


def check_log(args: Arguments) -> None:
    """Checks the log before all other outputs, because it is opened first to record their errors."""
    if args.log is None or is_stream(args.log):
        return
    [output] = LOG(args.log, args)
    for other, found in _reads(args):
        _unread("log", output, other, found)
    for other, written in _written(args):
        if other != "log":
            _apart("log", output, other, written)
    _check_place("log", output)


def _written(args: Arguments) -> Iterator[tuple[str, Output]]:
    if args.log is not None:
        yield from (("log", output) for output in LOG(args.log, args))
    for flag, writes in WRITES[args.run.__name__].items():
        if (path := getattr(args, flag) or _default(args, flag)) is not None:
            yield from ((flag, output) for output in writes(path, args))


def _default(args: Arguments, flag: str) -> Path | None:
    """Where `lkv score` writes without --out."""
    if (args.run.__name__, flag) != ("score", "out"):
        return None
    place: Path = args.path if args.path.is_dir() else args.path.parent
    return place / "scores.csv"


def _reads(args: Arguments) -> Iterator[tuple[str, Path]]:
    """(flag, path) of every input."""
    for flag, value in vars(args).items():
        if flag == "log" or flag in WRITES[args.run.__name__]:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Path):
                yield flag, item
            elif flag in NAMING and item not in (None, SELF):
                yield flag, _named(item)


def _named(item: Any) -> Path:
    """The path in `folder:PATH`, `NAME=FOLDER,KEY=VALUE`, {"data": "file:PATH"} or PATH, pinned or not."""
    text = str(item.get("data", "") if isinstance(item, dict) else item).partition(PIN)[0]
    kind, _, place = text.partition(":")
    if kind in ("folder", "zip", "file"):
        return expanded(place)
    return Path(re.sub(r"^[^/=]+=([^,]*).*", r"\1", text))


def _is_stream(flag: str, output: Output) -> bool:
    if output.ours is None or not is_stream(output.path):
        return False
    if not output.alone:
        raise UserError(
            f"--{flag} {output.path} is no file, and lkv writes it again and again, or reads it; give a file"
        )
    return True


def _real(path: Path) -> Path:
    """The path with links resolved; a link to itself stays as it is."""
    return Path(os.path.realpath(path))


def _same(one: Path, other: Path) -> bool:
    """True if two paths are one file, by name once links are resolved or by what is there."""
    if _real(one) == _real(other):
        return True
    return one.exists() and other.exists() and one.samefile(other)


def _unread(flag: str, output: Output, other: str, found: Path) -> None:
    """An output is nothing that is read as `other`: not now, and not by a later run."""
    way_out, given = f"give another --{flag}", f"--{flag} {output.path}"
    if _same(output.path, found):
        raise UserError(f"{given} is read as --{other}; {way_out}")
    source, named = _real(found), _real(output.path.parent) / output.path.name
    for place in (named, _real(named)):  # readers of a folder find a link in it by its name
        if other in WHOLE and source in place.parents:
            raise UserError(f"{given} lies in the {WHOLE[other]}'s folder; {way_out}")
        if _is_part(place, other, source):
            raise UserError(f"{given} would be read as part of --{other} {found}; {way_out}")
        if output.ours is None and place in source.parents:
            raise UserError(f"{given} holds {found}, which is read as --{other}; {way_out}")


def _is_part(place: Path, other: str, source: Path) -> bool:
    """Whether a reader of a folder, or of a pattern of names, would take up what lies at `place`."""
    if source in place.parents:
        inside = place.relative_to(source).as_posix()
        return other in READ and re.fullmatch(READ[other], inside) is not None
    return "*" in source.name and place.match(str(source))


def _apart(flag: str, output: Output, other: str, earlier: Output) -> None:
    """Refuses two outputs at one path, or one at the path of the other's folder."""
    one, two = _real(output.path), _real(earlier.path)
    if _same(one, two) or one in two.parents or two in one.parents:
        way_out = (
            "give a name with another suffix, such as .jsonl" if flag == other else f"give another --{flag}"
        )
        raise UserError(
            f"--{flag} {output.path} is in the way of {earlier.path}, which --{other} writes; {way_out}"
        )


def _check_place(flag: str, output: Output) -> None:
    """A file of ours, an empty one or none lies there, and a file can be made there."""
    path, way_out = output.path, f"give another --{flag}"
    place = path if output.ours is None else target(path)
    if output.ours is not None and place.exists() and place.stat().st_size and not output.ours(place):
        raise UserError(
            f"--{flag}: {path} is there and is no such file as lkv writes; "
            f"it is left as it is: move it away, or {way_out}"
        )
    if output.ours is None and place.exists() and not place.is_dir():
        raise UserError(f"--{flag}: {path} is there and is no folder; {way_out}")
    if place.exists() and not place.stat().st_mode & stat.S_IWUSR:
        raise UserError(
            f"--{flag}: {path} is write-protected; it is left as it is: chmod u+w it, or {way_out}"
        )
    for part in output.holds:
        _check_place(flag, part)
    above = next(parent for parent in _real(path).parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"--{flag} {path}: {above} is no folder; correct the path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"--{flag} {path}: nothing can be written in {above}; correct the path, or its permissions"
        )
