"""What a data file holds of each sample (docs/protocols.md), whichever benchmark made it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# The fields that lkv evaluate asks of every line, and the kind of each (lkv.files.reading.KINDS).
RECORD = {
    "benchmark": "name", "task": "name", "length": "count", "sample": "count", "planned": "some",
    "haystack": "text", "protocol": "name", "question_aware": "flag", "template": "flag", "input": "name",
    "question_at": "count", "answer_prefix": "text", "outputs": "texts", "classes": "texts",
    "metric": "name", "max_new_tokens": "some", "stops": "texts", "min_new_tokens": "count",
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkSample:
    """One sample: its prompt, how the prompt is run, and what its answer is scored against.

    Frozen data files hold the fields in this order. Another order changes their bytes and their SHA-256.
    """

    benchmark: str  # a name in lkv.bench.MODULES
    task: str  # the benchmark's own name of the task
    length: int  # the tokens that the task was made to; 0 where a task has no lengths
    sample: int  # the number within its task and length, from 0
    planned: int  # how many samples the task and length are to have
    haystack: str  # what the context is made of; "" where the benchmark brings its own
    protocol: str  # the label of the rules that the prompt follows
    question_aware: bool  # whether the method sees the question before it evicts
    template: bool  # whether the prompt gets the chat template
    input: str  # the user's text, after any cut
    question_at: int  # the character at which what follows the context begins; 0 if nowhere
    answer_prefix: str  # the answer's first words, which the prompt ends with
    outputs: list[str]  # the reference answers
    classes: list[str]  # the classes to choose from, for metrics that need them
    metric: str  # the benchmark's own name of the metric
    max_new_tokens: int  # the tokens to generate, at most
    stops: list[str]  # texts whose last token ends an answer
    min_new_tokens: int  # the tokens before which no answer ends
    prompt_tokens: int  # the tokens of the whole prompt, as it is run

    def as_record(self) -> dict[str, Any]:
        """The sample as a line of a data file holds it."""
        return asdict(self)
