"""The main table, method × budget, as .pdf (typst), .csv, .md and .tex: same cells, same marks, same note.

Beside them .html, which has every task's cells too (lkv/report/page.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lkv.markup import latex_text, markdown_text, typst_string
from lkv.records import PAIRED_COLUMNS, TABLE_COLUMNS, atomic_write, read_csv, stored, write_csv
from lkv.report.note import SHORT, TIED, note
from lkv.report.page import to_html
from lkv.report.source import Block, read_blocks, read_provenance, read_scores, template
from lkv.report.style import style
from lkv.summarise import AVERAGE

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """One figure as it is printed."""

    text: str = NONE
    interval: str = ""
    best: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Row:
    """One method, a cell a budget; the full cache has one score for all budgets and no recall."""

    method: str
    scores: list[Cell]
    recalls: list[Cell]

    @property
    def label(self) -> str:
        return style(self.method).label


@dataclass(frozen=True)
class Panel:
    """One block: bounds above a rule, the evictors below it."""

    title: str
    bounds: list[Row]
    evictors: list[Row]


@dataclass(frozen=True)
class Table:
    budgets: list[int]
    panels: list[Panel]
    recall: bool  # whether there is any recall to show
    note: list[tuple[str, str]]

    def cells(self) -> Iterator[Cell]:
        for panel in self.panels:
            for row in panel.bounds + panel.evictors:
                yield from row.scores + row.recalls


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


def to_pdf(table: Table) -> bytes:
    """One page, cropped to the table; the same bytes for the same table."""
    import typst

    source = template("table.typ.jinja", typst=typst_string).render(table=table)
    # System fonts would make the bytes depend on the machine.
    pdf: bytes = typst.compile(source.encode(), format="pdf", ignore_system_fonts=True)
    return pdf


def to_markdown(table: Table) -> str:
    def cell(cell: Cell) -> str:
        text = f"**{cell.text}**" if cell.best else cell.text
        return " ".join(filter(None, [text + cell.marks, cell.interval]))

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def row(row: Row) -> str:
        label = markdown_text(row.label)
        repeat = len(table.budgets) if row.method == "full" else 1
        cells = [cell(score) for score in row.scores] * repeat
        if table.recall:
            cells += [cell(recall) for recall in row.recalls] or [NONE] * len(table.budgets)
        return line([f"*{label}*" if style(row.method).bound else label, *cells])

    heads = [f"Score, C = {budget}" for budget in table.budgets]
    heads += [f"Recall, C = {budget}" for budget in table.budgets] * table.recall
    lines = []
    for panel in table.panels:
        lines += [f"**{markdown_text(panel.title)}**", ""]
        lines += [line(["Method", *heads]), line([":--", *["--:"] * len(heads)])]
        lines += [*map(row, panel.bounds), *map(row, panel.evictors), ""]
    lines += [f"**{markdown_text(lead)}:** {markdown_text(text)}  " for lead, text in table.note]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """A `table` environment for a document that loads booktabs."""
    width = len(table.budgets)

    def cell(cell: Cell) -> str:
        text = f"\\textbf{{{cell.text}}}" if cell.best else latex_text(cell.text)
        marks = f"\\textsuperscript{{{latex_text(cell.marks)}}}" if cell.marks else ""
        return text + marks + (f" {{\\scriptsize {cell.interval}}}" if cell.interval else "")

    def row(row: Row) -> str:
        label, cells = latex_text(row.label), [cell(score) for score in row.scores]
        if row.method == "full":
            cells = [f"\\multicolumn{{{width}}}{{c}}{{{cells[0]}}}"]
        if table.recall:
            cells += [cell(recall) for recall in row.recalls] or [""] * width
        return " & ".join([f"\\textit{{{label}}}" if style(row.method).bound else label, *cells]) + " \\\\"

    groups = ["Score", "Recall"] if table.recall else ["Score"]
    columns = 1 + width * len(groups)
    rules = [f"\\cmidrule(lr){{{2 + width * at}-{1 + width * (at + 1)}}}" for at in range(len(groups))]
    lines = [
        "% Needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "\\centering\\small",
        f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        "\\toprule",
        " & ".join(["", *(f"\\multicolumn{{{width}}}{{c}}{{{group}}}" for group in groups)]) + " \\\\",
        " ".join(rules),
        " & ".join(["Method", *[f"\\(C = {budget}\\)" for budget in table.budgets] * len(groups)]) + " \\\\",
    ]
    for panel in table.panels:
        lines += [
            "\\midrule",
            f"\\multicolumn{{{columns}}}{{l}}{{\\textit{{{latex_text(panel.title)}}}}} \\\\",
        ]
        lines += [*map(row, panel.bounds), "\\midrule", *map(row, panel.evictors)]
    lines += ["\\bottomrule", "\\end{tabular}", "", "\\medskip", "\\parbox{\\linewidth}{\\footnotesize"]
    lines += [f"\\textbf{{{latex_text(lead)}:}} {latex_text(text)}" for lead, text in table.note]
    return "\n".join([*lines, "}", "\\end{table}"]) + "\n"
