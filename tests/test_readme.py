"""What the documents tell a reader to type works."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import observed
from transformers import AutoModelForCausalLM

from lkv import registry
from lkv.cli import parser
from lkv.eviction.generate import generate
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.fetch import obtain
from lkv.report.style import STYLES
from lkv.results.columns import ABLATION_COLUMNS, ACCURACY_COLUMNS, ARMS_COLUMNS, LATENCY_COLUMNS
from lkv.results.csv_files import read_csv

FOLDER = "models/smollm2-135m-instruct"
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs/training.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "baselines/README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def tabled(text, head):
    """The rows of the one table whose head begins so, cell by cell."""
    [rows] = re.findall(rf"^\| {re.escape(head)}.*\n\|.*\n((?:\|.*\n)+)", text, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]


def method_of(name):
    """The registry's name of what a table calls so."""
    [method] = [key for key, look in STYLES.items() if look.label == name.strip("*").partition(",")[0]]
    return method


def interval(row, digits):
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(row["mean"], row["ci_low"], row["ci_high"], d=digits)


def tokens_of(length):
    """What a table means by 32K, or 64K (3 repeats)."""
    return {"8K": 8064}.get(length, int(length.split("K")[0]) * 1024)


def timed(cell):
    """Milliseconds, and the per cent beside them or None."""
    ms, share = re.match(r"([\d,.]+) ms(?:.*?\(([\d.]+) %\))?", cell).groups()
    return float(ms.replace(",", "")), share and float(share)


def test_the_python_example_runs(tmp_path, monkeypatch):
    obtain({"name": "tiny", "source": {"kind": "random", "family": "llama"}}, tmp_path / FOLDER)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / FOLDER)
    LookaheadKV.create(model).save_pretrained(tmp_path / "results/demo/adapters/smollm2-135m-instruct/main")
    (tmp_path / "long.txt").write_text("The grass is green. " * 20)
    monkeypatch.chdir(tmp_path)
    [example] = [b for b in blocks(README, "python") if "LookaheadKV" in b]
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["answer"].kept == 128
    assert names["output"].shape[1] > names["input_ids"].shape[1] > 400


