"""The table and the plots, made from a small study whose figures are known, and read back."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from lkv.errors import UserError
from lkv.files import json_files as records
from lkv.files.markup import latex_text, markdown_text, typst_string
from lkv.registry import FULL, METHODS
from lkv.report.accuracy import averages
from lkv.report.figure import RC
from lkv.report.kept import kept
from lkv.report.latency import latency
from lkv.report.pareto import pareto
from lkv.report.plots import KINDS, plot
from lkv.report.recall import recall
from lkv.report.source import read_accuracy
from lkv.report.style import style
from lkv.report.table import write_table
from lkv.report.training import training
from lkv.results import columns
from lkv.results.csv_files import read_csv, write_csv
from lkv.results.summarise import AVERAGE, write_ablation, write_summary

ROOT = Path(__file__).parent.parent
ODD = r'we_ird & 100% {x} #1 $y \z *b* |p| "q" <t> [1] ~^ `c` @ref //u'

# Scores per sample: LookaheadKV leads at 64; at 128 it ties with LAQ. One SnapKV sample is lost.
SCORES = {
    ("full", 0): (100, 50, 100, 50),
    ("snapkv", 64): (0, 0, 50, 0),
    ("snapkv", 128): (0, 50, 50, 0),
    ("laq", 64): (50, 0, 50, 50),
    ("laq", 128): (100, 50, 50, 50),
    ("lookaheadkv", 64): (100, 50, 50, 50),
    ("lookaheadkv", 128): (50, 100, 50, 50),
    ("oracle", 64): (100, 100, 100, 50),
    ("oracle", 128): (100, 100, 100, 50),
}
RECALL = {"snapkv": 0.4, "laq": 0.6, "lookaheadkv": 0.8, "oracle": 0.95}
LATENCY = {
    "streamingllm": {"select": 0.2, "compact": 0.3},
    "snapkv": {"observe": 4.0, "select": 1.0, "compact": 0.5},
    "laq": {"draft": 700.0, "observe": 4.0, "select": 2.0, "compact": 0.5},
    "lookaheadkv": {"rows": 0.5, "observe": 3.0, "select": 1.0, "compact": 0.5},
}
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "config": {"ruler": {"max_new_tokens": 32}},
    "device": "A & B CPU",
    "backend": "sdpa",
    "dtype": "float32",
}


def make_study(root: Path, model: str = "tiny", trained_on: str = "tables, 100% invented") -> Path:
    """results/STUDY of one model: two tasks of four samples, two budgets, latency, training."""
    samples = []
    for task, haystack in (("vt", "noise"), ("niah_single_2", "pydoc")):
        for (method, budget), scores in SCORES.items():
            for sample, score in enumerate(scores):
                lost = (task, method, budget, sample) == ("vt", "snapkv", 64, 3)
                recall = RECALL.get(method, np.nan) + 0.01 * sample
                where = {"study": "s", "model": model, "benchmark": "ruler", "task": task, "length": 1024}
                cell = {
                    "sample": sample,
                    "planned": 4,
                    "method": method,
                    "budget": budget,
                    "protocol": "demo",
                }
                figures = {"score": score, "recall": recall, "recall_raw": recall, "kept_mean": budget}
                end = {"haystack": haystack, "status": "failed" if lost else "ok"}
                samples.append(where | cell | figures | end)
    write_csv(root / "samples.csv", samples, columns.SAMPLE_COLUMNS)
    write_summary([root / "samples.csv"], root / "accuracy.csv", root / "paired.csv", seed=1)

    methods = {"full": "full", "laq": "lookaheadkv", "snapkv": "lookaheadkv/short"}
    arms = [row | {"method": methods[row["method"]]} for row in samples if row["method"] in methods]
    write_csv(root / "arm_samples.csv", arms, columns.SAMPLE_COLUMNS)
    write_ablation([root / "arm_samples.csv"], root / "ablation.csv", "main", seed=1)
    card = {"model": model, "tokens": 32, "lora": "all", "held_out_recall": 0.8}
    write_csv(root / "arms.csv", [card | {"arm": "main"}], columns.ARMS_COLUMNS)

    timings = []
    for length in (512, 4096):
        for method, phases in {"full": {}, **LATENCY}.items():
            where = {"study": "s", "model": model, "weights": "real", "length": length, "method": method}
            where |= {"implementation": "torch", "device": "CPU", "backend": "sdpa", "dtype": "float32"}
            where |= {"budget": 128 if phases else 0, "repeats": 3, "status": "ok"}
            if (length, method) == (4096, "laq"):
                timings.append(where | {"phase": "total", "status": "out of memory"})
                continue
            overhead = sum(phases.values())
            timings += [where | {"phase": phase, "median_ms": ms} for phase, ms in phases.items()]
            total = {"phase": "total", "median_ms": 500 + overhead, "overhead_ms": overhead}
            timings.append(where | total | {"overhead_pct": overhead / 5})
    write_csv(root / "latency.csv", timings, columns.LATENCY_COLUMNS)

    inspected = {"study": "s", "model": model, "benchmark": "ruler", "task": "vt", "length": 1024}
    recalls, bins = [], []
    for (method, budget), _ in SCORES.items():
        if method == "full":
            continue
        where = inspected | {"method": method, "budget": budget}
        for layer, head in itertools.product(range(3), range(2)):
            value = RECALL[method] / (1 + layer + head)
            recalls.append(where | {"layer": layer, "head": head, "n": 4, "recall": value})
        for start, part in ((0, "template"), (10, ""), (20, "answer"), (30, "answer"), (40, "question")):
            bins.append(where | {"sample": 0, "start": start, "end": start + 10, "part": part, "kept": 0.25})
    write_csv(root / "recall_by_layer.csv", recalls, columns.RECALL_COLUMNS)
    write_csv(root / "kept.csv", bins, columns.KEPT_COLUMNS)

    steps = [
        {"model": model, "arm": "main", "step": s, "samples": 8 * s, "kl": 2 / s, "lr": 1e-3}
        for s in range(1, 41)
    ]
    write_csv(root / "training.csv", steps, columns.TRAINING_COLUMNS)
    facts = {"trained_on": trained_on, "steps": 40, "kl_first": 2.0, "kl_last": 0.05}
    facts |= {"held_out_kl_before": 2.1, "held_out_kl_after": 0.0625}
    records.write_json(root / "provenance.json", PROVENANCE | {"adapters": {f"{model}/main": facts}})
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def table(study, tmp_path_factory) -> Path:
    stem = tmp_path_factory.mktemp("reports") / "table1.v2"  # a dot in the name must survive
    write_table(study, stem)
    return stem


def read(stem: Path, suffix: str) -> str:
    return Path(f"{stem}.{suffix}").read_text(encoding="utf-8")


def markdown_cells(text: str) -> dict[str, list[str]]:
    """Method -> cells of the (one) table of a Markdown report."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1, rows
    return {row[0].strip("*"): row[1:] for row in rows}


