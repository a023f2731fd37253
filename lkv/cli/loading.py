"""Loads what several commands need: models, methods, samples."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lkv.cli import terminal
from lkv.errors import UserError, one_of, plain
from lkv.registry import FULL, SELF, check_given, needing
from lkv.results.paths import CARD, MODEL_CARD
from lkv.study.budgets import check_budgets, check_kernel, check_once
from lkv.study.settings.declare import declared
from lkv.study.settings.training import Choosing

if TYPE_CHECKING:
    from lkv.interface import Method, PromptRows, Recipe
    from lkv.model.load import Loaded


Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def notify(notice: str) -> None:
    if notice:
        log.warning(plain(notice))
        terminal.say(f"lkv: {plain(notice)}")


def sample_records(path: Path) -> list[dict[str, Any]]:
    """A benchmark's frozen prompts, each checked to have all fields and a metric that scores it."""
    from lkv.bench import score
    from lkv.bench.sample import RECORD
    from lkv.data.frozen import load
    from lkv.files.reading import require

    records = []
    for number, record in enumerate(load(path), 1):
        place = f"{path}, line {number}"
        records.append(require(record, RECORD, place, "lkv data"))
        try:
            score(record, "")  # whether it can be scored is known before the model runs
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not records:
        raise UserError(f"{path} has no records; build it again with lkv data")
    return records


def load_model(args: Arguments) -> Loaded:
    from lkv.distributed import gpu_lease as device
    from lkv.model.load import load

    place = device.pick(args.device, getattr(args, "jobs_per_gpu", 1), notify)
    loaded = load(args.model, place, args.dtype)
    facts = f"{loaded.name} on {loaded.model.device}, {loaded.dtype}, attention {loaded.backend}"
    facts += f"; {loaded.note}" if loaded.note else ""
    log.info(facts)
    if args.command != "generate":  # whose standard output is the answer alone
        print(facts)
    return loaded


def named_methods(args: Arguments, loaded: Loaded) -> list[Method | None]:
    from lkv.lookahead.adapter import LookaheadKV
    from lkv.model.load import load
    from lkv.registry import get

    adapter = LookaheadKV.from_pretrained(args.adapter, loaded.model) if args.adapter else None
    recipe, beside = _recipe(vars(args))
    draft: Loaded | Literal["self"] | None = SELF if args.draft == SELF else None
    if needing("draft", args.methods) and args.draft not in (None, SELF):
        draft = load(Path(args.draft), loaded.model.device, args.dtype)
    return [
        None if name == FULL else get(name, adapter, recipe, draft, loaded.tokenizer, beside)
        for name in args.methods
    ]


def check_comparison(args: Arguments) -> None:
    """Checks the flags of a command that compares methods, before a model is loaded for it."""
    for key in ("methods", "budgets", "lengths", "temperatures"):
        check_once(getattr(args, key, []), f"--{key}")
    check_budgets(args.budgets, args.methods, "--budget" if args.command == "generate" else "--budgets")
    check_kernel(args.kernel, "--kernel")
    drawn = bool(getattr(args, "shape", None))  # random weights, and modules of the same kind
    for name in args.methods:
        check_given(name, drawn or args.adapter, args.draft)
    drafts = bool(needing("draft", args.methods)) and args.draft != SELF and not drawn
    arms = [_arm(word, args)[:2] for word in getattr(args, "arms", [])]
    check_once([name for name, _ in arms], "--arms")
    folders = [args.adapter] if args.adapter and "lookaheadkv" in args.methods else []
    for folder in [*folders, *(folder for _, folder in arms)]:
        _check_folder(folder, CARD, "lkv train")
    if drafts:
        _check_folder(args.draft, MODEL_CARD, "lkv model")


def _check_folder(folder: str | Path, card: str, maker: str) -> None:
    if not Path(folder, card).is_file():
        raise UserError(f"no such file: {Path(folder, card)}; give a folder made by {maker}")


def _arm(word: str, args: Arguments) -> tuple[str, str, dict[str, Any]]:
    """Name, folder and recipe of an arm `name=folder,key=value,…`; flags give the keys that it leaves out."""
    name, _, rest = word.partition("=")
    folder, *settings = rest.split(",")
    keys = declared(Choosing)
    given: dict[str, Any] = {key: vars(args)[key] for key in keys}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in given:
            raise one_of(f"setting of the arm {name!r}:", key, given)
        if (choices := keys[key].choices) and value not in choices:
            raise one_of(f"{key} of the arm {name!r}:", value, choices)
        if not choices and not re.fullmatch("[0-9]{1,4}", value):
            raise UserError(f"{key} of the arm {name!r} is {value!r}; give a whole number, 9999 at most")
        given[key] = value if choices else int(value)
    check_kernel(given["kernel"], f"the arm {name!r}")
    return name, folder, given


def method_of_arm(word: str, args: Arguments, loaded: Loaded) -> Method:
    """The method of one word of --arms; the first arm is called `lookaheadkv`."""
    from lkv.lookahead.adapter import LookaheadKV

    name, folder, given = _arm(word, args)
    adapter = LookaheadKV.from_pretrained(folder, loaded.model)
    recipe, beside = _recipe(given)
    return adapter.method(recipe, beside, "lookaheadkv" if word == args.arms[0] else f"lookaheadkv/{name}")


def _recipe(given: Mapping[str, Any]) -> tuple[Recipe, PromptRows | None]:
    """LookaheadKV's recipe and the prompt rows that also observe, from the command line's values."""
    from lkv.interface import PromptRows
    from lkv.lookahead.method import METHOD

    pool = None if given["pool"] == "none" else given["pool"]
    recipe = replace(
        METHOD.recipe, group=given["group"], pool=pool, kernel=given["kernel"], order=given["order"]
    )
    return recipe, PromptRows(given["beside"]) if given["beside"] else None


def prompt_text(path: Path) -> str:
    from lkv.files.reading import read_text

    return read_text(path, f"no such prompt file: {path}; give a text file in UTF-8")
