"""What the documents tell a reader to type works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import observed
from matplotlib.image import imread
from transformers import AutoModelForCausalLM, AutoTokenizer

from lkv import registry
from lkv.bench.protocol import Protocol
from lkv.bench.ruler.ready_made import build_ready
from lkv.cli import parser
from lkv.eviction.generate import generate
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.fetch import obtain
from lkv.registry import FULL, METHODS
from lkv.report import hero
from lkv.report.style import style
from lkv.results.columns import (
    ABLATION_COLUMNS,
    ACCURACY_COLUMNS,
    ARMS_COLUMNS,
    LATENCY_COLUMNS,
    PAIRED_COLUMNS,
    TRAINING_COLUMNS,
)
from lkv.results.csv_files import read_csv

FOLDER = "models/smollm2-135m-instruct"
ROOT = Path(__file__).parents[1]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


README, RESULTS, TRAINING = text_of("README.md"), text_of("docs/results.md"), text_of("docs/training.md")
LAPTOP, PERFORMANCE = text_of("docs/notes/training.md"), text_of("docs/performance.md")
QUICKSTART, BENCHMARKS = text_of("docs/quickstart.md"), text_of("docs/benchmarks.md")
GUIDE, ARCHITECTURE = text_of("baselines/README.md"), text_of("docs/architecture.md")
DOCUMENTS = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md", "results/README.md",
    "reports/README.md", "baselines/README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]  # fmt: skip
STUDY = ROOT / "results/smollm2-h100"


def blocks(text, language):
    """The fenced blocks in that language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [body for named, body in fenced if named == language]


def tabled(text, head):
    """The rows of the one table whose head begins so, cell by cell."""
    [rows] = re.findall(rf"^\| {re.escape(head)}.*\n\|.*\n((?:\|.*\n)+)", text, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]


def method_of(name):
    """The registry's name of what a table calls so."""
    [method] = [key for key in (FULL, *METHODS) if style(key).label == name.strip("*").partition(",")[0]]
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


def python_examples():
    return [
        (name, code)
        for name in ("README.md", "docs/quickstart.md")
        for code in blocks(text_of(name), "python")
    ]


@pytest.mark.parametrize(("name", "code"), python_examples(), ids=[name for name, _ in python_examples()])
def test_the_python_examples_run(name, code, tmp_path, monkeypatch, capsys):
    """As printed, on a tiny model in place of the demo's."""
    obtain({"name": "tiny", "source": {"kind": "random", "family": "llama"}}, tmp_path / FOLDER)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / FOLDER)
    LookaheadKV.create(model).save_pretrained(tmp_path / "adapters/smollm2-135m-instruct")
    (tmp_path / "long.txt").write_text("The grass is green. " * 20)
    shutil.copy(ROOT / "LICENSE", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out.strip()
    assert names["output"].shape[1] > names["ids"].shape[1] > 400
    assert "answer" not in names or names["answer"].kept == 128


def test_the_readmes_example_is_short_and_uses_what_is_published():
    [code] = blocks(README, "python")
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 12
    assert (ROOT / re.search(r'from_pretrained\("(adapters/[^"]+)"\)', code)[1] / "lookahead.json").exists()


def test_the_readme_is_short_and_its_first_command_is_near_the_top():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines.index("```sh") < 44
    assert len(blocks(README, "sh")[0].splitlines()) == 2


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "```sh" in text_of(name)])
def test_every_lkv_command_in_the_documents_parses(name):
    for block in blocks(text_of(name), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("lkv "):
                parser.parser().parse_args(shlex.split(line, comments=True)[1:])


def test_there_are_lkv_commands_in_the_documents():
    lines = [
        line for name in DOCUMENTS for block in blocks(text_of(name), "sh") for line in block.splitlines()
    ]
    assert sum(line.startswith("lkv ") for line in lines) >= 6


COLUMNS = ("full", "lookaheadkv", "snapkv", "laq", "speckv")  # of both tables: plain prefill, then overheads


@pytest.mark.parametrize("text", [RESULTS, PERFORMANCE], ids=["docs/results.md", "docs/performance.md"])
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


def averages(benchmark="ruler", length=4096):
    """The study's average rows, by method and budget (the full cache's is 0)."""
    frame = read_csv(STUDY / "accuracy.csv", ACCURACY_COLUMNS)
    rows = frame[
        (frame["task"] == "average") & (frame["benchmark"] == benchmark) & (frame["length"] == length)
    ]
    return rows.set_index(["method", "budget"])


def ablation(length):
    frame = read_csv(STUDY / "ablation.csv", ABLATION_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["length"] == length)]
    return rows.set_index(["arm", "budget"])


