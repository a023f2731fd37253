"""lkv train, arms and share"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from lkv.errors import UserError
from lkv.lookahead.arm import check_training
from lkv.study.versions import VERSIONS

if TYPE_CHECKING:
    pass
from lkv.cli.loading import load_model

Arguments = argparse.Namespace
WARMUP = 8  # steps of a training whose command line names none
log = logging.getLogger("lkv")


def train(args: Arguments) -> None:
    """train the lookahead tokens and their LoRA"""
    from lkv.data.frozen import facts_of
    from lkv.data.shards import ANSWERED, Stored
    from lkv.distributed.group import group
    from lkv.lookahead.arm import Arm, Schedule
    from lkv.lookahead.train import train
    from lkv.model.card import read_card
    from lkv.model.device import describe
    from lkv.study.provenance import commit, package_versions

    prompts = Stored(args.data, ANSWERED)
    if not prompts:
        raise UserError(f"{args.data} has no prompts; make them again with lkv data train")
    made = facts_of(args.data, sources="objects", mixture="object", answers="object")
    check_training(len(prompts), args.held_out, args.batch, args.steps, args.warmup_steps or 0)
    warmup = WARMUP if args.warmup_steps is None else args.warmup_steps
    loaded = load_model(args)
    if prompts.largest >= (known := loaded.model.config.get_text_config().vocab_size):
        raise UserError(
            f"{args.data} holds the token {prompts.largest}, the vocabulary of {loaded.name} has {known}; "
            "give prompts that were made for this model"
        )
    schedule = Schedule(args.steps, args.batch, args.learning_rate, warmup, args.held_out, args.seed)
    kinds = [str(source.get("name")) for source in made.get("sources", [])] or sorted(
        made.get("mixture", "?")
    )
    offline, answers = "offline " if made.get("mixture") else "", made.get("answers")
    own = "" if answers else "self-answered "
    true = f"; {answers.get('given')} of all {len(prompts)} answers are given ones" if answers else ""
    cut = f"; answers cut to {args.response_tokens} tokens" if args.response_tokens else ""
    provenance = {
        "trained_on": f"{len(prompts) - args.held_out} {own}{offline}prompts ({', '.join(kinds)}) "
        f"of {min(prompts.lengths, default=0)} to {max(prompts.lengths, default=0)} tokens{true}{cut}",
        "data_sha256": prompts.sha256,
        "model_fingerprint": read_card(args.model)["fingerprint"],
        "dtype": loaded.dtype,
        "device": describe(loaded.model.device)[0],
        "commit": commit(),
        "packages": package_versions(),
    }
    keep = int(args.keep_gib * 2**30)
    arm = Arm(args.arm, args.tokens, args.lora, args.loss, args.response_tokens)
    given = (loaded, prompts, schedule, arm, args.out, args.csv, provenance, keep)
    with group(loaded.model.device) as together:
        adapter = train(*given, version=VERSIONS["train"], group=together)
    if not together.first:
        return
    card = adapter.card
    log.info("held-out KL %s -> %s in %s", card["held_out_kl_before"], card["held_out_kl_after"], args.out)


# What is read of an adapter's card, and of which kind.
CARD_KINDS = {
    "base_model": "object", "arm": "name", "tokens": "some", "lora": "name", "loss": "name",
    "parameters": "count", "steps": "count", "samples": "count", "held_out_kl_before": "number or null",
    "held_out_kl_after": "number or null", "held_out_recall": "number or null", "trained_on": "text",
}  # fmt: skip


def arms(args: Arguments) -> None:
    """what each trained arm is and how well it predicts, from the adapters' cards"""
    from lkv.files.json_files import read_json
    from lkv.files.reading import require
    from lkv.results.columns import ARMS_COLUMNS
    from lkv.results.csv_files import write_csv

    rows = []
    for path in args.cards:
        card = require(read_json(path), CARD_KINDS, path, "lkv train")
        base = require(card["base_model"], {"name": "name"}, f"{path}, base_model", "lkv train")
        rows.append(card | {"model": base["name"]})
    write_csv(args.out, rows, ARMS_COLUMNS)


def share(args: Arguments) -> None:
    """trained modules in bfloat16, with a model card, to give away"""
    from lkv.lookahead.publish import share

    share(args.adapter, args.out, args.licence)
    log.info("%s", args.out)
