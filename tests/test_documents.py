"""Promises of lkv.data.documents: real text, split for good, nothing on both sides."""

from __future__ import annotations

import hashlib
import json

import pytest

from lkv.data.documents import Document, documents, haystack, long_paragraphs, normalised, side
from lkv.errors import UserError


@pytest.fixture(scope="module")
def sides() -> dict[str, list[Document]]:
    split: dict[str, list[Document]] = {"train": [], "test": []}
    for document in documents("topics") + documents("code"):
        split[side(document)].append(document)
    return split


def paragraphs(found: list[Document]) -> set[str]:
    return {part for document in found for part in long_paragraphs(document.text)}


def test_no_long_paragraph_is_on_both_sides(sides: dict[str, list[Document]]) -> None:
    train, test = paragraphs(sides["train"]), paragraphs(sides["test"])
    assert min(len(train), len(test)) > 100
    assert not train & test
    assert all(len(part) >= 80 and part == normalised(part) for part in train | test)


def test_both_sides_have_enough_prose_and_code_only_trains(sides: dict[str, list[Document]]) -> None:
    for name in ("train", "test"):
        assert sum(len(d.text.split()) for d in sides[name] if d.kind == "topics") > 5000
    assert {d.kind for d in sides["test"]} == {"topics"}
    assert len(documents("code")) > 200


def test_topics_that_share_text_stay_together() -> None:
    topics = documents("topics")
    tied = [(a, b) for a in topics for b in topics if long_paragraphs(a.text) & long_paragraphs(b.text)]
    assert len(tied) > len(topics)  # pydoc's topics do share text, or this test would prove nothing
    assert all(side(a) == side(b) for a, b in tied)


def test_case_and_white_space_do_not_change_the_side() -> None:
    for topic in documents("topics"):
        text = "\n ".join(topic.text.replace("the", "The").split())
        sha256 = hashlib.sha256(normalised(text).encode()).hexdigest()
        assert sha256 == topic.sha256
        assert side(Document("other name", "topics", text, sha256)) == side(topic)


def test_code_does_not_quote_the_reference() -> None:
    assert not paragraphs(documents("code")) & paragraphs(documents("topics"))
    assert not any("pydoc_data" in document.name for document in documents("code"))


def test_pydoc_haystack_is_prose_of_the_test_side(sides: dict[str, list[Document]]) -> None:
    name, text = haystack("pydoc")
    assert name == "pydoc"
    parts = text.split("\n\n")
    assert len(text.split()) > 5000
    assert len(parts) == len(set(parts))
    assert not {normalised(part) for part in parts} & paragraphs(sides["train"])
    known = " ".join(normalised(document.text) for document in sides["test"])
    assert all(normalised(part) in known for part in parts)
    assert not any("::=" in part or ">>>" in part or "****" in part or "====" in part for part in parts)


def test_essays_file_is_named_by_stem_and_hash(tmp_path) -> None:
    plain, wrapped = tmp_path / "Essays.txt", tmp_path / "MyEssays.json"
    plain.write_text("Some text.\nMore.", encoding="utf-8")
    wrapped.write_text(json.dumps({"text": "Some text.\nMore."}), encoding="utf-8")
    digits = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    assert haystack(str(plain)) == (f"essays:{digits}", "Some text.\nMore.")
    name, text = haystack(str(wrapped))
    assert name.startswith("myessays:")
    assert text == "Some text.\nMore."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, r"no such essays file: .*absent\.json; set haystack to 'pydoc'"),
        ("a.json", b'{"content": "x"}', r"a\.json is not an essays file"),
        ("a.json", b'["x"]', r"a\.json is not an essays file"),
        ("a.json", b"{", r"a\.json is not an essays file"),
        ("a.txt", b"\xff\xfe\xff", r"a\.txt is not an essays file .*UTF-8"),
        ("a.txt", b" \n ", r"a\.txt holds no text"),
    ],
)
def test_unusable_essays_are_refused_by_name(
    tmp_path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        haystack(str(tmp_path / name))


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown kind of document 'topic' \(did you mean 'topics'\?\)"):
        documents("topic")
