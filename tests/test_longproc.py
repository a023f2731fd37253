"""Promises of LongProc's HTML→TSV: the user's copy as it is, official numbers, row-level F1."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import observed

from lkv import bench, registry
from lkv.bench import longproc
from lkv.bench.protocol import PROTOCOLS
from lkv.bench.sample import RECORD
from lkv.data import frozen
from lkv.errors import UserError
from lkv.measure.accuracy import evaluate
from lkv.model.chat_template import chat_ids, record_ids, record_parts
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer
from lkv.results.columns import SAMPLE_COLUMNS
from lkv.results.csv_files import read_csv

OFFICIAL = PROTOCOLS["official"]
TOKENIZER = tiny_tokenizer()
GOLD = "Plant\tHeight\nOak\t20 m\nThe fern\t1 m\nMoss, wet\tN/A\n"
TEMPLATE = (
    "PAGE about {task_topic}\n{html_str}\nEND\n"
    "List {task_description}{filtering_instruction} as\n{tsv_header}"
)


def item(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "output_length_group": "0.5k",
        "task_id": name,
        "website_id": "W1",
        "html_path": f"./data/html_to_tsv/webpage/{name}.html",
        "task_topic": "plants {really}",
        "task_description": "(1) plant; (2) height",
        "gt": GOLD,
        "tsv_header": "Plant\tHeight",
        "filtering_instruction": "",
        **changes,
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of LongProc's layout with two samples of one task; texts of our own."""
    folder = tmp_path / "data" / "html_to_tsv"
    (folder / "webpage").mkdir(parents=True)
    # the later release writes html_path from the folder, the first one from the repository
    items = [item("a"), item("b", html_path="webpage/b.html", filtering_instruction="\nOnly trees")]
    write(folder, items)
    for name in "ab":
        page = f"<html>{{x}} <td>Oak</td> é {name}</html>"
        (folder / "webpage" / f"{name}.html").write_text(page, encoding="utf-8")
    (folder / "prompts.yaml").write_text(
        "USER_PROMPT: |-\n  " + TEMPLATE.replace("\n", "\n  "), encoding="utf-8"
    )
    return tmp_path


def write(folder: Path, items: Any) -> None:
    (folder / "html_to_tsv_0.5k.json").write_text(json.dumps(items), encoding="utf-8")


def build(source: Path, **settings: Any) -> list[dict[str, Any]]:
    return list(
        longproc.build("html_to_tsv_0.5k", source, TOKENIZER, settings.pop("protocol", OFFICIAL), **settings)
    )


def test_prompts_are_the_copys_own_template_filled(copy: Path) -> None:
    first, second = build(copy)
    page = "<html>{x} <td>Oak</td> é a</html>"
    assert first["input"] == (
        f"PAGE about plants {{really}}\n{page}\nEND\nList (1) plant; (2) height as\nPlant\tHeight"
    )
    assert second["input"] == first["input"].replace("é a", "é b").replace(
        "height as", "height\nOnly trees as"
    )
    assert first["input"][: first["question_at"]].endswith(page)
    assert first["input"][first["question_at"] :].startswith("\nEND")


def test_records_hold_what_the_evaluation_needs(copy: Path, tmp_path: Path) -> None:
    records = build(copy)
    assert [record["sample"] for record in records] == [0, 1]
    for record in records:
        assert record["outputs"] == [GOLD] and record["metric"] == "row_f1"
        assert (record["benchmark"], record["length"], record["haystack"]) == ("longproc", 0, "")
        assert record["max_new_tokens"] == 1024 and record["planned"] == 100
        assert record["template"] and record["question_aware"] and record["protocol"] == "official"
        assert record["prompt_tokens"] == len(record_ids(TOKENIZER, record))
        assert len(chat_ids(TOKENIZER, record["input"])) == record["prompt_tokens"]
        head, rest = record_parts(TOKENIZER, record)
        assert head + rest == record_ids(TOKENIZER, record)
    frozen.freeze(tmp_path / "x.jsonl", records)
    assert list(frozen.load(tmp_path / "x.jsonl")) == records


