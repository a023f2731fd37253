"""Promises of the paper's mixture: cut by turns, never truncated, drawn at random, told what was left out."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import observed
from transformers import PreTrainedTokenizerBase

from lkv.data import tables
from lkv.data.frozen import load, sidecar
from lkv.data.mixture import build_mixture, frozen_mixture, notices
from lkv.data.schemas import SCHEMAS
from lkv.data.shards import join
from lkv.data.tables import File, Records, in_repository, locate, split_files
from lkv.errors import UserError
from lkv.lookahead.arm import Arm, Schedule
from lkv.lookahead.responses import respond_sharded
from lkv.lookahead.train import train
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer

FIXTURES = Path(__file__).parent / "fixtures/mixture"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# All sets of the paper, each as a file of its schema; the counts are what the files can give.
SETS = [
    {"name": "chatqa2", "schema": "chatqa2", "data": f"file:{FIXTURES}/chatqa2.json", "count": 12},
    {"name": "tulu", "schema": "messages", "data": f"file:{FIXTURES}/tulu.jsonl", "count": 8},
    {"name": "stack", "schema": "text", "data": f"file:{FIXTURES}/stack.json", "count": 8},
    {"name": "math", "schema": "metamath", "data": f"file:{FIXTURES}/metamath.json", "count": 8, "shots": 2},
    {"name": "arc", "schema": "arc", "data": f"file:{FIXTURES}/arc.jsonl", "count": 7, "shots": 2},
    {"name": "swag", "schema": "hellaswag", "data": f"file:{FIXTURES}/hellaswag.jsonl", "count": 7},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerBase:
    """A template whose marks are special tokens of the tokenizer, as in real chat models."""
    made = tiny_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


def written(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return f"file:{path}"


def source(schema: str, data: str | list[str], count: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": "set", "schema": schema, "data": data, "count": count, **more}


def texts(tokenizer: PreTrainedTokenizerBase, *sources: dict[str, Any], **more: Any) -> list[str]:
    return [tokenizer.decode(prompt["ids"]) for prompt in build_mixture(sources, tokenizer, **more)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ARC = {"question": "Wet?", "choices": {"text": ["sea", "sand"], "label": ["A", "B"]}, "answerKey": "A"}
ARC_2 = {"question": "Hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"}
SWAG = {"ctx": "He sits. He", "endings": ["flies.", "rests."], "label": "1"}
SWAG_2 = {"ctx": "Rain falls. It", "endings": ["wets us.", "sings."], "label": 0}


@pytest.mark.parametrize(
    ("schema", "records", "expected"),
    [
        ("messages", [{"messages": [user("Hi"), assistant("Ho")]}], ["<|user|>Hi<|end|><|assistant|>"]),
        (
            "chatqa2",
            [
                {
                    "question": "User: A text.\n\nQuestion: What?\n\nAssistant:",
                    "answer": "x",
                    "sub-paragraphs": "",
                }
            ],
            ["<|user|>A text.\n\nQuestion: What?<|end|><|assistant|>"],
        ),
        (
            "chatqa2",
            [{"question": "Who?", "answer": ["x"], "sub-paragraphs": "User: and Assistant: are words here."}],
            ["<|user|>User: and Assistant: are words here.\n\nWho?<|end|><|assistant|>"],
        ),
        (
            "metamath",
            [{"query": "1+1?", "response": "It is 2"}, {"query": "2+2?", "response": "It is 4"}],
            [
                "<|user|>Problem: 2+2?\nSolution: It is 4\n\nProblem: 1+1?\nSolution:<|end|><|assistant|>",
                "<|user|>Problem: 1+1?\nSolution: It is 2\n\nProblem: 2+2?\nSolution:<|end|><|assistant|>",
            ],
        ),
        (
            "arc",
            [ARC, ARC_2],
            [
                "<|user|>Question: Hot?\n(1) ice\n(2) fire\nAnswer: (2) fire\n\n"
                "Question: Wet?\n(A) sea\n(B) sand\nAnswer:<|end|><|assistant|>",
                "<|user|>Question: Wet?\n(A) sea\n(B) sand\nAnswer: (A) sea\n\n"
                "Question: Hot?\n(1) ice\n(2) fire\nAnswer:<|end|><|assistant|>",
            ],
        ),
        (
            "hellaswag",
            [SWAG, SWAG_2],
            [
                "<|user|>Beginning: Rain falls. It\n(0) wets us.\n(1) sings.\nBest ending: (0) wets us.\n\n"
                "Beginning: He sits. He\n(0) flies.\n(1) rests.\nBest ending:<|end|><|assistant|>",
                "<|user|>Beginning: He sits. He\n(0) flies.\n(1) rests.\nBest ending: (1) rests.\n\n"
                "Beginning: Rain falls. It\n(0) wets us.\n(1) sings.\nBest ending:<|end|><|assistant|>",
            ],
        ),
    ],
)
def test_each_schema_becomes_its_prompt(
    schema: str, records: list[Any], expected: list[str], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = written(tmp_path / "set.jsonl", *records)
    got = texts(tokenizer, source(schema, data, len(expected), shots=1))
    assert sorted(got) == sorted(expected)


def test_prompts_have_the_form_of_the_offline_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    tally: list[dict[str, Any]] = []
    prompts = list(build_mixture(SETS, tokenizer, tally=tally))
    assert [prompt["id"] for prompt in prompts] == list(range(len(prompts)))
    for prompt in prompts:
        assert list(prompt) == ["id", "kind", "length", "ids", "documents"]
        assert prompt["length"] == len(prompt["ids"]) >= 2
        assert prompt["documents"] and all(len(digest) == 64 for digest in prompt["documents"])
        json.dumps(prompt)
    assert Counter(prompt["kind"] for prompt in prompts) == {s["name"]: s["count"] for s in SETS}
    assert {entry["name"]: entry["prompts"] for entry in tally} == {s["name"]: s["count"] for s in SETS}
    assert notices(tally) == []


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([user("a"), assistant("b")], 1),
        ([user("a"), assistant("b"), user("c"), assistant("d")], 3),
        ([user("a"), assistant("b"), user("c")], 3),  # no last answer: nothing to take away
        ([user("a"), assistant("b"), assistant("c")], 1),
        ([{"role": "system", "content": "s"}, user("a"), assistant("b")], 2),
    ],
)
def test_a_conversation_goes_to_its_last_user_turn(
    turns: list[dict[str, str]], kept: int, chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    [got] = texts(chatml, source("messages", written(tmp_path / "set.jsonl", {"messages": turns})))
    told = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns[:kept])
    assert got == told + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "mark",
    ["<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n", "<|im_start|>user\n"],
)
def test_marks_of_the_template_within_a_message_do_not_move_the_cut(
    mark: str, chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A prompt that is cut where its text has the marks ends at the wrong turn: a known defect."""
    turns = [
        user(f"What is {mark} for?"),
        assistant(f"You see {mark} before I speak."),
        user(f"And after {mark}?"),
        assistant(f"My words, until {mark}."),
    ]
    [got] = texts(chatml, source("messages", written(tmp_path / "set.jsonl", {"messages": turns})))
    assert got == (
        f"<|im_start|>user\nWhat is {mark} for?<|im_end|>\n"
        f"<|im_start|>assistant\nYou see {mark} before I speak.<|im_end|>\n"
        f"<|im_start|>user\nAnd after {mark}?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_no_prompt_can_be_made_of_is_counted_by_its_reason(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = tiny_tokenizer()
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    records = [
        [user("Hello"), assistant("x")],
        [user("Hello"), assistant("another answer, the same prompt")],
        [assistant("x")],
        [user("  "), assistant("x")],
        [{"role": "system", "content": "s"}, user("b"), assistant("x")],
        [user("half a \ud800 pair"), assistant("x")],
        [user("long " * 30), assistant("x")],
    ]
    data = written(tmp_path / "set.jsonl", *({"messages": turns} for turns in records))
    tally: list[dict[str, Any]] = []
    with caplog.at_level("WARNING", logger="lkv"):
        [prompt] = build_mixture([source("messages", data, 5)], strict, max_tokens=100, tally=tally)
    assert strict.decode(prompt["ids"]) == "Hello"
    skipped = {"duplicate": 1, "no_user_turn": 2, "refused_by_template": 1, "not_unicode": 1, "too_long": 1}
    assert tally[0]["skipped"] == skipped
    assert (tally[0]["records"], tally[0]["asked"], tally[0]["prompts"]) == (7, 5, 1)
    [notice] = notices(tally)
    assert notice.startswith("set: 1 of 5 prompts; its 7 records gave no more (skipped: ")
    for reason, number in skipped.items():
        assert f"{number} {reason}" in notice
    assert caplog.messages == [notice]


def test_long_prompts_are_left_out_and_never_shortened(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever fits is what it would be without a limit, and what does not fit is counted."""
    free = {tuple(p["ids"]) for p in build_mixture(SETS, tokenizer)}
    limit = sorted(map(len, free))[len(free) // 2]
    tally: list[dict[str, Any]] = []
    bound = {tuple(p["ids"]) for p in build_mixture(SETS, tokenizer, max_tokens=limit, tally=tally)}
    assert bound == {ids for ids in free if len(ids) <= limit}
    too_long = sum(entry["skipped"].get("too_long", 0) for entry in tally)
    assert too_long == sum(len(ids) > limit for ids in free) > 0


def test_raw_text_is_cut_at_a_point_of_its_own_anywhere(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    bodies = [f"{i:04} " + "abcdefgh" * 12 for i in range(200)]
    data = written(tmp_path / "set.jsonl", *({"content": body} for body in bodies))
    prompts = texts(tokenizer, source("text", data, 200))
    cut = {text[:4]: len(text) for text in prompts if len(text) >= 4}
    assert len(prompts) == 200
    for text in prompts:  # raw: the text's own beginning, no template around it, and never the whole
        assert any(body.startswith(text) and len(text) < len(body) for body in bodies)
    lengths = sorted(map(len, prompts))
    assert lengths[0] < 15 and lengths[-1] > 88
    assert 40 < lengths[100] < 62  # uniform over 2 to 100 tokens
    other = texts(tokenizer, source("text", data, 200), seed=1)
    moved = sum(cut.get(text[:4]) != len(text) for text in other)
    assert moved > 150


def test_duplicates_are_dropped_across_sources(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", {"messages": [user("Same"), assistant("x")]})
    two = written(
        tmp_path / "two.jsonl",
        {"messages": [user("Same"), assistant("y")]},
        {"messages": [user("Other"), assistant("z")]},
    )
    tally: list[dict[str, Any]] = []
    sources = [source("messages", one), source("messages", two, 2, name="too")]
    got = [tokenizer.decode(p["ids"]) for p in build_mixture(sources, tokenizer, tally=tally)]
    assert sorted(got) == ["<|user|>Other<|end|><|assistant|>", "<|user|>Same<|end|><|assistant|>"]
    assert sum(entry["skipped"].get("duplicate", 0) for entry in tally) == 1


def test_shots_are_other_records_with_answers(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The asked record is no example of itself, nor is its twin, nor one whose answer is kept back."""
    items = [{"ctx": f"Item {i}.", "endings": ["a", "b"], "label": str(i % 2)} for i in range(6)]
    kept_back = {"ctx": "Kept back.", "endings": ["a", "b"], "label": ""}
    data = written(tmp_path / "set.jsonl", *items, items[0], kept_back)
    prompts = texts(tokenizer, source("hellaswag", data, 8, shots=4))
    assert len(prompts) == 7  # the twin is a duplicate
    for text in prompts:
        shown = text.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>").split("\n\n")
        begun = [part.split("\n")[0] for part in shown]
        assert len(begun) == 5
        assert begun[-1] not in begun[:-1]
        assert "Beginning: Kept back." not in begun[:-1]
        assert [part.split("Best ending:")[1] != "" for part in shown] == [True] * 4 + [False]
    tally: list[dict[str, Any]] = []
    with pytest.raises(UserError, match=r"no prompt came out of the training sources .*8 too_few_examples"):
        list(build_mixture([source("hellaswag", data, 8, shots=7)], tokenizer, tally=tally))


def test_a_seed_is_an_order_and_fewer_prompts_are_its_beginning(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = written(tmp_path / "set.jsonl", *({"messages": [user(f"Q{i}")]} for i in range(60)))
    whole = texts(tokenizer, source("messages", data, 60))
    assert texts(tokenizer, source("messages", data, 60)) == whole
    assert texts(tokenizer, source("messages", data, 7)) == whole[:7]
    other = texts(tokenizer, source("messages", data, 60), seed=1)
    assert sorted(other) == sorted(whole) and other != whole != sorted(whole)


def test_every_record_is_as_likely_as_any_other(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    data = written(tmp_path / "set.jsonl", *({"messages": [user(f"Q{i}")]} for i in range(10)))
    drawn = Counter(
        text for seed in range(300) for text in texts(tokenizer, source("messages", data, 2), seed=seed)
    )
    assert len(drawn) == 10
    assert min(drawn.values()) > 35 and max(drawn.values()) < 90  # 60 expected, standard deviation 7


def test_sources_are_mixed_to_the_end(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The last prompts are held out in training: they must not all be of the last source."""
    sources = []
    for name in ("one", "two", "three"):
        data = written(tmp_path / f"{name}.jsonl", *({"messages": [user(f"{name}{i}")]} for i in range(40)))
        sources.append(source("messages", data, 40, name=name))
    kinds = [prompt["kind"] for prompt in build_mixture(sources, tokenizer)]
    for start in range(0, 120, 30):
        assert min(Counter(kinds[start : start + 30])[n] for n in ("one", "two", "three")) >= 3


def test_a_source_may_be_several_files(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for name, begin in (("a", 0), ("b", 3)):
        written(tmp_path / f"{name}.jsonl", *({"messages": [user(f"Q{begin + i}")]} for i in range(3)))
    listed = texts(tokenizer, source("messages", [f"file:{tmp_path}/a.jsonl", f"file:{tmp_path}/b.jsonl"], 6))
    assert sorted(listed) == [f"<|user|>Q{i}<|end|><|assistant|>" for i in range(6)]
    assert texts(tokenizer, source("messages", f"file:{tmp_path}/*.jsonl", 6)) == listed


def test_parquet_gives_what_jsonl_gives(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, schema in (("arc", "arc"), ("tulu", "messages"), ("hellaswag", "hellaswag")):
        lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        path = tmp_path / f"{name}.parquet"
        table = pyarrow.Table.from_pylist([json.loads(line) for line in lines])
        parquet.write_table(table, path, row_group_size=3)
        given = source(schema, f"file:{path}", 6, shots=2)
        expected = source(schema, f"file:{FIXTURES}/{name}.jsonl", 6, shots=2)
        assert texts(tokenizer, given) == texts(tokenizer, expected)


LISTED = [
    {"a": 1, "b": ['x"], [{', {"c": None}]},
    {},
    {"é\n😀": "\\\u2028 ]"},
    {"n": [-1.5e-7, True, "\\u00e9"]},
]


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
@pytest.mark.parametrize("style", [{"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_a_json_list_is_read_in_pieces_as_json_reads_it(
    chunk: int, style: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK", chunk)
    path = tmp_path / "set.json"
    path.write_text("\n " + json.dumps(LISTED, **style) + "\n", encoding="utf-8")
    records = Records([File(path, "set")], ())
    assert [records[i][1] for i in reversed(range(len(records)))] == LISTED[::-1]
    if style == {"indent": 2}:
        starts = [n for n, line in enumerate(path.read_text().split("\n"), 1) if line.startswith("  {")]
        assert [records[i][0] for i in range(4)] == [
            f"set, record {i + 1}, line {n}" for i, n in enumerate(starts)
        ]


def test_a_json_list_that_ends_early_is_never_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK", 7)
    whole = json.dumps(LISTED, ensure_ascii=False).encode()
    path = tmp_path / "set.json"
    for end in range(2, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"set, record [1-5], line 1: "):
            Records([File(path, "set")], ())


def test_a_large_file_is_not_held_in_memory(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK", 1 << 16)
    turns = [{"messages": [user(f"{i} " + "x" * 10_000)]} for i in range(4000)]
    (tmp_path / "list.json").write_text(json.dumps(turns))
    written(tmp_path / "lines.jsonl", *turns)
    for name in ("list.json", "lines.jsonl"):
        assert (tmp_path / name).stat().st_size > 40_000_000
        tracemalloc.start()
        try:
            prompts = list(build_mixture([source("messages", f"file:{tmp_path / name}", 3)], tokenizer))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(prompts) == 3
        assert peak < 12 << 20, peak  # most of it the pieces of which the SHA-256 is taken


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "set.jsonl",
            b'{"messages": []}\n\n{"messages": [}\n',
            r"set\.jsonl, line 3: not a JSON record in UTF-8",
        ),
        ("set.jsonl", b'{"messages": []}\n[1]\n', r"set\.jsonl, line 2: expected a JSON object, found list"),
        ("set.jsonl", b'{"messages": "caf\xe9"}\n', r"set\.jsonl, line 1: not a JSON record in UTF-8"),
        (
            "set.json",
            b'[{"messages": []},\n{"messages": [}]',
            r"set\.json, record 2, line 2: not a JSON record",
        ),
        ("set.json", b'[{"messages": []},\n\n"x"]', r"record 2, line 3: expected a JSON object, found str"),
        ("set.json", b'[{"messages": []}\n{"messages": []}]', r"record 2, line 2: .*expected , or \]"),
        (
            "set.json",
            b'[{"messages": "caf\xe9"}]',
            r"set\.json, record 1, line 1: not a JSON record in UTF-8",
        ),
        ("set.jsonl", b'{"text": "x"}\n', r"line 1: the field 'messages' is missing, expected a list"),
        ("set.jsonl", b'{"messages": {}}\n', r"line 1: the field 'messages' is a dict, expected a list"),
        ("set.jsonl", b'{"messages": [{"role": "user", "content": null}]}\n', r"line 1: .*\{role, content\}"),
        ("set.json", b'[{"messages": [1]}]', r"set\.json, record 1, line 1: the field 'messages' is not"),
        ("set.parquet", b"PAR1 and no more", r"set\.parquet is not a parquet file"),
        ("set.csv", b"messages\n", r"set\.csv: unknown kind of file; give \.jsonl, \.json or \.parquet"),
        ("set.jsonl.gz", b"", r"set\.jsonl\.gz: unknown kind of file.*unpacked"),
    ],
)
def test_malformed_data_is_named_by_file_and_line(
    name: str, content: bytes, message: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(build_mixture([source("messages", f"file:{tmp_path / name}", 9)], tokenizer))


@pytest.mark.parametrize(
    ("schema", "record", "message"),
    [
        ("chatqa2", {"sub-paragraphs": "x"}, "line 1: the field 'question' is missing, expected a str"),
        ("text", {"content": None}, "the field 'content' is a NoneType, expected a str"),
        ("metamath", {"query": "x"}, "the field 'response' is missing"),
        ("arc", ARC | {"answerKey": "C"}, "the field 'answerKey' is 'C', no label of its choices"),
        ("arc", ARC | {"choices": {"text": ["a"], "label": ["A", "B"]}}, "not one text for each label"),
        ("hellaswag", SWAG | {"label": "2"}, "the field 'label' is '2', no number of one of 2 endings"),
        ("hellaswag", SWAG | {"endings": "x"}, "the field 'endings' is a str, expected a list"),
    ],
)
def test_a_record_of_another_schema_is_named(
    schema: str, record: Any, message: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = written(tmp_path / "set.jsonl", record)
    with pytest.raises(UserError, match=message):
        list(build_mixture([source(schema, data, shots=0)], tokenizer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "tulu"}, r"unknown schema of the training source set: 'tulu'.*known: chatqa2, messages"),
        ({"data": "file:none.jsonl"}, "no such file: none.jsonl; correct the path"),
        ({"data": "file:none*.jsonl"}, r"no such file: none\*\.jsonl"),
        ({"data": "ftp:x"}, r"unknown address of data 'ftp:x'; allowed: file:PATH .* or hub:OWNER/NAME"),
        ({"data": "hub:nobody"}, "unknown address of data 'hub:nobody'"),
        ({"data": []}, "needs data"),
        ({"count": 0}, "a count of 1 or more"),
        ({"weight": 2}, r"unknown key of a training source 'weight'"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_at_once(
    change: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=message):
        build_mixture([source("messages", f"file:{FIXTURES}/tulu.jsonl") | change], tokenizer)


def test_two_sources_of_one_name_and_none_at_all_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    for sources in ([], [SETS[0], SETS[0]]):
        with pytest.raises(UserError, match="a name of its own for each"):
            build_mixture(sources, tokenizer)
    with pytest.raises(UserError, match="has no 'count'; add it"):
        build_mixture([{"name": "x", "schema": "text", "data": "file:x"}], tokenizer)


def test_a_hub_that_gives_nothing_is_one_line_soon(tokenizer: PreTrainedTokenizerBase) -> None:
    """Without a network, or with one: there is no such set, so either way it cannot be had."""
    pytest.importorskip("datasets")
    begun = time.perf_counter()
    with pytest.raises(UserError) as error:
        build_mixture([source("messages", "hub:lkv-tests/no-such-set:long_sft@v1")], tokenizer)
    assert time.perf_counter() - begun < 20
    assert str(error.value).startswith("cannot fetch lkv-tests/no-such-set from the hub (")
    assert "set file:PATH" in str(error.value) and "\n" not in str(error.value)


def test_the_files_of_a_repository_are_those_of_config_and_split(tmp_path: Path) -> None:
    """What `datasets` finds in a repository's card, here of a local copy of one."""
    datasets = pytest.importorskip("datasets")
    long = [{"split": split, "path": f"long/{split}.json"} for split in ("train", "dev")]
    short = [{"split": "train", "path": "short/*.json"}]
    configs = [{"config_name": "long", "data_files": long}, {"config_name": "short", "data_files": short}]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    for name in ("long/train", "long/dev", "short/a", "short/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / f"{name}.json", {"messages": []})

    def found(config: str, split: str) -> list[str]:
        data_files = datasets.load_dataset_builder(str(tmp_path), config).config.data_files
        return [Path(file).relative_to(tmp_path).as_posix() for file in split_files(data_files, split, "o/n")]

    assert found("long", "train") == ["long/train.json"]
    assert found("long", "dev") == ["long/dev.json"]
    assert sorted(found("short", "train")) == ["short/a.json", "short/b.json"]
    with pytest.raises(UserError, match=r"unknown split of o/n 'test'; known: train"):
        found("short", "test")
    assert in_repository("hf://datasets/owner/name@0abc/long/train.json") == "long/train.json"
    assert locate(f"file:{tmp_path}/short/*.json")[0].name == f"{tmp_path}/short/a.json"


def test_frozen_prompts_are_built_once_and_anew_when_anything_changed(
    tokenizer: PreTrainedTokenizerBase, chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = written(tmp_path / "set.jsonl", *({"messages": [user(f"Q{i}")]} for i in range(9)))
    sources, path = [source("messages", data, 3, licence="MIT", split=None)], tmp_path / "out/prompts.jsonl"

    def made(**more: Any) -> bool:
        """Whether the file was written now."""
        before = path.stat().st_ino if path.exists() else None
        settings: dict[str, Any] = {"sources": sources, "tokenizer": tokenizer} | more
        frozen_mixture(path, **settings)
        return path.stat().st_ino != before

    assert made()
    assert list(load(path)) == list(build_mixture(sources, tokenizer))
    facts = json.loads(sidecar(path).read_text())
    [entry] = facts["sources"]
    assert (entry["prompts"], entry["records"], entry["licence"]) == (3, 9, "MIT")
    assert not made()
    for change in ({"seed": 1}, {"max_tokens": 99}, {"version": 2}, {"tokenizer": chatml}):
        assert made(**change)
        assert not made(**change)
    assert made()
    written(tmp_path / "set.jsonl", *({"messages": [user(f"R{i}")]} for i in range(9)))
    assert made()  # the same path, but not the same file
    path.write_text("")
    assert made()  # damaged


def test_a_schema_is_there_for_each_set_of_the_paper() -> None:
    assert {s["schema"] for s in SETS} == set(SCHEMAS)


def test_the_mixture_trains_an_adapter(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """From the sets' files to an adapter: prompts of natural length, the model's own answers, a few steps."""
    loaded = Loaded(observed("llama"), tokenizer, "tiny", "f" * 16, frozenset({257}))
    prompts = frozen_mixture(tmp_path / "work/prompts.jsonl", SETS, tokenizer, max_tokens=300)
    assert len(set(prompts.lengths)) > 12
    shards = respond_sharded(loaded, prompts, 8, 4, tmp_path / "work", shard=10)
    join(tmp_path / "train.jsonl", prompts, shards)
    answered = list(load(tmp_path / "train.jsonl"))
    schedule = Schedule(steps=6, batch=1, learning_rate=5e-3, warmup_steps=1, held_out=4, seed=0)
    adapter = train(loaded, answered, schedule, Arm(), tmp_path / "adapter", tmp_path / "t.csv", {})
    assert adapter.card["steps"] == 6
    assert 0 < adapter.card["held_out_kl_after"] < 10
