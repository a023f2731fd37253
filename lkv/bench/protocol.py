"""How a benchmark is run: two named protocols, and every deviation a switch that its rows name.

`official` is what the benchmark's own code does. `kvcache_factory` is the harness that the LookaheadKV paper
built on; what it did about templates and lengths is not known, so both are fields (`template`, `max_prompt`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from lkv.errors import one_of

Template: TypeAlias = Literal["tasks", "all", "none"]


@dataclass(frozen=True)
class Protocol:
    """`template`: the chat template for the tasks that get one officially, for all tasks, or for none.

    `question_aware`: whether the question is part of the prompt that is evicted; otherwise the context is
    evicted alone and the question is prefilled on what is left. `max_prompt`: tokens of a prompt before the
    template, above which its middle is cut out (LongBench); None cuts nothing. `ruler_tokens` and
    `ruler_metric` replace RULER's own numbers of tokens to generate and its metric per task.
    """

    name: str
    template: Template = "tasks"
    question_aware: bool = True
    max_prompt: int | None = None
    ruler_tokens: int | None = None
    ruler_metric: str | None = None
    ruler_template: bool = True

    def label(self, benchmark: str, cap: int | None = None) -> str:
        """What a row's column `protocol` says: the name, and each switch that differs from it.

        LongBench's length is a parameter that scores depend on, so it is always there. `cap` is the number
        of new tokens where a config caps them below the task's own.
        """
        own = PROTOCOLS[self.name]
        switches = []
        if benchmark == "longbench":
            switches.append(f"max_prompt={self.max_prompt or 'none'}")
        if self.template != own.template:
            switches.append(f"template={self.template}")
        if not self.question_aware:
            switches.append("question_blind")
        if cap is not None:
            switches.append(f"new_tokens<={cap}")
        return " ".join([self.name, *switches])

    def templated(self, benchmark: str, official: bool = True) -> bool:
        """Whether a task gets the chat template; `official` says whether the benchmark itself gives it."""
        if self.template != "tasks":
            return self.template == "all"
        return official and (benchmark != "ruler" or self.ruler_template)


PROTOCOLS = {
    "official": Protocol("official"),
    # RULER there: no template, 64 new tokens and `all` for every task, no QA tasks.
    "kvcache_factory": Protocol(
        "kvcache_factory", ruler_tokens=64, ruler_metric="all", ruler_template=False
    ),
}  # fmt: skip


def protocol(config: Mapping[str, Any], max_prompt: int | None = None) -> Protocol:
    """The protocol of a study's config ({name, question_aware, template, max_prompt}; null: its own).

    `max_prompt` is the model's, used where the config names none.
    """
    if config["name"] not in PROTOCOLS:
        raise one_of("protocol", config["name"], PROTOCOLS)
    made = PROTOCOLS[config["name"]]
    return replace(
        made,
        template=config.get("template") or made.template,
        question_aware=config.get("question_aware", True),
        max_prompt=config.get("max_prompt") or max_prompt,
    )
