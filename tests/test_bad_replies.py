"""Replies of a judge that are none: the rating counts as failed or unparsed, and the others are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_files import JUDGE
from bad_input import DEEP, MANY_DIGITS
from test_mtbench import Endpoint, endpoint, said  # noqa: F401  (a fixture)

from lkv.cli.main import main
from lkv.results.journal import Journal

Reply = tuple[int, dict[str, str], Any]
Served = Callable[[Callable[[int, dict[str, Any]], Reply]], Endpoint]


def with_content(content: object) -> Reply:
    status, headers, body = said("")
    body["choices"][0]["message"]["content"] = content
    return status, headers, body


FAILED: dict[str, Reply] = {
    "no JSON": (200, {}, b"{"),
    "a page": (200, {"Content-Type": "text/html"}, b"<html>busy</html>"),
    "nothing": (200, {}, b""),
    "no UTF-8": (200, {}, b'{"choices": "\xff"}'),
    "a list": (200, {}, [1]),
    "a text": (200, {}, "[[5]]"),
    "null": (200, {}, None),
    "nested without end": (200, {}, DEEP.encode()),
    "a number of 5,000 digits": (200, {}, MANY_DIGITS.encode()),
    "no choices": (200, {}, {"choices": []}),
    "choices that are none": (200, {}, {"choices": 5}),
    "a choice without a message": (200, {}, {"choices": [{}]}),
    "content that is a list": with_content(["[[5]]"]),
    "content that is a number": with_content(5),
}
UNPARSED: dict[str, Reply] = {
    "no content": with_content(None),
    "a rating of 5,000 digits": with_content(f"[[{MANY_DIGITS}]]"),
    "a rating of 0": with_content("[[0]]"),
    "a rating of 11": with_content("[[11]]"),
    "a rating that is no number": with_content("[[nan]]"),
    "a page of brackets": with_content("[" * 100_000),
}


def judged(served: Served, bad: Reply, here: Path) -> set[str]:
    """The first question is rated 7, the others get `bad`; the statuses in the journal."""
    judge = served(lambda number, _: said("[[7]]") if number == 1 else bad)
    assert main([*JUDGE.split(), "--url", judge.url]) == 0
    cells = Journal(here / "out/j.jsonl").cells.values()
    assert [cell["rating"] for cell in cells if cell["status"] == "ok"] == [7]
    return {cell["status"] for cell in cells} - {"ok"}


@pytest.mark.parametrize("kind", FAILED)
def test_a_reply_that_is_no_completion_is_a_failed_rating(
    kind: str, here: Path, endpoint: Served  # noqa: F811
) -> None:  # fmt: skip
    assert judged(endpoint, FAILED[kind], here) == {"failed"}


@pytest.mark.parametrize("kind", UNPARSED)
def test_a_reply_without_a_rating_from_1_to_10_is_unparsed(
    kind: str, here: Path, endpoint: Served  # noqa: F811
) -> None:  # fmt: skip
    assert judged(endpoint, UNPARSED[kind], here) == {"unparsed"}


def test_half_a_character_in_a_reply_does_not_lose_its_rating(here: Path, endpoint: Served) -> None:  # noqa: F811
    judge = endpoint(lambda number, _: said("fine \ud83d [[7]]"))
    assert main([*JUDGE.split(), "--url", judge.url]) == 0
    cells = Journal(here / "out/j.jsonl").cells.values()
    assert {cell["rating"] for cell in cells} == {7}
    assert {cell["reply"] for cell in cells} == {"fine \ufffd [[7]]"}
    rows = [json.loads(line) for line in (here / "out/j.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows
