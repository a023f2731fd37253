"""`lkv data ruler`, `longbench` and `longproc`"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lkv.bench.protocol import Protocol, protocol
from lkv.cli import flags
from lkv.cli.arguments import positive_number
from lkv.cli.command import Command
from lkv.study.settings.benchmarks import LongBench, LongProc, Ruler

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def data_ruler(args: Arguments) -> None:
    """make the prompts of one RULER task at one length, frozen with a hash"""
    from lkv.bench.ruler import tasks as ruler
    from lkv.bench.ruler.ready_made import build_ready
    from lkv.model.tokenizer import load_tokenizer

    tokenizer, protocol = load_tokenizer(args.model), _protocol(args)
    if args.ready:
        records = build_ready(
            args.task, args.length, args.ready, tokenizer, protocol, args.samples, args.max_new_tokens
        )
    else:
        records = ruler.build(
            args.task,
            args.length,
            args.samples,
            args.seed,
            tokenizer,
            haystack=args.haystack,
            squad=args.squad,
            hotpotqa=args.hotpotqa,
            max_new_tokens=args.max_new_tokens,
            protocol=protocol,
        )
    _freeze(args, records, args.length, seed=args.seed)


def data_longbench(args: Arguments) -> None:
    """make the prompts of one LongBench task, filled in and cut"""
    from lkv.bench.longbench.tasks import build
    from lkv.model.tokenizer import load_tokenizer

    tokenizer, context = load_tokenizer(args.model), _context(args.model)
    protocol, limits = _protocol(args), (args.samples, args.max_new_tokens, context)
    _freeze(args, build(args.task, args.source, tokenizer, protocol, *limits), source=args.source)


def data_longproc(args: Arguments) -> None:
    """make the prompts of one LongProc task from a local copy of its data"""
    from lkv.bench.longproc import build
    from lkv.model.tokenizer import load_tokenizer

    tokenizer, context = load_tokenizer(args.model), _context(args.model)
    protocol, limits = _protocol(args), (args.samples, args.max_new_tokens, context)
    _freeze(args, build(args.task, args.data_folder, tokenizer, protocol, *limits))


def _protocol(args: Arguments) -> Protocol:
    """The protocol of the command line; the model's card fills the gaps (a base model's prompts stay raw)."""
    from lkv.model.card import read_card

    card = read_card(args.model)
    named = {
        "name": args.protocol,
        "template": "none" if card["chat_template"] == "none" else args.template,
        "max_prompt": args.max_prompt,
        "question_aware": not args.question_blind,
    }
    return protocol(named, card["max_prompt"])


def _context(folder: Path) -> int | None:
    """The context of a model in tokens, if its card states it."""
    from lkv.model.card import read_card

    most: int | None = read_card(folder).get("context")
    return most


def _freeze(args: Arguments, records: Iterable[dict[str, Any]], length: int = 0, **facts: Any) -> None:
    """Writes a benchmark's records with their hash. Raises UserError for a task without records."""
    from lkv.data.frozen import freeze

    made = freeze(
        args.out,
        records,
        task=args.task,
        length=length,
        tokenizer=args.model.name,
        protocol=_protocol(args).label(args.kind, args.max_new_tokens),
        **facts,
    )
    log.info("%s@%d: %d samples in %s", args.task, length, made, args.out)


def data_ruler_flags(parser: argparse.ArgumentParser) -> None:
    _task_flags(parser)
    parser.add_argument(
        "--length",
        type=positive_number,
        required=True,
        metavar="N",
        help="length in tokens, chat template and answer counted in",
    )
    flags.setting(parser, Ruler, "samples", help="samples to make")
    flags.settings(parser, Ruler, "max_new_tokens", "haystack", "squad", "hotpotqa", "ready")
    flags.follows(parser)
    flags.seed(parser)
    flags.out(parser, "JSONL of prompts")


def data_longbench_flags(parser: argparse.ArgumentParser) -> None:
    _task_flags(parser)
    flags.settings(parser, LongBench, "source", "samples", "max_new_tokens")
    flags.follows(parser)
    flags.out(parser, "JSONL of prompts")


def data_longproc_flags(parser: argparse.ArgumentParser) -> None:
    _task_flags(parser)
    flags.setting(parser, LongProc, "data", "data_folder", type=Path, metavar="FOLDER")
    flags.settings(parser, LongProc, "samples", "max_new_tokens")
    flags.follows(parser)
    flags.out(parser, "JSONL of prompts")


def _task_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser, "folder made by lkv model, whose tokenizer counts and cuts the prompts")
    parser.add_argument("--task", required=True, metavar="TASK", help="a name of lkv ls tasks")


MODEL = "--model models/smollm2-135m-instruct"
COMMANDS = [
    Command(
        "data ruler",
        data_ruler,
        data_ruler_flags,
        f"{MODEL} --task niah_single_1 --length 1024 --samples 6 --out data/mine/niah_single_1.jsonl",
    ),
    Command(
        "data longbench",
        data_longbench,
        data_longbench_flags,
        f"{MODEL} --task qasper --source hub:Xnhyacinth/LongBench --samples 4 --max-prompt 7500 "
        "--out data/mine/qasper.jsonl",
        "a network",
    ),
    Command(
        "data longproc",
        data_longproc,
        data_longproc_flags,
        f"{MODEL} --task html_to_tsv_0.5k --data-folder sources/LongProc/data --out data/mine/html.jsonl",
        "git clone https://github.com/princeton-pli/LongProc sources/LongProc",
    ),
]