@pytest.mark.parametrize("aware", [True, False])
def test_records_run_through_the_evaluation(copy: Path, tmp_path: Path, aware: bool) -> None:
    records = build(copy, max_new_tokens=8, protocol=replace(OFFICIAL, question_aware=aware))
    assert list(records[0]) == [*RECORD, "prompt_tokens"]
    model = Loaded(observed("llama"), TOKENIZER, "tiny", "0123", frozenset([257]))
    evaluate(model, records, [registry.get("snapkv")], [40], "s", 0, tmp_path / "j", tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv", SAMPLE_COLUMNS)
    assert list(rows["kept_mean"][rows["method"] == "snapkv"]) == [40, 40] and len(rows) == 4
    assert set(rows["score"]) == {0} and set(rows["planned"]) == {100} and set(rows["status"]) == {"ok"}
    assert set(rows["protocol"]) == {"official" + " question_blind" * (not aware) + " new_tokens<=8"}


def test_official_numbers_and_their_switches(copy: Path) -> None:
    assert {name: (t.samples, t.tokens) for name, t in longproc.TASKS.items()} == {
        "html_to_tsv_0.5k": (100, 1024),
        "html_to_tsv_2k": (189, 3072),
        "html_to_tsv_8k": (120, 10240),
    }
    [record] = build(copy, samples=1, max_new_tokens=64, protocol=replace(OFFICIAL, template="none"))
    assert (record["planned"], record["max_new_tokens"], record["template"]) == (1, 64, False)
    assert record["protocol"] == "official template=none new_tokens<=64"
    assert record["prompt_tokens"] == len(TOKENIZER(record["input"]).input_ids)
    assert build(copy, max_new_tokens=9999)[0]["max_new_tokens"] == 1024


@pytest.mark.parametrize("place", [".", "data", "data/html_to_tsv"])
def test_repository_data_folder_or_task_folder_are_the_same_source(copy: Path, place: str) -> None:
    assert build(copy / place) == build(copy)


def test_the_task_folder_may_have_moved(copy: Path, tmp_path: Path) -> None:
    expected = build(copy)
    moved = tmp_path / "elsewhere"
    shutil.move(copy / "data" / "html_to_tsv", moved)
    assert build(moved) == expected


SCORES = {
    "itself": (f"```tsv\n{GOLD}```", 1.0),
    "another order and spelling": ("```tsv\nx\ty\nmoss wet\tna\nFERN\t1m\nan oak!\t20 M\n```", 1.0),
    "one of three rows": ("```tsv\nPlant\tHeight\nOak\t20 m\n```", 0.5),
    "one row too many": (f"```tsv\n{GOLD}Elm\t9 m\n```", 6 / 7),
    "a right row twice counts twice": (f"```tsv\n{GOLD}Elm\t9 m\nOak\t20 m\n```", 2 * 0.8 / 1.8),
    "a row cut off at the end": (f"```tsv\n{GOLD}Elm", 1.0),
    "a row of another width inside": ("```tsv\nPlant\tHeight\nOak\nMoss wet\tN/A\nOak\t20 m\n```", 2 / 3),
    "text around the block": (f"Sure:\n```tsv\n{GOLD}```\nDone.", 1.0),
    "no block at all": (GOLD, 1.0),
    "another kind of block, whose fence is then the header": (f"```\n{GOLD}```", 0.0),
    "another number of columns": ("```tsv\nPlant\nOak\nThe fern\n```", 0.0),
    "a header that repeats a name": (f"```tsv\n{GOLD.replace('Height', 'Plant')}```", 0.0),
    "a header alone": ("```tsv\nPlant\tHeight\n```", 0.0),
    "a field too long to read": (f"```tsv\nPlant\tHeight\nOak\t{'9' * 200_000}\n```", 0.0),
    "nothing": ("", 0.0),
}


@pytest.mark.parametrize(("prediction", "expected"), SCORES.values(), ids=SCORES.keys())
def test_f1_is_over_rows_in_any_order(prediction: str, expected: float) -> None:
    # counted by hand; on 20,000 random tables LongProc's own code gave the same (compared outside the tests)
    record = {"benchmark": "longproc", "metric": "row_f1", "outputs": [GOLD]}
    assert longproc.score(prediction, record) == pytest.approx(100 * expected)
    assert bench.score(record, prediction) == longproc.score(prediction, record)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: (f / "html_to_tsv_0.5k.json").unlink(), r"html_to_tsv_0\.5k\.json in .*princeton-pli"),
        (lambda f: (f / "prompts.yaml").unlink(), "prompts.yaml"),
        (lambda f: (f / "prompts.yaml").write_text("OTHER: x"), "lacks USER_PROMPT"),
        (lambda f: (f / "prompts.yaml").write_text("a: [b"), "not YAML"),
        (lambda f: (f / "prompts.yaml").write_text("USER_PROMPT: no page"), "html_str"),
        (lambda f: (f / "prompts.yaml").write_text("USER_PROMPT: '{html_str} {unheard_of}'"), "unheard_of"),
        (lambda f: (f / "webpage" / "b.html").unlink(), r"b\.html"),
        (lambda f: (f / "html_to_tsv_0.5k.json").write_text('[{"a": 1},\n {"a" 2}]'), "line 2"),
        (lambda f: (f / "html_to_tsv_0.5k.json").write_bytes(b'["\xff"]'), "not UTF-8"),
        (lambda f: write(f, {}), "list of samples"),
        (lambda f: write(f, [{k: v for k, v in item("a").items() if k != "gt"}]), "sample 0 lacks gt"),
        (lambda f: write(f, [item("a"), item("b", gt=" \n")]), "sample 1: gt"),
        (lambda f: write(f, [item("a"), item("a")]), "sample 1: a occurs twice"),
    ],
)
def test_a_broken_copy_is_refused_before_the_first_record(copy: Path, change: Any, why: str) -> None:
    change(copy / "data" / "html_to_tsv")
    with pytest.raises(UserError, match=why) as error:
        longproc.build("html_to_tsv_0.5k", copy, TOKENIZER, OFFICIAL)
    assert "\n" not in str(error.value)


def test_bad_requests_are_refused(copy: Path) -> None:
    with pytest.raises(UserError, match="html_to_tsv_2k"):
        longproc.build("html_to_tsv_3k", copy, TOKENIZER, OFFICIAL)
    with pytest.raises(UserError, match="samples is 0"):
        build(copy, samples=0)
    with pytest.raises(UserError, match="metric"):
        longproc.score("", {"metric": "f1", "outputs": [GOLD]})
    with pytest.raises(UserError, match="no reference"):
        longproc.score("", {"metric": "row_f1", "outputs": []})
    (copy / "data" / "html_to_tsv" / "webpage" / "b.html").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"b\.html is not UTF-8"):
        build(copy)


def test_a_prompt_beyond_the_models_context_is_refused(copy: Path) -> None:
    longest = max(record["prompt_tokens"] for record in build(copy))
    assert len(build(copy, context=longest + 1024)) == 2
    with pytest.raises(UserError, match=f"context is {longest + 1023}"):
        build(copy, context=longest + 1023)
