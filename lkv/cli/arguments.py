"""Types of the command line's values, and its parser."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from lkv.errors import UserError, one_of, unshown
from lkv.files.reading import parse
from lkv.registry import FULL, METHODS

WAYS = ("whole", "layerwise")  # lkv.measure.latency's


MOST = 10**7  # of whatever is counted; more is a slip of the finger, and would fill the memory first
FEW = 10**4  # of what has to be there all at once
DIGITS = 19  # enough for every number that is allowed; Python refuses to read thousands
NUMBER = r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]{1,3})?"  # float() also takes digits of other scripts, and nan


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch(rf"[0-9]{{1,{DIGITS}}}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a whole number of {least} or more, {most:,} at most"
        )
    return int(text)


def whole_number(text: str) -> int:
    return _whole(text, 0, MOST)


def positive_number(text: str) -> int:
    return _whole(text, 1, MOST)


def small_number(text: str) -> int:
    return _whole(text, 1, FEW)


def seed_number(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)  # as in a config


def _number(text: str, most: float) -> float:
    value = float(text) if re.fullmatch(NUMBER, text) else math.nan
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of 0 or more, {most:,} at most")
    return value


def temperature_number(text: str) -> float:
    return _number(text, 100)


def rate_number(text: str) -> float:
    if not (value := _number(text, FEW)):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value


def _text(text: str) -> str:
    if not text or unshown(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is empty, or holds control characters or no UTF-8")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def weighted_name(item: str) -> tuple[str, float]:
    kind, _, weight = item.partition("=")
    try:
        return kind, _number(weight or "1", MOST)
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


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all of ours; every text and every path is checked."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register("type", None, _text)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
