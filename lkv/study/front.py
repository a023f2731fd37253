"""The first page of Snakemake's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkv.files.markup import rst_code, rst_text
from lkv.results.columns import read_provenance


def facts(results: str) -> dict[str, Any]:
    """A study's provenance.json, for the words at the front of report.html."""
    return read_provenance(Path(results, "provenance.json"))


def facts_as_code(results: str) -> str:
    return rst_code(facts(results))


def front(results: str) -> str:
    """The first page of report.html as reStructuredText: study, models, benchmarks, device, code."""
    known = facts(results)
    lengths = ", ".join(map(str, _list(known, "config", "latency", "lengths")))
    rows: dict[str, list[Any]] = {"Study": [known.get("study")], "Models": _list(known, "config", "models")}
    for section, label in (("ruler", "RULER"), ("longbench", "LongBench"), ("longproc", "LongProc")):
        rows[label] = _list(known, "config", section, "tasks")
    rows |= {
        "Timed at": [f"{lengths} tokens"],
        "Device": [f"{known.get('device')}, attention {known.get('backend')}, {known.get('dtype')}"],
        "Code, by its commit": [f"{known.get('commit')}{', with local changes' * bool(known.get('dirty'))}"],
    }
    return "\n".join(
        f":{label}: {', '.join(map(rst_text, values))}" for label, values in rows.items() if values
    )


def _list(value: Any, *keys: str) -> list[Any]:
    """The list under these keys, or an empty one: the file may be somebody else's."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, list) else []
