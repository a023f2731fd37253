"""lkv model"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from lkv.study.schema import read_spec

if TYPE_CHECKING:
    pass


Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def model(args: Arguments) -> None:
    """bring a model to a local folder, once"""
    from lkv.model.fetch import obtain

    spec = read_spec(args.spec)
    obtain(spec, args.out)
    log.info("model %s from %s in %s", spec["name"], spec["source"]["kind"], args.out)
