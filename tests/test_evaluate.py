"""Promises of the evaluation: every cell once, exact arithmetic, and stops leave no mark."""

from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lkv.errors import UserError
from lkv.eviction import decoder
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode
from lkv.eviction.extend import extend
from lkv.eviction.pipeline import observe
from lkv.eviction.prefill import prefill
from lkv.eviction.select import select
from lkv.interface import Method, PromptRows, Ranking, Recipe
from lkv.lookahead.adapter import LookaheadKV
from lkv.measure import choices, conditions, reading
from lkv.measure.accuracy import evaluate
from lkv.model.chat_template import chat_ids, record_parts
from lkv.model.fetch import obtain
from lkv.model.load import Loaded, load
from lkv.registry import FULL, METHODS, get
from lkv.results.columns import SAMPLE_COLUMNS
from lkv.results.journal import HEAD, Journal

LAYERS, KV_HEADS, HEAD_DIM, FLOAT32 = 4, 2, 16, 4  # four layers: PyramidKV's steps are no whole numbers
SOURCE = {
    "kind": "random",
    "family": "llama",
    "seed": 3,
    "layers": LAYERS,
    "heads": 4,
    "kv_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "context": 256,
}
BUDGETS = [40, 64]
NEW = 12
TEXTS = ["Rain fell on the harbour. " * 5, "Seven ships lay at anchor, " * 5]

Evaluate = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model computes faster so, and on a busy machine much faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    obtain({"name": "tiny", "licence": "none", "source": SOURCE}, folder)
    return load(folder, torch.device("cpu"), "float32")


