"""`lkv plan`"""

from __future__ import annotations

import argparse
from pathlib import Path

from lkv.cli.command import Command

Arguments = argparse.Namespace


def plan(args: Arguments) -> None:
    """estimate what a study costs: jobs, prompts, tokens, GPU-hours, disk"""
    from lkv.study.check import read_config
    from lkv.study.plan import lines

    print("\n".join(lines(read_config(args.config))))


def plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="config of the study")


COMMANDS = [Command("plan", plan, plan_flags, "--config config/paper.yaml")]
