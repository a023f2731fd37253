"""The main table, method × budget, as .pdf (typst), .csv, .md and .tex: same cells, same marks, same note.

Beside them .html, which has every task's cells too (lkv/report/page.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lkv.files.atomic import atomic_write
from lkv.report.note import SHORT, TIED, note
from lkv.report.page import to_html
from lkv.report.source import Block, read_blocks, read_provenance, read_scores
from lkv.report.style import style
from lkv.report.table_latex import to_latex
from lkv.report.table_markdown import to_markdown
from lkv.report.table_model import NONE, Cell, Panel, Row, Table
from lkv.report.table_pdf import to_pdf
from lkv.results.columns import PAIRED_COLUMNS, TABLE_COLUMNS
from lkv.results.csv_files import read_csv, stored, write_csv
from lkv.results.summarise import AVERAGE


def write_table(results_dir: str | Path, out_stem: str | Path) -> None:
    """Renders accuracy.csv, paired.csv and provenance.json (the last two may be missing) in five formats."""
    blocks = read_blocks(results_dir)
    table = build_table(results_dir, blocks)
    rendered = {
        "pdf": to_pdf(table),
        "md": to_markdown(table).encode(),
        "tex": to_latex(table).encode(),
        "html": to_html(read_scores(results_dir), table.note).encode(),
    }
    for suffix, content in rendered.items():
        with atomic_write(f"{out_stem}.{suffix}", "wb") as stream:
            stream.write(content)
    write_csv(f"{out_stem}.csv", [row for block in blocks for row in to_rows(block)], TABLE_COLUMNS)


def build_table(results_dir: str | Path, blocks: Sequence[Block]) -> Table:
    """The printed cells and the note."""
    budgets = sorted({int(budget) for block in blocks for budget in block.average["budget"] if budget})
    paired = stored(Path(results_dir) / "paired.csv")
    tied = _tied_recalls(paired)
    recall = any(block.average["recall_raw"].notna().any() for block in blocks)
    table = Table(budgets, [_panel(block, budgets, tied) for block in blocks], recall, [])
    marks = "".join(cell.marks for cell in table.cells())
    table.note.extend(note(blocks, marks, recall, paired.is_file(), read_provenance(results_dir)))
    return table


def _tied_recalls(path: Path) -> set[tuple[Any, ...]]:
    """Average cells whose recall_raw is not told from LookaheadKV's: the paired interval covers 0."""
    if not os.path.lexists(path):
        return set()
    paired = read_csv(path, PAIRED_COLUMNS)
    wanted = (paired["task"] == AVERAGE) & (paired["metric"] == "recall_raw")
    rows = paired[wanted & (paired["ci_low"] <= 0) & (paired["ci_high"] >= 0)]
    keys = rows[["model", "benchmark", "length", "protocol", "haystack", "method", "budget"]].fillna("")
    return set(keys.itertuples(index=False, name=None))


def _panel(block: Block, budgets: Sequence[int], tied: set[tuple[Any, ...]]) -> Panel:
    found = {(row["method"], row["budget"]): row for row in block.average.to_dict("records")}
    best = _best(block)
    where = (block.model, block.benchmark, block.length, block.protocol, block.haystack)

    def score(method: str, budget: int) -> Cell:
        if (row := found.get((method, budget))) is None:
            return Cell()
        text = _printed(row["mean"], 1)
        marks = SHORT * (row["n"] < row["n_planned"])
        marks += TIED * (row["diff_ci_low"] <= 0 <= row["diff_ci_high"])
        low, high = _printed(row["ci_low"], 1), _printed(row["ci_high"], 1)
        interval = "" if low == NONE else f"[{low}, {high}]"
        return Cell(text, interval, (method, budget, "score", text) in best, marks)

    def recall(method: str, budget: int) -> Cell:
        if (row := found.get((method, budget))) is None:
            return Cell()
        text = _printed(row["recall_raw"], 2)
        marks = TIED * ((*where, method, budget) in tied)
        return Cell(text, "", (method, budget, "recall_raw", text) in best, marks)

    bounds: list[Row] = []
    evictors: list[Row] = []
    for method in dict.fromkeys(block.average["method"]):
        if method == "full":
            row = Row(method, [score(method, 0)], [])
        else:
            row = Row(method, [score(method, b) for b in budgets], [recall(method, b) for b in budgets])
        (bounds if style(method).bound else evictors).append(row)
    return Panel(block.title, bounds, evictors)


def _printed(value: float, digits: int) -> str:
    return NONE if math.isnan(value) else f"{value:.{digits}f}"


def _best(block: Block) -> set[tuple[str, int, str, str]]:
    """(method, budget, figure, printed) of each column's leading evictors; all that print alike lead."""
    evictors = block.average[[not style(method).bound for method in block.average["method"]]]
    best = set()
    for figure, column, digits in (("score", "mean", 1), ("recall_raw", "recall_raw", 2)):
        for _, rows in evictors.dropna(subset=column).groupby("budget"):
            top = _printed(rows[column].max(), digits)
            best |= {
                (method, budget, figure, top)
                for method, budget, value in rows[["method", "budget", column]].itertuples(index=False)
                if _printed(value, digits) == top
            }
    return best


def to_rows(block: Block) -> Iterator[dict[str, Any]]:
    """TABLE_COLUMNS records, unrounded: the table's cells in long format."""
    best = {cell[:3] for cell in _best(block)}
    for row in block.average.to_dict("records"):
        cell = (row["method"], row["budget"])
        yield {str(name): value for name, value in row.items()} | {
            "label": style(row["method"]).label,
            "score": row["mean"],
            "best": (*cell, "score") in best,
            "best_recall": (*cell, "recall_raw") in best,
        }