BUDGETS = (64, 128, 256, 512, 1024, 2048)


def bold_is_best(table):
    """Each column's bold figures are the greatest of those methods whose names are not italic."""
    columns = zip(*[cells for name, *cells in table if not name.startswith("*")], strict=True)
    for column in columns:
        shown = {cell: float(cell.replace("*", "").split()[0]) for cell in column if re.match(r"[\d*]", cell)}
        bold = {cell for cell in shown if "**" in cell}
        assert {shown[cell] for cell in bold} <= {max(shown.values())}
        assert bold or not shown


@pytest.mark.parametrize(
    ("head", "benchmark", "length", "budgets"),
    [
        ("| C = 64 | C = 128 | C = 256 | C = 512 | C = 1024 | C = 2048 |", "ruler", 4096, BUDGETS),
        ("natural lengths | C = 64 ", "longbench", 0, BUDGETS[:5]),
    ],
    ids=["RULER", "LongBench"],
)
def test_the_documented_scores_are_those_of_the_committed_study(head, benchmark, length, budgets):
    cells, of_variant = averages(benchmark, length), ablation(4096)
    shown = []
    for name, *figures in tabled(RESULTS, head):
        if name == "LookaheadKV, trained without retrieval":
            known = [interval(of_variant.loc["nolookups", budget], 1) for budget in (64, 128, 256, 512)]
            assert figures == [*known, "–", "–"]
            continue
        method = method_of(name)
        for budget, figure in zip(budgets, figures, strict=True):
            row = cells.loc[method, 0 if method == "full" else budget]
            assert figure.replace("*", "") == interval(row, 1)
        shown.append(method)
    assert len(shown) == len(set(shown)) >= 9
    bold_is_best(tabled(RESULTS, head))


@pytest.mark.parametrize(("head", "length"), [("at 1K", 1024), ("at 2K", 2048), ("at 8K", 8192)])
def test_the_scores_at_other_lengths_are_those_of_the_committed_study(head, length):
    cells = averages(length=length)
    for name, *figures in tabled(RESULTS, f"{head} | C = 64 "):
        method = method_of(name)
        known = [
            cells.loc[method, 0 if method == "full" else budget]["mean"] for budget in BUDGETS[: len(figures)]
        ]
        assert figures == [f"{mean:.1f}" for mean in known]


def test_what_is_said_of_the_differences_at_4k_is_measured():
    """Budgets at which the interval of a method minus LookaheadKV leaves out 0."""
    cells = averages()
    below = {m: [b for b in BUDGETS if cells.loc[m, b]["diff_ci_high"] < 0] for m in ("laq", "speckv")}
    above = {m: [b for b in BUDGETS if cells.loc[m, b]["diff_ci_low"] > 0] for m in ("laq", "speckv")}
    assert (below["laq"], above["laq"]) == ([64, 128, 256, 512], []), "above LAQ up to C = 512"
    assert (below["speckv"], above["speckv"]) == ([], [64, 128, 256]), "SpecKV is above up to C = 256"
    for method in ("snapkv", "pyramidkv", "streamingllm", "h2o"):
        assert all(cells.loc[method, b]["diff_ci_high"] < 0 for b in BUDGETS)
    kept = [cells.loc[m, 128]["retained"] for m in ("lookaheadkv", "oracle")]
    assert "At C = 128 LookaheadKV keeps {:.0f} % of the full cache's score, and the oracle {:.0f} %".format(
        *kept
    ) in flat(RESULTS)


def test_what_is_said_of_longbench_is_measured():
    cells = averages("longbench", 0)
    counts = {int(n) for n in cells["n"]}
    assert counts == {376}
    assert "its 376 LongBench samples" in flat(README)
    for method in ("streamingllm", "h2o"):  # LookaheadKV is not better than these at any budget
        assert all(cells.loc[method, budget]["diff_ci_high"] >= 0 for budget in BUDGETS[:5])


def test_the_readmes_table_is_that_of_the_committed_studies():
    cells, added = averages(), overheads_8b()
    table = tabled(README, "| C = 64 | 128 ")
    for name, *figures, ms in table:
        method = method_of(name)
        known = [cells.loc[method, 0 if method == "full" else budget]["mean"] for budget in BUDGETS]
        assert [figure.strip("*") for figure in figures] == [f"{mean:.1f}" for mean in known]
        assert ms == (milliseconds(added.loc[method, "overhead_ms"]) if method in added.index[1:] else "")
    shown = {method_of(row[0]) for row in table}
    assert shown == set(registry.METHODS) - {"random", "oracle", "laqpp"} | {"full"}
    bold_is_best([row[:-1] for row in table])


def test_what_the_readmes_bullets_say_is_measured():
    cells, added, said = averages(), overheads_8b(), flat(README)
    kept = [f"{cells.loc[method, 1024]['retained']:.0f} %" for method in ("lookaheadkv", "snapkv")]
    assert f"LookaheadKV keeps {kept[0]} of the full cache's RULER score. SnapKV keeps {kept[1]}." in said
    ms = {method: milliseconds(added.loc[method, "overhead_ms"]) for method in added.index}
    plain = f"{added.loc['full', 'median_ms']:,.0f} ms"
    assert f"LookaheadKV adds {ms['lookaheadkv']} to a prefill of {plain} (8B, 32K tokens)." in said
    assert f"LAQ, which drafts an answer first, adds {ms['laq']}." in said
    scores = [f"{cells.loc[method, 128]['mean']:.1f}" for method in ("speckv", "lookaheadkv", "snapkv")]
    assert "At C = 128 SpecKV scores {} and LookaheadKV {}.".format(*scores) in said
    base, without = (f"{ablation(4096).loc[arm, 128]['mean']:.1f}" for arm in ("base", "nolookups"))
    assert f"after 400 steps it scores {base}, without retrieval tasks in training {without}." in said
    assert f"SnapKV scores {scores[2]}." in said


def test_what_the_readme_says_to_choose_by_is_measured():
    said, cells = flat(README), averages()
    frame = read_csv(ROOT / "results/latency-h100/latency.csv", LATENCY_COLUMNS)
    rows = frame[
        (frame["model"] == SHAPES["8B"]) & (frame["phase"] == "total") & (frame["method"] == "speckv")
    ]
    span = [rows["overhead_ms"].min() / 1000, rows["overhead_ms"].max() / 1000]
    assert "Its draft adds {:.2f} to {:.2f} s to an 8B prefill of 4K to 32K tokens.".format(*span) in said
    assert set(rows["length"]) == {4096, 8064, 16384, 32768}
    for method in ("snapkv", "streamingllm"):
        assert cells.loc[method, 2048]["retained"] == pytest.approx(100 * 2 / 3, abs=3)
    seconds = read_csv(STUDY / "training.csv", TRAINING_COLUMNS).groupby("arm")["seconds"].max()
    assert f"({seconds['main']:.0f} s on one H100 here)" in said


def test_what_is_said_of_missed_goals_is_measured():
    def kept(method, length):
        cells = averages(length=length)
        return "{:.0f} % and {:.0f} %".format(*(cells.loc[method, c]["retained"] for c in (128, 512)))

    said = flat(RESULTS)
    assert f"LookaheadKV keeps {kept('lookaheadkv', 2048)} at 2K, {kept('lookaheadkv', 4096)} at 4K." in said
    assert f"The oracle keeps {kept('oracle', 2048)}, and {kept('oracle', 4096)}:" in said
    frames = [averages(length=length).loc["lookaheadkv"]["recall_raw"] for length in (1024, 2048, 4096, 8192)]
    low, high = min(min(frame) for frame in frames), max(max(frame) for frame in frames)
    assert f"It is {low:.2f} to {high:.2f}." in said


def paired(study):
    """LookaheadKV minus each method, of the average rows' scores."""
    frame = read_csv(ROOT / f"results/{study}/paired.csv", PAIRED_COLUMNS)
    return frame[(frame["task"] == "average") & (frame["metric"] == "score")]


def difference(row, digits=1):
    low, high = (f"{row[key]:.{digits}f}".replace("-", "−") for key in ("ci_low", "ci_high"))
    return f"{row['diff']:+.{digits}f} [{low}, {high}]".replace("-", "−")