def test_every_lkv_command_in_the_documents_parses():
    seen = []
    for text in (README, PERFORMANCE, (ROOT / "config/README.md").read_text(encoding="utf-8")):
        for block in blocks(text, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("lkv "):
                    parser.parser().parse_args(shlex.split(line, comments=True)[1:])
                    seen.append(line)
    assert seen


COLUMNS = ("full", "lookaheadkv", "snapkv", "laq", "speckv")  # of both tables: plain prefill, then overheads


@pytest.mark.parametrize("text", [README, PERFORMANCE], ids=["README.md", "docs/performance.md"])
def test_the_documented_latencies_are_those_of_the_committed_study(text):
    frame = read_csv(ROOT / "results/latency-h100/latency.csv", LATENCY_COLUMNS)
    whole = ~frame["implementation"].str.contains("layer by layer")
    shape = frame["model"] == "llama-3.1-8b-instruct"
    frame = frame[shape & (frame["phase"] == "total") & frame["budget"].isin([0, 128]) & whole]
    totals = frame.set_index(["method", "length"])
    shown = 0
    for length, *cells in tabled(text, "prompt | plain prefill "):
        tokens = tokens_of(length)
        for method, cell in zip(COLUMNS, cells, strict=True):
            if cell == "–":
                continue
            row = totals.loc[method, tokens]
            ms, share = timed(cell)
            assert ms == pytest.approx(
                row["median_ms" if method == "full" else "overhead_ms"], rel=0.03, abs=0.05
            )
            assert share is None or share == pytest.approx(row["overhead_pct"], rel=0.03)
            shown += 1
    assert shown >= 10


SHAPES = {
    "8B": "llama-3.1-8b-instruct",
    "3B": "llama-3.2-3b-instruct",
    "1B": "llama-3.2-1b-instruct",
    "SmolLM2": "smollm2-135m-instruct",
}


@pytest.mark.parametrize(
    ("head", "study"), [("model, prompt", "latency-h100"), ("on an H200", "latency-h200")]
)
def test_the_documented_latencies_by_model_are_those_of_their_study(head, study):
    frame = read_csv(ROOT / f"results/{study}/latency.csv", LATENCY_COLUMNS)
    frame = frame[(frame["phase"] == "total") & frame["budget"].isin([0, 128])]
    layerwise = frame["implementation"].str.contains("layer by layer")
    shown = 0
    for place, *cells in tabled(PERFORMANCE, f"{head} | plain prefill "):
        shape, length, *way = place.split(", ")
        tokens = tokens_of(length)
        here = (frame["model"] == SHAPES[shape]) & (frame["length"] == tokens)
        for method, cell in zip(COLUMNS, cells, strict=True):
            if cell == "–":
                continue
            own = here & (frame["method"] == method) & (layerwise == (bool(way) and method != "full"))
            [row] = frame[own].to_dict("records")
            ms, share = timed(cell)
            assert ms == pytest.approx(row["median_ms" if method == "full" else "overhead_ms"], rel=0.02)
            assert share is None or share == pytest.approx(row["overhead_pct"], rel=0.01)
            shown += 1
    assert shown >= 25


def test_the_documented_scores_are_those_of_the_committed_study():
    frame = read_csv(ROOT / "results/smollm2-h100/accuracy.csv", ACCURACY_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["benchmark"] == "ruler") & (frame["length"] == 4096)]
    cells = rows.set_index(["method", "budget"])
    arms = read_csv(ROOT / "results/smollm2-h100/ablation.csv", ABLATION_COLUMNS)
    rows = arms[(arms["task"] == "average") & (arms["length"] == 4096)]
    of_arm = rows.set_index(["arm", "budget"])
    shown = []
    for name, *figures in tabled(README, "| C = 64 | C = 128 | C = 256 | C = 512 | C = 1024 | C = 2048 |"):
        if name == "LookaheadKV, trained without look-ups":
            known = [interval(of_arm.loc["nolookups", budget], 1) for budget in (64, 128, 256, 512)]
            assert figures == [*known, "–", "–"]
            continue
        method = method_of(name)
        for budget, figure in zip((64, 128, 256, 512, 1024, 2048), figures, strict=True):
            row = cells.loc[method, 0 if method == "full" else budget]
            assert figure.replace("*", "") == interval(row, 1)
        shown.append(method)
    assert len(shown) == len(set(shown)) >= 9


def test_the_demos_scores_are_those_of_the_run_that_is_kept():
    frame = read_csv(ROOT / "results/demo-cpu/accuracy.csv", ACCURACY_COLUMNS)
    cells = frame[frame["task"] == "average"].set_index(["method", "budget"])
    for name, *figures in tabled(README, "| score, C = 64 "):
        method = method_of(name)
        for budget, score, recall in zip((64, 128, 256), figures[:3], figures[3:6], strict=True):
            row = cells.loc[method, 0 if method == "full" else budget]
            assert score.replace("*", "") == interval(row, 0)
            assert recall == ("" if method == "full" else f"{row['recall_raw']:.2f}")


@pytest.mark.parametrize(
    ("study", "length", "table"),
    [
        ("arms-cpu", 1024, "arm, on a laptop "),
        ("smollm2-h100", 2048, "arm, at 2K "),
        ("smollm2-h100", 4096, "arm, at 4K "),
    ],
)
def test_the_arms_scores_are_those_of_the_run_that_is_kept(study, length, table):
    frame = read_csv(ROOT / f"results/{study}/ablation.csv", ABLATION_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["arm"].notna()) & (frame["length"] == length)]
    cells, budgets = rows.set_index(["arm", "budget"]), sorted(set(rows["budget"]))
    shown = []
    for name, *figures in tabled(TRAINING, table):
        arm = re.match(r"`(\w+)`", name)[1]
        for budget, figure in zip(budgets, figures, strict=False):  # the laptop's have a recall behind
            row = cells.loc[arm, budget]
            if not shown:
                assert figure == interval(row, 1)
            else:
                low, high = (f"{row[key]:.1f}" for key in ("diff_ci_low", "diff_ci_high"))
                wanted = f"{row['diff_vs_lookaheadkv']:+.1f} [{low}, {high}]"
                assert figure.replace("−", "-") == wanted
        shown.append(arm)
    assert sorted(shown) == sorted(set(rows["arm"]))


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("nolookups", "is {} points lower"),
        ("needles", "hidden in filler (by {} points)"),
        ("dense", "dense records ({})"),
        ("embeddings", "tokens alone lose {} points with KL"),
        ("judgeq", "{} with MSE"),
        ("qk", "LoRA on q and k alone {}"),
    ],
)
def test_what_is_said_of_an_arm_is_its_range_below_three_trainings_of_one_recipe(arm, said):
    frame = read_csv(ROOT / "results/smollm2-h100/ablation.csv", ABLATION_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["method"] == "lookaheadkv")]
    means = rows.pivot(index=["length", "budget"], columns="arm", values="mean")
    below = means[["base", "again1", "again2"]].mean(axis=1) - means[arm]
    assert said.format(f"{below.min():.0f} to {below.max():.0f}") in " ".join(TRAINING.split())


