"""Promises of importing: no effects, light modules stay light, imports point one way."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lkv.registry import METHODS

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("lkv", "baselines")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MODULES = sorted(set(FILES) - {"lkv.__main__"})
HEAVY = ("torch", "transformers", "matplotlib", "pandas", "peft", "lm_eval", "snakemake", "scipy", "typst")
LIGHT = [
    "lkv", "lkv.errors", "lkv.interface", "lkv.registry", "lkv.cli.main", "lkv.model.chat_template",
    *(name for name in MODULES if name.startswith(("lkv.files", "lkv.results", "lkv.data", "lkv.bench"))),
    *(name for name in MODULES if name.startswith(("lkv.claims", "lkv.report"))),
    *(name for name in MODULES if name.startswith("lkv.study") and name != "lkv.study.provenance"),
]  # fmt: skip


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str, lazy: bool) -> Iterator[tuple[str, ast.stmt]]:
    """(module, statement) of every import that happens at run time; `lazy` counts those inside functions."""
    todo: list[ast.AST] = [tree(module)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield (inside if inside in FILES else node.module), node
        todo += ast.iter_child_nodes(node)


def ours(module: str, lazy: bool) -> set[str]:
    return {name for name, _ in imports(module, lazy) if name in FILES}


def reached(module: str, lazy: bool) -> set[str]:
    """All modules of ours that importing `module`, and with `lazy` using it, can bring in."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for name in ours(todo.pop(), lazy) - found:
            found.add(name)
            todo.append(name)
    return found


def python(code: str, **given: object) -> object:
    """What `code` prints as JSON in a fresh interpreter, `given` at hand."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json; given = json.loads({json.dumps(json.dumps(given))})\n{code}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


EFFECTS = """
import contextlib, importlib, io, logging, os, random, signal, sys, threading, warnings
for statement in given["outside"]:
    exec(statement)
import numpy, torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.utils import logging as verbosity

torch.set_num_threads(3)

def state():
    classes = [c for m in (llama, qwen3) for c in vars(m).values() if isinstance(c, type)]
    classes += [torch.nn.Linear, torch.nn.Module, torch.Tensor]
    return {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "torch random": torch.get_rng_state().tolist(),
        "random": repr(random.getstate()),
        "numpy random": repr(numpy.random.get_state()),
        "warnings": repr(warnings.filters),
        "root log": [repr(logging.root.handlers), logging.root.level],
        "log": [repr(logging.getLogger("lkv").handlers), logging.getLogger("lkv").level],
        "verbosity": verbosity.get_verbosity(),
        "environment": dict(os.environ),
        "path": sys.path,
        "folder": os.getcwd(),
        "signals": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "excepthook": repr(sys.excepthook),
        "running": threading.active_count(),
        "classes": {f"{c.__module__}.{c.__name__}": sorted(f"{k} {id(v)}" for k, v in vars(c).items())
                    for c in classes},
        "attention": sorted(AttentionInterface().valid_keys()),
        "masks": sorted(AttentionMaskInterface().valid_keys()),
    }

before, said = state(), io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    for name in given["modules"]:
        importlib.import_module(name)
after = state()
print(json.dumps({
    "said": said.getvalue(),
    "changed": {k: [before[k], after[k]] for k in before if before[k] != after[k]},
}))
"""


def test_importing_only_registers_two_names_for_attention() -> None:
    """What the libraries do at their own import is not ours: they are imported first."""
    outside = {
        ast.unparse(statement)
        for module in MODULES
        for name, statement in imports(module, lazy=False)
        if name.split(".")[0] not in ("lkv", "baselines", "__future__")
    }
    found = python(EFFECTS, modules=MODULES, outside=sorted(outside))
    assert isinstance(found, dict)
    assert found["said"] == ""
    assert set(found["changed"]) == {"attention", "masks"}
    for before, after in found["changed"].values():
        assert set(after) - set(before) == {"lkv_torch", "lkv_fa2"}
        assert set(before) <= set(after)


def test_light_modules_bring_in_nothing_heavy() -> None:
    code = """
import importlib, sys
heavy = {}
for name in given["light"]:
    importlib.import_module(name)
    for other in given["heavy"]:
        if other in sys.modules:
            heavy.setdefault(other, name)
print(json.dumps(heavy))
"""
    assert python(code, light=LIGHT, heavy=HEAVY) == {}


def test_the_lazy_attribute_is_the_class_and_others_are_errors() -> None:
    import lkv
    from lkv.lookahead.adapter import LookaheadKV

    assert lkv.LookaheadKV is LookaheadKV
    with pytest.raises(AttributeError, match="has no attribute 'LookaheadKW'"):
        lkv.LookaheadKW  # noqa: B018


def test_snakemake_is_the_workflows_alone() -> None:
    tops = {module: {name.split(".")[0] for name, _ in imports(module, lazy=True)} for module in MODULES}
    assert [module for module in MODULES if "snakemake" in tops[module]] == []


def test_baselines_are_known_to_the_registry_alone_and_by_name() -> None:
    for module in (name for name in MODULES if name.startswith("lkv")):
        assert not [name for name, _ in imports(module, lazy=True) if name.split(".")[0] == "baselines"]
        texts = [node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)]
        named = [text for text in texts if isinstance(text, str) and text.startswith("baselines.")]
        assert (module == "lkv.registry") == bool(named), module


def test_every_baseline_is_in_the_registry() -> None:
    named = {entry.split(":")[0] for entry in METHODS.values()}
    assert named - {"lkv.lookahead.method"} == {name for name in FILES if name.startswith("baselines.")}


def test_a_baseline_needs_the_interface_and_a_model_of_its_cost_and_is_light() -> None:
    """A draft model is the one thing more that a method may need."""
    costs, drafts = {"lkv.model.shape", "lkv.model.theory"}, {"lkv.eviction.answer", "lkv.eviction.draft"}
    baselines = {name for name in FILES if name.startswith("baselines")}
    for module in baselines:
        allowed = {"lkv.interface"} | costs | baselines
        assert ours(module, lazy=False) <= allowed, module
        assert ours(module, lazy=True) <= allowed | drafts, module


def test_the_words_import_nothing_of_ours() -> None:
    assert ours("lkv.interface", lazy=True) == set()
    assert {name.split(".")[0] for name, _ in imports("lkv.interface", lazy=True)} <= sys.stdlib_module_names


def test_no_module_imports_itself_in_a_circle() -> None:
    assert [module for module in MODULES if module in reached(module, lazy=False)] == []


def test_only_the_command_line_ends_the_process() -> None:
    ends = {"sys.exit", "exit", "quit", "os._exit"}
    for module in MODULES:
        calls = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
        assert not calls & ends or module in ("lkv.cli.main", "lkv.cli.signals"), module