def test_what_is_said_of_sampled_answers_and_of_another_haystack_is_measured():
    said, frame = flat(RESULTS), paired("smollm2-h100-sampled")
    of_snapkv, of_laq = (frame[frame["method"] == method] for method in ("snapkv", "laq"))
    assert "above SnapKV by {:.0f} to {:.0f} points".format(*of_snapkv["diff"].agg(["min", "max"])) in said
    rows = {(row["length"], row["protocol"][-3:]): row for row in of_laq.to_dict("records")}
    at_2k, at_4k = (difference(rows[length, "0.2"]) for length in (2048, 4096))
    assert f"above LAQ at T = 0.2 and 2K ({at_2k}); at 4K ({at_4k}) and at T = 0.8" in said
    assert [key for key, row in rows.items() if row["ci_low"] > 0] == [(2048, "0.2")]
    frame = paired("smollm2-h100-pydoc")
    frame = frame[frame["method"].isin(["snapkv", "streamingllm", "laq"])]
    assert (frame["ci_low"] > 0).all()
    span = frame.loc[frame["method"] == "laq", "diff"].agg(["min", "max"])
    assert "over LAQ by {:.1f} to {:.1f} points".format(*span) in said


def test_what_is_said_of_the_demos_differences_is_measured():
    frame, said = paired("demo-cpu").set_index(["method", "budget"]), flat(QUICKSTART)
    of_snapkv = ", ".join(difference(frame.loc["snapkv", budget], 0) for budget in (64, 128, 256))
    assert f"LookaheadKV minus SnapKV: {of_snapkv}." in said
    assert f"at C = 64 and 128, and the difference is {difference(frame.loc['laq', 256], 0)} at 256" in said
    assert [frame.loc["laq", b]["ci_low"] < 0 < frame.loc["laq", b]["ci_high"] for b in (64, 128, 256)] == [
        True, True, False,
    ]  # fmt: skip


def test_what_is_said_of_the_variants_in_points_is_measured():
    frame = read_csv(STUDY / "ablation.csv", ABLATION_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["method"] == "lookaheadkv")]
    means = rows.pivot(index=["length", "budget"], columns="arm", values="mean")
    more = means.sub(means[["base", "again1", "again2"]].mean(axis=1), axis=0)
    of_base, said = means.sub(means["base"], axis=0), flat(TRAINING)
    assert (
        "1,200 steps gain {:.1f} to {:.1f} points over 400".format(*span_of(more["main"])).replace("-", "−")
        in said
    )
    assert f"stay within {(means['long'] - means['main']).abs().max():.1f} points of that" in said
    given = more["given"][more["given"] > 0]
    assert (len(given), len(more)) == (7, 8)
    assert "by {:.0f} to {:.0f} points in seven of eight comparisons".format(*span_of(given)) in said
    tokens = more[["n8", "n128"]].assign(n32=0.0)
    assert (tokens.max(axis=1) - tokens.min(axis=1)).max() <= 2
    for arm, text in (
        ("window", "costs {:.0f} to {:.0f} points"),
        ("groupmax", "changes {:.1f} to {:.1f} points"),
    ):
        ends = span_of(-of_base[arm] if arm == "window" else of_base[arm])
        assert f"(`{arm}`) {text.format(*ends)}".replace("-", "−") in said
    unpooled = -of_base["unpooled"][of_base["unpooled"] < 0]
    assert len(unpooled) == 7
    assert (
        "No pooling (`unpooled`) costs {:.0f} to {:.0f} points in seven of".format(*span_of(unpooled)) in said
    )
    average = of_base["avgpool"][of_base.index.get_level_values("budget") <= 256]
    assert "(`avgpool`) gains {:.0f} to {:.0f} points up to C = 256".format(*span_of(average)) in said


def span_of(values):
    return values.min(), values.max()


def test_the_readmes_counts_are_right():
    said = flat(README)
    others = set(registry.METHODS) - {"lookaheadkv", "oracle", "random"}
    assert (len(others), "measures it against seven other methods" in said) == (7, True)
    size = (
        sum(path.stat().st_size for path in (ROOT / "adapters/smollm2-135m-instruct").glob("*.safetensors"))
        / 1e6
    )
    assert f"trained modules for it ({size:.1f} MB)" in said


def overheads_8b(length=32768):
    """latency.csv's totals of the 8B shape, by method: the full cache, and the others at C = 128."""
    frame = read_csv(ROOT / "results/latency-h100/latency.csv", LATENCY_COLUMNS)
    here = (frame["model"] == SHAPES["8B"]) & (frame["length"] == length) & (frame["phase"] == "total")
    return frame[here & frame["budget"].isin([0, 128])].set_index("method")


