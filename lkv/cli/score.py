"""`lkv score`"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lkv.cli.command import Command
from lkv.cli.loading import notify

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def score(args: Arguments) -> None:
    """score predictions made by another program"""
    from lkv.bench.published import score_published

    folder = args.path if args.path.is_dir() else args.path.parent
    out = args.out or folder / "scores.csv"
    text, notices = score_published(args.benchmark, args.path, out, args.code, args.cleaning, args.method)
    print(text, end="")
    for notice in notices:
        notify(notice)
    log.info("%s", out)


def score_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="folder of TASK.jsonl or of TASK/METHOD.json, or kvpress' predictions.csv",
    )
    parser.add_argument(
        "--benchmark",
        choices=["longbench", "ruler"],
        required=True,
        help="whose metrics score the predictions",
    )
    parser.add_argument(
        "--method", metavar="NAME", help="which METHOD of TASK/METHOD.json (default: the only one there is)"
    )
    parser.add_argument(
        "--cleaning",
        choices=["kvpress", "ruler"],
        help="how answers are cleaned (default: as by the program that wrote them)",
    )
    parser.add_argument(
        "--code", choices=["difflib", "levenshtein"], default="difflib", help="how generated code is compared"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="CSV of scores to write (default: scores.csv in PATH or next to it)",
    )


COMMANDS = [
    Command(
        "score",
        score,
        score_flags,
        "--benchmark longbench sources/LongBench/pred/llama2-7b-chat-4k --out results/mine/scores.csv",
        "predictions, here those that LongBench publishes",
    )
]
