"""Packaging files agree with pyproject.toml, which is the one source of names and bounds."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import lkv
from lkv.study.provenance import commit, dirty, package_versions

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def conda(name: str) -> tuple[list[str], list[str]]:
    """(conda's own dependencies, pip's lines) of an environment file."""
    dependencies = yaml.safe_load((ROOT / name).read_text())["dependencies"]
    pip = [line for item in dependencies if isinstance(item, dict) for line in item["pip"]]
    return [item for item in dependencies if isinstance(item, str)], pip


# flash-attn is built against the local CUDA: never part of a solve.
NEEDED = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *(EXTRAS[name] for name in EXTRAS if name != "flash"))
    for line in lines
]


@pytest.mark.parametrize("needed", [r for r in NEEDED if r.name != "lkv"], ids=str)
def test_constraints_pin_every_requirement_within_its_bounds(needed: Requirement) -> None:
    assert needed.specifier.contains(constraints()[canonicalize_name(needed.name)])


def test_constraints_hold_plain_versions_of_the_tested_pair() -> None:
    pins = constraints()
    assert pins["torch"] == Version("2.13.0")
    assert pins["transformers"] == Version("5.23.0")
    assert [name for name, version in pins.items() if version.local] == []


def test_extra_all_has_what_the_workflow_needs() -> None:
    named = {extra for r in NEEDED if r.name == "lkv" for extra in r.extras}
    assert named == {"data", "judge", "workflow", "report", "completion"} <= EXTRAS.keys()


def test_environment_file_delegates_to_pyproject_with_constraints() -> None:
    _, pip = conda("environment.yml")
    assert pip == ["-c constraints.txt", "-e .[all]"]
    assert Requirement("lkv" + pip[1].removeprefix("-e .")).extras <= EXTRAS.keys()


@pytest.mark.parametrize("name", ["environment.yml", "workflow/envs/lkv.yaml"])
def test_environment_files_take_a_python_that_the_project_allows(name: str) -> None:
    own, _ = conda(name)
    [python] = [item for item in own if item.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == lkv.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("document", ["README.md", "config/README.md", ".ci/run"])
def test_make_targets_that_documents_name_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_makefile_refuses_a_machine_without_a_new_enough_python_in_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    run = subprocess.run(["make", "PYTHON=false", "demo"], cwd=tmp_path, text=True, capture_output=True)
    assert run.returncode != 0
    assert run.stderr.startswith("lkv needs Python 3.11 or newer; false is not.")
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_tests_last_and_stops_at_the_first_failure() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1] == "make test"


def test_a_copy_without_its_history_says_its_commit_and_that_changes_are_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LKV_COMMIT", raising=False)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert commit() == head.stdout.strip()
        assert dirty() in (True, False)
    monkeypatch.setenv("LKV_COMMIT", "0123abc")
    assert (commit(), dirty()) == ("0123abc", None)
    assert package_versions()["python"] == platform.python_version()
