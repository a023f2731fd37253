"""Promises of `lkv inspect`: recall by head and kept tokens are what a plain computation says."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lkv.cli.main import main
from lkv.data.frozen import freeze
from lkv.errors import UserError
from lkv.eviction.prefill import prefill
from lkv.eviction.select import Kept, select
from lkv.measure.accuracy import evaluate
from lkv.measure.kept import BINS, bin_edges, bin_parts, kept_share
from lkv.measure.recall import inspect
from lkv.model.chat_template import record_ids, record_offsets, record_parts
from lkv.model.fetch import obtain
from lkv.model.load import Loaded, load
from lkv.model.random_weights import tiny_tokenizer
from lkv.registry import get
from lkv.results import columns
from lkv.results.csv_files import read_csv

SOURCE = {"kind": "random", "family": "llama", "seed": 3, "layers": 3, "heads": 4, "kv_heads": 2}
BUDGETS = [40, 64]


def record(sample: int = 0, **changes: Any) -> dict[str, Any]:
    text = f"Rain fell on the harbour. The key is 7{sample}71. " + "Seven ships lay at anchor. " * 6
    question = "What is the key?"
    return {
        "benchmark": "ruler", "task": "niah_single_1", "length": 256, "sample": sample, "planned": 2,
        "haystack": "noise", "protocol": "official", "question_aware": True, "template": True,
        "input": text + question, "question_at": len(text), "answer_prefix": " It is",
        "outputs": [f"7{sample}71"],
        "classes": [], "metric": "all", "max_new_tokens": 6, "stops": [], "min_new_tokens": 0,
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "tiny"
    obtain({"name": "tiny", "licence": "none", "source": SOURCE | {"head_dim": 16, "context": 512}}, made)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load(folder, torch.device("cpu"), "float32")


METHODS = ["snapkv", "streamingllm", "h2o", "oracle"]


@pytest.fixture(scope="module")
def found(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    out = tmp_path_factory.mktemp("inspected")
    methods = [get(name) for name in METHODS]
    inspect(loaded, [record(0), record(1)], methods, BUDGETS, "s", 1, out / "r.csv", out / "k.csv")
    return (
        read_csv(out / "r.csv", columns.RECALL_COLUMNS),
        read_csv(out / "k.csv", columns.KEPT_COLUMNS).fillna({"part": ""}),
    )


def attention(loaded: Loaded, ids: list[int], rows: range, prompt: int) -> list[torch.Tensor]:
    """Mean attention [K, prompt] of some rows to the prompt, a layer: transformers' own eager attention."""
    before = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = loaded.model(torch.tensor([ids]), output_attentions=True).attentions
    loaded.model.set_attn_implementation(before)
    return [layer[0, :, rows, :prompt].mean(1).unflatten(0, (2, 2)).mean(1) for layer in seen]


def test_recall_by_head_is_the_overlap_of_two_plain_top_c(loaded, found):
    """SnapKV's observers are the last 32 prompt rows, the oracle's the answer's."""
    expected: dict[tuple[int, int, int], float] = dict.fromkeys(product(BUDGETS, range(3), range(2)), 0.0)
    for sample in (0, 1):
        ids = record_ids(loaded.tokenizer, record(sample))
        written = loaded.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0]
        whole = ids + [token for token in written[len(ids) :].tolist() if token not in loaded.stop]
        mine = attention(loaded, ids, range(len(ids) - 32, len(ids)), len(ids))
        best = attention(loaded, whole, range(len(ids), len(whole)), len(ids))
        for budget, layer, head in expected:
            top = [set(score[layer][head].topk(budget).indices.tolist()) for score in (mine, best)]
            expected[budget, layer, head] += len(top[0] & top[1]) / budget / 2
    rows = found[0][found[0]["method"] == "snapkv"].set_index(["budget", "layer", "head"])["recall"]
    assert rows.to_dict() == pytest.approx(expected, abs=1e-5)
    assert set(found[0]["n"]) == {2}
    assert set(found[0].loc[found[0]["method"] == "oracle", "recall"]) == {1.0}


def test_the_mean_over_layers_and_heads_is_what_evaluate_calls_recall_raw(loaded, found, tmp_path):
    methods = [get(name) for name in METHODS]
    evaluate(loaded, [record(0), record(1)], methods, BUDGETS, "s", 1, tmp_path / "j", tmp_path / "s.csv")
    scored = read_csv(tmp_path / "s.csv", columns.SAMPLE_COLUMNS)
    scored = scored[scored["method"] != "full"]
    key = ["method", "budget"]
    raw = scored.groupby(key)["recall_raw"].mean()
    assert found[0].groupby(key)["recall"].mean().to_dict() == pytest.approx(raw.to_dict(), abs=1e-5)


def test_kept_is_the_share_of_heads_in_the_methods_own_choice(loaded, found):
    ids = record_ids(loaded.tokenizer, record(0))
    snapkv = get("snapkv")
    prefilled, _ = prefill(loaded.model, torch.tensor([ids]), [snapkv.observers])
    kept = select(prefilled.recorded[snapkv.observers], snapkv.recipe, 64, 2)
    tally = Counter(token for layer in kept for head in layer[0].tolist() for token in head)
    rows = found[1][(found[1]["method"] == "snapkv") & (found[1]["budget"] == 64)]
    for start, end, share in rows[["start", "end", "kept"]].itertuples(index=False):
        assert share == pytest.approx(
            sum(tally[at] for at in range(start, end)) / 6 / (end - start), abs=1e-5
        )
    assert rows["end"].max() == len(ids)


def test_kept_tokens_sum_to_the_budget(found):
    for (_, budget), rows in found[1].groupby(["method", "budget"]):
        assert (rows["kept"] * (rows["end"] - rows["start"])).sum() == pytest.approx(budget, abs=1e-3)


