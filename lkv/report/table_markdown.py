"""A report's table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from lkv.files.markup import markdown_text
from lkv.report.style import style
from lkv.report.table_model import NONE, Cell, Row, Table


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
