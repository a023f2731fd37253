"""Tiny random models, made in memory: float32, CPU, no downloads."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

if not os.path.exists("/dev/nvidiactl"):  # no GPU: Triton's interpreter runs the kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which torch may do
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too

import durations
import pytest
import torch
from bad_input import make_world, restore
from transformers import PreTrainedModel

from lkv.cli.parser import parser
from lkv.model.attention import SDPA
from lkv.model.random_weights import tiny_model

torch.set_num_threads(1)  # tiny models: more threads wait for each other longer than they compute


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; what tests/durations.py has measured is marked as slow."""
    first = {name: place for place, name in enumerate(durations.LONGEST_FIRST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))
    counted: Counter[str] = Counter()
    for item in items:
        file, function = item.path.name, item.name.partition("[")[0]
        if function.startswith(durations.SLOW.get(file, ())):
            item.add_marker("slow")
        elif file in durations.ONE_IN and "[" in item.name:
            if counted[function] % durations.ONE_IN[file]:
                item.add_marker("slow")
            counted[function] += 1


@pytest.fixture(scope="module")
def one_parser() -> Iterator[None]:
    """`main` builds its command line once, not for every test: building takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lkv.cli.main.parser", cache(parser))
        yield


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A three-layer Llama or Qwen3 (q/k norms, tied embeddings) with grouped queries."""
    return observed(request.param)


def observed(family: str, seed: int = 1) -> PreTrainedModel:
    made = tiny_model(family, seed=seed, layers=3, heads=8, kv_heads=2)
    made.requires_grad_(False)
    made.set_attn_implementation(SDPA)
    return made


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_world(root)
    return root


@pytest.fixture(scope="module")
def copied(good_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy") / "here"
    shutil.copytree(good_folder, root)
    return root


@pytest.fixture
def here(good_folder: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the good folder, in which the test runs; what a test has changed is good again after it."""
    monkeypatch.chdir(copied)
    yield copied
    restore(good_folder, copied)


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randint(0, 256, (1, 150), generator=torch.Generator().manual_seed(5))


def unpack(archive: Path, folder: Path) -> None:
    """All of a tar archive, into `folder`."""
    with tarfile.open(archive) as files:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before Python 3.11.4
        files.extractall(folder, **safe)
