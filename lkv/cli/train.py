"""`lkv train` and `lkv share`"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.cli import flags
from lkv.cli.arguments import number_above_0
from lkv.cli.command import Command
from lkv.cli.loading import load_model
from lkv.errors import UserError
from lkv.lookahead.arm import check_training
from lkv.study.settings.training import Train
from lkv.study.versions import VERSIONS

if TYPE_CHECKING:
    from lkv.data.shards import Stored
    from lkv.model.load import Loaded

Arguments = argparse.Namespace
RATE = 1e-3  # the paper's for LLaMA; a study takes its model's own
log = logging.getLogger("lkv")


def train(args: Arguments) -> None:
    """train LookaheadKV's tokens and LoRA for a model"""
    from lkv.data.frozen import facts_of
    from lkv.data.shards import ANSWERED, Stored
    from lkv.distributed.group import group
    from lkv.lookahead.arm import Arm, Schedule
    from lkv.lookahead.train import train

    prompts = Stored(args.data, ANSWERED)
    if not prompts:
        raise UserError(f"{args.data} has no prompts; make them again with lkv data train")
    made = facts_of(args.data, sources="objects", mixture="object", answers="object")
    check_training(len(prompts), args.held_out, args.batch, args.steps, args.warmup_steps)
    loaded = load_model(args)
    if prompts.largest >= (known := loaded.model.config.get_text_config().vocab_size):
        raise UserError(
            f"{args.data} holds the token {prompts.largest}, the vocabulary of {loaded.name} has {known}; "
            "give prompts that were made for this model"
        )
    with group(loaded.model.device) as together:
        adapter = train(
            loaded,
            prompts,
            Schedule(args.steps, args.batch, args.learning_rate, args.warmup_steps, args.held_out, args.seed),
            Arm(args.arm, args.tokens, args.lora, args.loss, args.response_tokens),
            args.out,
            args.csv,
            _provenance(args, prompts, made, loaded),
            int(args.keep_gib * 2**30),
            version=VERSIONS["train"],
            group=together,
        )
    if together.first:
        before, after = (adapter.card[f"held_out_kl_{when}"] for when in ("before", "after"))
        log.info("held-out KL %s -> %s in %s", before, after, args.out)


def _provenance(args: Arguments, prompts: Stored, made: dict[str, Any], loaded: Loaded) -> dict[str, Any]:
    """What the modules are made from, for their card; `made` are the facts of the prompts."""
    from lkv.model.card import read_card
    from lkv.model.device import describe
    from lkv.study.provenance import commit, package_versions

    kinds = [str(source.get("name")) for source in made.get("sources", [])] or sorted(
        made.get("mixture", "?")
    )
    offline, answers = "offline " if made.get("mixture") else "", made.get("answers")
    own = "" if answers else "self-answered "
    true = f"; {answers.get('given')} of all {len(prompts)} answers are given ones" if answers else ""
    cut = f"; answers cut to {args.response_tokens} tokens" if args.response_tokens else ""
    return {
        "trained_on": f"{len(prompts) - args.held_out} {own}{offline}prompts ({', '.join(kinds)}) "
        f"of {min(prompts.lengths, default=0)} to {max(prompts.lengths, default=0)} tokens{true}{cut}",
        "data_sha256": prompts.sha256,
        "model_fingerprint": read_card(args.model)["fingerprint"],
        "dtype": loaded.dtype,
        "device": describe(loaded.model.device)[0],
        "commit": commit(),
        "packages": package_versions(),
    }


def share(args: Arguments) -> None:
    """write trained modules in bfloat16, with a model card, to publish"""
    from lkv.lookahead.publish import share

    share(args.adapter, args.out, args.licence)
    log.info("%s", args.out)


def train_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="prompts made by lkv data train"
    )
    flags.settings(parser, Train, "arm", "tokens", "lora", "loss")
    flags.setting(
        parser,
        Train,
        "response_tokens",
        required=False,
        default=None,
        help="learn from so many tokens of each answer at most (default: all of them)",
    )
    flags.settings(parser, Train, "steps", "batch")
    flags.setting(parser, Train, "learning_rate", default=RATE, help="Adam's rate after the warm-up")
    flags.settings(parser, Train, "warmup_steps", "held_out")
    parser.add_argument(
        "--keep-gib",
        type=number_above_0,
        default=2.0,
        metavar="X",
        help="GiB of prefilled prompts kept in memory between epochs",
    )
    flags.seed(parser)
    flags.runs(parser)
    flags.processes(parser)
    flags.out(parser, "folder of trained modules", "FOLDER")
    parser.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="CSV of the loss by step to write"
    )


def share_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", type=Path, required=True, metavar="FOLDER", help="folder made by lkv train"
    )
    parser.add_argument(
        "--licence",
        required=True,
        metavar="NAME",
        help="licence named in the model card, usually the model's",
    )
    flags.out(parser, "folder", "FOLDER")


COMMANDS = [
    Command(
        "train",
        train,
        train_flags,
        "--model models/smollm2-135m-instruct --data data/demo/train/smollm2-135m-instruct/main.jsonl "
        "--steps 20 --out results/mine/adapter --csv results/mine/training.csv",
    ),
    Command(
        "share",
        share,
        share_flags,
        "--adapter results/demo/adapters/smollm2-135m-instruct/main --licence Apache-2.0 --out "
        "results/mine/shared",
    ),
]
