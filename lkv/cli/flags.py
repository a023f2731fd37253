"""Flags that several commands share, and flags made from the keys of a study's config."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from lkv.cli.arguments import FEW, MOST, method_name, number_above_0, small_number, temperature_number, whole
from lkv.registry import FULL, METHODS, SELF
from lkv.study.settings.benchmarks import Protocol
from lkv.study.settings.declare import MISSING, Declared, declared
from lkv.study.settings.study import Study
from lkv.study.settings.training import Choosing

METAVARS = {int: "N", float: "X", str: "TEXT"}


def settings(parser: ArgumentParser, section: type, *keys: str) -> None:
    """A flag per key of a config's section, with its type, choices, default and meaning."""
    for key in keys:
        setting(parser, section, key)


def setting(parser: ArgumentParser, section: type, key: str, flag: str = "", **others: Any) -> None:
    """The flag of one key; `others` are argparse's arguments in which it differs."""
    words = _arguments(declared(section)[key])
    if "default" in others or "required" in others:
        words["help"] = words["help"].partition(" (default: ")[0]
    parser.add_argument(f"--{(flag or key).replace('_', '-')}", **words | others)


def _arguments(entry: Declared) -> dict[str, Any]:
    words: dict[str, Any] = {"help": entry.key.help}
    [kind, *more] = entry.kinds
    if kind is bool:
        return words | {"action": "store_true"}
    several = next((each for each in entry.kinds if get_origin(each) is list), None)
    if several is not None:
        words["nargs"] = "+"
        kind = kind if more else get_args(several)[0]
    words |= {"choices": entry.choices} if entry.choices else _type(kind, entry)
    if entry.default is MISSING:
        return words | {"required": True}
    if entry.default is None:
        return words | {"help": f"{entry.key.help} (default: {entry.key.null})", "default": None}
    return words | {"default": _default(entry.default, kind, several is not None)}


def _type(kind: Any, entry: Declared) -> dict[str, Any]:
    types: dict[Any, Callable[[str], Any]] = {
        float: number_above_0 if entry.key.positive else temperature_number
    }
    if kind is int:
        types[int] = whole(entry.key.least or 0, entry.key.most or (FEW if entry.key.few else MOST))
    return {"metavar": METAVARS[kind]} | ({"type": types[kind]} if kind in types else {})


def _default(value: Any, kind: Any, several: bool) -> Any:
    if several and not isinstance(value, list):
        return [value]
    if kind is float:
        return [float(each) for each in value] if several else float(value)
    return value


def model(parser: ArgumentParser, meaning: str = "folder made by lkv model", required: bool = True) -> None:
    parser.add_argument("--model", type=Path, required=required, metavar="FOLDER", help=meaning)


def runs(parser: ArgumentParser) -> None:
    """Flags of a command that computes: on which device, in which numbers."""
    setting(
        parser,
        Study,
        "device",
        choices=None,
        metavar="DEVICE",
        help="auto (a GPU if there is one), cpu or cuda",
    )
    setting(
        parser, Study, "dtype", choices=None, metavar="DTYPE",
        help="auto (bfloat16 where the device computes in it), float32 or bfloat16",
    )  # fmt: skip


def seed(parser: ArgumentParser) -> None:
    setting(parser, Study, "seed", help="seed of all that is drawn")


def processes(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=small_number,
        default=1,
        metavar="N",
        help="processes that share the work, each on a GPU of its own",
    )


def out(parser: ArgumentParser, what: str, metavar: str = "FILE") -> None:
    parser.add_argument("--out", type=Path, required=True, metavar=metavar, help=f"{what} to write")


def journal(parser: ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--journal",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"JSONL of finished {what}; a second run goes on from it",
    )


def adapts(parser: ArgumentParser) -> None:
    """What single methods need: trained modules and how they choose, a draft model."""
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FOLDER",
        help="modules made by lkv train, which lookaheadkv needs (default: none)",
    )
    parser.add_argument(
        "--draft",
        metavar="FOLDER",
        help=f"the draft model of methods that need one: a folder of lkv model, or {SELF} (default: none)",
    )
    group = parser.add_argument_group("how lookaheadkv chooses entries")
    settings(group, Choosing, *declared(Choosing))  # type: ignore[arg-type]


def compares(parser: ArgumentParser, study: bool = True) -> None:
    """Flags of a command that runs several methods at several budgets."""
    parser.add_argument(
        "--methods",
        nargs="+",
        type=method_name,
        required=True,
        metavar="METHOD",
        help=f"methods to run: {', '.join([FULL, *METHODS])}",
    )
    setting(parser, Study, "budgets", required=True, default=None, help="entries kept per layer and KV head")
    if study:
        parser.add_argument("--study", required=True, metavar="NAME", help="name written into every row")
    adapts(parser)


def follows(parser: ArgumentParser) -> None:
    """Flags that say by which protocol a benchmark is run."""
    setting(parser, Protocol, "name", "protocol", choices=None, metavar="NAME")
    settings(parser, Protocol, "template", "max_prompt")
    parser.add_argument(
        "--question-blind",
        action="store_true",
        help="evict from the context alone; the question is read afterwards",
    )
