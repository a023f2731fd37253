"""tests/durations.py names files and tests that exist, and make test-fast runs some of every quick file."""

from __future__ import annotations

import re
from pathlib import Path

import durations

HERE = Path(__file__).parent
WHOLLY_SLOW = {"test_dag.py", "test_device.py", "test_paper.py"}


def test_measured_files_and_functions_exist() -> None:
    assert len(set(durations.LONGEST_FIRST)) == len(durations.LONGEST_FIRST)
    for file in (*durations.LONGEST_FIRST, *durations.ONE_IN):
        assert (HERE / file).is_file(), file
    for file, starts in durations.SLOW.items():
        named = re.findall(r"^def (test_\w+)", (HERE / file).read_text(encoding="utf-8"), re.MULTILINE)
        for start in starts:
            assert [name for name in named if name.startswith(start)], f"{file}: {start}"
        quick = [name for name in named if not name.startswith(starts)]
        assert bool(quick) != (file in WHOLLY_SLOW), file