@pytest.fixture(scope="module")
def adapters(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> list[LookaheadKV]:
    """Two untrained adapters, as they come from disk."""
    folders = [tmp_path_factory.mktemp(f"adapter{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        LookaheadKV.create(loaded.model, tokens=8, seed=seed).save_pretrained(folder)
    return [LookaheadKV.from_pretrained(folder, loaded.model) for folder in folders]


@pytest.fixture(scope="module")
def answers(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """Prompt tokens and greedy answer of each text, by transformers alone: no lkv attention, no lkv cache."""
    folder = tmp_path_factory.mktemp("plain")
    loaded.model.save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    found = []
    for text in TEXTS:
        ids = chat_ids(loaded.tokenizer, text, "Answer:")
        out = plain.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, len(ids) :]
        assert 257 not in out  # no early end, so that the answer is simply what was generated
        found.append((len(ids), loaded.tokenizer.decode(out, skip_special_tokens=True)))
    return found


@pytest.fixture(scope="module")
def records(answers: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """Two samples in RULER's form; a word of the model's own answer, and one that it does not say."""
    return [
        {
            "benchmark": "ruler",
            "task": "niah_single_1",
            "length": 256,
            "sample": sample,
            "input": text,
            "answer_prefix": "Answer:",
            "outputs": [words(answer)[0], *["nobody says this"] * sample],
            "max_new_tokens": NEW,
            "prompt_tokens": tokens,
            "haystack": "noise",
            "metric": "all",
            "planned": 2,
            "protocol": "test",
            "question_aware": True,
            "template": True,
            "question_at": text.rfind("ships" if "ships" in text else "harbour"),
            "classes": [],
            "stops": [],
            "min_new_tokens": 0,
        }
        for sample, (text, (tokens, answer)) in enumerate(zip(TEXTS, answers, strict=True))
    ]


def words(answer: str) -> list[str]:
    """Runs of printable ASCII: pieces of a random model's answer that no cleaning changes."""
    return "".join(c if " " < c <= "~" else " " for c in answer).split()


def methods(adapter: LookaheadKV, names: Sequence[str] = tuple(METHODS)) -> list[Method]:
    return [get(name, adapter, draft="self") for name in names]


@pytest.fixture
def run(
    loaded: Loaded, adapters: list[LookaheadKV], records: list[dict[str, Any]], tmp_path: Path
) -> Evaluate:
    """Evaluates in `tmp_path`; rows of the CSV."""

    def run(**changes: Any) -> list[dict[str, str]]:
        settings: dict[str, Any] = {
            "loaded": loaded,
            "records": records,
            "methods": methods(adapters[0]),
            "budgets": BUDGETS,
            "study": "mine",
            "seed": 7,
            "journal_path": tmp_path / "journal.jsonl",
            "out": tmp_path / "out.csv",
        } | changes
        evaluate(**settings)
        return read(settings["out"])

    return run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call decodes."""
    calls: list[int] = []
    plain = reading.decode_all

    def counting(model: Any, rows: Any, *rest: Any) -> Any:
        calls.append(len(rows))
        return plain(model, rows, *rest)

    monkeypatch.setattr(reading, "decode_all", counting)
    return calls


@pytest.fixture(scope="module")
def finished(
    loaded: Loaded,
    adapters: list[LookaheadKV],
    records: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of one whole run, to read only."""
    folder = tmp_path_factory.mktemp("finished")
    journal, out = folder / "journal.jsonl", folder / "out.csv"
    evaluate(loaded, records, methods(adapters[0]), BUDGETS, "mine", 7, journal, out)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def by_cell(rows: list[dict[str, str]]) -> dict[tuple[str, str, str], dict[str, str]]:
    return {(row["sample"], row["method"], row["budget"]): row for row in rows}


def groups(journal: Path) -> list[bytes]:
    """The journal's bytes, a group each."""
    found: list[bytes] = []
    for line in journal.read_bytes().splitlines(keepends=True)[1:]:
        if json.loads(line)["group"][0] == 0:
            found.append(b"")
        found[-1] += line
    return found


def test_one_row_a_sample_method_and_budget_in_the_contracts_columns(finished: Path) -> None:
    out = finished / "out.csv"
    assert out.read_text(encoding="utf-8").split("\n", 1)[0] == ",".join(SAMPLE_COLUMNS)
    rows = read(out)
    planned = [(FULL, 0), *((name, budget) for name in METHODS for budget in BUDGETS)]
    assert [(row["sample"], row["method"], row["budget"]) for row in rows] == [
        (str(sample), method, str(budget)) for sample in range(2) for method, budget in planned
    ]
    for row in rows:
        assert row | {
            "study": "mine", "protocol": "test", "model": "tiny", "benchmark": "ruler",
            "task": "niah_single_1", "length": "256", "haystack": "noise", "status": "ok",
        } == row  # fmt: skip
        assert 0 <= float(row["score"]) <= 100
        assert 0 <= int(row["new_tokens"]) <= NEW


def test_every_method_keeps_its_budget_exactly_and_its_bytes_are_arithmetic(
    finished: Path, answers: list[tuple[int, str]]
) -> None:
    bytes_an_entry = 2 * LAYERS * KV_HEADS * HEAD_DIM * FLOAT32  # keys and values
    for row in read(finished / "out.csv"):
        prompt = answers[int(row["sample"])][0]
        kept = prompt if row["method"] == FULL else int(row["budget"])
        assert int(row["prompt_tokens"]) == prompt > 100
        assert float(row["kept_mean"]) == kept
        assert int(row["kept_bytes"]) == kept * bytes_an_entry


def test_the_full_caches_score_is_that_of_the_models_own_generate(
    finished: Path, answers: list[tuple[int, str]], records: list[dict[str, Any]]
) -> None:
    rows = [row for row in read(finished / "out.csv") if row["method"] == FULL]
    assert [float(row["score"]) for row in rows] == [100, 50]
    assert [(row["recall"], row["recall_raw"]) for row in rows] == [("", "")] * 2
    cells = [json.loads(group.splitlines()[0]) for group in groups(finished / "journal.jsonl")]
    assert [cell["prediction"] for cell in cells] == [answer for _, answer in answers]
    assert [int(row["new_tokens"]) for row in rows] == [NEW, NEW]


def test_the_oracle_recalls_all_and_the_others_less(finished: Path) -> None:
    rows = by_cell(read(finished / "out.csv"))
    for (_, method, _), row in rows.items():
        if method == "oracle":
            assert float(row["recall_raw"]) == 1
        elif method != FULL:
            assert 0 < float(row["recall_raw"]) < 1
            assert 0 < float(row["recall"]) < 1


def test_recall_is_the_share_of_the_answers_top_entries_by_eager_attention(
    finished: Path, loaded: Loaded, answers: list[tuple[int, str]], tmp_path: Path
) -> None:
    """StreamingLLM's kept entries are known beforehand, so the truth needs nothing of ours."""
    loaded.model.save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", attn_implementation="eager")
    rows = by_cell(read(finished / "out.csv"))
    for sample, text in enumerate(TEXTS):
        prompt = torch.tensor([chat_ids(loaded.tokenizer, text, "Answer:")])
        n = prompt.shape[1]
        answer = plain.generate(prompt, max_new_tokens=NEW, do_sample=False)
        maps = plain(answer, output_attentions=True).attentions
        for budget in BUDGETS:
            best = [
                a[0, :, n:, :n].mean(1).unflatten(0, (KV_HEADS, -1)).mean(1).topk(budget).indices
                for a in maps
            ]
            row = rows[str(sample), "streamingllm", str(budget)]
            for column, kept in (
                ("recall", [*range(4), *range(n - budget + 4, n)]),
                ("recall_raw", [*range(n - budget, n)]),
            ):
                shares = [torch.isin(b, torch.tensor(kept)).float().mean() for b in best]
                assert float(row[column]) == pytest.approx(float(torch.stack(shares).mean()), abs=1e-5)


def test_two_runs_give_the_same_bytes(finished: Path, run: Evaluate, tmp_path: Path) -> None:
    run()
    for name in ("out.csv", "journal.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    "kill", ["between samples", "in a line", "before the last line", "in the first sample"]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    kill: str, finished: Path, run: Evaluate, decoded: list[int], tmp_path: Path
) -> None:
    first, second = groups(finished / "journal.jsonl")
    first = HEAD + first
    left = {
        "between samples": first,
        "in a line": first + second[: len(second) // 2],
        "before the last line": first + b"".join(second.splitlines(keepends=True)[:-1]),
        "in the first sample": first[: len(first) // 2],
    }[kill]
    (tmp_path / "journal.jsonl").write_bytes(left)
    run()
    for name in ("out.csv", "journal.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    cells = len(METHODS) * len(BUDGETS)
    left = 2 if kill == "in the first sample" else 1
    assert decoded == [left, left * cells]  # the full cache's answers, then all that they are compared with


def test_what_a_kill_tore_is_said(
    finished: Path, loaded: Loaded, adapters: list[LookaheadKV], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    journal, out = tmp_path / "journal.jsonl", tmp_path / "out.csv"
    journal.write_bytes((finished / "journal.jsonl").read_bytes()[:-1])
    cells = len(METHODS) * len(BUDGETS) + 1
    settings = (methods(adapters[0]), BUDGETS, "mine", 7, journal, out)
    assert f"lines {2 + cells}-{1 + 2 * cells} are torn" in evaluate(loaded, records, *settings)
    assert evaluate(loaded, records, *settings) == ""


def test_a_second_run_computes_nothing(run: Evaluate, decoded: list[int], monkeypatch: Any) -> None:
    before = run()
    decoded.clear()
    monkeypatch.setattr(reading, "prefill", None)
    assert run() == before
    assert decoded == []


def test_a_new_budget_costs_its_own_cells_alone(run: Evaluate, decoded: list[int], monkeypatch: Any) -> None:
    before = run()
    decoded.clear()
    looks = []
    plain = choices.select_entries
    monkeypatch.setattr(
        choices,
        "select_entries",
        lambda p, method, budgets: looks.append(budgets) or plain(p, method, budgets),
    )
    after = by_cell(run(budgets=[40, 50, 64]))
    assert decoded == [2 * len(METHODS)]
    assert looks == [[50]] * 2 * len(METHODS)
    assert len(after) == 2 * (1 + 3 * len(METHODS))
    for cell, row in by_cell(before).items():
        assert after[cell] == row


def test_a_new_method_costs_its_own_cells_alone(
    run: Evaluate, decoded: list[int], adapters: list[LookaheadKV], finished: Path
) -> None:
    some = [name for name in METHODS if name != "laq"]
    before = run(methods=methods(adapters[0], some))
    decoded.clear()
    after = by_cell(run())
    assert decoded == [2 * len(BUDGETS)]
    for cell, row in by_cell(before).items():
        assert after[cell] == row
    at_once = by_cell(read(finished / "out.csv"))
    assert list(after) == list(at_once)  # in the plan's order all the same
    for cell, row in at_once.items():  # measured against the same answer, which now comes from the journal
        assert (after[cell]["recall"], after[cell]["recall_raw"]) == (row["recall"], row["recall_raw"])


def test_another_adapter_changes_lookaheadkvs_cells_alone(
    run: Evaluate, decoded: list[int], adapters: list[LookaheadKV]
) -> None:
    before = by_cell(run())
    decoded.clear()
    after = by_cell(run(methods=methods(adapters[1])))
    assert decoded == [2 * len(BUDGETS)]
    changed = {cell for cell, row in before.items() if after[cell] != row}
    assert changed == {cell for cell in before if cell[1] == "lookaheadkv"}


def test_the_studys_name_is_a_label_and_costs_nothing(run: Evaluate, decoded: list[int]) -> None:
    before = run()
    decoded.clear()
    after = run(study="another")
    assert decoded == []
    assert after == [row | {"study": "another"} for row in before]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"version": 2},
        {"protocol": "official"},
        {"stops": ["."]},
        {"min_new_tokens": 1},
        {"template": False},
        {"input": "Snow."},
        {"answer_prefix": "A:"},
        {"max_new_tokens": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_may_change_a_result_is_computed_again(
    change: dict[str, Any], run: Evaluate, decoded: list[int], adapters: list[LookaheadKV], records: list[Any]
) -> None:
    some = {"methods": methods(adapters[0], ["random", "snapkv"]), "records": records[:1]}
    run(**some)
    decoded.clear()
    inside = {k: v for k, v in change.items() if k in records[0]}
    run(**some | {k: v for k, v in change.items() if k not in inside} | {"records": [records[0] | inside]})
    assert decoded == [1, 2 * len(BUDGETS)]


def test_other_references_score_the_same_predictions_again(
    run: Evaluate, decoded: list[int], adapters: list[LookaheadKV], records: list[Any]
) -> None:
    some = {"methods": methods(adapters[0], ["random"])}
    run(**some, records=records[:1])
    decoded.clear()
    rows = run(**some, records=[records[0] | {"outputs": [""]}])  # found in any answer
    assert decoded == []
    assert {row["score"] for row in rows} == {"100"}


@pytest.mark.parametrize(
    ("name", "budget"), [("snapkv", 31), ("pyramidkv", 31), ("h2o", 31), ("streamingllm", 3)]
)
def test_a_budget_below_a_methods_window_is_refused_before_anything_is_written(
    name: str, budget: int, run: Evaluate, adapters: list[LookaheadKV], tmp_path: Path
) -> None:
    message = rf"budget {budget} is too small for {name}, which always keeps .*; give {budget + 1} or more"
    with pytest.raises(UserError, match=message):
        run(methods=methods(adapters[0], ["random", name]), budgets=[64, budget])
    assert not any(tmp_path.iterdir())


def test_a_draft_that_does_not_fit_the_budget_is_refused_too(
    run: Evaluate, adapters: list[LookaheadKV], tmp_path: Path
) -> None:
    for name in ("laq", "laqpp"):
        message = f"budget 31 is too small for {name}, which works on a cache of 32 or more; give 32 or more"
        with pytest.raises(UserError, match=message):
            run(methods=methods(adapters[0], [name]), budgets=[64, 31])
    assert not any(tmp_path.iterdir())


def test_a_prompt_that_fits_its_budget_is_left_whole(
    run: Evaluate, adapters: list[LookaheadKV], answers: list[tuple[int, str]]
) -> None:
    rows = run(methods=methods(adapters[0]), budgets=[200])
    assert all(float(row["kept_mean"]) == answers[int(row["sample"])][0] for row in rows)
    assert {row["score"] for row in rows if row["sample"] == "1"} == {"50"}
    assert {(row["recall"], row["recall_raw"]) for row in rows if row["method"] != FULL} == {("1", "1")}


def test_no_records_are_refused(run: Evaluate, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records; build it again with lkv data"):
        run(records=[])
    assert not any(tmp_path.iterdir())


@pytest.fixture
def prefills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The prompt length of each prefill."""
    lengths: list[int] = []
    whole = reading.prefill

    def counted(model: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths.append(ids.shape[1])
        return whole(model, ids, *args, **kwargs)

    monkeypatch.setattr(reading, "prefill", counted)
    return lengths


@pytest.fixture
def blind(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Three questions on two contexts, to be read after the eviction."""
    contexts = [TEXTS[0], TEXTS[1], TEXTS[0]]
    questions = ["Where did the rain fall?", "How many ships?", "Did it rain?"]
    return [
        records[0]
        | {
            "sample": sample,
            "planned": 3,
            "question_aware": False,
            "input": context + question,
            "question_at": len(context),
        }
        for sample, (context, question) in enumerate(zip(contexts, questions, strict=True))
    ]


def test_questions_on_one_context_share_its_prefill_and_its_eviction(
    run: Evaluate, prefills: list[int], blind: list[dict[str, Any]], loaded: Loaded
) -> None:
    rows = run(records=blind)
    contexts = [len(record_parts(loaded.tokenizer, record)[0]) for record in blind]
    assert prefills == contexts[:2]
    assert [row["sample"] for row in rows] == sorted(row["sample"] for row in rows)
    for row in rows:
        kept = contexts[int(row["sample"])] if row["method"] == FULL else int(row["budget"])
        assert float(row["kept_mean"]) == kept
        assert int(row["kept_bytes"]) == kept * 2 * LAYERS * KV_HEADS * HEAD_DIM * FLOAT32


def test_a_question_blind_answer_is_that_of_the_engine_step_by_step(
    run: Evaluate, blind: list[dict[str, Any]], loaded: Loaded, tmp_path: Path
) -> None:
    method = get("snapkv")
    run(records=blind, methods=[method], budgets=[40])
    found = {
        (cell["sample"], cell["method"]): cell for cell in Journal(tmp_path / "journal.jsonl").cells.values()
    }
    for record in blind:
        context, question = (torch.tensor([ids]) for ids in record_parts(loaded.tokenizer, record))
        whole = loaded.model.generate(torch.cat([context, question], 1), max_new_tokens=NEW, do_sample=False)[
            0, context.shape[1] + question.shape[1] :
        ]
        assert found[record["sample"], FULL]["tokens"] == [t for t in whole.tolist() if t != 257]
        prefilled, _ = prefill(loaded.model, context, method.rows)
        kept = select(observe(prefilled, method, [40])[0], method.recipe, 40, prefilled.kv_heads)
        rows = compact(extend(prefilled, kept, question), None)
        assert (
            found[record["sample"], "snapkv"]["tokens"]
            == decode(loaded.model, rows, NEW, loaded.stop).tokens[0]
        )


def test_a_question_blind_run_that_was_stopped_goes_on_with_the_same_bytes(
    run: Evaluate, blind: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(records=blind)
    whole, journal = (tmp_path / "out.csv").read_bytes(), tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for cut in (len(lines) // 3, 2 * len(lines) // 3):
        journal.write_bytes(b"".join(lines[:cut]))
        run(records=blind)
        assert (tmp_path / "out.csv").read_bytes() == whole


def test_without_a_place_where_the_question_begins_blind_is_refused(
    run: Evaluate, blind: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match=r"no place where its question begins.*question_aware: true"):
        run(records=[blind[0] | {"question_at": 0}])


def test_a_tasks_own_stop_text_ends_the_answer_but_not_before_its_first_token(
    run: Evaluate, records: list[dict[str, Any]], loaded: Loaded, tmp_path: Path
) -> None:
    def tokens() -> list[int]:
        [cell] = Journal(tmp_path / "journal.jsonl").cells.values()
        (tmp_path / "journal.jsonl").unlink()
        return cell["tokens"]

    def answer(**changes: Any) -> list[int]:
        run(methods=[], records=[records[0] | changes])
        return tokens()

    def text(token: int) -> str:
        """The text of a token, or "" for part of a character: no text to stop at."""
        said = loaded.tokenizer.decode([token])
        return said if loaded.tokenizer(said, add_special_tokens=False).input_ids == [token] else ""

    prefix, free = next(
        (p, said) for p in string.printable for said in [answer(answer_prefix=p)] if text(said[0])
    )
    later = next(token for token in free[1:] if text(token) and token != free[0])
    assert answer(answer_prefix=prefix, stops=[text(later)]) == free[: free.index(later)]
    assert answer(answer_prefix=prefix, stops=[text(free[0])]) == []
    spared = answer(answer_prefix=prefix, stops=[text(free[0])], min_new_tokens=1)
    assert spared[:1] not in ([], free[:1])


def test_samples_are_written_as_they_end_so_that_a_late_kill_loses_few(
    loaded: Loaded, records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight samples of nineteen cells; a kill after 93 % of the decode steps."""
    eight = [records[i % 2] | {"sample": i, "planned": 8} for i in range(8)]
    compared = [get(name) for name in ("snapkv", "streamingllm", "random")]
    settings = (compared, [34, 36, 38, 40, 42, 44], "mine", 7)
    steps, real = [0], decoder.Decoder._step

    def counted(self: Any) -> None:
        steps[0] += 1
        if steps[0] == last:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(decoder.Decoder, "_step", counted)
    last = -1
    evaluate(loaded, eight, *settings, tmp_path / "whole", tmp_path / "whole.csv")
    last, steps[0] = int(0.93 * steps[0]), 0
    with pytest.raises(KeyboardInterrupt):
        evaluate(loaded, eight, *settings, tmp_path / "cut", tmp_path / "cut.csv")
    assert len(Journal(tmp_path / "cut").cells) >= 6 * 19
    last = -1
    evaluate(loaded, eight, *settings, tmp_path / "cut", tmp_path / "cut.csv")
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def part_changes(value: Any) -> Iterator[Any]:
    """Copies of a dataclass, each with another value in one field, those of its parts too."""
    for field in fields(value):
        if field.metadata.get("shown"):  # for people alone
            continue
        now = getattr(value, field.name)
        if is_dataclass(now) and not isinstance(now, type):
            others: list[Any] = list(part_changes(now))
        elif isinstance(now, tuple):
            others = [(*now, PromptRows(5))]
        elif isinstance(now, bool):
            others = [not now]
        elif isinstance(now, int):
            others = [now + 1]
        elif isinstance(now, str):
            others = [f"{now}x"]
        else:  # a function, or nothing
            others = [by_cell if now is part_changes else part_changes]
        for other in others:
            yield replace(value, **{field.name: other})


@pytest.mark.parametrize(
    "method",
    [
        Method("m", Recipe(), PromptRows(32), tail_before_prefill=part_changes),
        Method("m", Recipe(sinks=4), Ranking(part_changes)),
        Method("m", Recipe(), part_changes, PromptRows(8)),
    ],
    ids=["rows", "ranking", "function"],
)
def test_every_field_of_every_part_of_a_method_is_in_the_journals_key(
    method: Method, records: list[dict[str, Any]]
) -> None:
    def key(made: Method) -> str:
        [_, cell] = conditions.journal_keys(records[0], [], [made], [64], []).values()
        return cell

    assert key(method) == key(replace(method))
    changed = [key(other) for other in part_changes(method)]
    assert len(changed) >= 15
    assert len({key(method), *changed}) == 1 + len(changed)


def test_a_bound_argument_of_a_method_is_in_the_journals_key(records: list[dict[str, Any]]) -> None:
    laq, laqpp = get("laq"), get("laqpp")
    alike = replace(laqpp, name="laq", recipe=laq.recipe)
    assert alike.made_of != laq.made_of  # it has extra rows
    one, two = (replace(laq, observers=partial(laq.observers, tokens=n)) for n in (8, 16))
    assert one.made_of != two.made_of