def test_what_the_readme_says_of_a_small_models_latency_is_measured():
    frame = read_csv(ROOT / "results/latency-h100/latency.csv", LATENCY_COLUMNS)
    here = (frame["model"] == SHAPES["SmolLM2"]) & (frame["phase"] == "total")
    rows = frame[here & frame["budget"].isin([0, 128])].set_index("method")

    def span(method, column="overhead_ms", digits=0):
        return "{:.{d}f} to {:.{d}f}".format(*rows.loc[method, column].agg(["min", "max"]), d=digits)

    said = " ".join(README.split())
    assert (
        f"LookaheadKV adds {span('lookaheadkv', digits=1)} ms to a prefill of {span('full', 'median_ms')} ms"
        in said
    )
    assert (
        f"(SnapKV, uncaptured, {span('snapkv', digits=1)}; LAQ {span('laq')}; SpecKV {span('speckv')})"
        in said
    )


@pytest.mark.parametrize(
    ("study", "table"), [("arms-cpu", "arm, on a laptop "), ("smollm2-h100", "arm | mixture | steps ")]
)
def test_the_arms_recalls_are_those_of_their_cards(study, table):
    recall = read_csv(ROOT / f"results/{study}/arms.csv", ARMS_COLUMNS).set_index("arm")["held_out_recall"]
    shown = [(re.search(r"`(\w+)`", name)[1], known) for name, *_, known in tabled(TRAINING, table)]
    cards = {arm: f"{value:.3f}" for arm, value in recall.items()}
    assert {arm: known for arm, known in shown if known} == cards


def test_files_that_the_readme_names_exist():
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    listed = re.findall(r"\b((?:lkv|baselines|workflow|config)/[\w/.]*)", README)
    assert len(links) >= 5
    assert len(listed) >= 15
    for name in {*links, *listed} - {"config/mine.yaml"}:
        assert (ROOT / name).exists(), name


def test_a_method_added_as_the_guide_says_works(monkeypatch, tmp_path, prompt):
    [code] = blocks(GUIDE, "python")
    [(name, place)] = re.findall(r'`"(\w+)": "(baselines\.\w+:METHOD)",`', GUIDE)
    (tmp_path / f"{name}_module.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.METHODS, name, place.replace("baselines.", "").replace(":", "_module:"))
    try:
        done = generate(observed("llama"), prompt, registry.get(name), budget=40, max_new_tokens=4)
    finally:
        sys.modules.pop(f"{name}_module", None)
    assert done.kept == 40


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_an_adapter_loaded_without_a_model_follows_the_model(family, tmp_path, prompt):
    model = observed(family).to(torch.bfloat16)
    LookaheadKV.create(model).save_pretrained(tmp_path)
    lookahead = LookaheadKV.from_pretrained(tmp_path)
    assert lookahead.generate(model, prompt, budget=64, max_new_tokens=3).kept == 64
    assert lookahead.fit(model).tokens.dtype == torch.bfloat16
    assert lookahead.fit(model) is lookahead.fit(model), "what is captured for it serves the next call"
    assert lookahead.tokens.dtype == torch.float32, "what is saved must not lose digits to a model"