def milliseconds(ms):
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def flat(text):
    return " ".join(text.split())


def test_the_readmes_figure_is_drawn_from_the_committed_studies(tmp_path):
    """Its pixels, that is: how they are packed depends on a library's version."""
    for name in ("one.png", "two.png"):
        hero.main(
            [
                "--results",
                str(STUDY),
                "--latency",
                str(ROOT / "results/latency-h100"),
                "--out",
                f"{tmp_path}/{name}",
            ]
        )
    one, two = (tmp_path / name for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()
    drawn, kept = (imread(path) for path in (one, ROOT / "docs/hero.png"))
    assert drawn.shape == kept.shape
    assert abs(drawn - kept).mean() < 0.005, "draw it again: docs/results.md says how"


def test_the_figure_names_both_models_and_labels_every_line():
    figure = hero.hero(STUDY, ROOT / "results/latency-h100")
    left, right = figure.axes
    assert ("smollm2-135m-instruct" in left.get_title("left"), "8b-instruct" in right.get_title("left")) == (
        True,
        True,
    )
    methods = [label.get_text() for label in right.get_yticklabels()]
    assert {text.get_text() for text in left.texts} >= {*methods, "full cache: 46.1"}
    heights = sorted(text.xyann[1] for text in left.texts if text.get_text() in methods)
    assert min(high - low for low, high in pairwise(heights)) >= hero.GAP * left.get_ylim()[1] - 1e-9
    assert figure.legends == []


def test_the_demos_scores_are_those_of_the_run_that_is_kept():
    frame = read_csv(ROOT / "results/demo-cpu/accuracy.csv", ACCURACY_COLUMNS)
    cells = frame[frame["task"] == "average"].set_index(["method", "budget"])
    for name, *figures in tabled(QUICKSTART, "| score, C = 64 "):
        method = method_of(name)
        for budget, score, recall in zip((64, 128, 256), figures[:3], figures[3:6], strict=True):
            row = cells.loc[method, 0 if method == "full" else budget]
            assert score.replace("*", "") == interval(row, 0)
            assert recall == ("" if method == "full" else f"{row['recall_raw']:.2f}")


@pytest.mark.parametrize(
    ("study", "length", "table"),
    [
        ("arms-cpu", 1024, "variant, on a laptop "),
        ("smollm2-h100", 2048, "variant, at 2K "),
        ("smollm2-h100", 4096, "variant, at 4K "),
    ],
)
def test_the_arms_scores_are_those_of_the_run_that_is_kept(study, length, table):
    frame = read_csv(ROOT / f"results/{study}/ablation.csv", ABLATION_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["arm"].notna()) & (frame["length"] == length)]
    cells, budgets = rows.set_index(["arm", "budget"]), sorted(set(rows["budget"]))
    shown = []
    for name, *figures in tabled(TRAINING + LAPTOP, table):
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
        ("qk", "LoRA on q and k alone loses {}"),
    ],
)
def test_what_is_said_of_an_arm_is_its_range_below_three_trainings_of_one_recipe(arm, said):
    frame = read_csv(ROOT / "results/smollm2-h100/ablation.csv", ABLATION_COLUMNS)
    rows = frame[(frame["task"] == "average") & (frame["method"] == "lookaheadkv")]
    means = rows.pivot(index=["length", "budget"], columns="arm", values="mean")
    below = means[["base", "again1", "again2"]].mean(axis=1) - means[arm]
    assert said.format(f"{below.min():.0f} to {below.max():.0f}") in flat(TRAINING)


def test_what_is_said_of_a_small_models_latency_is_measured():
    frame = read_csv(ROOT / "results/latency-h100/latency.csv", LATENCY_COLUMNS)
    here = (frame["model"] == SHAPES["SmolLM2"]) & (frame["phase"] == "total")
    rows = frame[here & frame["budget"].isin([0, 128])].set_index("method")

    def span(method, column="overhead_ms", digits=0):
        return "{:.{d}f} to {:.{d}f}".format(*rows.loc[method, column].agg(["min", "max"]), d=digits)

    said = flat(RESULTS)
    assert (
        f"LookaheadKV adds {span('lookaheadkv', digits=1)} ms to a prefill of {span('full', 'median_ms')} ms"
        in said
    )
    assert (
        f"(SnapKV, uncaptured, {span('snapkv', digits=1)}; LAQ {span('laq')}; SpecKV {span('speckv')})"
        in said
    )


