"""Types of the command line's values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lkv.errors import UserError, one_of, unshown
from lkv.files.reading import parse
from lkv.registry import FULL, METHODS

MOST = 10**7  # of whatever is counted; more is a slip of the finger, and would fill the memory first
FEW = 10**4  # of what has to be there all at once
DIGITS = 19  # enough for every number that is allowed; Python refuses to read thousands
NUMBER = r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]{1,3})?"  # float() also takes digits of other scripts, and nan


def whole(least: int = 0, most: int = MOST) -> Callable[[str], int]:
    """A type for whole numbers within bounds."""

    def number(text: str) -> int:
        if not re.fullmatch(rf"[0-9]{{1,{DIGITS}}}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not a whole number of {least} or more, {most:,} at most"
            )
        return int(text)

    number.__name__ = f"whole_{min(least, 1)}_{most}"  # for those who ask a flag for its type
    return number


positive_number, small_number = whole(1), whole(1, FEW)


def number(text: str, most: float = FEW) -> float:
    value = float(text) if re.fullmatch(NUMBER, text) else math.nan
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of 0 or more, {most:,} at most")
    return value


def temperature_number(text: str) -> float:
    return number(text, 100)


def number_above_0(text: str) -> float:
    if not (value := number(text)):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value


def plain_text(text: str) -> str:
    if not text or unshown(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is empty, or holds control characters or no UTF-8")
    return text


def plain_path(text: str) -> Path:
    return Path(plain_text(text))


def weighted_name(item: str) -> tuple[str, float]:
    kind, _, weight = item.partition("=")
    try:
        return kind, number(weight or "1", MOST)
    except argparse.ArgumentTypeError:
        raise UserError(f"mixture item {item[:80]!r} is not KIND=WEIGHT; for example table=2") from None


def source_word(item: str) -> dict[str, Any]:
    wanted = (
        f"source {item[:80]!r} is not a JSON object ({{}}); give "
        '{"name": NAME, "schema": SCHEMA, "data": "hub:OWNER/NAME" or "file:PATH", "count": COUNT}'
    )
    source = parse(item, wanted)
    if not isinstance(source, dict):
        raise UserError(wanted.replace("{}", f"found {type(source).__name__}", 1))
    return source


def method_name(name: str) -> str:
    if name != FULL and name not in METHODS:
        raise one_of("method", name, [FULL, *METHODS])
    return name