def test_before_the_question_is_known_the_context_alone_is_inspected(loaded, tmp_path):
    given = record(question_aware=False)
    out = tmp_path / "r.csv", tmp_path / "k.csv"
    inspect(loaded, [given], [get("snapkv"), get("oracle")], [64], "s", 1, *out)
    bins = read_csv(out[1], columns.KEPT_COLUMNS)
    assert bins["end"].max() == len(record_parts(loaded.tokenizer, given)[0])
    assert set(bins["part"].dropna()) == {"answer"}  # the question is not evicted, nor what follows it
    recalls = read_csv(out[0], columns.RECALL_COLUMNS).set_index("method")["recall"]
    assert set(recalls["oracle"]) == {1.0}


def test_layers_that_keep_unequal_numbers_are_counted_without_their_padding():
    kept = Kept.of_layers(
        torch.tensor([[[[0, 1, 3]]], [[[2, 0, 0]]]]), [3, 1]
    )  # 0 is padding in the second layer
    assert kept_share(kept, 4).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert kept_share(None, 2).tolist() == [1, 1]  # the whole prompt fits


@pytest.mark.parametrize("length", [1, 191, 192, 193, 1000, 131_072])
def test_bins_cover_a_prompt_once_and_are_no_more_than_a_figure_shows(length):
    edges = bin_edges(length)
    assert len(edges) <= BINS
    assert [token for start, end in edges for token in range(start, end)] == list(range(length))


# ---- what lies where ---------------------------------------------------------------------------------------


def words() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a template that strips what the user says, as Llama-3's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    return tokenizer


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("space", ["", "\n  "])
def test_offsets_say_which_text_of_the_input_a_token_is(template, aware, space):
    tokenizer = words() if aware else tiny_tokenizer()
    given = record(template=template, question_aware=aware)
    given |= {"input": space + given["input"] + "é 中\n", "question_at": given["question_at"] + len(space)}
    ids = record_ids(tokenizer, given) if aware else record_parts(tokenizer, given)[0]
    offsets = record_offsets(tokenizer, given)
    assert len(offsets) == len(ids)
    for token, (start, end) in zip(ids, offsets, strict=True):
        said = tokenizer.decode([token])
        if said.isascii() and start >= 0:  # of another character a token is a part
            assert given["input"][start:end] == said
    inside = {at for start, end in offsets for at in range(max(0, start), end)}
    evicted = given["input"] if aware else given["input"][: given["question_at"]]
    first, last = evicted.index("Rain"), len(evicted.rstrip() if aware else evicted)
    assert set(range(first, last)) <= inside
    outside = [token for token, (start, _) in zip(ids, offsets, strict=True) if start < 0]
    added = tokenizer.decode(outside).removeprefix("<|user|>").removesuffix(" It is" if aware else "")
    assert added == ("<|end|><|assistant|>" if template and aware else "")


def test_parts_are_the_answer_the_question_and_what_the_template_adds():
    tokenizer, given = tiny_tokenizer(), record()
    offsets = record_offsets(tokenizer, given)
    ids = record_ids(tokenizer, given)
    assert len(ids) > BINS  # two tokens a bin
    parts = bin_parts(given, offsets, len(ids))

    def text(part: str) -> str:
        tokens = [token for at, token in enumerate(ids) if parts[at // 2] == part]
        return tokenizer.decode(tokens, skip_special_tokens=True).strip()

    assert "7071" in text("answer")
    assert len(text("answer")) <= 7
    assert "What is the key?" in text("question")
    assert len(text("question")) <= len("What is the key?") + 3
    assert text("template") in "It is"


def test_an_answer_is_whole_words_before_the_question_and_nothing_is_known_without_offsets():
    given = record(outputs=["key", "ship", ""], answer_prefix="")
    offsets = record_offsets(tiny_tokenizer(), given)
    parts = bin_parts(given, offsets, len(offsets))
    at = given["input"].index("key") + 1  # after <|user|>
    whole = {token // 2 for token in range(at, at + 3)}  # "ship" is only a part of "ships"
    assert {place for place, part in enumerate(parts) if part == "answer"} == whole
    assert set(bin_parts(given, None, 500)) == {""}


# ---- the verb ----------------------------------------------------------------------------------------------


def test_a_second_run_writes_the_same_bytes_and_no_text_of_a_prompt(folder, tmp_path):
    freeze(tmp_path / "data.jsonl", [record(0), record(1)], task="niah_single_1", length=256)

    def run(*samples: str) -> list[bytes]:
        words = ["inspect", "--model", str(folder), "--data", str(tmp_path / "data.jsonl"), "--study", "s"]
        words += ["--methods", "full", "snapkv", "--budgets", "64", "--device", "cpu", *samples]
        out = [tmp_path / "r.csv", tmp_path / "k.csv"]
        assert main([*words, "--recall", str(out[0]), "--kept", str(out[1])]) == 0
        return [path.read_bytes() for path in out]

    first = run()
    assert run() == first
    assert run("--samples", "1")[0] != first[0]  # overwritten, not added to
    assert not [word for word in ("harbour", "7071", "ships") if word.encode() in b"".join(first)]


def test_a_file_without_records_and_a_budget_below_the_window_are_refused(loaded, tmp_path):
    out = (tmp_path / "r.csv", tmp_path / "k.csv")
    with pytest.raises(UserError, match="no records"):
        inspect(loaded, [], [get("snapkv")], BUDGETS, "s", 1, *out)
    with pytest.raises(UserError, match="32"):
        inspect(loaded, [record()], [get("snapkv")], [8], "s", 1, *out)
    assert not out[0].exists()