@pytest.mark.parametrize(
    ("study", "table"),
    [("arms-cpu", "variant, on a laptop "), ("smollm2-h100", "variant | mixture | steps ")],
)
def test_the_arms_recalls_are_those_of_their_cards(study, table):
    recall = read_csv(ROOT / f"results/{study}/arms.csv", ARMS_COLUMNS).set_index("arm")["held_out_recall"]
    shown = [(re.search(r"`(\w+)`", name)[1], known) for name, *_, known in tabled(TRAINING + LAPTOP, table)]
    cards = {arm: f"{value:.3f}" for arm, value in recall.items()}
    assert {arm: known for arm, known in shown if known} == cards


PLACEHOLDERS = {"config/mine.yaml", "baselines/lastvalue.py"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_the_documents_name_exist(name):
    named = set(re.findall(r"(?<![\w/.])((?:lkv|baselines|workflow|config|tests)/[\w/.-]*\w)", text_of(name)))
    for path in named - PLACEHOLDERS:
        assert (ROOT / path).exists() or re.search(r"\b[A-Z]+\b", path), path
    for module in re.findall(r"\blkv(?:\.\w+)+", re.sub(r"\blkv\.(methods|csv)\b", "", text_of(name))):
        parts = module.split(".")
        assert (ROOT / "/".join(parts)).is_dir() or (ROOT / ("/".join(parts) + ".py")).exists(), module


def test_the_readme_names_every_folder():
    listed = set(re.findall(r"\b(\w+/(?:\w+/)?) ", "\n".join(blocks(README, ""))))
    folders = {path.name for path in ROOT.glob("[a-z]*") if path.is_dir() and tracked(path)} - {"lkv"}
    packages = {f"lkv/{path.parent.name}" for path in (ROOT / "lkv").glob("*/__init__.py")}
    assert {f"{name}/" for name in folders | packages} <= listed


def tracked(path):
    return (
        subprocess.run(["git", "ls-files", "--error-unmatch", path], cwd=ROOT, capture_output=True).returncode
        == 0
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_and_anchors_lead_somewhere(name):
    for link in links(text_of(name)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert target.suffix == ".md", link
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def links(text):
    """Targets of links and images outside code blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S))


def anchors(text):
    """GitHub's, of every heading: lower case, no punctuation, hyphens for blanks, repeated ones numbered."""
    seen: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return made


def test_the_link_test_notices_what_is_wrong():
    assert links("[a](b.md#c) `x` ```\n[no](no.md)\n``` ![d](e.png)") == ["b.md#c", "e.png"]
    assert anchors("# A machine without a network\n## `samples/M.csv`, x\n## A\n# A\n") == {
        "a-machine-without-a-network", "samplesmcsv-x", "a", "a-1",
    }  # fmt: skip


def test_the_page_on_the_code_has_the_graph_of_today_and_every_package():
    assert text_of("docs/dag.md").strip() in ARCHITECTURE, "make dag, then copy docs/dag.md"
    named = {name.strip("`") for name, _ in tabled(ARCHITECTURE, "package ")}
    packages = {path.parent.name for path in (ROOT / "lkv").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "lkv").glob("[a-z]*.py")}
    assert named == packages | modules | {"baselines"}


def test_data_of_ones_own_is_read_as_the_page_says(tmp_path):
    [sample] = blocks(BENCHMARKS, "json")
    [config] = blocks(BENCHMARKS, "yaml")
    ruler = yaml.safe_load(config)["ruler"]
    [length], [task] = ruler["lengths"], ruler["tasks"]
    (tmp_path / f"{length}.jsonl").write_text(sample)
    obtain({"name": "tiny", "source": {"kind": "random", "family": "llama"}}, tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    [record] = build_ready(task, length, f"folder:{tmp_path}", tokenizer, Protocol("official"), samples=1)
    assert record["outputs"] == json.loads(sample)["answer"]
    assert f"reads mine/{length}.jsonl" in BENCHMARKS


def test_the_table_of_methods_has_every_method():
    table = text_of("docs/methods.md")
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in tabled(table, "method | observers ")))
    assert set(named) == set(registry.METHODS)
    assert set(registry.METHODS) <= set(re.findall(r"^\| `(\w+)`", GUIDE, re.M))


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
