"""Checks of values that are allowed one by one, but not together: budgets, lengths and answers. No torch.

The study's check and the command line share them; `place` names the value's key or flag in an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lkv.bench.protocol import protocol
from lkv.bench.ruler import tasks as ruler
from lkv.errors import UserError
from lkv.registry import METHODS, SELF, needing, smallest_budget
from lkv.study.models import draft_models

Study = Mapping[str, Any]


class Budgets(NamedTuple):
    """Budgets of a study, their key, and the methods that must keep to them."""

    place: str
    budgets: Sequence[int]
    methods: Sequence[str]


def check_budgets(budgets: Iterable[int], methods: Iterable[str], place: str) -> None:
    """Refuses a budget below the smallest of one of the methods."""
    asked = [method for method in methods if method in METHODS]
    for budget in budgets:
        for method in asked:
            if budget < (smallest := smallest_budget(method)):
                raise UserError(
                    f"{place}: budget {budget} is too small for {method}, which needs {smallest}; "
                    f"give {smallest} or more, or leave {method} out"
                )


def check_once(values: Sequence[object], place: str) -> None:
    """Refuses a value that is given twice: it would be measured twice under one name."""
    for at, value in enumerate(values):
        if value in values[:at]:
            raise UserError(f"{place}: {value} is given twice; give it once")


def check_kernel(kernel: int, place: str) -> None:
    if kernel % 2 == 0:
        raise UserError(f"{place}: a pooling kernel of {kernel} has no middle; give an odd number")


def check_sizes(study: Study, specs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Budgets, lengths and answers of a study, by what the methods need and the models' `specs` say."""
    for named in _budgets(study):
        check_budgets(named.budgets, named.methods, f"{source}, {named.place}")
    _check_ruler(study, specs, source)
    _check_training_lengths(study, specs, source)
    for name in study["models"]:
        context = _context(specs[name])
        cut, answer = study["protocol"]["max_prompt"], (study.get("mtbench") or {}).get("max_new_tokens")
        if context and study.get("longbench") and cut and cut > context:
            raise _too_long(f"{source}, protocol.max_prompt", f"{cut} tokens are", name, context)
        if context and answer and 2 * answer >= context:
            what = f"two answers of {answer} tokens leave no room for questions; they are"
            raise _too_long(f"{source}, mtbench.max_new_tokens", what, name, context)


def _budgets(study: Study) -> Iterator[Budgets]:
    """The budgets of each stage, under the key that holds them."""
    sections = [section for section in ("ruler", "longbench", "longproc", "mtbench") if study.get(section)]
    sections += ["inspect"] if study["inspect"] else []
    for section in sections:
        own = study[section]["budgets"]
        yield Budgets(f"{section}.budgets" if own else "budgets", own or study["budgets"], study["methods"])
    latency = study["latency"]
    yield Budgets("latency.budgets", latency["budgets"], latency["methods"])
    if study["ablation"]:
        own = study["ablation"]["budgets"]
        yield Budgets(
            "ablation.budgets" if own else "budgets", own or study["budgets"], ["full", "lookaheadkv"]
        )


def _check_ruler(study: Study, specs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """RULER's lengths have room for the answer and fit the models; ready-made sets have their own lengths."""
    own = study.get("ruler")
    if not own:
        return
    for task in own["tasks"]:
        try:
            terms = ruler.terms(task, protocol(study["protocol"]), own["max_new_tokens"])
        except UserError as error:
            raise UserError(f"{source}, ruler.tasks: {error}") from None
        for length in own["lengths"] if own["ready"] is None else []:
            if length <= terms.max_new_tokens:
                raise UserError(
                    f"{source}, ruler.lengths: {length} leaves no room beside the {terms.max_new_tokens} "
                    f"tokens that {task} generates; give a longer length, or cap them in ruler.max_new_tokens"
                )
    if own["ready"] is None:
        for name in _reading(study):
            context, longest = _context(specs[name]), max(own["lengths"])
            if context and longest > context:
                raise _too_long(f"{source}, ruler.lengths", f"{longest} tokens are", name, context)


def _check_training_lengths(study: Study, specs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Training prompts of the mixture fit the models, answers included; data sets' prompts are cut to fit."""
    train = study["train"]
    if not train:
        return
    arms = {"train": train} | {
        f"ablation.arms.{name}": train | own
        for name, own in ((study["ablation"] or {}).get("arms") or {}).items()
    }
    for place, arm in arms.items():
        answer, longest = arm["response_tokens"], max(arm["lengths"] or [0])
        for name in study["models"]:
            context = _context(specs[name])
            if not context or name in study["adapters"]:
                continue
            if longest + answer > context:
                what = f"prompts of {longest} tokens and answers of {answer} are"
                raise _too_long(
                    f"{source}, {place}.{'lengths' if longest else 'response_tokens'}", what, name, context
                )


def _reading(study: Study) -> list[str]:
    """The models that read the benchmarks' prompts, and their draft models."""
    drafts = draft_models(study) if needing("draft", study["methods"]) else {}
    return [*study["models"], *(drafts[name] for name in study["models"] if drafts.get(name, SELF) != SELF)]


def _context(spec: Mapping[str, Any]) -> int | None:
    """The context of a model in tokens, if its file states it."""
    return spec.get("context") or spec["source"].get("context")


def _too_long(place: str, what: str, name: str, context: int) -> UserError:
    return UserError(
        f"{place}: {what} beyond the {context} that {name} reads (context in config/models/{name}.yaml); "
        "give less, or leave the model out"
    )
