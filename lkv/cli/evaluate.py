"""`lkv evaluate` and `lkv inspect`"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lkv.cli import flags
from lkv.cli.arguments import positive_number
from lkv.cli.command import Command
from lkv.cli.loading import check_comparison, load_model, method_of_arm, named_methods, notify, sample_records
from lkv.registry import EXAMPLE
from lkv.study.settings.benchmarks import Protocol
from lkv.study.settings.study import Inspect, Study
from lkv.study.versions import VERSIONS

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def evaluate(args: Arguments) -> None:
    """score the answers to one task under methods and budgets"""
    from lkv.measure.accuracy import evaluate

    check_comparison(args)
    records = sample_records(args.data)
    loaded = load_model(args)
    methods = [method for method in named_methods(args, loaded) if method is not None]
    methods += [method_of_arm(word, args, loaded) for word in args.arms]
    if args.samples:
        taken = records[: args.samples]
        records = [record | {"planned": min(record["planned"], args.samples)} for record in taken]
    notice = evaluate(
        loaded,
        records,
        methods,
        args.budgets,
        args.study,
        args.seed,
        args.journal,
        args.out,
        VERSIONS["evaluate"],
        args.temperatures,
    )
    notify(notice)
    log.info("%d methods x %d budgets in %s", len(methods), len(args.budgets), args.out)


def inspect(args: Arguments) -> None:
    """record which tokens each method keeps, and the recall of the oracle's choice by layer"""
    from lkv.measure.recall import inspect

    check_comparison(args)
    records = sample_records(args.data)[: args.samples]
    loaded = load_model(args)
    methods = [method for method in named_methods(args, loaded) if method is not None]
    inspect(loaded, records, methods, args.budgets, args.study, args.seed, args.recall, args.kept)
    log.info("%d methods x %d budgets in %s and %s", len(methods), len(args.budgets), args.recall, args.kept)


def evaluate_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    _data_flag(parser)
    parser.add_argument(
        "--samples", type=positive_number, metavar="N", help="evaluate the first so many (default: all)"
    )
    flags.compares(parser)
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER[,KEY=VALUE...]",
        help="lookaheadkv in several ways: modules, each with its own group, pool, kernel, order and beside; "
        "the first stands in the rows as lookaheadkv (default: none)",
    )
    flags.settings(parser, Protocol, "temperatures")
    flags.seed(parser)
    flags.runs(parser)
    flags.settings(parser, Study, "jobs_per_gpu")
    flags.journal(parser, "answers")
    flags.out(parser, "CSV of scored samples")


def inspect_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    _data_flag(parser)
    flags.setting(parser, Inspect, "samples", help="inspect the first so many")
    flags.compares(parser)
    flags.seed(parser)
    flags.runs(parser)
    parser.add_argument(
        "--recall",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV of recall by layer and KV head to write",
    )
    parser.add_argument(
        "--kept",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV of the first sample's kept tokens to write",
    )


def _data_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="prompts made by lkv data ruler, longbench or longproc",
    )


COMPARED = (
    "--model models/smollm2-135m-instruct --adapter adapters/smollm2-135m-instruct "
    "--data data/demo/ruler/smollm2-135m-instruct/niah_single_1@1024.jsonl "
    f"--methods {EXAMPLE} --budgets 64 128 --study mine "
)
COMMANDS = [
    Command(
        "evaluate",
        evaluate,
        evaluate_flags,
        f"{COMPARED}--journal results/mine/journal.jsonl --out results/mine/niah_single_1.csv",
    ),
    Command(
        "inspect",
        inspect,
        inspect_flags,
        f"{COMPARED.replace('full ', '')}--recall results/mine/recall.csv --kept results/mine/kept.csv",
    ),
]
