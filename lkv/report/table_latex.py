"""A report's table in LaTeX."""

from __future__ import annotations

from lkv.files.markup import latex_text
from lkv.report.style import style
from lkv.report.table_model import Cell, Row, Table


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
