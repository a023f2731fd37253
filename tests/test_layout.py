"""Promises of the layout: packages in one order, no circles, short files and functions, no method by name."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from statistics import median

import pytest

from lkv.registry import BUILT_IN

ROOT = Path(__file__).parents[1]
# From low to high: what stands further on may import what stands before it, types alone included.
ORDER = [
    "lkv.version", "lkv.errors", "lkv.files", "lkv.results", "lkv.interface", "lkv.cache", "lkv.kernels",
    "lkv.model", "lkv.data", "lkv.distributed", "lkv.eviction", "lkv.lookahead", "baselines", "lkv.registry",
    "lkv.bench", "lkv.measure", "lkv.claims", "lkv.report", "lkv.study", "lkv.integrations", "lkv.cli",
    "lkv.__main__", "lkv",
]  # fmt: skip
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("lkv", "baselines")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# Where another method than LookaheadKV may be named: these declare or describe methods, or speak a foreign
# program's words.
NAMING = ("lkv.claims", "lkv.registry", "lkv.integrations.kvpress", "lkv.study.settings")
# Names that are English words as well.
WORDS = {"random", "oracle"}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> frozenset[str]:
    """The project's modules that a module imports: at its top, in functions, and for types alone."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inside}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & set(FILES) - {module})


def package(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("lkv.") else 1])


def test_every_package_has_its_place_in_the_order() -> None:
    assert {package(module) for module in FILES} == set(ORDER)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_from_its_own_package_and_from_lower_ones(module: str) -> None:
    place = ORDER.index(package(module))
    assert not {other for other in imported(module) if ORDER.index(package(other)) > place}


def test_no_import_goes_in_a_circle() -> None:
    known: dict[str, int] = {}  # 1: on the way down, 2: done

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert known.get(module) != 1, " -> ".join((*way, module))
        if module not in known:
            known[module] = 1
            for other in sorted(imported(module)):
                visit(other, (*way, module))
            known[module] = 2

    for module in FILES:
        visit(module, ())


def test_the_top_of_the_package_is_some_twenty_entries() -> None:
    entries = [path for path in (ROOT / "lkv").iterdir() if path.name not in ("__pycache__", "__init__.py")]
    assert len(entries) <= 22


def test_files_are_short() -> None:
    lines = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in FILES.items()
        if path.name != "__init__.py"
    }
    assert median(lines.values()) <= 150
    assert {name: n for name, n in lines.items() if n > 400 and not name.startswith("lkv.kernels")} == {}


def test_functions_are_short() -> None:
    """Triton's kernels apart."""
    long = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module in FILES
        if not module.startswith("lkv.kernels")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: n for name, n in long.items() if n > 60} == {}


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("lkv.")])
def test_no_method_but_lookaheadkv_is_known_by_name(module: str) -> None:
    """Neither in code nor in texts and comments."""
    if module.startswith(NAMING):
        return
    text = FILES[module].read_text(encoding="utf-8")
    strings = {node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)}
    assert "oracle" not in strings
    names = "|".join(sorted(set(BUILT_IN) - WORDS - {"lookaheadkv"}))
    assert not re.findall(rf"\b(?:{names})\b", text, re.IGNORECASE)
