"""Terminals and files as a shell hands them over: no UTF-8, closed, a pipe that nobody reads, without end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_files import COMMANDS, JUDGE
from bad_input import listing

ROOT = Path(__file__).parents[1]
LKV = f"{sys.executable} -m lkv"


def shell(
    line: str, folder: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash in `folder`; `lkv` in it is ours."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    line = f'set -o pipefail; lkv() {{ {LKV} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, timeout=timeout, check=False
    )


def test_an_answer_goes_to_a_terminal_of_ascii_alone(here: Path) -> None:
    """A random model of bytes answers in halves of characters."""
    done = shell(
        f"lkv {COMMANDS['generate']} --max-new-tokens 40", here, PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"\\ufffd" in done.stdout  # what stands for half a character
    assert b"Traceback" not in done.stderr


def test_a_name_that_is_no_ascii_is_refused_readably(here: Path) -> None:
    done = shell("lkv plan --config größe.yaml", here, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"lkv: error: no such config: gr\\xf6\\xdfe.yaml")


def test_with_stderr_closed_nothing_is_written_into_a_file_or_stdout(here: Path) -> None:
    done = shell(f"lkv {COMMANDS['summarise']} 2>&-; lkv plan --config gone.yaml 2>&-", here)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")
    whole = shell(f"lkv {COMMANDS['summarise'].replace('out/', 'out/again-')}", here)
    assert whole.returncode == 0
    for name in ("a.csv", "p.csv"):
        assert (here / "out" / name).read_bytes() == (here / "out" / f"again-{name}").read_bytes()


def test_with_all_streams_closed_a_verb_still_works(here: Path) -> None:
    done = shell(f"lkv {COMMANDS['evaluate']} <&- >&- 2>&-", here)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len((here / "out/s.csv").read_text().splitlines()) == 1 + 2 * 2


def test_a_pipe_that_nobody_reads_ends_a_verb_quietly(here: Path) -> None:
    done = shell(f"lkv {COMMANDS['plan']} 2> said | true; echo ${{PIPESTATUS[0]}}", here)
    assert done.stdout == b"141\n"
    assert (here / "said").read_bytes() == b""
    quiet = shell("lkv plan --config gone.yaml 2>&1 | true; echo ${PIPESTATUS[0]}", here)
    assert quiet.stdout in (b"2\n", b"141\n")
    assert quiet.stderr == b""


def test_a_full_stdout_is_one_line(here: Path) -> None:
    done = shell(f"lkv {COMMANDS['plan']} > /dev/full", here)
    assert done.returncode == 2
    assert re.fullmatch(rb"lkv: error: cannot write .*: No space left on device; .*\n", done.stderr)


@pytest.mark.parametrize("source", ["fifo", "/dev/zero", "<(cat study.yaml)"])
def test_an_input_without_end_is_refused_at_once(source: str, here: Path) -> None:
    os.mkfifo(here / "fifo")
    before = listing(here)
    for line in (f"arms --cards {source} --out out/a.csv", f"plan --config {source}"):
        done = shell(f"ulimit -v 12000000; lkv {line}", here)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(b"lkv: error: ")
    assert listing(here) == before


def test_a_broken_url_is_one_line(here: Path) -> None:
    done = shell(f"lkv {JUDGE} --url 'http://[::1'", here)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done.stderr
    assert done.stderr.startswith(b"lkv: error: the judge's url is 'http://[::1'")


def test_too_little_memory_is_one_line(here: Path) -> None:
    """Where a library does not end the process itself, as those in Rust and C++ may."""
    done = shell(f"ulimit -v 900000; lkv {COMMANDS['latency']}", here)
    if done.returncode == 2:
        assert done.stderr.startswith(b"lkv: error: memory ran out; use a shorter length")
    else:
        assert done.returncode in (134, 139), done.stderr[-500:]


@pytest.mark.parametrize("name", ["WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "x", "-1", "0", "²", "9" * 5_000])
def test_a_wrong_environment_is_one_line(name: str, value: str, here: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from lkv.cli.main import main

    monkeypatch.setenv(name, value)
    assert main([*COMMANDS["train"].split(), "--processes", "2"]) == 2
    assert name in capsys.readouterr().err
