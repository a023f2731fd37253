"""A judge for MT-Bench's answers: FastChat's single-answer grading, 1 to 10 a turn, at any OpenAI-compatible
endpoint.

Prompt wordings are FastChat's, read from the user's copy (llm_judge/data/judge_prompts.jsonl), or our own
`lkv-1`. A rating is asked for once: finished ones lie in a journal under the exact question put to the judge,
so that equal answers share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.bench.mtbench.questions import load_answers
from lkv.errors import UserError
from lkv.files.json_files import fingerprint, read_jsonl
from lkv.files.reading import filled, require
from lkv.results.columns import JUDGEMENT_COLUMNS, SAMPLE_COLUMNS
from lkv.results.csv_files import read_csv, write_csv
from lkv.results.journal import Journal

if TYPE_CHECKING:
    pass
from lkv.bench.mtbench.requests import Judge, Messages, Row, ask_all, ask_once, notice_of

OWN = "lkv-1"
REFERENCED = ("math", "reasoning", "coding")  # categories graded against a reference, as FastChat does


def judge(
    answers_path: str | Path,
    by: Judge,
    journal_path: str | Path,
    out: str | Path,
    prompts: str | Path | None = None,
    at_once: int = 4,
) -> str:
    """Asks for what the journal lacks, then writes one CSV row an answer and turn; returns a notice.

    A reply without a rating gets the status `unparsed` and stays so; a request that failed is `failed` and
    asked again by the next run. An endpoint that cannot be reached ends the run: what is finished is kept.
    """
    wordings = _wordings(prompts) if prompts else None
    rows = [_question(answer, turn, by, wordings) for answer in load_answers(answers_path) for turn in (1, 2)]
    journal = Journal(journal_path)
    missing = {
        row["key"]: row
        for row in rows
        if journal.cells.get(row["key"], {}).get("status", "failed") == "failed"
    }
    if missing:
        client = by.client()
        ask_all(journal, by, missing.values(), lambda row: ask_once(client, by, row), at_once)
    judged = [{**row, **journal.cells[row["key"]]} for row in rows]
    if judged and all(row["status"] != "ok" for row in judged):
        raise UserError(f"the judge gave no rating at all: {notice_of(judged)}; see to it and run again")
    write_csv(out, judged, JUDGEMENT_COLUMNS)
    return "; ".join(notice for notice in (journal.notice, notice_of(judged)) if notice)


def to_samples(judgements: Iterable[Mapping[Any, Any]], answers: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row an answer (SAMPLE_COLUMNS): score = 10 × the mean of its two ratings, if both are there.

    The judge is part of the row's protocol, so that no average mixes two.
    """
    rated: dict[tuple[str, ...], Mapping[Any, Any]] = {}
    for row in judgements:
        if (key := _key(row, row["question"], row["turn"])) in rated:
            raise UserError(f"the judgement of {' '.join(key)} occurs twice; give one judge's file at a time")
        rated[key] = row
    samples = []
    for answer in answers:
        turns = [rated.get(_key(answer, answer["question_id"], turn)) for turn in (1, 2)]
        if None in turns:
            raise UserError(
                f"question {answer['question_id']} of {answer['model']}, {answer['method']} at budget "
                f"{answer['budget']} is not among the judgements; judge these answers again"
            )
        samples.append(_sample(answer, [turn for turn in turns if turn is not None]))
    return samples


def write_samples(judgements_path: str | Path, answers_path: str | Path, out: str | Path) -> None:
    """to_samples from file to file."""
    judgements = read_csv(judgements_path, JUDGEMENT_COLUMNS).to_dict("records")
    write_csv(out, to_samples(judgements, load_answers(answers_path)), SAMPLE_COLUMNS)


def _sample(answer: Mapping[str, Any], turns: Sequence[Mapping[Any, Any]]) -> Row:
    wrong = [turn["status"] for turn in turns if turn["status"] != "ok"]
    wording = OWN if turns[0]["prompt"] == OWN else "fastchat"
    by = f"judge={turns[0]['judge']} temperature={float(turns[0]['temperature']):g} prompt={wording}"
    return {
        "study": answer["study"],
        "model": answer["model"],
        "benchmark": "mtbench",
        "task": "mtbench",
        "length": 0,
        "sample": answer["sample"],
        "planned": answer["planned"],
        "method": answer["method"],
        "budget": answer["budget"],
        "protocol": f"{answer['protocol']} {by}",
        "haystack": "",
        "score": None if wrong else 10 * sum(float(turn["rating"]) for turn in turns) / len(turns),
        "recall": None,
        "recall_raw": None,
        "kept_mean": answer["kept_mean"][-1],
        "kept_bytes": answer["kept_bytes"][-1],
        "prompt_tokens": answer["prompt_tokens"][-1],
        "new_tokens": sum(answer["new_tokens"]),
        "status": wrong[0] if wrong else "ok",
    }


