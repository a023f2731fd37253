"""Promises of the journal: whole groups or nothing, whatever a kill or a full disk leaves behind."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from lkv.errors import UserError
from lkv.results import journal as module
from lkv.results.journal import Journal

FIRST, SECOND, THIRD = (
    [{"key": f"{group}/{i}", "tokens": [i], "prediction": 'é "…"\n\u2028'} for i in range(size)]
    for group, size in (("a", 2), ("b", 3), ("c", 1))
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two groups."""
    path = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(path)
    journal.append(FIRST)
    journal.append(SECOND)
    return path


def held(journal: Journal) -> list[dict[str, Any]]:
    """The cells without what the journal itself adds."""
    return [{k: v for k, v in cell.items() if k != "group"} for cell in journal.cells.values()]


def first_group(path: Path) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[: 1 + len(FIRST)])


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_appended_cells_are_there_again_when_reopened(path: Path) -> None:
    journal = Journal(path)
    assert held(journal) == FIRST + SECOND
    assert journal.notice == ""
    journal.append(THIRD)
    assert held(journal) == held(Journal(path)) == FIRST + SECOND + THIRD


def test_a_line_is_a_cell_and_can_be_read_by_any_json_reader(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert json.loads(lines.pop(0)) == {"format": "lkv-journal", "version": 3}
    assert [json.loads(line)["key"] for line in lines] == ["a/0", "a/1", "b/0", "b/1", "b/2"]


def test_a_journal_that_is_not_there_is_empty_and_is_not_made_by_looking(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "none" / "journal.jsonl")
    assert (journal.cells, journal.notice) == ({}, "")
    assert not any(tmp_path.iterdir())


def test_wherever_a_kill_cuts_the_last_group_the_others_stay_and_the_file_is_mended(path: Path) -> None:
    whole, first = path.read_bytes(), first_group(path)
    assert len(whole) - len(first) > 100
    for cut in range(len(first) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        assert held(journal) == FIRST, cut
        assert "set aside in journal.jsonl.torn and computed anew" in journal.notice
        assert path.read_bytes() == first
        journal.append(SECOND)
        assert path.read_bytes() == whole
    assert Journal(path).notice == ""
    assert sorted(path.parent.iterdir()) == [path, path.with_name("journal.jsonl.torn")]


def test_a_cut_between_groups_loses_nothing_and_is_no_news(path: Path) -> None:
    path.write_bytes(first_group(path))
    journal = Journal(path)
    assert held(journal) == FIRST
    assert journal.notice == ""


def test_the_notice_names_the_lines_that_go_and_they_lie_beside(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # the second group: two whole lines and a torn one
    assert Journal(path).notice == (
        f"{path}: lines 4-6 are torn or damaged, set aside in journal.jsonl.torn and computed anew"
    )
    torn = path.with_name("journal.jsonl.torn").read_bytes()
    assert torn == whole[len(first_group(path)) : -20] + b"\n"


@pytest.mark.parametrize("lost", range(len(FIRST) + len(SECOND)))
def test_a_group_that_lacks_any_line_is_not_used_at_all(path: Path, lost: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[1 + lost]
    path.write_bytes(b"".join(lines))
    assert held(Journal(path)) == (SECOND if lost < len(FIRST) else FIRST)


@pytest.mark.parametrize("torn", [b"\0" * 40 + b"\n", b"{}\n", b"[1]\n", b'"text"\n', b"\xff\xfe\n", b"\n"])
def test_groups_after_a_torn_line_are_still_used(path: Path, torn: bytes) -> None:
    first = first_group(path)
    path.write_bytes(first + torn + path.read_bytes()[len(first) :])
    journal = Journal(path)
    assert held(journal) == FIRST + SECOND
    assert "line 4 is torn or damaged" in journal.notice
    assert Journal(path).notice == ""


def test_a_full_disk_is_said_and_finished_samples_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    monkeypatch.setattr(module.os, "fsync", no_space)
    with pytest.raises(UserError, match=r"journal\.jsonl: No space left .* finished samples are kept"):
        journal.append(THIRD)
    assert held(journal) == FIRST + SECOND


def test_a_write_that_stops_half_way_is_a_torn_group(path: Path) -> None:
    journal = Journal(path)
    size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limits[1]))  # what a full disk does to a long write
    try:
        with pytest.raises(UserError, match="finished samples are kept"):
            journal.append(THIRD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size + 30
    again = Journal(path)
    assert held(again) == FIRST + SECOND
    assert "line 7 is torn or damaged" in again.notice


def test_a_mending_that_fails_leaves_the_journal_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(torn := path.read_bytes()[:-20])
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        Journal(path)
    assert path.read_bytes() == torn
    assert sorted(path.parent.iterdir()) == [path, path.with_name("journal.jsonl.torn")]


def test_whichever_byte_is_flipped_no_cell_comes_back_changed(path: Path) -> None:
    whole = path.read_bytes()
    head = len(module.HEAD)
    for place in range(len(whole)):
        for bit in (0, 3, 6):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            if path.read_bytes().startswith(module.EARLIER):
                assert "has an earlier form: " in Journal(path).notice
                path.with_name("journal.jsonl.old").unlink()
                continue
            if place < head:
                with pytest.raises(UserError, match="is not a journal of lkv"):
                    Journal(path)
                continue
            journal = Journal(path)
            assert held(journal) in ([], FIRST, SECOND), (place, bit)
            assert "torn or damaged" in journal.notice
    path.with_name("journal.jsonl.torn").unlink()


FOREIGN = [
    b"chapter 1\nyears of work\n",
    b'{"id": 1}\n',
    b"\xff\xfe\x00",
    b"[1, 2]\n",
    b'{"format": "other"}\n',
    b"[" * 5000,
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"thesis\.txt is not a journal of lkv, and is left as it is"):
        Journal(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a journal of lkv"):
        Journal(tmp_path)


@pytest.mark.parametrize("written", [b"", module.HEAD[:10], module.HEAD])
def test_a_journal_whose_first_line_a_kill_cut_is_begun_again(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(written)
    Journal(path).append(FIRST)
    assert held(Journal(path)) == FIRST
    assert path.read_bytes().startswith(module.HEAD)


def test_a_journal_of_the_keys_before_is_set_aside_and_its_answers_are_counted(path: Path) -> None:
    content = module.EARLIER + path.read_bytes().removeprefix(module.HEAD)
    path.write_bytes(content)
    journal = Journal(path)
    answers = content.count(b"\n") - 1
    assert journal.cells == {} and f": {answers} answers are computed anew" in journal.notice
    assert path.with_name("journal.jsonl.old").read_bytes() == content


def test_a_journal_of_the_earlier_form_is_set_aside_whole_and_counted(path: Path) -> None:
    earlier = b"".join(json.dumps({**cell, "group": [0, 1]}).encode() + b"\n" for cell in FIRST)
    path.write_bytes(earlier)
    journal = Journal(path)
    assert journal.cells == {}
    assert (
        journal.notice == "journal.jsonl has an earlier form: 2 answers are computed anew (journal.jsonl.old)"
    )
    assert path.with_name("journal.jsonl.old").read_bytes() == earlier
    journal.append(SECOND)
    assert held(Journal(path)) == SECOND


def test_half_a_character_is_written_and_read_again(path: Path) -> None:
    journal = Journal(path)
    journal.append(cells := [{"key": "half", "prediction": "\ud800 and more"}])
    assert held(Journal(path))[-1:] == cells