# ---- the table ---------------------------------------------------------------------------------------------


def test_the_markdown_table_has_the_figures_and_bold_on_the_best_evictor(table):
    cells = markdown_cells(read(table, "md"))
    assert cells["Method"] == ["Score, C = 64", "Score, C = 128", "Recall, C = 64", "Recall, C = 128"]
    bare = {name: [cell.split(" ")[0] for cell in row] for name, row in cells.items()}
    assert bare["LookaheadKV"] == ["**62.5**", "**62.5**", "**0.81**", "**0.81**"]
    assert bare["LAQ"][:2] == ["37.5", "**62.5**°"]  # the tie at 128 is bold on both sides
    assert bare["LAQ"][2:] == ["0.61", "0.61"]
    assert bare["Full cache"] == ["75.0", "75.0", "–", "–"]  # bounds are never bold
    assert bare["Oracle"][0].strip("°") == "87.5"
    assert not any("**" in cell for name in ("Full cache", "Oracle") for cell in cells[name])


def test_arms_stand_beside_the_methods_where_the_config_wants_them(study, tmp_path):
    """The fixture's arm `short` has SnapKV's scores."""
    root = shutil.copytree(study, tmp_path / "study")
    facts = records.read_json(root / "provenance.json")
    facts["config"] = {"ablation": {"beside": ["short"]}}
    facts["adapters"]["tiny/short"] = {"trained_on": "few words", "steps": 3}
    facts["ablation"] = {"device": "another CPU", "backend": "sdpa", "dtype": "float64"}
    records.write_json(root / "provenance.json", facts)
    write_table(root, tmp_path / "table1")
    text = read(tmp_path / "table1", "md")
    cells = markdown_cells(text)
    ours, theirs = (
        [re.match(r"[\d.]+", cell.strip("*"))[0] for cell in cells[name][:2]]
        for name in ("LookaheadKV, short", "SnapKV")
    )
    assert ours == theirs
    assert "°" not in "".join(cells["LookaheadKV, short"]), "it is compared with another arm"
    assert "LookaheadKV, short" in read(tmp_path / "table1", "html")
    assert "few words; 3 steps" in text and "another CPU, attention sdpa, float64" in text
    drawn = averages(root)
    assert "LookaheadKV, short" in [item.get_text() for item in drawn.legends[0].get_texts()]
    assert "another CPU" in " ".join(drawn._supxlabel.get_text().split())
    timed = pareto(root)
    assert "short" not in " ".join(
        item.get_text() for item in timed.findobj(lambda item: hasattr(item, "get_text"))
    )


