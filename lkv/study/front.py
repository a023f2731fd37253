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
    """The facts at the front of report.html, as reStructuredText: whose study it is, and what it rests on."""
    known = facts(results)
    lengths = ", ".join(map(str, _list(known, "config", "latency", "lengths")))
    told = {"Study": [known.get("study")], "Models": _list(known, "config", "models")}
    for section, label in (("ruler", "RULER"), ("longbench", "LongBench"), ("longproc", "LongProc")):
        told[label] = _list(known, "config", section, "tasks")
    told |= {
        "Timed at": [f"{lengths} tokens"],
        "Device": [f"{known.get('device')}, attention {known.get('backend')}, {known.get('dtype')}"],
        "Code, by its commit": [f"{known.get('commit')}{', with local changes' * bool(known.get('dirty'))}"],
    }
    return "\n".join(
        f":{label}: {', '.join(map(rst_text, values))}" for label, values in told.items() if values
    )


def _list(value: Any, *keys: str) -> list[Any]:
    """What lies under these keys, where a stranger's file has a list there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, list) else []
