"""Requests to the judge: one client, retried, several at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from lkv.bench.mtbench import endpoint
from lkv.errors import UserError
from lkv.files.reading import whole_characters
from lkv.results.journal import Journal

if TYPE_CHECKING:
    from openai import OpenAI

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


def rating(reply: str) -> float | None:
    """The first [[n]] of a reply, else the first [n], if it is from 1 to 10; thoughts (</think>) left out."""
    text = reply.rpartition("</think>")[2]
    for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"):
        if found := re.search(pattern, text):
            return float(found[1]) if 1 <= float(found[1]) <= 10 else None
    return None


def ask_once(client: OpenAI, by: Judge, row: Row) -> Row:
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


def ask_all(
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


def notice_of(rows: Sequence[Row]) -> str:
    said = []
    for status, way_out in (("failed", "run again to ask for them"), ("unparsed", "they have no score")):
        if number := sum(row["status"] == status for row in rows):
            said.append(f"{number} of {len(rows)} ratings {status}; {way_out}")
    return "; ".join(said)
