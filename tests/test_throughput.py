"""The throughput benchmark counts what was evaluated, and compares equal grids alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import observed

from lkv import registry
from lkv.data.frozen import freeze
from lkv.errors import UserError
from lkv.integrations import kvpress as kvpress_run
from lkv.measure.throughput import ratio, throughput
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer
from lkv.results.columns import THROUGHPUT_COLUMNS
from lkv.results.csv_files import read_csv, write_csv

BUDGETS = [40, 64]
RECORD = {
    "benchmark": "ruler", "task": "vt", "length": 256, "planned": 2, "haystack": "noise", "protocol": "p",
    "question_aware": True, "template": True, "input": "Rain fell on the harbour. " * 5, "question_at": 0,
    "answer_prefix": " It is", "outputs": ["x"], "classes": [], "metric": "all", "max_new_tokens": 5,
    "stops": [], "min_new_tokens": 0, "prompt_tokens": 140,
}  # fmt: skip
RECORDS = [RECORD | {"sample": i} for i in range(2)]
KVPRESS = """
import torch

class Press:
    def __init__(self, ratio, **settings):
        self.ratio = ratio

StreamingLLMPress = SnapKVPress = RandomPress = Press

class KVPressTextGenerationPipeline:
    def __init__(self, **settings):
        pass
    def preprocess(self, text, questions, prefix, most):
        return {"context_ids": torch.zeros(1, 80)}
    def __call__(self, text, press, max_new_tokens, question, answer_prefix):
        assert press is None or press.ratio in (1 - 40 / 80, 1 - 64 / 80)
        return {"answer": "abcd"}
"""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(observed("llama"), tiny_tokenizer(), "tiny", "0", frozenset())


@pytest.fixture(scope="module")
def rows(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    methods = [registry.get(name) for name in kvpress_run.METHODS]
    out = tmp_path_factory.mktemp("throughput") / "out.csv"
    found = throughput(loaded, [RECORDS, RECORDS[:1]], methods, BUDGETS, out)
    assert len(read_csv(out, THROUGHPUT_COLUMNS)) == 2
    return found


def test_every_cell_of_every_sample_is_counted_run_by_run(rows: list[dict[str, Any]]) -> None:
    assert [row["run"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["samples"], row["cells"]) == (3, 3 * (1 + 3 * 2))
        assert row["new_tokens"] == row["cells"] * 5  # nothing stops early: all have their full length
        assert row["cells_per_s"] == pytest.approx(row["cells"] / row["seconds"])
        assert row["budgets"] == "40 64" and row["device"] == "CPU"


def test_the_same_grid_of_another_engine_is_a_ratio_and_another_grid_is_refused(
    rows: list[dict[str, Any]], loaded: Loaded, tmp_path: Path
) -> None:
    """The other engine's command runs whole, on a stand-in of kvpress that answers at once."""
    (tmp_path / "kvpress.py").write_text(KVPRESS)
    loaded.model.save_pretrained(tmp_path / "tiny")
    loaded.tokenizer.save_pretrained(tmp_path / "tiny")
    freeze(tmp_path / "a.jsonl", RECORDS)
    freeze(tmp_path / "b.jsonl", RECORDS[:1])

    found, root = tmp_path / "found.csv", Path(__file__).parents[1]
    words = [sys.executable, "-m", "lkv.integrations.kvpress", "--model", tmp_path / "tiny", "--data"]
    words += [tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--samples", 2, "--budgets", *BUDGETS]
    words += ["--dtype", "float32", "--out", found]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*map(str, words)], check=True, env=environment, cwd=tmp_path)
    theirs = read_csv(found, THROUGHPUT_COLUMNS).iloc[0]
    assert (theirs["engine"], theirs["samples"], theirs["cells"]) == ("kvpress", 3, 21)
    said = ratio(rows, found)
    assert f"of kvpress: {rows[-1]['cells_per_s'] / theirs['cells_per_s']:.0f} times" in said
    assert "(new tokens 105 and 84)" in said
    write_csv(tmp_path / "fewer.csv", [{**theirs, "samples": 2}], THROUGHPUT_COLUMNS)
    with pytest.raises(UserError, match="is of another grid: samples 2, here 3; run both alike"):
        ratio(rows, tmp_path / "fewer.csv")


def test_the_other_engines_command_imports_nothing_of_ours() -> None:
    """It runs where this project's requirements are not installed."""
    tree = ast.parse(Path(kvpress_run.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    named |= {node.module or "." for node in imports if isinstance(node, ast.ImportFrom)}
    assert not [name for name in named if name.split(".")[0] in ("lkv", "baselines")]
    assert kvpress_run.COLUMNS == THROUGHPUT_COLUMNS
    assert set(kvpress_run.METHODS) <= set(registry.METHODS)
