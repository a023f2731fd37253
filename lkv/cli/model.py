"""`lkv model`"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lkv.cli import flags
from lkv.cli.command import Command
from lkv.study.schema import read_spec

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def model(args: Arguments) -> None:
    """fetch or make a model, once, into a local folder"""
    from lkv.model.fetch import obtain

    spec = read_spec(args.spec)
    obtain(spec, args.out)
    log.info("model %s from %s in %s", spec["name"], spec["source"]["kind"], args.out)


def model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spec",
        type=Path,
        required=True,
        metavar="FILE",
        help="config/models/NAME.yaml: where the model comes from",
    )
    flags.out(parser, "folder", "FOLDER")


COMMANDS = [
    Command(
        "model",
        model,
        model_flags,
        "--spec config/models/smollm2-135m-instruct.yaml --out models/smollm2-135m-instruct",
    )
]
