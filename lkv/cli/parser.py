"""The command line: every command in its group; each file of commands says what its flags are."""

from __future__ import annotations

from lkv.cli import (
    benchmark_data,
    evaluate,
    generate,
    latency,
    ls,
    model,
    mtbench,
    plan,
    report,
    score,
    steps,
    train,
    training_data,
)
from lkv.cli.command import Parser, Top, add
from lkv.cli.completion import SHELLS, PrintCompletion
from lkv.version import __version__

GROUPS = {
    "use": [*generate.COMMANDS, *ls.COMMANDS],
    "make models and data": [*model.COMMANDS, *training_data.COMMANDS, *benchmark_data.COMMANDS],
    "train": train.COMMANDS,
    "evaluate and time": [*evaluate.COMMANDS, *mtbench.COMMANDS, *score.COMMANDS, *latency.COMMANDS],
    "read results": report.COMMANDS,
    "run a study": plan.COMMANDS,
    "steps that the workflow calls": steps.COMMANDS,
}
EPILOG = """A study runs these commands from one config: snakemake --cores 8 all
example: lkv generate --help"""


def parser() -> Top:
    """The parser of `lkv`."""
    top = Top(
        prog="lkv",
        description="Train, run and compare LookaheadKV and other methods of KV cache eviction.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"lkv {__version__}", help="print the version")
    top.add_argument(
        "--completion",
        action=PrintCompletion,
        choices=SHELLS,
        help="print a completion script for this shell",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    commands.type = str  # a command's own parser checks the words behind it, and names them
    text = "make training prompts, or the prompts of a benchmark"
    data = commands.add_parser("data", help=text, description=text)
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)
    kinds.type = str
    for group in GROUPS.values():
        for command in group:
            add(kinds if command.name.startswith("data ") else commands, command)
    top.groups = {
        title: list(dict.fromkeys(command.name.split()[0] for command in group))
        for title, group in GROUPS.items()
    }
    return top
