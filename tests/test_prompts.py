"""Promises of the training prompts: exact lengths, one seed one prompt, and nothing of what is tested."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lkv.data.documents import documents, haystack, long_paragraphs, normalised, side
from lkv.data.lookups import LOOK_UPS
from lkv.data.prompts import KINDS, build, sized
from lkv.data.sketch import Fact, Sketch
from lkv.errors import UserError
from lkv.model.random_weights import CHAT, SPECIALS, tiny_tokenizer

ROOT = Path(__file__).parents[1]
DEFAULT: dict[str, float] = yaml.safe_load((ROOT / "config/demo.yaml").read_text(encoding="utf-8"))["train"][
    "mixture"
]
SEEDS = range(12)

# What each question is about, as it is worded; one to three names.
QUESTIONS = {
    "table": r"(?:Which \w+ does the table give for|Read off the \w+ of) (.+?)[.?]",
    "json_records": r'Give the value of "\w+" where sku is (.+)\.',
    "dictionary": r"Look up (.+) and answer with what it maps to\.",
    "definitions": r"# What does (.+) evaluate to\?",
    "log": r"Report the result logged for (.+)\.",
    "repeat": r'the sentence that begins with "(.+)"\.',
    "hidden": r"What does (.+) keep in the drawer\?",
}

# SHA-256 of six prompts' ids a kind, as JSON; all but `block` are from before prompts brought answers along.
PINNED = {
    "table": "680979b876de058d972ec0188dcdfbb22012a6680581764113b7d9577f248ee7",
    "json_records": "776410be4700d6ff74dd9f3c3922f17dc8d72e68f2567366f728589463148938",
    "dictionary": "54dab2691dc33e14f43f8cfa1c4ab7d89c50a1d6d389c3807f36962c4e2c95fa",
    "definitions": "7dd057b691ec257bc35da99c66ff1e2f20be14d6025930cd54e98d847a9c92c6",
    "log": "2e821e6e7f0bdca3c380a673c4ccabffb5ddaf267c24a7d21994e95be3651935",
    "summary": "f67d51829bdd5fce96db0da607b07b5c14e09349607b44c24971de19c10de14f",
    "code": "6a1f2b29b46427084f7eb42de427478041469a07b6027cfe3084b7f708e499f2",
    "repeat": "e751addb399c9c9491a7fd84d07fc075d90df69b670c31c3e22d1c9c4c21b2b4",
    "block": "5a405ec4c5129ee02740cc6b73ff68f39f80352966d333ee81e523f8b9ae1b63",
    "hidden": "c22cb12c515ee7516b898a5d1a070172068ab99a59ec2fcc1c054501a31a5a52",
}


# SHA-256 of the documents that pinned prompts read: they come with CPython, and differ between its versions.
DOCUMENTS = "66f7ab5a3a35e27ca6820fa87ffc766c76bb3ac83be35dfbcc9b54f3fae8421f"
READING = ("summary", "code", "repeat", "block", "hidden")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    """Byte-level BPE trained on Python's reference: most words are a token, as in a real vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([topic.text for topic in documents("topics")], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=SPECIALS[0], eos_token=SPECIALS[1])
    fast.chat_template = CHAT
    return fast


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def mixed(words: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """A default mixture, large enough to go through many documents."""
    return list(build(words, 200, [256, 384, 512], DEFAULT, seed=5))


def parts(tokenizer: PreTrainedTokenizerBase, prompt: dict[str, Any]) -> tuple[str, str]:
    """The user's text less its question, and the question: the last place that has its kind's form."""
    text = tokenizer.decode(prompt["ids"])
    assert text.startswith("<|user|>")
    assert text.endswith("<|end|><|assistant|>")
    *_, question = re.finditer(QUESTIONS[prompt["kind"]], text)
    return text[: question.start()], question[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fills_its_length_exactly_with_words(kind: str, words: PreTrainedTokenizerBase) -> None:
    for seed in SEEDS:
        prompts = list(build(words, 3, [192, 256, 512], {kind: 1}, seed))
        assert [(p["kind"], p["length"], len(p["ids"])) for p in prompts] == [
            (kind, length, length) for length in (192, 256, 512)
        ]


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [(kind, [512, 1024]) for kind in KINDS]
    + [(kind, [256]) for kind in ("dictionary", "definitions", "log", "summary", "code")],
)
def test_every_kind_fills_its_length_exactly_with_bytes(
    kind: str, lengths: list[int], bytewise: PreTrainedTokenizerBase
) -> None:
    for seed in SEEDS:
        prompts = list(build(bytewise, len(lengths), lengths, {kind: 1}, seed))
        assert [len(p["ids"]) for p in prompts] == lengths


def test_long_sentences_do_not_stop_the_builder(words: PreTrainedTokenizerBase) -> None:
    """Python's reference has `sentences` of a thousand tokens: grammars and tables without a full stop."""
    assert len(list(build(words, 400, [256], {"repeat": 1}, seed=0))) == 400


def test_prompts_are_chat_turns_that_decode_to_their_text(words: PreTrainedTokenizerBase) -> None:
    [prompt] = build(words, 1, [256], {"log": 1}, seed=0)
    text = words.decode(prompt["ids"])
    assert re.match(r"<\|user\|>server\.log\n\d\d:\d\d:\d\d \w+ request=r[0-9a-f]{5} result=", text)
    assert re.search(r"\nReport the result logged for r[^\n]+\.<\|end\|><\|assistant\|>$", text)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_what_is_asked_about_is_in_the_body(kind: str, words: PreTrainedTokenizerBase) -> None:
    assert set(LOOK_UPS) < set(QUESTIONS)
    several = 0
    for prompt in build(words, 60, [192, 256, 512], {kind: 1}, seed=1):
        body, asked = parts(words, prompt)
        names = [asked] if kind == "repeat" else re.split(r", | and ", asked)
        assert len(names) == len(set(names))
        several += len(names) > 1
        for name in names:
            assert name.removesuffix("()") in body, (name, body)
    assert several or kind in ("repeat", "hidden")


def test_a_look_ups_answer_is_in_the_body_too(words: PreTrainedTokenizerBase) -> None:
    """Not only the key: the record of what is asked is whole, in the one kind where a line is a record."""
    for prompt in build(words, 60, [192, 256, 512], {"log": 1}, seed=2):
        body, asked = parts(words, prompt)
        for name in re.split(r", | and ", asked):
            [answer] = re.findall(rf"request={name} result=(\S+)\n", body)
            assert answer


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_given_answer_is_the_one_the_context_holds(kind: str, words: PreTrainedTokenizerBase) -> None:
    for prompt in build(words, 60, [192, 256, 512], {kind: 1}, seed=1):
        body, asked = parts(words, prompt)
        names = [asked] if kind == "repeat" else re.split(r", | and ", asked)
        answers = [prompt["answer"]] if kind == "repeat" else prompt["answer"].split(", ")
        assert len(answers) == len(names)
        for asked_about, answer in zip(names, answers, strict=True):
            [record] = [r for r in records(kind, body) if holds(kind, r, asked_about)] or [""]
            assert answer and answer in record, (asked_about, answer, body)


def records(kind: str, body: str) -> list[str]:
    """The body's records, one in a text; a sentence is searched for in the whole body."""
    match kind:
        case "definitions":
            return re.findall(r"^def .*\n.*\n|^.* = .*\n", body, re.MULTILINE)
        case "hidden":
            return re.findall(r"\w+ \w+ keeps \S+ in the drawer", body)
        case "repeat":
            return [body]
    return body.splitlines()


def holds(kind: str, record: str, key: str) -> bool:
    return key in record if kind == "repeat" else bool(re.search(rf"(?<!\w){re.escape(key)}(?!\w)", record))


def test_a_given_answer_is_what_the_question_asks_for(bytewise: PreTrainedTokenizerBase) -> None:
    """Not any part of the record: the asked column, the asked field, what is mapped to, the sentence."""
    for prompt in build(bytewise, 30, [1024], {"table": 1}, seed=4):
        text = bytewise.decode(prompt["ids"])
        [mark] = re.findall(r"^name( \| |,|\t|; )", text, re.MULTILINE)
        columns, *rows = [line.split(mark) for line in text.splitlines()[1:-1]]
        [column] = re.findall(r"(?:Which (\w+) does|the (\w+) of)", text.splitlines()[-1])
        place = columns.index("".join(column))
        assert set(prompt["answer"].split(", ")) <= {row[place] for row in rows if len(row) > place}
    for prompt in build(bytewise, 30, [1024], {"json_records": 1}, seed=4):
        text = bytewise.decode(prompt["ids"])
        [(wanted, asked)] = re.findall(r'value of "(\w+)" where sku is (.+)\.', text)
        found = [json.loads(line) for line in re.findall(r"^(\{.*\}),$", text, re.MULTILINE)]
        known = {record["sku"]: record[wanted] for record in found}
        assert prompt["answer"] == ", ".join(known[sku] for sku in re.split(r", | and ", asked))
    for prompt in build(bytewise, 30, [1024], {"repeat": 1}, seed=4):
        _, start = parts(bytewise, prompt)
        assert " ".join(prompt["answer"].split()[:4]) == start and prompt["answer"].endswith(".")


@pytest.mark.parametrize("kind", ["summary", "code"])
def test_questions_without_one_right_answer_bring_none(kind: str, words: PreTrainedTokenizerBase) -> None:
    assert {prompt["answer"] for prompt in build(words, 12, [256], {kind: 1}, seed=0)} == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_the_same_ids_as_before_they_brought_answers(
    kind: str, bytewise: PreTrainedTokenizerBase
) -> None:
    every = documents("topics") + documents("code")
    texts = hashlib.sha256("".join(document.sha256 for document in every).encode()).hexdigest()
    if kind in READING and texts != DOCUMENTS:
        pytest.skip("the prompts were pinned with the texts of another CPython")
    ids = [prompt["ids"] for prompt in build(bytewise, 6, [512, 1024], {kind: 1}, seed=11)]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == PINNED[kind]


def test_one_seed_gives_the_same_prompts_and_another_others(words: PreTrainedTokenizerBase) -> None:
    first, again, other = (list(build(words, 16, [192, 256], DEFAULT, seed)) for seed in (3, 3, 4))
    assert first == again
    assert [p["id"] for p in first] == list(range(16))
    assert all(a["ids"] != b["ids"] for a, b in zip(first, other, strict=True))
    assert len({tuple(p["ids"]) for p in first}) == 16


def test_a_prompt_does_not_depend_on_how_many_are_built(words: PreTrainedTokenizerBase) -> None:
    many = list(build(words, 16, [192, 256], DEFAULT, seed=3))
    assert list(build(words, 5, [192, 256], DEFAULT, seed=3)) == many[:5]
    assert list(islice(build(words, 1000, [192, 256], DEFAULT, seed=3), 9)) == many[:9]


def test_processes_build_the_prompts_of_one(
    bytewise: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = list(build(bytewise, 24, [256, 320], {"log": 1, "dictionary": 1}, 5))
    monkeypatch.setattr("lkv.data.prompts.WORTH_A_PROCESS", 4)
    assert list(build(bytewise, 24, [256, 320], {"log": 1, "dictionary": 1}, 5)) == one


def test_the_mixtures_weights_are_the_kinds_shares(words: PreTrainedTokenizerBase) -> None:
    kinds = [p["kind"] for p in build(words, 150, [192], {"log": 2, "dictionary": 1, "table": 0}, seed=0)]
    assert "table" not in kinds
    assert 1.4 < kinds.count("log") / kinds.count("dictionary") < 2.9


def test_no_training_document_is_on_the_test_side(mixed: list[dict[str, Any]]) -> None:
    every = documents("topics") + documents("code")
    tested = {document.sha256 for document in every if side(document) == "test"}
    used = {digest for prompt in mixed for digest in prompt["documents"]}
    assert len(tested) > 20
    assert len(used) > 40
    assert used <= {document.sha256 for document in every} - tested


def test_prompts_of_documents_say_which(mixed: list[dict[str, Any]], words: PreTrainedTokenizerBase) -> None:
    texts = {d.sha256: normalised(d.text) for d in documents("topics") + documents("code")}
    for prompt in mixed:
        reads = prompt["kind"] in ("summary", "code", "repeat", "block")
        assert bool(prompt["documents"]) == reads
        if reads:
            text = " ".join(texts[digest] for digest in prompt["documents"])
            starts: Sequence[int] = (40, 70, 100, 130)
            if prompt["kind"] == "block":  # where they may all lie in one block of records
                starts = range(40, len(prompt["ids"]) - 40, 10)
            pieces = [normalised(words.decode(prompt["ids"][start:][:8])) for start in starts]
            assert any(piece in text for piece in pieces), pieces


def test_no_long_paragraph_of_the_tested_haystack_is_in_a_training_prompt(
    mixed: list[dict[str, Any]], words: PreTrainedTokenizerBase
) -> None:
    tested = long_paragraphs(haystack("pydoc")[1])
    assert len(tested) > 100
    trained = [normalised(words.decode(prompt["ids"])) for prompt in mixed]
    assert not [part for part in tested if any(part in text for text in trained)]


def test_the_default_mixture_has_none_of_rulers_needles(
    mixed: list[dict[str, Any]], words: PreTrainedTokenizerBase
) -> None:
    for near in ("block", "hidden"):
        assert near in KINDS
        assert near not in LOOK_UPS
    assert "hidden" not in DEFAULT
    assert set(DEFAULT) <= set(KINDS)
    for prompt in mixed:
        text = words.decode(prompt["ids"]).lower()
        for needle in ("special magic", "one of the special", "memorize", "in the drawer"):
            assert needle not in text


def test_a_blocks_answer_is_begun_as_its_record_is(words: PreTrainedTokenizerBase) -> None:
    """What the prompt ends with stands before, in a block of a document, and the answer follows it there."""
    for prompt in build(words, 40, [256, 512], {"block": 1}, seed=2):
        text, begun = words.decode(prompt["ids"]).rsplit("<|assistant|>", 1)
        assert begun.strip()
        places = [found.end() for found in re.finditer(re.escape(begun.strip()), text)]
        assert any(text[place:].lstrip(' "').startswith(prompt["answer"]) for place in places), (
            begun,
            prompt["answer"],
        )
        assert prompt["documents"]


def test_look_ups_are_records_alone_without_filler(words: PreTrainedTokenizerBase) -> None:
    for kind in LOOK_UPS:
        for prompt in build(words, 6, [256, 512], {kind: 1}, seed=0):
            body, _ = parts(words, prompt)
            lines = [line for line in body.removeprefix("<|user|>").split("\n")[2:-2] if line.strip()]
            lines.pop()  # the cut may end inside a record
            assert len(lines) >= 3
            assert all(re.search(r"[|,;\t:=>]|return|def ", line) for line in lines), lines
            assert prompt["documents"] == []


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            {"tabel": 1.0},
            r"unknown kind of training prompt 'tabel' \(did you mean 'table'\?\); known: table, ",
        ),
        ({}, r"the mixture \{\} has no positive weight"),
        (
            {"table": 0.0},
            r"the mixture \{'table': 0\.0\} has no positive weight; .* at least one kind=weight",
        ),
        ({"table": 2.0, "log": -1.0}, r"the mixture .*'log': -1\.0.* has no positive weight"),
        ({"table": float("nan")}, "nan"),
        ({"table": float("inf")}, "inf"),
    ],
)
def test_bad_mixtures_are_refused_with_what_is_allowed(
    mixture: dict[str, float], message: str, words: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=message):
        next(build(words, 1, [256], mixture, seed=0))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_that_hold_nothing_are_refused(kind: str, words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="24 tokens hold no whole record"):
        next(build(words, 1, [24], {kind: 1}, seed=0))


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    plain = tiny_tokenizer()
    plain.chat_template = None
    with pytest.raises(UserError, match="no chat template; use an instruct model"):
        next(build(plain, 1, [512], {"log": 1}, seed=0))


@pytest.mark.parametrize("length", range(60, 130, 7))
def test_a_long_question_leaves_what_it_asks_about_in_the_prompt(
    length: int, bytewise: PreTrainedTokenizerBase
) -> None:
    """Some questions are much longer than others: the body must be cut for the one that is asked."""
    items = [(f"<{i}>\n", Fact((f"<{i}>", "?" * (1 + 40 * (i % 3 == 2))))) for i in range(10, 60)]
    for seed in range(30):
        sketch = Sketch("", iter(items), lambda asked: "".join(name + tail for name, tail in asked))
        ids, _, _ = sized(bytewise, sketch, length, Random(seed))
        assert len(ids) == length
        text = bytewise.decode(ids)
        body, question = text[: text.rindex("\n")], text[text.rindex("\n") :]
        for name in re.findall(r"<\d+>", question):
            assert f"{name}\n" in body + "\n"
