"""table1.html and report.html in a browser: they sort, filter, hold every figure, and ask nobody."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_report import ODD, make_study
from test_workflow import ALWAYS, ROOT, environment, working_copy

from lkv.files import json_files as records
from lkv.report import kinds
from lkv.report.table import write_table
from lkv.results import columns
from lkv.results.csv_files import read_csv
from lkv.study import check as study
from lkv.study import targets

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
no_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)}")
READ = """
const head = name => [...document.querySelectorAll("thead th")].find(th => th.textContent === name);
const click = name => head(name).querySelector("button").click();
const column = name => [...document.querySelectorAll("tbody tr")].filter(row => row.checkVisibility())
  .map(row => row.cells[head(name).cellIndex].textContent);
const type = (field, value) => {
  field.value = value; field.dispatchEvent(new Event("input", {bubbles: true})); };
const menu = name => [...document.querySelectorAll("label")].find(l => l.firstChild.data === name).control;
const asked = () => performance.getEntriesByType("resource").map(entry => entry.name)
  .filter(name => !name.startsWith("data:"));
"""


def seen(page: Path, script: str, tmp_path: Path) -> Any:
    """What `script`, the body of an asynchronous function in the opened page, returns."""
    assert BROWSER
    run = f"{READ} (async () => {{ {script} }})().then(found => document.title = JSON.stringify(found))"
    content = page.read_text(encoding="utf-8")
    end = content.rindex("</body>")
    opened = tmp_path / "opened.html"
    opened.write_text(f"{content[:end]}<script>{run}</script>{content[end:]}", encoding="utf-8")
    shown = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000", "--dump-dom", opened.as_uri(),
        ],
        env=os.environ | {"HOME": str(tmp_path)}, text=True, capture_output=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title, shown[-2000:]
    return json.loads(html.unescape(title[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow with a published study `mine`."""
    made = working_copy(tmp_path_factory.mktemp("published"))
    (made / "results/mine").mkdir(parents=True)
    make_study(made / "results/mine")
    file = made / "results/mine/provenance.json"
    config = study.read_config(ROOT / "config/tiny.yaml", ROOT)
    records.write_json(file, records.read_json(file) | {"study": "mine", "config": config})
    return made


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stem = tmp_path_factory.mktemp("page") / "table1"
    write_table(folder / "results/mine", stem)
    return Path(f"{stem}.html")


# ---- table1.html -------------------------------------------------------------------------------------------