def test_only_cells_with_lost_samples_have_a_dagger(table):
    cells = markdown_cells(read(table, "md"))
    assert "†" in cells["SnapKV"][0]
    assert sum("†" in cell for row in cells.values() for cell in row) == 1
    assert "**†:** fewer usable samples than planned" in read(table, "md")


def test_intervals_stand_beside_the_scores(study, table):
    accuracy = read_csv(study / "accuracy.csv", columns.ACCURACY_COLUMNS)
    row = accuracy[(accuracy["task"] == "average") & (accuracy["method"] == "laq")].iloc[0]
    interval = f"[{row['ci_low']:.1f}, {row['ci_high']:.1f}]"
    assert markdown_cells(read(table, "md"))["LAQ"][0].endswith(interval)
    assert f"{{\\scriptsize {interval}}}" in read(table, "tex")


def test_differences_that_cover_zero_are_marked(table):
    cells = markdown_cells(read(table, "md"))
    assert "°" in cells["LAQ"][1]  # equal means
    assert "°" not in cells["SnapKV"][0]  # 62.5 against about 10
    assert "°" not in "".join(cells["LookaheadKV"])
    assert "°" not in "".join(cells["SnapKV"][2:] + cells["LAQ"][2:])  # recall differs on every sample


def test_the_csv_is_the_table_in_long_format(table):
    frame = pd.read_csv(f"{table}.csv").set_index(["method", "budget"])
    assert len(frame) == len(SCORES)
    assert frame.loc[("lookaheadkv", 64), "score"] == 62.5
    assert frame.loc[("snapkv", 64), ["n", "n_planned"]].tolist() == [7, 8]
    assert set(frame.index[frame["best"]]) == {("lookaheadkv", 64), ("lookaheadkv", 128), ("laq", 128)}
    assert set(frame.index[frame["best_recall"]]) == {("lookaheadkv", 64), ("lookaheadkv", 128)}


def test_latex_and_markdown_bold_the_same_cells(table):
    bold = re.findall(r"\\textbf\{(\d[^}]*)\}", read(table, "tex"))
    assert sorted(bold) == sorted(re.findall(r"\*\*(\d[^*]*)\*\*", read(table, "md")))


def test_the_note_names_what_the_figures_rest_on(table):
    note = read(table, "md").replace("\\", "")
    for fact in (
        "mean of 2 tasks, haystack in brackets: niah_single_2 (pydoc), vt (noise); 7 to 8 of 8 samples"
        " a cell",
        "RULER at 1,024 tokens",
        "RULER: demo (the evicted prompt holds the question); greedy decoding.",
        "95 % bootstrap interval",
        "entries kept per layer and KV head",
        "trained on tables, 100% invented; 40 steps",
        "training KL, first and last tenth of the steps: 2.00 → 0.0500 nats",
        "held-out KL, before and after: 2.10 → 0.0625 nats",
        "A & B CPU, attention sdpa, float32; commit 0123456789.",
    ):
        assert fact in note


def test_what_is_not_known_is_said(study, tmp_path):
    (tmp_path / "accuracy.csv").write_bytes((study / "accuracy.csv").read_bytes())
    write_table(tmp_path, tmp_path / "t")
    note = read(tmp_path / "t", "md")
    assert "device, back end and dtype unknown (no provenance.json); commit unknown" in note
    assert "what they were trained on is unknown" in note
    assert "**° for recall:** unknown (no paired.csv)." in note


