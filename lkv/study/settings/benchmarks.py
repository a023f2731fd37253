"""Keys of a study that say which benchmarks are run, and how."""

# ruff: noqa: RUF009 (each call makes a dataclass field of its own)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lkv.study.settings.declare import NAME, first_samples, key, own_budgets


def task_names(benchmark: str) -> Any:
    return key(
        "tasks that are evaluated; lkv ls tasks lists them",
        items=f"{benchmark} tasks",
        item=f"a {benchmark} task's name",
        pattern=NAME,
        distinct=True,
        some=True,
    )


def answer_cap() -> Any:
    return key("cap on the tokens of an answer", default=None, null="the task's official number", least=1)


@dataclass(kw_only=True, eq=False, repr=False)
class Protocol:
    """how the benchmarks are run; every row of the results and every note says so"""

    name: Literal["official", "kvcache_factory"] = key(
        "official (the benchmarks' own), or kvcache_factory (the harness that the paper built on: RULER "
        "without a chat template, 64 new tokens, all references, no QA)",
        default="official",
    )
    question_aware: bool = key(
        "true: the evicted prompt holds the question; false: the context is evicted, then the question is "
        "read",
        default=True,
    )
    template: Literal["tasks", "all", "none"] | None = key(
        "which tasks get the chat template: those that get it officially (tasks), all or none",
        default=None,
        null="the protocol's own",
    )
    temperatures: list[float] = key(
        "0 gives greedy answers; above 0 answers are sampled, with the same noise for all methods",
        default=[0],
        least=0,
        items="temperatures of 0 or more",
        distinct=True,
        some=True,
    )
    max_prompt: int | None = key(
        "LongBench prompts of more tokens are cut in the middle",
        default=None,
        least=2,
        null="max_prompt of the model's file",
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Ruler:
    """which RULER tasks are evaluated, and on what text"""

    tasks: list[str] = task_names("RULER")
    lengths: list[int] = key(
        "prompt lengths in tokens, chat template and answer counted in", least=1, distinct=True, some=True
    )
    samples: int = key("samples per task and length", least=1)
    budgets: list[int] | None = own_budgets("; those that hold a whole prompt are left out")
    max_new_tokens: int | None = answer_cap()
    ready: str | None = key(
        "ready-made samples, in kvpress' form or RULER's own, in place of generated ones: folder:PATH or "
        "hub:OWNER/NAME",
        default=None,
        null="samples are generated",
    )
    haystack: str = key(
        "text of the tasks with essays: pydoc (Python's own documentation, offline), the path of an essays "
        "file (JSON with a text, or .txt), or hub:OWNER/NAME",
        default="pydoc",
    )
    squad: str | None = key(
        "SQuAD 2.0, which qa_1 reads: a JSON file or hub:OWNER/NAME", default=None, null="none"
    )
    hotpotqa: str | None = key(
        "HotpotQA, which qa_2 reads: a JSON file or hub:OWNER/NAME", default=None, null="none"
    )


@dataclass(kw_only=True, eq=False, repr=False)
class LongBench:
    """which LongBench tasks are evaluated, and where their records come from"""

    tasks: list[str] = task_names("LongBench")
    source: str = key(
        "folder:PATH with TASK.jsonl files, zip:PATH of the official data.zip, or hub:OWNER/NAME of a mirror",
        pattern=r"^(folder|zip|hub):.",
    )
    samples: int | None = first_samples()
    max_new_tokens: int | None = answer_cap()
    budgets: list[int] | None = own_budgets()


@dataclass(kw_only=True, eq=False, repr=False)
class LongProc:
    """which LongProc tasks are evaluated"""

    tasks: list[str] = task_names("LongProc")
    data: str = key("the data folder of a local copy of LongProc")
    samples: int | None = first_samples()
    max_new_tokens: int | None = answer_cap()
    budgets: list[int] | None = own_budgets()


@dataclass(kw_only=True, eq=False, repr=False)
class Judging:
    """the judge behind an OpenAI-compatible endpoint"""

    url: str = key(
        "the endpoint's base URL, for example http://localhost:8000/v1; no user, password or query, as "
        "configs are published: put a key into key_variable",
        pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$",
    )
    model: str = key("the judge's model name at the endpoint", some=True)
    temperature: float = key("the judge's sampling temperature", default=0, least=0)
    prompts: str | None = key(
        "the path of FastChat's judge_prompts.jsonl", default=None, null="this project's own wording"
    )
    key_variable: str = key(
        "the name of the environment variable that holds the endpoint's key, if it needs one",
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
    )


@dataclass(kw_only=True, eq=False, repr=False)
class MTBench:
    """MT-Bench, two turns under eviction, graded by a judge"""

    questions: str = key("the path of MT-Bench's question.jsonl")
    references: str | None = key(
        "the path of the reference answers that the judge reads (FastChat's reference_answer/gpt-4.jsonl)",
        default=None,
        null="none",
    )
    samples: int | None = key("the first so many questions", default=None, null="all", least=1)
    max_new_tokens: int = key("tokens of an answer at most", default=1024, least=1)
    budgets: list[int] | None = own_budgets()
    judge: Judging | None = key(
        "the judge behind an OpenAI-compatible endpoint",
        default=None,
        null="answers are written and not scored",
    )