def test_the_page_has_every_cell_of_accuracy_csv_without_a_script(folder: Path, page: Path) -> None:
    accuracy = read_csv(folder / "results/mine/accuracy.csv", columns.ACCURACY_COLUMNS)
    lines = re.findall(r"^<tr><td>.*</tr>$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines]
    assert len(found) == len(accuracy)
    for cells, row in zip(found, accuracy.to_dict("records"), strict=True):
        assert cells[0] == row["task"]
        assert float(cells[4]) == pytest.approx(row["mean"], abs=0.05)
        lost = row["n"] < row["n_planned"]
        assert cells[-1] == (f"{row['n']} of {row['n_planned']}" if lost else str(row["n"]))
    assert len([cells for cells in found if " of " in cells[-1]]) == 2  # a sample lost, and its average


def test_the_page_is_the_same_to_the_byte(folder: Path, page: Path, tmp_path: Path) -> None:
    write_table(folder / "results/mine", tmp_path / "again")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_the_page_shows_names_with_markup_as_they_are(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script>" + ODD
    write_table(make_study(tmp_path, model=odd, trained_on=odd), tmp_path / "t")
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert html.unescape(text).count(odd) == 2


@pytest.mark.door
@no_browser
def test_a_click_on_a_head_sorts_by_it_and_a_second_one_turns_it_round(page: Path, tmp_path: Path) -> None:
    found = seen(
        page,
        """click("Δ LookaheadKV"); const up = column("Δ LookaheadKV"), said = head("Δ LookaheadKV").ariaSort;
        click("Δ LookaheadKV"); const down = column("Δ LookaheadKV");
        click("Budget C"); const budgets = column("Budget C");
        click("Method"); return {up, said, down, budgets, methods: column("Method")};""",
        tmp_path,
    )
    numbers = [float(cell.replace("−", "-")) for cell in found["up"] if cell != "–"]
    assert numbers == sorted(numbers) and numbers[0] < 0 < numbers[-1]
    assert set(found["up"][len(numbers) :]) == {"–"}  # missing figures are last, both ways
    assert found["down"][: len(numbers)] == found["up"][len(numbers) - 1 :: -1]
    assert set(found["down"][len(numbers) :]) == {"–"}
    assert found["said"] == "ascending"
    assert list(dict.fromkeys(found["budgets"])) == ["64", "128", "all"]  # by number, not by letter
    assert found["methods"] == sorted(found["methods"])


@pytest.mark.door
@no_browser
def test_menus_and_words_hide_the_other_rows_and_leave_the_full_cache(page: Path, tmp_path: Path) -> None:
    found = seen(
        page,
        """const words = document.querySelector("input"), said = () => document.querySelector("output").value;
        type(menu("Budget C"), "64"); const budgets = column("Budget C"), count = said();
        type(menu("Task"), "vt"); const tasks = column("Task");
        type(words, "SNAP vt"); const snapkv = column("Method");
        document.querySelector("[type=reset]").click(); await new Promise(done => setTimeout(done, 50));
        const all = column("Method").length; type(words, "nothing like it");
        return {budgets, count, tasks, snapkv, all, none: column("Method"), asked: asked()};""",
        tmp_path,
    )
    assert set(found["budgets"]) == {"64", "all"}
    assert found["count"] == f"{len(found['budgets'])} of 27 rows"
    assert found["tasks"] == ["vt"] * 5
    assert found["snapkv"] == ["SnapKV"]
    assert (found["all"], found["none"]) == (27, [])
    assert found["asked"] == []


# ---- report.html -------------------------------------------------------------------------------------------


def test_every_kind_of_plot_has_a_caption_and_a_title() -> None:
    for kind in kinds.PLOTS:
        assert (ROOT / f"workflow/report/{kind}.rst").read_text(encoding="utf-8").strip(), kind
        assert targets.title(kind).category != "Figures", kind


def test_a_published_study_renders_what_its_files_allow(folder: Path, tmp_path: Path) -> None:
    assert {Path(name).stem for name in targets.published_reports("mine", folder)} == set(targets.REPORTS)
    (tmp_path / "results/mine").mkdir(parents=True)
    shutil.copy2(folder / "results/mine/latency.csv", tmp_path / "results/mine")
    assert targets.published_reports("mine", tmp_path) == [
        f"reports/mine/latency.{e}" for e in ("pdf", "svg", "png")
    ]


@pytest.mark.door
@no_browser
def test_the_report_is_one_file_with_every_figure_and_its_caption(folder: Path, tmp_path: Path) -> None:
    target = "reports/mine/report.html"
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", *ALWAYS, target],
        cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    found = seen(
        folder / target,
        """await new Promise(done => setTimeout(done, 2000));
        const text = markup => new DOMParser().parseFromString(markup, "text/html").body.textContent;
        const width = uri => new Promise(done => {
          const image = new Image(); image.onload = () => done(image.naturalWidth);
          image.onerror = () => done(0); image.src = uri; });
        const shown = {};
        for (const [path, entry] of Object.entries(results))
          shown[path] = {label: entry.labels.figure, caption: text(entry.caption),
                         uri: entry.data_uri.slice(0, 20),
                         width: path.endsWith("svg") ? await width(entry.data_uri) : null};
        return {shown, categories: Object.keys(categories), front: text(workflow_desc), asked: asked(),
                rules: document.querySelectorAll("canvas, svg").length};""",
        tmp_path,
    )  # fmt: skip
    figures = {f"reports/mine/{kind}.svg": kind for kind in kinds.PLOTS}
    figures |= {"reports/mine/table1.html": "table1"}
    assert found["shown"].keys() == figures.keys()
    for path, kind in figures.items():
        entry = found["shown"][path]
        caption = (ROOT / f"workflow/report/{kind}.rst").read_text(encoding="utf-8").replace("``", "")
        assert " ".join(entry["caption"].split()) == " ".join(caption.split())
        assert entry["label"] == targets.title(kind).text
        assert entry["uri"].startswith("data:")
        assert entry["width"] is None or entry["width"] > 100
    assert set(found["categories"]) == {targets.title(kind).category for kind in figures.values()}
    assert "tiny-llama" in found["front"] and '"commit": "0123456789abcdef"' in found["front"]
    assert found["rules"] > 0
    assert found["asked"] == []