def test_the_pdf_is_one_and_the_same(study, table, tmp_path):
    pdf = Path(f"{table}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    write_table(study, tmp_path / "again")
    assert (tmp_path / "again.pdf").read_bytes() == pdf


def test_names_with_markup_are_shown_as_they_are(tmp_path):
    write_table(make_study(tmp_path, model=ODD, trained_on=ODD), tmp_path / "t")
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")
    text = read(tmp_path / "t", "md")
    assert len(markdown_cells(text)) == 7
    assert re.sub(r"\\([^A-Za-z0-9\s])", r"\1", text).count(ODD) == 2
    tex = re.sub(r"\\[\\&%$#_{}]", "", read(tmp_path / "t", "tex").split("\n", 1)[1])
    assert not set("%#~") & set(tex)
    assert tex.count("{") == tex.count("}")
    rows = [line for line in tex.splitlines() if re.match(r"\\?\w.* & ", line) and "multicolumn" not in line]
    assert {line.count("&") for line in rows} == {4}


@pytest.mark.parametrize("text", [ODD, 'a"b', "\\", "a\\", "#strong[x]", "é – “x” 中"])
def test_a_typst_string_is_read_back_as_it_was(text):
    import typst

    found = typst.query(f"#metadata({typst_string(text)}) <x>".encode(), "<x>", field="value", one=True)
    assert json.loads(found) == text


def test_latex_and_markdown_escape_every_special_character():
    assert latex_text("50% of a_b & $x$ [y] {z}\\") == (
        "50\\% of a\\_b \\& \\$x\\$ {[}y{]} \\{z\\}\\textbackslash{}"
    )
    assert markdown_text("a|b *c* _d_ <e>\nf") == "a\\|b \\*c\\* \\_d\\_ \\<e\\> f"


def test_one_sample_a_task_gives_a_table_without_intervals(study, tmp_path):
    samples = read_csv(study / "samples.csv", columns.SAMPLE_COLUMNS)
    one = samples[samples["sample"] == 0].assign(planned=1)
    write_csv(tmp_path / "one.csv", one, columns.SAMPLE_COLUMNS)
    write_summary([tmp_path / "one.csv"], tmp_path / "accuracy.csv", tmp_path / "paired.csv", seed=1)
    write_table(tmp_path, tmp_path / "t")
    assert markdown_cells(read(tmp_path / "t", "md"))["LookaheadKV"][:2] == ["**100.0**", "50.0"]
    plot("accuracy", tmp_path, tmp_path / "a")
    plot("averages", tmp_path, tmp_path / "b")


# ---- plots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_plot_of_names_with_markup_is_the_same_to_the_byte_in_three_formats(kind, tmp_path):
    study = make_study(tmp_path / "study", model=ODD + "$")
    plot(kind, study, tmp_path / "a.b")
    plot(kind, study, tmp_path / "c")
    for suffix, start in (("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")):
        content = Path(f"{tmp_path / 'a.b'}.{suffix}").read_bytes()
        assert content.startswith(start)
        assert len(content) > 5000
        assert Path(f"{tmp_path / 'c'}.{suffix}").read_bytes() == content


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_latency_bars_are_the_phases_and_failures_are_said(study):
    figure = latency(study)
    whole, cut = figure.axes
    assert whole.get_title(loc="left") == "tiny, C = 128"
    widths = np.array([bar.get_width() for bar in whole.patches])
    drawn = [max(0, ms) for length in (512, 4096) for method, phases in LATENCY.items()
             if (length, method) != (4096, "laq") for ms in phases.values()]  # fmt: skip
    assert np.sort(widths[widths > 0]) == pytest.approx(np.sort([ms for ms in drawn if ms > 0]))
    assert "not measured: out of memory" in texts(whole)
    assert "512 tokens, plain prefill 500 ms" in texts(whole)
    assert "5.50 ms (+1.10 %)" in texts(whole)
    assert "706 ms (+141 %)" in texts(whole)
    assert cut.get_xlim()[1] < 20  # the small ones can be told apart
    assert all("(ms)" in axis.get_xlabel() for axis in figure.axes)


def test_recall_panels_are_methods_with_the_mean_over_layers_above_each_budget(study):
    figure = recall(study)
    panels = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}
    assert list(panels) == ["SnapKV", "LAQ", "LookaheadKV"]  # the oracle's recall is 1 by definition
    by_layer = [0.8 * (1 / (1 + layer) + 1 / (2 + layer)) / 2 for layer in range(3)]
    [mesh] = panels["LookaheadKV"].collections
    assert np.asarray(mesh.get_array()).ravel() == pytest.approx(np.repeat(by_layer, 2))
    assert texts(panels["LookaheadKV"]) == [f"{sum(by_layer) / 3:.2f}".removeprefix("0")] * 2
    assert mesh.get_clim() == (0, 1)  # one scale for all panels
    assert [label.get_text() for label in panels["LAQ"].get_xticklabels()] == ["64", "128"]


