"""`lkv ls`"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from lkv.cli.command import Command
from lkv.registry import FULL, METHODS, smallest_budget
from lkv.report.kinds import PLOTS

Rows = Iterator[tuple[str, str]]


def ls(args: argparse.Namespace) -> None:
    """list the methods, models, tasks or plots that there are"""
    rows = list(KINDS[args.kind]())
    width = max((len(name) for name, _ in rows), default=0)
    print("\n".join(f"{name:<{width}}  {note}" for name, note in rows))


def _methods() -> Rows:
    yield FULL, "the whole cache, nothing is evicted"
    for name in METHODS:
        yield name, f"budgets of {smallest_budget(name)} or more"


def _models() -> Rows:
    from lkv.results.paths import SPEC
    from lkv.study.schema import known_models, model_spec

    for name in known_models(Path()):
        spec = model_spec(name)
        context = f", {spec['context']:,} tokens" if spec.get("context") else ""
        yield name, f"{spec['source']['kind']}, {spec['licence']}{context}; {SPEC.format(model=name)}"


def _tasks() -> Rows:
    from lkv.bench import longproc
    from lkv.bench.longbench import tasks as longbench
    from lkv.bench.ruler import tasks as ruler

    for benchmark, module in (("ruler", ruler), ("longbench", longbench), ("longproc", longproc)):
        yield from ((task, benchmark) for task in module.TASKS)


def _plots() -> Rows:
    from lkv.study.targets import title

    yield from ((kind, title(kind).text) for kind in PLOTS)


KINDS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "models": _models,
    "tasks": _tasks,
    "plots": _plots,
}


def ls_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=list(KINDS), help="what to list")


COMMANDS = [Command("ls", ls, ls_flags, "methods")]