def _key(row: Mapping[Any, Any], question: Any, turn: Any) -> tuple[str, ...]:
    named = (*(row[name] for name in ("study", "model", "method", "budget")), question, turn)
    return tuple(str(value) for value in named)


def _question(
    answer: Mapping[str, Any], turn: int, by: Judge, wordings: Mapping[str, Mapping[str, str]] | None
) -> Row:
    """The columns that are known before the judge is asked, the messages and their key in the journal."""
    reference = answer["reference"][:turn] if answer["category"] in REFERENCED else []
    told = {"question": answer["questions"][0], "answer": answer["turns"][0].strip()}
    for i in range(turn):
        told |= {
            f"question_{i + 1}": answer["questions"][i],
            f"answer_{i + 1}": answer["turns"][i].strip(),
        }
    if reference and all(text.strip() for text in reference):
        told |= {f"ref_answer_{i + 1}": text for i, text in enumerate(reference)}
    if wordings is None:
        name, messages = OWN, _own(told, turn)
    else:
        name = ("single-math-v1" if "ref_answer_1" in told else "single-v1") + "-multi-turn" * (turn - 1)
        messages = _filled(wordings[name], told, name)
    return {
        **{column: answer[column] for column in ("study", "model", "method", "budget", "category")},
        "question": answer["question_id"],
        "turn": turn,
        "judge": by.model,
        "temperature": by.temperature,
        "prompt": name,
        "messages": messages,
        "key": fingerprint(messages, by.model, by.temperature, by.max_tokens, name),
    }


def _own(told: Mapping[str, str], turn: int) -> Messages:
    """Our own wording, `lkv-1`. A changed wording gets a new name."""
    parts = []
    for i in range(1, turn + 1):
        parts += [("QUESTION", i, told[f"question_{i}"]), ("ANSWER", i, told[f"answer_{i}"])]
        if "ref_answer_1" in told:
            parts.insert(-1, ("CORRECT ANSWER, FOR COMPARISON", i, told[f"ref_answer_{i}"]))
    shown = "\n\n".join(f"### {name} {i}\n{text}" for name, i, text in parts)
    return [
        {
            "role": "system",
            "content": "You grade what a chat assistant answered. Grade what is written: whether it is "
            "right, does what was asked, and helps. Length and polish alone earn nothing.",
        },
        {
            "role": "user",
            "content": f"{shown}\n\n### TASK\nGrade ANSWER {turn}"
            + (" alone; what stands before it is its context." if turn > 1 else ".")
            + " Say in a few sentences what is good and what is wrong in it. Then end with your grade, a "
            "number from 1 (useless) to 10 (could not be better), in double square brackets, like this: "
            "[[4]]",
        },
    ]


def _wordings(path: str | Path) -> dict[str, dict[str, str]]:
    """FastChat's four prompts for grading single answers, by name."""
    found = {}
    for number, line in enumerate(read_jsonl(path), 1):
        maker = "FastChat (llm_judge/data/judge_prompts.jsonl)"
        needed = {"name": "name", "system_prompt": "text", "prompt_template": "text"}
        prompt = require(line, needed, f"{path}, line {number}", maker)
        found[prompt["name"]] = prompt
    names = [base + turn for base in ("single-v1", "single-math-v1") for turn in ("", "-multi-turn")]
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"{path} lacks the prompts {', '.join(missing)}; give FastChat's judge_prompts.jsonl, or none "
            f"for our own wording ({OWN})"
        )
    return found


def _filled(wording: Mapping[str, str], told: Mapping[str, str], name: str) -> Messages:
    refused = f"the judge's prompt {name} cannot be filled ({{}}); give FastChat's"
    text = filled(wording["prompt_template"], told, refused)
    return [{"role": "system", "content": wording["system_prompt"]}, {"role": "user", "content": text}]