def test_recall_takes_more_methods_than_a_line_has_room_for_and_models_with_fewer(study, tmp_path):
    frame = read_csv(study / "recall_by_layer.csv", columns.RECALL_COLUMNS)
    laq = frame[frame["method"] == "laq"]
    more = [laq.assign(model="big", method=f"m{number}") for number in range(9)]
    write_csv(tmp_path / "recall_by_layer.csv", pd.concat([laq, *more]), columns.RECALL_COLUMNS)
    titles = [axis.get_title(loc="left") for axis in recall(tmp_path).axes]
    assert [title for title in titles if title] == ["LAQ", *(f"m{number}" for number in range(9))]


def test_kept_strips_share_one_axis_and_mark_the_answer_and_the_question(study):
    figure = kept(study)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "SnapKV",
        "LAQ",
        "LookaheadKV",
        "Oracle",
    ]
    marks = [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor()).upper()) for bar in axis.patches]
    assert marks == [(0, 10, "#CCCCCC"), (20, 10, "#D55E00"), (30, 10, "#D55E00"), (40, 10, "#56B4E9")]
    lines = [line for item in axis.collections[2:] for line in item.get_segments()]
    assert sorted(line[0][0] for line in lines) == [20, 40]  # the two bins of the answer are one run
    assert "C = 64 entries" in figure.get_supxlabel()  # the middle of two budgets is the first


def timings_of_lengths(root: Path, lengths: tuple[int, ...], gpu: bool) -> pd.DataFrame:
    """latency.csv of a cheap and a dear method, the dear one not at the longest length."""
    rows = []
    for length in lengths:
        base = {
            "study": "s",
            "model": "big",
            "weights": "random",
            "length": length,
            "repeats": 3,
            "status": "ok",
        }
        base |= {"device": "GPU" if gpu else "CPU", "backend": "sdpa", "dtype": "bfloat16"}
        for method, way, overhead in (
            ("full", "fused", 0.0),
            ("laq", "fused", 200.0),
            ("lookaheadkv", "fused, single pass", length / 1000),
            ("lookaheadkv", "fused, single pass, layer by layer", length / 900),
        ):
            own = base | {"method": method, "implementation": way, "budget": 128 if overhead else 0}
            if method == "laq" and length == max(lengths):
                rows.append(own | {"phase": "total", "status": "out of memory"})
                continue
            if overhead:
                rows.append(own | {"phase": "observe", "median_ms": overhead})
            if gpu and way in ("fused", "fused, single pass") and method != "laq":
                batch = {"batch": 64, "max_batch": 4000 if overhead else 100, "tokens_per_s": 9e3}
                rows.append(own | {"phase": "decode_batch", "median_ms": 7} | batch)
            total = {"overhead_ms": overhead, "overhead_pct": overhead / 5, "tokens_per_s": 99.0}
            total |= {"theory_ms": overhead / 2, "peak_prefill_bytes": 2**34} if gpu else {}
            rows.append(own | {"phase": "total", "median_ms": 500 + overhead} | total)
    write_csv(root / "latency.csv", rows, columns.LATENCY_COLUMNS)
    return pd.DataFrame(rows)


