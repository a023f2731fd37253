"""`lkv latency` and `lkv throughput`"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lkv.cli import flags
from lkv.cli.arguments import positive_number
from lkv.cli.command import Command
from lkv.cli.loading import check_comparison, load_model, named_methods, sample_records
from lkv.errors import UserError
from lkv.registry import EXAMPLE, FULL, SELF, needing
from lkv.study.schema import read_spec
from lkv.study.settings.study import Latency

if TYPE_CHECKING:
    from lkv.interface import Method
    from lkv.model.load import Loaded

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def latency(args: Arguments) -> None:
    """time what each method adds to a plain prefill, in milliseconds and memory"""
    from lkv.files.atomic import is_stream
    from lkv.measure.latency import latency
    from lkv.measure.timing import filler
    from lkv.results.columns import LATENCY_COLUMNS
    from lkv.results.csv_files import write_csv

    if bool(args.model) == bool(args.shape):
        raise UserError("give either --model (real weights) or --shape (a model's YAML: random weights)")
    if len(args.repeats) not in (1, len(args.lengths)):
        raise UserError(
            f"{len(args.repeats)} --repeats for {len(args.lengths)} --lengths; give one, or one a length"
        )
    check_comparison(args)
    if args.shape:
        loaded, methods = _of_shape(args)
        vocabulary = loaded.model.config.vocab_size
        draw = random.Random(0)
        prompts = {length: draw.choices(range(vocabulary), k=length) for length in args.lengths}
    else:
        loaded = load_model(args)
        methods = named_methods(args, loaded)
        prompts = {length: filler(loaded.tokenizer, length) for length in args.lengths}
    each = args.repeats if len(args.repeats) > 1 else args.repeats * len(args.lengths)
    rows: list[dict[str, Any]] = []
    measured = latency(
        loaded,
        prompts,
        methods,
        args.budgets,
        dict(zip(args.lengths, each, strict=True)),
        args.warmups,
        args.study,
        "random" if args.shape else "real",
        args.ways,
        _draft_shape(args),
        args.batches,
    )
    for of_length in measured:
        rows += of_length
        if not is_stream(args.out):
            write_csv(args.out, rows, LATENCY_COLUMNS)  # what is measured stays, whatever stops the rest
    write_csv(args.out, rows, LATENCY_COLUMNS)
    log.info("%d rows in %s", len(rows), args.out)


def _draft_shape(args: Arguments) -> Any:
    """The shape of the draft model, from which its theoretical overhead is computed."""
    from lkv.model.shape import Shape

    if not args.shape or args.draft in (None, SELF):
        return None
    return Shape(**read_spec(Path(args.draft))["shape"])


def _of_shape(args: Arguments) -> tuple[Loaded, list[Method | None]]:
    """A model of random weights, and the methods with a random draft model and adapter."""
    from lkv.distributed import gpu_lease as device
    from lkv.lookahead.adapter import LookaheadKV
    from lkv.model.random_weights import of_shape
    from lkv.registry import get

    place = device.pick(args.device)
    loaded = of_shape(read_spec(args.shape), place, args.dtype)
    print(f"{loaded.name}, random weights, on {place}, {loaded.dtype}, attention {loaded.backend}")
    draft: Loaded | Literal["self"] | None = SELF if args.draft == SELF else None
    if needing("draft", args.methods) and args.draft not in (None, SELF):
        draft = of_shape(read_spec(Path(args.draft)), place, args.dtype)
    adapter = LookaheadKV.create(loaded.model).requires_grad_(False).to(loaded.model.dtype)
    return loaded, [
        None if name == FULL else get(name, adapter, None, draft, loaded.tokenizer) for name in args.methods
    ]


def throughput(args: Arguments) -> None:
    """time a whole evaluation, and compare it with kvpress"""
    from lkv.measure.throughput import ratio, throughput
    from lkv.results.columns import THROUGHPUT_COLUMNS
    from lkv.results.csv_files import read_csv

    check_comparison(args)
    if args.against:
        read_csv(args.against, THROUGHPUT_COLUMNS)  # now, not after the runs
    tasks = [sample_records(path)[: args.samples] for path in args.data]
    loaded = load_model(args)
    methods = [method for method in named_methods(args, loaded) if method is not None]
    rows = throughput(loaded, tasks, methods, args.budgets, args.out)
    for row in rows:
        speed = f"{row['seconds']:.1f} s, {row['cells_per_s']:.1f} a second"
        print(f"run {row['run']}: {row['cells']} cells in {speed}")
    if args.against:
        print(ratio(rows, args.against))


def latency_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser, "folder made by lkv model (default: none; give --shape)", required=False)
    parser.add_argument(
        "--shape",
        type=Path,
        metavar="FILE",
        help="a model's YAML: random weights of its shape; --draft is then such a file too (default: none)",
    )
    flags.settings(parser, Latency, "lengths", "repeats", "warmups", "ways", "batches")
    flags.compares(parser)
    flags.runs(parser)
    flags.out(parser, "CSV of times")


def throughput_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    parser.add_argument(
        "--data", nargs="+", type=Path, required=True, metavar="FILE", help="prompts made by lkv data ruler"
    )
    parser.add_argument(
        "--samples", type=positive_number, metavar="N", help="the first so many of each file (default: all)"
    )
    flags.compares(parser, study=False)
    flags.runs(parser)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="CSV made by python -m lkv.integrations.kvpress; prints the ratio of speeds (default: none)",
    )
    flags.out(parser, "CSV of speeds")


MODEL = "--model models/smollm2-135m-instruct"
DATA = "data/demo/ruler/smollm2-135m-instruct"
COMMANDS = [
    Command(
        "latency",
        latency,
        latency_flags,
        f"{MODEL} --adapter adapters/smollm2-135m-instruct --methods {EXAMPLE} --budgets 128 "
        "--lengths 512 1024 --repeats 3 --study mine --out results/mine/latency.csv",
    ),
    Command(
        "throughput",
        throughput,
        throughput_flags,
        f"{MODEL} --data {DATA}/niah_single_1@1024.jsonl {DATA}/niah_single_2@1024.jsonl "
        f"--adapter adapters/smollm2-135m-instruct --methods {EXAMPLE} --budgets 64 128 "
        "--out results/mine/throughput.csv",
    ),
]
