"""A report's table in PDF, by Typst."""

from __future__ import annotations

from lkv.files.markup import typst_string
from lkv.report.source import template
from lkv.report.table_model import Table


def to_pdf(table: Table) -> bytes:
    """One page, cropped to the table; the same bytes for the same table."""
    import typst

    source = template("table.typ.jinja", typst=typst_string).render(table=table)
    # System fonts would make the bytes depend on the machine.
    pdf: bytes = typst.compile(source.encode(), format="pdf", ignore_system_fonts=True)
    return pdf