def test_many_lengths_are_curves_with_the_parts_at_the_longest_that_all_were_timed_at(tmp_path):
    lengths = (4096, 8192, 16384, 32768)
    frame = timings_of_lengths(tmp_path, lengths, gpu=True)
    overheads, parts, decoding, memory = latency(tmp_path).axes
    assert overheads.get_title(loc="left") == "big, C = 128"
    lines = [list(line.get_ydata()) for line in overheads.lines]
    own = frame[(frame["phase"] == "total") & (frame["implementation"] == "fused, single pass")]
    assert [200.0] * 3 in lines and [100.0] * 3 in lines  # LAQ and its theory, not at 32K
    assert list(own["overhead_ms"]) in lines and list(own["theory_ms"]) in lines
    assert [label.get_text() for label in overheads.get_xticklabels()] == ["4K", "8K", "16K", "32K"]
    assert "16,384 tokens, plain prefill 500 ms" in texts(parts)
    names = [label.get_text() for label in parts.get_yticklabels()]
    assert names == ["", "LAQ", "LookaheadKV", "LookaheadKV,\nlayer by layer"]
    named = [line.get_label() for line in decoding.lines]
    assert "full cache, as many as fit" in named and "evicted, as many as fit (64 at most)" in named
    assert [line.get_label() for line in memory.lines] == ["plain", "evict after", "layer by layer"]
    assert list(memory.lines[0].get_ydata()) == [16.0] * 4


def test_without_a_gpu_there_is_neither_peak_memory_nor_a_largest_batch_to_draw(tmp_path):
    timings_of_lengths(tmp_path, (256, 512, 1024, 2048), gpu=False)
    assert len(latency(tmp_path).axes) == 2


def test_a_study_of_the_full_cache_alone_has_no_overhead_to_plot(study, tmp_path):
    frame = read_csv(study / "latency.csv", columns.LATENCY_COLUMNS)
    write_csv(tmp_path / "latency.csv", frame[frame["method"] == "full"], columns.LATENCY_COLUMNS)
    with pytest.raises(UserError, match="times only the full cache; add methods"):
        plot("latency", tmp_path, tmp_path / "latency")
    assert not list(tmp_path.glob("latency.p*"))


def test_pareto_says_where_the_overhead_was_measured(study):
    # Scores are at 1,024 tokens, timings at 512 and 4,096.
    [axis] = pareto(study).axes
    assert "measured at 512 tokens,\nC = 128" in axis.get_xlabel()
    assert "logarithmic above" in axis.get_xlabel()  # 0.1 % to 141 %
    heights = {float(height) for line in axis.lines for height in np.atleast_1d(line.get_ydata())}
    assert {62.5, 37.5, 75.0} <= heights  # LookaheadKV, LAQ at 64, the full cache


@pytest.mark.parametrize("results", ["study", "published"])
def test_pareto_draws_points_at_the_measured_overhead_and_nowhere_else(results, study):
    folder = study if results == "study" else ROOT / "results/smollm2-h100"
    latency = pd.read_csv(folder / "latency.csv")
    totals = latency[(latency["phase"] == "total") & (latency["method"] != "full")]
    measured = totals.groupby("method")["overhead_pct"].agg(set)
    points = 0
    for axis in pareto(folder).axes:
        for method, overheads in measured.items():
            drawn = [line for line in axis.lines if line.get_color() == style(method).colour]
            places = np.concatenate([np.atleast_1d(line.get_xdata()) for line in drawn] or [[]])
            assert set(places) <= overheads
            points += len(places)
    assert points > 4


