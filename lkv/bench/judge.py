"""A judge for MT-Bench's answers: FastChat's single-answer grading, 1 to 10 a turn, at any OpenAI-compatible
endpoint.

Prompt wordings are FastChat's, read from the user's copy (llm_judge/data/judge_prompts.jsonl), or our own
`lkv-1`. A rating is asked for once: finished ones lie in a journal under the exact question put to the judge,
so that equal answers share one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from lkv.bench import endpoint
from lkv.bench.mtbench import load_answers
from lkv.errors import UserError
from lkv.journal import Journal
from lkv.reading import filled, whole_characters
from lkv.records import (
    JUDGEMENT_COLUMNS,
    SAMPLE_COLUMNS,
    fingerprint,
    read_csv,
    read_jsonl,
    require,
    write_csv,
)

if TYPE_CHECKING:
    from openai import OpenAI

OWN = "lkv-1"
REFERENCED = ("math", "reasoning", "coding")  # categories graded against a reference, as FastChat does
TRIES = 3  # answers of the judge without a rating before it counts as unparsed
GIVE_UP = 8  # failed ratings in a row after which the endpoint counts as broken
NO_KEY = "none"

Messages = list[dict[str, str]]
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Judge:
    """Who judges and where. `key_variable` names the environment variable with the key, or is `none`.

    Connection errors, time-outs, 429 and 5xx are asked again up to `retries` times, with exponential back-off
    and jitter (the openai client's own). `max_tokens` is of the judge's answer (FastChat's 2048).
    """

    url: str
    model: str
    temperature: float = 0.0
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 300.0
    retries: int = 5
    max_tokens: int = 2048

    @property
    def key(self) -> str:
        return NO_KEY if self.key_variable == NO_KEY else os.environ.get(self.key_variable, "").strip()

    @property
    def place(self) -> str:
        """The URL as it is shown: without secrets."""
        return endpoint.shown(self.url)

    def hide(self, text: str) -> str:
        """What anybody says, without this judge's secrets; every text goes through it before it is kept."""
        return endpoint.hide(text, "" if self.key_variable == NO_KEY else self.key, self.url)

    def said(self, error: BaseException) -> str:
        """An error in one line."""
        return " ".join(self.hide(str(error)).split())[:200] or type(error).__name__

    def client(self) -> OpenAI:
        if not _is_url(self.url):
            raise UserError(
                f"the judge's url is {self.place!r}; give the base URL of an OpenAI-compatible endpoint, "
                "for example http://localhost:8000/v1"
            )
        if not self.key_variable.isidentifier():
            raise UserError("the judge's key_variable is no name of an environment variable; give the name")
        if not self.key:
            raise UserError(
                f"the judge's key is not set; put it into the environment variable {self.key_variable}, or "
                f"set the judge's key_variable to {NO_KEY} for an endpoint that asks for none"
            )
        if not self.key.isascii():
            raise UserError(f"the judge's key in {self.key_variable} has characters that no header takes")
        try:
            return endpoint.client(self.url, self.key, self.timeout_s, self.retries)
        except ImportError:
            raise UserError("judging needs the openai client; install it: pip install openai") from None
        except Exception as error:  # what the client's HTTP library says of a URL that is none
            raise UserError(
                f"the judge's url {self.place!r} is none ({self.said(error)}); correct it"
            ) from None


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is no number
        return False
    return known and text.isprintable() and " " not in text


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
        _ask_all(journal, by, missing.values(), lambda row: _ask(client, by, row), at_once)
    judged = [{**row, **journal.cells[row["key"]]} for row in rows]
    if judged and all(row["status"] != "ok" for row in judged):
        raise UserError(f"the judge gave no rating at all: {_notice(judged)}; see to it and run again")
    write_csv(out, judged, JUDGEMENT_COLUMNS)
    return "; ".join(notice for notice in (journal.notice, _notice(judged)) if notice)


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


def rating(reply: str) -> float | None:
    """The first [[n]] of a reply, else the first [n], if it is from 1 to 10; thoughts (</think>) left out."""
    text = reply.rpartition("</think>")[2]
    for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"):
        if found := re.search(pattern, text):
            return float(found[1]) if 1 <= float(found[1]) <= 10 else None
    return None


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


def _ask(client: OpenAI, by: Judge, row: Row) -> Row:
    """Rating and status of one question; a UserError where the endpoint itself is at fault."""
    import openai

    reply = ""
    try:
        for _ in range(TRIES):
            done = client.chat.completions.create(
                model=by.model,
                messages=row["messages"],
                temperature=by.temperature,
                max_tokens=by.max_tokens,
            )
            reply = whole_characters(done.choices[0].message.content or "")
            if (found := rating(reply)) is not None:
                return {"status": "ok", "rating": found, "reply": by.hide(reply)}
        return {"status": "unparsed", "rating": None, "reply": by.hide(reply)}
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
        raise UserError(
            f"the judge at {by.place} refuses {by.model!r} (HTTP {error.status_code}: {by.said(error)}); "
            f"check url, model and the key in {by.key_variable}"
        ) from None
    except endpoint.Unbounded as error:
        return {"status": "failed", "rating": None, "error": str(error)}
    except openai.APITimeoutError:
        return {"status": "failed", "rating": None, "error": f"no reply within {by.timeout_s:g} s"}
    except openai.APIConnectionError as error:
        if isinstance(error.__cause__, endpoint.Unbounded):  # as some versions of the client pass it on
            return {"status": "failed", "rating": None, "error": str(error.__cause__)}
        raise UserError(
            f"cannot reach the judge at {by.place} ({by.said(error.__cause__ or error)}); start it or "
            "correct the url, and run again: the answers are untouched, finished ratings are kept"
        ) from None
    except openai.APIError as error:
        return {"status": "failed", "rating": None, "error": by.said(error)}
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return {"status": "failed", "rating": None, "error": "the reply is no chat completion"}


def _ask_all(
    journal: Journal, by: Judge, rows: Iterable[Row], ask: Callable[[Row], Row], at_once: int
) -> None:
    """Asks for all rows, each journaled as it comes. After a fatal error nothing new is asked, but what is
    under way is still waited for and kept."""
    from tqdm import tqdm

    rows = list(rows)
    stopped: list[UserError] = []
    in_a_row = 0

    def asked(row: Row) -> tuple[Row, Row | UserError]:
        try:
            return row, ask(row)
        except UserError as error:
            return row, error

    for row, found in tqdm(_parallel(asked, rows, at_once, stopped), desc="judge", total=len(rows)):
        if isinstance(found, UserError):
            stopped.append(found)
            continue
        journal.append([{"key": row["key"], **{c: row[c] for c in ("judge", "prompt", "turn")}, **found}])
        in_a_row = in_a_row + 1 if found["status"] == "failed" else 0
        if in_a_row == GIVE_UP:
            stopped.append(
                UserError(
                    f"the judge at {by.place} failed {GIVE_UP} times in a row (last: {found['error']}); see "
                    "to it and run again: finished ratings are kept"
                )
            )
    if stopped:
        raise stopped[0]


def _parallel(
    work: Callable[[Row], T], rows: Sequence[Row], at_once: int, stopped: Sequence[Any]
) -> Iterator[T]:
    """Results as they come; nothing new is begun once `stopped` holds something."""
    todo = iter(rows)
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(work, row) for row in islice(todo, at_once)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
            if not stopped:
                running |= {pool.submit(work, row) for row in islice(todo, len(done))}


def _notice(rows: Sequence[Row]) -> str:
    said = []
    for status, way_out in (("failed", "run again to ask for them"), ("unparsed", "they have no score")):
        if number := sum(row["status"] == status for row in rows):
            said.append(f"{number} of {len(rows)} ratings {status}; {way_out}")
    return "; ".join(said)
