"""MT-Bench (arXiv 2306.05685): two-turn questions, graded by a judge (lkv.bench.mtbench.judge).

Questions come from the user's own copy of FastChat (llm_judge/data/mt_bench/question.jsonl, Apache-2.0).
Answers are greedy here; FastChat draws with a temperature per category, and the LookaheadKV paper does not
say. The chat template is the model's own. lkv.measure.mtbench writes the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.bench.protocol import PROTOCOLS
from lkv.errors import UserError
from lkv.files.json_files import read_jsonl
from lkv.files.reading import regular, require
from lkv.files.sums import check_sum, sha256_file
from lkv.model.chat_template import chat_text, conversation_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


QUESTIONS = 80  # in FastChat's file
MAX_NEW_TOKENS = 1024  # FastChat's, per turn
# What a line of the answers' file holds; `turns` are the answers' texts, the other pairs one a turn as well.
ANSWER = {
    "study": "text", "model": "name", "protocol": "name", "method": "name", "budget": "count",
    "question_id": "label", "category": "text", "sample": "count", "planned": "some",
    "questions": "two texts", "reference": "texts", "turns": "two texts", "kept_mean": "two numbers",
    "kept_bytes": "two numbers", "prompt_tokens": "two numbers", "new_tokens": "two numbers",
}  # fmt: skip


def load_questions(
    path: str | Path, samples: int | None = None, references: str | Path | None = None
) -> list[dict[str, Any]]:
    """The file's questions in order (the first `samples`), each with question_id, category, turns [2],
    reference [2] or [], its number `sample` and `planned`, how many the study has.

    `references` is a file of FastChat's reference_answer folder, which its judge reads (gpt-4.jsonl); without
    it the question's own short `reference` stands, where there is one.
    """
    if samples is not None and samples < 1:
        raise UserError(f"MT-Bench's samples is {samples}; it must be 1 or more")
    known = _references(references) if references else {}
    found: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(read_jsonl(path), 1):
        where, maker = f"{path}, line {number}", "FastChat (llm_judge/data/mt_bench/question.jsonl)"
        kinds = {"question_id": "label", "category": "text", "turns": "texts"}
        question = require(line, kinds, where, maker)
        name = question["question_id"]
        reference = known.get(name, question.get("reference")) or []
        if name in found:
            raise UserError(f"{where}: question {name} occurs twice; remove one")
        if not _pair(question["turns"]) or not all(turn.strip() for turn in question["turns"]):
            raise UserError(f"{where}: turns must be two texts that are not empty; MT-Bench asks twice")
        if reference and not _pair(reference):
            raise UserError(f"{where}: reference must be two texts, one a turn, or be left out")
        found[name] = {
            "question_id": name,
            "category": str(question["category"]),
            "turns": question["turns"],
            "reference": reference,
            "sample": len(found),
        }
    if not found:
        raise UserError(f"{path} has no questions; give FastChat's llm_judge/data/mt_bench/question.jsonl")
    planned = {"planned": samples or max(QUESTIONS, len(found))}
    return [question | planned for question in list(found.values())[:samples]]


def continuation(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str]) -> str:
    """What the chat template writes between the first answer and the second.

    A cache cannot be unwritten, so the conversation must go on from what the first turn has written. One
    thing is let pass: what a template writes when it opens an answer and leaves out of the history (Qwen3's
    empty thinking block); here it stays in the cache, as it was read.
    """
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"  # for the answer, whose edges some templates trim
    first = chat_text(tokenizer, turns[0])
    said = [("user", turns[0]), ("assistant", mark), ("user", turns[1])]
    whole = conversation_text(tokenizer, [{"role": role, "content": text} for role, text in said])
    before, _, after = whole.partition(mark)
    if not after or turns[0].strip() not in before or not first.startswith(before):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} writes the first turn anew when there is a "
            "second, so that no cache can go on; use a model whose template only adds to a conversation"
        )
    return after


def label(max_new_tokens: int) -> str:
    """The answers' part of a row's `protocol`."""
    cap = max_new_tokens if max_new_tokens != MAX_NEW_TOKENS else None
    return f"{PROTOCOLS['official'].label('mtbench', cap)} greedy"


def load_answers(path: str | Path) -> list[dict[str, Any]]:
    """The answers that lkv.measure.mtbench wrote, in the file's order."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    check_sum(regular(path, f"no such file: {path}; write it with lkv mtbench"), sha256_file(path))
    for number, line in enumerate(read_jsonl(path), 1):
        answer = require(line, ANSWER, f"{path}, line {number}", "lkv mtbench")
        key = tuple(answer[name] for name in ("study", "model", "method", "budget", "question_id"))
        if key in found:
            raise UserError(f"{path}, line {number}: the answer of {key} occurs twice; write the file again")
        found[key] = answer
    if not found:
        raise UserError(f"{path} has no answers; write them with lkv mtbench")
    return list(found.values())


def _references(path: str | Path) -> dict[Any, list[str]]:
    """question_id → the reference answers, one a turn."""
    found = {}
    for number, line in enumerate(read_jsonl(path), 1):
        where = f"{path}, line {number}"
        kinds = {"question_id": "label", "choices": "objects"}
        answer = require(line, kinds, where, "FastChat (reference_answer/gpt-4.jsonl)")
        try:
            turns = answer["choices"][0]["turns"]
        except LookupError:
            turns = None
        if not _pair(turns):
            raise UserError(f"{where}: choices[0].turns must be two texts; give a file of FastChat's answers")
        found[answer["question_id"]] = turns
    if not found:
        raise UserError(f"{path} has no answers; give a file of FastChat's answers, or leave it out")
    return found


def _pair(texts: Any) -> bool:
    return isinstance(texts, list) and len(texts) == 2 and all(isinstance(text, str) for text in texts)