@pytest.mark.parametrize(
    ("kind", "missing"), [("latency", "latency"), ("pareto", "latency"), ("training", "training")]
)
def test_a_missing_file_is_named(kind, missing, study, tmp_path):
    (tmp_path / "accuracy.csv").write_bytes((study / "accuracy.csv").read_bytes())
    with pytest.raises(UserError, match=f"no such results file: .*{missing}.csv"):
        plot(kind, tmp_path, tmp_path / "p")
    with pytest.raises(UserError, match=r"no such results file: .*accuracy.csv"):
        write_table(tmp_path / "nowhere", tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.csv"]


def test_an_unknown_plot_is_refused_with_the_known_ones(study, tmp_path):
    with pytest.raises(UserError, match=r"unknown plot 'latencies' \(did you mean 'latency'\?\).*accuracy"):
        plot("latencies", study, tmp_path / "p")


def test_averages_are_the_average_rows_alone(study):
    [axis] = averages(study).axes
    rows = read_accuracy(study)
    rows = rows[(rows["task"] == AVERAGE) & (rows["method"] == "lookaheadkv")]
    [line] = [line for line in axis.lines if line.get_color() == style("lookaheadkv").colour]
    assert list(line.get_xdata()) == list(rows["budget"]) and list(line.get_ydata()) == list(rows["mean"])


def test_one_budget_has_its_intervals_as_bars(study, tmp_path):
    frame = read_csv(study / "accuracy.csv", columns.ACCURACY_COLUMNS)
    frame = frame[frame["budget"].isin([0, 64])]
    write_csv(tmp_path / "accuracy.csv", frame, columns.ACCURACY_COLUMNS)
    figure = averages(tmp_path)
    bars = [part for part in figure.axes[0].collections if isinstance(part, LineCollection)]
    shown = sorted(tuple(bar.get_segments()[0][:, 1]) for bar in bars)
    rows = frame[(frame["task"] == AVERAGE) & ~frame["method"].isin(["full", "oracle"])]
    assert shown == [
        pytest.approx(ends) for ends in sorted(zip(rows["ci_low"], rows["ci_high"], strict=True))
    ]
    assert "Bars: 95 %" in figure.get_supxlabel().replace("\n", " ")
    assert "Bands: 95 %" in averages(study).get_supxlabel().replace("\n", " ")


def test_a_plot_of_one_model_leaves_the_others_out(tmp_path):
    for name in ("one", "other"):
        make_study(tmp_path / name, model=name)
    both = tmp_path / "both"
    both.mkdir()
    frames = [read_csv(tmp_path / n / "latency.csv", columns.LATENCY_COLUMNS) for n in ("one", "other")]
    write_csv(both / "latency.csv", pd.concat(frames), columns.LATENCY_COLUMNS)
    plot("latency", both, tmp_path / "b", model="other")
    plot("latency", tmp_path / "other", tmp_path / "o")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "o.svg").read_bytes()
    with pytest.raises(
        UserError, match=r"unknown model in .*latency.csv: 'others' \(did you mean 'other'\?\)"
    ):
        plot("latency", both, tmp_path / "c", model="others")


def test_training_arms_look_different(tmp_path, study):
    frame = read_csv(study / "training.csv", columns.TRAINING_COLUMNS)
    arms = [frame.assign(arm=f"arm{at}") for at in range(14)]
    write_csv(tmp_path / "training.csv", pd.concat(arms), columns.TRAINING_COLUMNS)
    [legend] = training(tmp_path).legends
    assert len({(line.get_color(), str(line._dash_pattern)) for line in legend.get_lines()}) == len(arms)


# ---- what all reports share --------------------------------------------------------------------------------


def test_every_method_has_a_name_and_a_look_of_its_own():
    styles = [style(method) for method in (FULL, *METHODS)]
    assert len({look.label for look in styles}) == len(styles)
    assert len({(look.marker, str(look.line)) for look in styles}) == len(styles)  # in grey print
    assert style("newkv").label == "newkv"


def test_no_plot_depends_on_mathtext_or_on_installed_fonts():
    from matplotlib import get_data_path

    assert RC["text.parse_math"] is False
    shipped = {path.stem for path in Path(get_data_path(), "fonts/ttf").glob("*.ttf")}
    assert {name.replace(" ", "") for name in RC["font.family"]} <= shipped


def test_reports_are_light_to_import():
    code = "import sys, lkv.report.table, lkv.report.plots, lkv.results.summarise; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "matplotlib", "typst", "jinja2"} & set(done.stdout.split())


def test_the_results_readme_explains_every_column():
    text = (ROOT / "results/README.md").read_text(encoding="utf-8")
    for heading, named_columns in (
        ("samples", columns.SAMPLE_COLUMNS),
        ("accuracy.csv", columns.ACCURACY_COLUMNS),
        ("paired.csv", columns.PAIRED_COLUMNS),
        ("latency.csv", columns.LATENCY_COLUMNS),
        ("training.csv", columns.TRAINING_COLUMNS),
        ("recall_by_layer.csv", columns.RECALL_COLUMNS),
        ("kept.csv", columns.KEPT_COLUMNS),
    ):
        section = text.split(f"\n## `{heading}")[1].split("\n## ")[0]
        named = set(re.findall(r"`([a-z0-9_]+)`", section))
        assert set(named_columns) <= named, (heading, set(named_columns) - named)
