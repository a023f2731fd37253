"""Promises of the latency study: what is timed, what stands in its rows, and what is not timed at all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from conftest import observed

from lkv import registry
from lkv.cache.sizes import entry_bytes
from lkv.cli.main import main
from lkv.errors import UserError
from lkv.eviction import answer as answering
from lkv.eviction.decode import decode
from lkv.interface import Method
from lkv.lookahead.adapter import LookaheadKV
from lkv.measure import latency as module
from lkv.measure import latency_rows, timing
from lkv.measure.latency import latency
from lkv.measure.latency_rows import ADDED
from lkv.measure.stopwatch import Stopwatch
from lkv.measure.timing import alike, measure
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer
from lkv.results.columns import LATENCY_COLUMNS
from lkv.results.csv_files import read_csv

NAMES = ("streamingllm", "snapkv", "pyramidkv", "laq", "speckv", "lookaheadkv")
LENGTHS = (96, 160)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(observed("llama"), tiny_tokenizer(), "tiny", "0", frozenset())


@pytest.fixture(scope="module")
def methods(loaded: Loaded) -> list[Method | None]:
    adapter = LookaheadKV.create(loaded.model, tokens=8).requires_grad_(False)
    draft = Loaded(observed("llama", seed=2), loaded.tokenizer, "draft", "1", frozenset())
    return [None, *(registry.get(name, adapter, None, draft, loaded.tokenizer) for name in NAMES)]


def run(loaded: Loaded, methods: list[Method | None], **changes: Any) -> pd.DataFrame:
    lengths = changes.pop("lengths", LENGTHS)
    settings: dict[str, Any] = {"budgets": [48, 64], "repeats": dict.fromkeys(lengths, 2), "warmups": 0}
    prompts = {length: [i % 250 for i in range(length)] for length in lengths}
    rows = [
        row
        for part in latency(loaded, prompts, methods, study="s", **settings | changes)
        for row in part
    ]  # fmt: skip
    assert {key for row in rows for key in row} <= set(LATENCY_COLUMNS)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def frame(loaded: Loaded, methods: list[Method | None]) -> pd.DataFrame:
    return run(loaded, methods)


def test_every_method_has_its_phases_and_the_plain_prefill_has_no_overhead(frame: pd.DataFrame) -> None:
    phases = frame.groupby("method")["phase"].unique().map(set)
    always = {"prefill", "first_token", "decode_token", "total"}
    assert phases["full"] == always
    for name in NAMES:
        assert phases[name] >= always | {"observe", "select", "compact"}
    assert {name for name in NAMES if "draft" in phases[name]} >= {"laq", "speckv"}
    assert {name for name in NAMES if "rows" in phases[name]} == {"speckv", "lookaheadkv"}
    assert {name for name in NAMES if "lora" in phases[name]} == {"lookaheadkv"}
    full = frame[(frame["method"] == "full") & (frame["phase"] == "total")]
    assert list(full["overhead_ms"]) == [0, 0] and list(full["budget"]) == [0, 0]
    assert (frame["status"] == "ok").all() and set(frame["weights"]) == {"real"}


def test_total_and_overhead_are_sums_of_the_phases_of_each_repeat(
    loaded: Loaded, methods: list[Method | None]
) -> None:
    frame = run(loaded, methods, repeats=dict.fromkeys(LENGTHS, 1))  # one repeat: its medians are its values
    plain = frame[(frame["method"] == "full") & (frame["phase"] == "prefill")].set_index("length")[
        "median_ms"
    ]
    for (length, _, _), cell in frame.groupby(["length", "budget", "method"]):
        ms = cell.set_index("phase")["median_ms"]
        total = cell[cell["phase"] == "total"].iloc[0]
        added = sum(ms.get(phase, 0.0) for phase in ADDED)
        assert total["overhead_ms"] == pytest.approx(added)
        assert total["median_ms"] == pytest.approx(ms["prefill"] + added)
        assert total["overhead_pct"] == pytest.approx(100 * added / plain[length])
        assert total["tokens_per_s"] == pytest.approx(1e3 / ms["decode_token"])


def test_every_budget_pays_for_its_own_draft(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = []
    monkeypatch.setattr(answering, "decode", lambda *given: drafted.append(given) or decode(*given))
    measure(loaded, torch.arange(96)[None], [registry.get("speckv", draft="self")], [48, 64])
    assert len(drafted) == 2, "a model that drafts for itself knows its answer from the budget before"


def test_cache_bytes_are_the_kept_entries(loaded: Loaded, frame: pd.DataFrame) -> None:
    totals = frame[frame["phase"] == "total"]
    for row in totals.to_dict("records"):
        stored = row["length"] if row["method"] == "full" else row["budget"]
        assert row["cache_bytes"] == stored * entry_bytes(loaded.model)


def test_off_the_gpu_there_is_no_peak_no_largest_batch_and_no_theory(frame: pd.DataFrame) -> None:
    for column in ("peak_prefill_bytes", "peak_decode_bytes", "max_batch", "theory_ms"):
        assert frame[column].isna().all()
    assert set(frame["implementation"]) == {"torch", "torch, single pass"}
    single = frame["implementation"].str.contains("single pass")
    assert set(frame.loc[single, "method"]) == {"speckv", "lookaheadkv"}


def test_a_stopwatch_counts_nested_time_once() -> None:
    watch, start = Stopwatch(torch.device("cpu")), time.perf_counter()
    with watch("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with watch("inner"):
                time.sleep(0.03)
    elapsed, laps, totals = time.perf_counter() - start, watch.laps(), watch.totals()
    assert len(laps["inner"]) == 2 and len(laps["outer"]) == 1
    assert totals["inner"] >= 0.06 and totals["outer"] >= 0.02
    assert totals["inner"] + totals["outer"] <= elapsed
    assert totals["never"] == 0


def test_only_methods_that_differ_in_their_schedule_share_a_prefill(methods: list[Method | None]) -> None:
    full, *evicting = methods
    named = {method.name: method for method in evicting if method}
    assert alike(named["snapkv"], named["pyramidkv"]) and alike(full, full)
    for name in set(NAMES) - {"snapkv", "pyramidkv"}:
        assert not alike(named["snapkv"], named[name]), name
    assert not alike(full, named["snapkv"])


def test_methods_that_are_alike_are_measured_from_one_prefill(
    loaded: Loaded, methods: list[Method | None]
) -> None:
    prompt = torch.randint(0, 250, (1, 120), generator=torch.Generator().manual_seed(3))
    together = [method for method in methods if method and method.name in ("snapkv", "pyramidkv")]
    found = measure(loaded, prompt, together, [48, 64])
    assert set(found) == {(name, budget) for name in ("snapkv", "pyramidkv") for budget in (48, 64)}
    for (_, budget), run in found.items():
        assert run.cache_bytes == budget * entry_bytes(loaded.model)
    shared = {run.seconds["prefill"] for run in found.values()}
    assert len(shared) == 1 and shared.pop() > 0


def test_layer_by_layer_has_rows_of_its_own_for_methods_whose_observers_ride_along(
    loaded: Loaded, methods: list[Method | None]
) -> None:
    frame = run(loaded, methods, lengths=(96,), ways=("whole", "layerwise"))
    layerwise = frame[frame["implementation"].str.contains("layer by layer")]
    assert set(layerwise["method"]) == {"snapkv", "pyramidkv", "speckv", "lookaheadkv"}
    assert set(layerwise["budget"]) == {48, 64}
    assert (layerwise["status"] == "ok").all()


def test_out_of_memory_at_a_length_is_a_row_and_the_study_goes_on(
    loaded: Loaded, methods: list[Method | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = timing.measure

    def scarce(loaded: Loaded, ids: torch.Tensor, together: Any, *more: Any) -> Any:
        if ids.shape[1] == 160 and together[0] is not None and together[0].name == "laq":
            raise torch.OutOfMemoryError
        return real(loaded, ids, together, *more)

    monkeypatch.setattr(module, "measure", scarce)
    frame = run(loaded, methods)
    lost = frame[frame["status"] != "ok"]
    assert set(zip(lost["method"], lost["length"], strict=True)) == {("laq", 160)}
    assert list(lost["status"]) == ["out of memory"] * 2 and set(lost["phase"]) == {"total"}
    assert lost["median_ms"].isna().all()
    assert set(frame.loc[frame["status"] == "ok", "length"]) == set(LENGTHS)


def test_without_a_plain_prefill_nothing_is_compared(
    loaded: Loaded, methods: list[Method | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "measure", never)
    frame = run(loaded, methods[:3])
    assert set(frame["status"]) == {"out of memory"}
    assert set(frame["phase"]) == {"total"}


def test_a_method_whose_scores_differ_from_the_references_is_not_timed(
    loaded: Loaded, methods: list[Method | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (timing, latency_rows):
        monkeypatch.setattr(place, "implementation", lambda _: "fused")
    bad = {"snapkv": 0.2}
    monkeypatch.setattr(
        timing, "score_errors", lambda model, ids, method, layers: [1e-4, bad.get(method.name, 0)]
    )
    frame = run(loaded, methods)
    lost = frame[frame["status"] != "ok"]
    assert set(lost["method"]) == {"snapkv", "pyramidkv"}  # they share their prefill
    assert set(lost["status"]) == {"scores differ from the reference by 2.0e-01"}


def test_prompts_longer_than_the_model_reads_are_said_and_not_timed(
    methods: list[Method | None], loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 128)
    frame = run(loaded, methods[:2])
    assert set(frame.loc[frame["length"] == 160, "status"]) == {"longer than the model's 128 tokens"}
    assert set(frame.loc[frame["length"] == 96, "status"]) == {"ok"}


def test_each_length_has_its_own_number_of_repeats(loaded: Loaded, methods: list[Method | None]) -> None:
    frame = run(loaded, methods[:2], repeats={96: 3, 160: 1}, warmups=1)
    assert set(zip(frame["length"], frame["repeats"], strict=True)) == {(96, 3), (160, 1)}


def test_the_plain_prefill_must_be_among_the_methods(loaded: Loaded, methods: list[Method | None]) -> None:
    with pytest.raises(UserError, match="needs 'full' among its methods"):
        run(loaded, methods[1:])


# ---- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    shape = {"family": "qwen3", "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16}
    shape |= {"intermediate": 128, "vocabulary": 300, "tied": True}
    source = {"kind": "hub", "repo": "none/none"}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "licence": "none", "source": source, "shape": shape}))
    return path


def command(tmp_path: Path, spec: Path, *more: object) -> list[str]:
    words = [
        "latency",
        "--shape",
        spec,
        "--methods",
        "full",
        "snapkv",
        "speckv",
        "lookaheadkv",
        "--budgets",
        40,
    ]
    words += ["--lengths", 64, 96, "--warmups", 0, "--study", "s", "--out", tmp_path / "out.csv", *more]
    return [str(word) for word in words]


def test_a_shape_is_timed_with_random_weights_and_a_draft_of_a_shape(
    tmp_path: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, spec, "--draft", spec, "--repeats", 2, 1, "--device", "cpu")) == 0
    frame = read_csv(tmp_path / "out.csv", LATENCY_COLUMNS)
    assert set(frame["weights"]) == {"random"} and set(frame["model"]) == {"small"}
    assert set(frame["method"]) == {"full", "snapkv", "speckv", "lookaheadkv"}
    assert set(zip(frame["length"], frame["repeats"], strict=True)) == {(64, 2), (96, 1)}
    assert "small, random weights, on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--repeats", 1, 2, 3], "3 --repeats for 2 --lengths; give one, or one a length"),
        (["--model", "x"], "give either --model (real weights) or --shape"),
    ],
)
def test_wrong_commands_are_one_line(
    more: list[object], said: str, tmp_path: Path, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, spec, "--draft", spec, *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
