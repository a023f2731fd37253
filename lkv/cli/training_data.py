"""`lkv data train`"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.cli import flags
from lkv.cli.arguments import positive_number, source_word, weighted_name
from lkv.cli.command import Command
from lkv.cli.loading import load_model, notify
from lkv.errors import UserError, one_of
from lkv.study.budgets import check_once
from lkv.study.commands import NOT_GIVEN
from lkv.study.settings.training import Train
from lkv.study.versions import VERSIONS

if TYPE_CHECKING:
    from lkv.data.shards import Stored
    from lkv.model.load import Loaded

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def data_train(args: Arguments) -> None:
    """make training prompts, answered by the model itself or with true answers"""
    from lkv.data.prompts import KINDS
    from lkv.data.shards import Stored, join
    from lkv.distributed.group import group
    from lkv.lookahead.responses import respond_sharded
    from lkv.model.support import require_lookahead

    if bool(args.mixture) == bool(args.sources):
        raise UserError("give either --mixture (offline prompts) or --sources (data sets)")
    if args.sources and args.answers == "given":
        raise UserError(f"--answers given: {NOT_GIVEN}; allowed: --answers model, or a --mixture")
    if args.mixture and not (args.samples and args.lengths):
        raise UserError("--mixture needs --samples and --lengths")
    for kind, _ in args.mixture or []:
        if kind not in KINDS:
            raise one_of("kind of training prompt", kind, KINDS)
    check_once([kind for kind, _ in args.mixture or []], "--mixture")
    loaded = load_model(args)
    require_lookahead(loaded.model)
    prompts = args.out.with_suffix(".prompts.jsonl")
    with group(loaded.model.device) as together:
        built = _build_prompts(args, loaded, prompts) if together.first else None
        together.wait()
        stored, facts = built or (Stored(prompts), {})
        shards = respond_sharded(
            loaded,
            stored,
            args.response_tokens,
            args.batch,
            args.out.with_suffix(".answers"),
            version=VERSIONS["data"],
            notify=notify,
            group=together,
        )
    if not together.first:
        return
    join(args.out, stored, shards, seed=args.seed, model=loaded.name, fingerprint=loaded.fingerprint, **facts)
    log.info("%d prompts in %s", len(stored), args.out)


def _build_prompts(args: Arguments, loaded: Loaded, prompts: Path) -> tuple[Stored, dict[str, Any]]:
    """Freezes the training prompts, unanswered, in the file `prompts`; returns them and their facts."""
    from lkv.data.frozen import freeze, sidecar
    from lkv.data.mixture import frozen_mixture, notices
    from lkv.data.prompts import build
    from lkv.data.shards import Stored
    from lkv.files.json_files import read_json
    from lkv.lookahead.responses import check_fits

    if args.sources:
        context = loaded.context or args.max_tokens + args.response_tokens
        longest = min(args.max_tokens, context - args.response_tokens)
        stored = frozen_mixture(prompts, args.sources, loaded.tokenizer, longest, args.seed, VERSIONS["data"])
        for notice in notices(read_json(sidecar(prompts))["sources"]):
            notify(notice)
        return stored, {"sources": args.sources}
    check_fits(loaded, max(args.lengths), args.response_tokens)
    facts: dict[str, Any] = {"mixture": dict(args.mixture)}
    built = build(loaded.tokenizer, args.samples, args.lengths, facts["mixture"], args.seed)
    freeze(prompts, built if args.answers == "given" else map(_unanswered, built))
    stored = Stored(prompts)
    if args.answers == "given":
        given = sum(prompt["answer"] is not None for prompt in stored)
        facts["answers"] = {"given": given, "model": len(stored) - given}
    return stored, facts


def _unanswered(prompt: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in prompt.items() if key != "answer"}


def data_train_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    parser.add_argument(
        "--mixture",
        nargs="+",
        type=weighted_name,
        metavar="KIND=WEIGHT",
        help="kinds of offline prompts with weights; lkv/data/prompts.py lists them (default: --sources)",
    )
    parser.add_argument(
        "--samples",
        type=positive_number,
        metavar="N",
        help="prompts of the mixture (default: none, it needs them)",
    )
    flags.settings(parser, Train, "lengths")
    parser.add_argument(
        "--sources",
        nargs="+",
        type=source_word,
        metavar="JSON",
        help='data sets in place of a mixture, each {"name", "schema", "data", "count"} (default: --mixture)',
    )
    flags.settings(parser, Train, "max_tokens", "response_tokens", "answers")
    flags.setting(
        parser, Train, "batch", default=None, help="prompts answered at once (default: as many as fit)"
    )
    flags.seed(parser)
    flags.runs(parser)
    flags.processes(parser)
    flags.out(parser, "JSONL of prompts and answers")


COMMANDS = [
    Command(
        "data train",
        data_train,
        data_train_flags,
        "--model models/smollm2-135m-instruct --mixture table=1 code=1 --samples 16 --lengths 256 512 "
        "--out data/mine/train.jsonl",
    )
]
