"""Promises about the user's files: nothing is written over, emptied or deleted that this program did not
write, in any verb; and what is wrong with an output is said before any work."""

from __future__ import annotations

import argparse
import errno
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import pytest

from lkv.cli import outputs, parser
from lkv.cli.main import main as cli
from lkv.data.frozen import freeze
from lkv.errors import UserError
from lkv.files import atomic as writing
from lkv.files.atomic import SUFFIX, atomic_write, sweep, temporary_folder
from lkv.files.folders import FORMAT, MARK, foreign, is_ours, replace, replaceable, seal
from lkv.files.json_files import write_json
from lkv.model import sources as origins
from lkv.model.fetch import obtain
from lkv.report import plots
from lkv.results import columns, recognise
from lkv.results.csv_files import write_csv

ROOT = Path(__file__).parents[1]
# What each verb needs besides its outputs. A word in capitals is a path in the test's folder.
CALLS = {
    "model": "model --spec SPEC",
    "data_train": 'data train --model MODEL --sources {"name":"n","data":"file:INPUT"}',
    "data_ruler": "data ruler --model MODEL --task vt --length 99 --samples 1 --haystack INPUT",
    "data_longbench": "data longbench --model MODEL --task qasper --source folder:INPUT",
    "data_longproc": "data longproc --model MODEL --task x --data-folder INPUT",
    "train": "train --model MODEL --data INPUT --steps 1",
    "evaluate": "evaluate --model MODEL --data INPUT --methods full --budgets 8 --study s",
    "inspect": "inspect --model MODEL --data INPUT --methods full --budgets 8 --study s",
    "mtbench": "mtbench --model MODEL --questions INPUT --methods full --budgets 8 --study s",
    "judge": "judge --answers INPUT --url http://x --model m",
    "score": "score --benchmark ruler INPUT",
    "plan": "plan --config INPUT",
    "latency": "latency --model MODEL --adapter INPUT --methods full --budgets 8 --lengths 9 --study s",
    "throughput": "throughput --model MODEL --data INPUT --methods full --budgets 8",
    "summarise": "summarise --parts OTHER INPUT",
    "ablation": "ablation --parts OTHER INPUT",
    "arms": "arms --cards OTHER INPUT",
    "share": "share --adapter INPUT --licence x",
    "gather": "gather kept --parts OTHER INPUT",
    "provenance": "provenance --config INPUT --models MODEL",
    "table": "table --results INPUT",
    "plot": "plot latency --results INPUT",
    "claims": "claims --results INPUT",
    "generate": "generate --model MODEL --budget 8 --prompt-file INPUT",
    "ls": "ls methods",
}
FLAGS = [
    (verb, flag) for verb, flags in outputs.WRITES.items() if verb != "ls" for flag in (*flags, "log")
]  # lkv ls reads nothing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, current: nothing in it is ours but an empty folder for a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").mkdir()
    for name in ("SPEC", "INPUT", "OTHER", "thesis.txt"):
        (tmp_path / name).write_text(f"{name}: years of work\n")
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Verbs that are reached only say so: what is refused is refused before any work."""
    ran: list[str] = []

    def recorder(name: str) -> Callable[[argparse.Namespace], None]:
        def run(args: argparse.Namespace) -> None:
            ran.append(name)

        run.__name__, run.__doc__ = name, name
        return run

    groups = {
        title: [replaced(command, run=recorder(command.run.__name__)) for command in group]
        for title, group in parser.GROUPS.items()
    }
    monkeypatch.setattr(parser, "GROUPS", groups)
    return ran


def tree(folder: Path) -> dict[str, str]:
    """Every path with what is there: a hash, a link's target, or that it is a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = os.readlink(path) if path.is_symlink() else "folder" if path.is_dir() else ""
        found[str(path.relative_to(folder))] = kind or hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def command(verb: str, **given: object) -> list[str]:
    """A call of the verb with outputs of their own, but for those that are given."""
    words = CALLS[verb].split()
    for flag in outputs.WRITES[verb]:
        if flag not in given:
            words += [f"--{flag}", f"new/{flag}/it"]
    return words + [word for flag, value in given.items() for word in (f"--{flag}", str(value))]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    before = tree(Path.cwd())
    assert cli([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lkv: error: ")
    after = {path: kind for path, kind in tree(Path.cwd()).items() if path not in ("log", "new")}
    assert after == before
    return err


def line_of(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line of a refusal, where what lies there cannot be read."""
    assert cli(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lkv: error: ")
    return err


def test_every_verb_says_what_it_writes() -> None:
    assert set(outputs.WRITES) == set(CALLS) == set(all_verbs())


def all_verbs() -> Iterator[str]:
    def runs(made: argparse.ArgumentParser) -> Iterator[str]:
        if run := made.get_default("run"):
            yield run.__name__
        for action in made._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from runs(below)

    return runs(parser.parser())


@pytest.mark.parametrize("verb", CALLS)
def test_new_outputs_are_no_reason_to_refuse(verb: str, place: Path, nothing_runs: list[str]) -> None:
    assert cli(command(verb, log="new/log")) == 0
    assert nothing_runs == [verb]


def files(verb: str, flag: str, given: str) -> list[Path]:
    """The files that a flag writes; folders are looked at by the verb itself."""
    writes = outputs.WRITES[verb].get(flag, outputs.LOG)
    made = writes(Path(given), parser.parser().parse_args(command(verb)))
    return [output.path for output in made if output.ours is not None]


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_no_output_is_an_input(
    verb: str, flag: str, place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    """By name, by another way to it, by a link of either kind; empty, so that no other reason is there."""
    for written in files(verb, flag, "it.jsonl"):
        (place / "sub").mkdir(exist_ok=True)
        written.parent.mkdir(exist_ok=True)
        written.touch()
        (place / "soft").symlink_to(written.resolve())
        os.link(written, place / "hard")
        for name in (written, f"missing/../{written}", "soft", "hard"):
            words = [re.sub("INPUT|SPEC", str(name), word) for word in command(verb, **{flag: "it.jsonl"})]
            assert "is read as --" in refused(capsys, *words)
        for name in (written, place / "soft", place / "hard"):
            Path(name).unlink()
    assert nothing_runs == []


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
@pytest.mark.parametrize("content", [b'{"mine": true}\n', b"study,model\n1,2\n\xff"])
def test_a_file_of_the_users_is_not_written_over(
    verb: str,
    flag: str,
    content: bytes,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    nothing_runs: list[str],
) -> None:
    for written in files(verb, flag, "it.jsonl"):
        written.parent.mkdir(exist_ok=True)
        written.write_bytes(content)
        assert "it is left as it is" in refused(capsys, *command(verb, **{flag: "it.jsonl"}))
        written.unlink()
    assert nothing_runs == []


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_an_output_that_cannot_be_a_file_is_refused_before_any_work(
    verb: str, flag: str, place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    for written in files(verb, flag, "it.jsonl"):
        written.parent.mkdir(exist_ok=True)
        written.mkdir()
        assert "a folder, not a file" in refused(capsys, *command(verb, **{flag: "it.jsonl"}))
        written.rmdir()
        written.symlink_to("nowhere")
        assert "is a link to nowhere" in refused(capsys, *command(verb, **{flag: "it.jsonl"}))
        written.unlink()
    assert "is no folder" in refused(capsys, *command(verb, **{flag: "thesis.txt/it.jsonl"}))
    assert nothing_runs == []


@pytest.mark.parametrize("verb", [verb for verb, flags in outputs.WRITES.items() if flags])
def test_no_output_is_another_output(
    verb: str, place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    flags = [*outputs.WRITES[verb], "log"]
    for one, other in itertools.combinations(flags, 2):
        for written in files(verb, one, "it.jsonl"):
            if files(verb, other, str(written)) == [written]:
                line = refused(capsys, *command(verb, **{one: "it.jsonl", other: written}))
                assert "in the way of" in line
    assert nothing_runs == []


def test_frozen_data_and_its_facts_are_two_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *command("data_ruler", out="niah.json"))
    assert "--out niah.json is in the way of niah.json" in line
    assert "give a name with another suffix, such as .jsonl" in line


def test_lkv_score_does_not_write_its_default_over_its_input(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "scores.csv").write_text("task,n,score\n")
    assert "scores.csv is read as --path" in refused(capsys, "score", "--benchmark", "ruler", "scores.csv")


def test_nothing_is_written_into_a_models_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *command("evaluate", out="MODEL/scores.csv"))
    assert "lies in the model's folder" in line
    line = refused(capsys, *command("model", out="m", log="m/log"))
    assert "in the way of m" in line


def test_nothing_is_written_into_an_adapters_folder(
    place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    (place / "A").mkdir()
    (place / "A" / "adapter_config.json").write_text("")  # empty, so that no other reason is there
    share = ["share", "--adapter", "A", "--licence", "x", "--out"]
    assert "lies in the adapter's folder" in refused(capsys, *share, "A")
    for out in ("A/adapter_config.json", "A/sub/it"):
        assert "lies in the adapter's folder; give another --out" in refused(capsys, *share, out)
        for given in ("--adapter A", "--arms main=A,group=max"):
            assert "lies in the adapter's" in refused(capsys, *command("evaluate", out=out), *given.split())
    assert "--log A/log lies in" in refused(capsys, *command("provenance", log="A/log"), "--adapters", "A")
    assert nothing_runs == []
    assert cli([*share, "adapters/A"]) == 0


def test_a_folder_that_is_written_whole_holds_no_input(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "it").mkdir()
    (place / "it" / "spec.yaml").write_text("name: it\n")
    line = refused(capsys, "model", "--spec", "it/spec.yaml", "--out", "it")
    assert "it holds it/spec.yaml, which is read as --spec" in line


PARTS = [  # a command that reads a folder D, and outputs in it that a later run would read
    ("table --results D --out", "D/paired", "D/table1"),
    ("table --results D --out D/table1 --log", "D/provenance.json", "D/logs/table.log"),
    ("plot latency --results D --out D/latency --log", "D/latency.csv", "D/latency.log"),
    ("claims --results OTHERS --latency D --out", "D/latency.csv", "D/claims.md"),
    ("claims --results OTHERS --also D --out", "D/accuracy.csv", "D/claims.md"),
    ("score --benchmark longbench D --out", "D/hotpotqa.jsonl", "D/scores.csv"),
    ("score --benchmark longbench D --out", "D/predictions.csv", "D/scores.csv"),
    ("score --benchmark ruler D --out", "D/vt/snapkv.json", "D/vt/scores.csv"),
    ("data longbench --model MODEL --task lcc --source folder:D --out", "D/qasper.jsonl", "D/mine.jsonl"),
    ("data longproc --model MODEL --task x --data-folder D --out", "D/html_to_tsv_8k.jsonl", "D/mine.jsonl"),
    (
        "data ruler --model MODEL --task vt --length 9 --samples 1 --ready folder:D --out",
        "D/4096.jsonl",
        "D/mine.jsonl",
    ),
    ('data train --model MODEL --sources {"data":"file:D/*.jsonl"} --out', "D/train.jsonl", "train.jsonl"),
]


@pytest.mark.parametrize(("words", "within", "allowed"), PARTS)
def test_no_output_is_what_a_later_run_would_read_as_part_of_an_input(
    words: str,
    within: str,
    allowed: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    nothing_runs: list[str],
) -> None:
    (place / "D").mkdir()
    (place / "link").symlink_to("D")
    for out in (within, within.replace("D/", "link/"), within.replace("D/", "missing/../D/")):
        assert "would be read as part of --" in refused(capsys, *words.split(), out)
    assert nothing_runs == []
    assert cli([*words.split(), allowed]) == 0


def test_what_a_link_in_a_folder_leads_to_is_part_of_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "D").mkdir()
    (place / "elsewhere.csv").touch()
    (place / "D" / "paired.csv").symlink_to("../elsewhere.csv")
    assert "would be read as part of" in refused(capsys, "table", "--results", "D", "--out", "D/paired")


@pytest.mark.parametrize("given", ["file:~/INPUT", "file:INPUT#sha256=0", "INPUT#sha256=0"])
def test_an_input_is_known_in_whatever_words_it_is_named(
    given: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place))
    (place / "INPUT").write_text("")
    words = [given if word == "INPUT" else word for word in command("data_ruler")]
    assert "--log INPUT is read as --haystack" in refused(capsys, *words, "--log", "INPUT")


def test_a_foreign_file_where_answers_are_kept_is_left_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    answers = place / "X.answers"
    answers.mkdir()
    mine = (
        '{"mine": true}\n',
        '{"id": 1, "response": "my words"}\n',
        '{"id": 1, "response": [1], "by": "me"}\n',
    )
    for name, content in itertools.product(("shard-00000.jsonl", "shard-00007.json"), mine):
        (answers / name).write_text(content)
        line = refused(capsys, *command("data_train", out="X.jsonl"))
        assert f"X.answers/{name} is there" in line and "it is left as it is" in line
        (answers / name).unlink()
    assert nothing_runs == []
    (answers / "notes.txt").write_text("beside them")
    for number in range(3):
        freeze(answers / f"shard-0000{number}.jsonl", [{"id": 1, "response": [1]}], run={})
    (answers / "shard-00001.jsonl").write_bytes(b"\0damaged")  # and is generated again
    (answers / "shard-00002.json").write_bytes(b"\0damaged")
    assert cli(command("data_train", out="X.jsonl")) == 0


def test_an_adapter_of_another_project_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lora").mkdir()
    (place / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for verb in ("train", "share"):
        assert "lora/adapter_config.json is there" in refused(capsys, *command(verb, out="lora"))
    with pytest.raises(UserError, match=r"adapter_config\.json is not of lkv train"):
        recognise.require_own_adapter(place / "lora")


def test_a_readme_of_the_users_is_refused_and_a_model_card_of_ours_is_not(
    place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    (place / "README.md").write_text("# My thesis\n")
    assert "README.md is there" in refused(capsys, *command("share", out="."))
    shutil.copytree(ROOT / "adapters" / "smollm2-135m-instruct", place / "shared")
    assert cli(command("share", out="shared")) == 0


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_what_lkv_wrote_may_be_written_again(
    verb: str, flag: str, place: Path, nothing_runs: list[str]
) -> None:
    given = dict.fromkeys(("benchmark", "task", "sample", "planned"), 1)
    known: dict[str, Callable[[Path], object]] = {
        "journal": lambda path: path.write_text('{"key": "a", "group": [0, 1]}\n'),
        "log": lambda path: path.write_text("2026-11-27T18:00:00 INFO a\nb\n"),
        "evaluate": lambda path: write_csv(path, [], columns.SAMPLE_COLUMNS),
        "score": lambda path: path.write_text("task,n,score\nqa_2,5,60.00\n"),
        "data_ruler": lambda path: freeze(path, [given]),
        "data_train": lambda path: freeze(path, [{"id": 1, "length": 1, "ids": [1]}]),
        "provenance": lambda path: write_json(path, {"study": "s", "commit": None, "config": {}}),
        "gather": lambda path: write_csv(path, [], columns.KEPT_COLUMNS),
    }
    if write := known.get(flag, known.get(verb)):
        write(place / "it.jsonl")
    assert cli(command(verb, **{flag: "it.jsonl"})) == 0
    assert nothing_runs == [verb]


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_a_write_protected_file_of_ours_is_not_replaced(
    verb: str, flag: str, place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    """By its mode, so that it holds for root as well, who may write all files."""
    for written in files(verb, flag, "it.jsonl"):
        written.parent.mkdir(exist_ok=True)
        written.touch(0o444)
        (place / "link").symlink_to(written)
        given = "link" if str(written) == "it.jsonl" else "it.jsonl"
        for name in ("it.jsonl", given):
            line = refused(capsys, *command(verb, **{flag: name}))
            assert "is write-protected; it is left as it is: chmod u+w it, or give another --" in line
        (place / "link").unlink()
        written.unlink()
    assert nothing_runs == []


def test_a_write_protected_folder_of_a_model_is_not_replaced(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(place / "own").chmod(0o555)
    assert "own is write-protected" in refused(capsys, *command("model", out="own"))


PUBLISHED = [
    path
    for folder in ("results", "reports", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".csv", ".json", ".md", ".tex", ".html", ".pdf", ".png", ".svg")
    and path.parent.name not in ("results", "reports", "samples")
    and (path.name == "claims.md" or path.parent.parent.name in ("results", "reports"))
]


def producer(path: Path) -> recognise.Ours:
    """What must know a published file, by its name."""
    stems = {
        "accuracy.csv": columns.ACCURACY_COLUMNS,
        "paired.csv": columns.PAIRED_COLUMNS,
        "latency.csv": columns.LATENCY_COLUMNS,
        "ablation.csv": columns.ABLATION_COLUMNS,
        "arms.csv": columns.ARMS_COLUMNS,
        "training.csv": columns.TRAINING_COLUMNS,
        "kept.csv": columns.KEPT_COLUMNS,
        "table1.csv": columns.TABLE_COLUMNS,
    }
    others = {
        "provenance.json": outputs.WRITES["provenance"]["out"](path, argparse.Namespace())[0].ours,
        "claims.md": recognise.claims,
        "table1.pdf": recognise.table_pdf,
        "table1.md": recognise.markdown_table,
        "table1.tex": recognise.latex_table,
    }
    drawings = {".pdf": recognise.plot_pdf, ".png": recognise.plot_png, ".svg": recognise.plot_svg}
    if path.name in stems:
        return recognise.csv_of(stems[path.name])
    return others.get(path.name) or drawings[path.suffix]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_published_file_may_be_made_again_in_its_place(path: Path) -> None:
    assert producer(path)(path)


def test_every_committed_figure_is_among_the_published_ones() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    figures = {ROOT / name for name in listed if name.endswith((".pdf", ".png", ".svg"))}
    assert figures and figures <= set(PUBLISHED)


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
@pytest.mark.parametrize("settings", [{}, {"dpi": 200}, {"dpi": 200, "metadata": {"Title": "mine"}}])
def test_a_figure_that_another_program_drew_by_matplotlib_is_not_written_over(
    suffix: str,
    settings: dict[str, Any],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    nothing_runs: list[str],
) -> None:
    for width in (6.4, 7.2):
        plain_figure(width).savefig(f"mine.{suffix}", **settings)
        if (suffix, settings, width) == ("png", {"dpi": 200}, 7.2):
            continue  # agrees in all that a PNG of ours says of itself
        assert f"mine.{suffix} is there" in refused(capsys, *command("plot", out="mine"))
        if suffix == "pdf":
            assert "mine.pdf is there" in refused(capsys, *command("table", out="mine"))
    assert nothing_runs == []


def test_a_document_that_was_set_by_typst_is_not_written_over(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import typst

    (place / "mine.pdf").write_bytes(typst.compile(b"= Scores\nby method", format="pdf"))
    for verb in ("table", "plot"):
        assert "mine.pdf is there" in refused(capsys, *command(verb, out="mine"))


def test_a_plot_and_a_table_are_not_taken_for_each_other() -> None:
    reports = ROOT / "reports" / "smollm2-h100"
    assert not recognise.plot_pdf(reports / "table1.pdf")
    assert not recognise.table_pdf(reports / "pareto.pdf")


def test_every_plot_that_lkv_draws_may_be_drawn_again(tmp_path: Path) -> None:
    """Also those of which none is published, such as a single model's."""
    drawn = set()
    for kind, model in itertools.product(plots.KINDS, (None, "smollm2-135m-instruct")):
        with suppress(UserError), plots.of_model(ROOT / "results" / "demo-cpu", kind, model) as folder:
            assert plots.KINDS[kind](folder).get_figwidth() in recognise.WIDTHS
            drawn.add(kind)
    assert drawn == {"latency", "pareto", "training", "averages", "accuracy"}  # what the demo measures
    plots.plot("latency", ROOT / "results" / "demo-cpu", tmp_path / "it")
    for output in outputs.WRITES["plot"]["out"](tmp_path / "it", argparse.Namespace()):
        assert output.ours is not None and output.ours(output.path)


def plain_figure(width: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 2))
    figure.subplots().set_title("Mine")
    return figure


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR", b"%PDF", b"<?xml"]
)
def test_a_torn_figure_is_not_ours(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(content)
    for ours in (recognise.plot_pdf, recognise.plot_png, recognise.plot_svg, recognise.table_pdf):
        assert not ours(tmp_path / "it")


def test_a_table_of_another_kind_is_not_ours_to_write_over(tmp_path: Path) -> None:
    write_csv(tmp_path / "samples.csv", [], columns.SAMPLE_COLUMNS)
    assert recognise.csv_of(columns.SAMPLE_COLUMNS)(tmp_path / "samples.csv")
    assert not recognise.csv_of(columns.ACCURACY_COLUMNS)(tmp_path / "samples.csv")


# Folders of models


def made(folder: Path, **files: str) -> Path:
    for name, text in {"model.json": f'{{"format": "{FORMAT}"}}', "weights": "1", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    seal(folder)
    return folder


def test_a_folder_is_ours_by_the_hashes_of_all_its_files(tmp_path: Path) -> None:
    own = made(tmp_path / "own")
    assert is_ours(own)
    (own / "model.json").unlink()  # as a workflow does before it runs the rule again
    assert is_ours(own)
    (own / "weights").write_text("2")
    assert foreign(own) == "its weights has changed since lkv model wrote it"
    (own / "weights").write_text("1")
    (own / "sub").mkdir()
    (own / "sub" / "thesis.txt").write_text("years of work")
    assert foreign(own) == "it holds sub/thesis.txt, which lkv model did not write"


@pytest.mark.parametrize("mark", ["", "{}", '{"mine": true}', '{"format": "lkv-model/1"}', "[]", "\udcff"])
def test_a_mark_without_our_format_and_hashes_is_none(mark: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_bytes(mark.encode("utf-8", "surrogateescape"))
    (tmp_path / "model.json").write_text('{"mine": true}')
    assert not is_ours(tmp_path)


def test_a_link_in_a_folder_is_not_ours(tmp_path: Path) -> None:
    own = made(tmp_path / "own")
    (tmp_path / "elsewhere").write_text("1")
    (own / "weights").unlink()
    (own / "weights").symlink_to("../elsewhere")  # with the bytes that the mark tells of
    assert not is_ours(own)


@pytest.mark.parametrize("out", [".", "..", "new/..", "/", "~", "~/..", "../work/sub/.."])
def test_the_current_folder_home_and_what_holds_them_are_never_replaced(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "homes" / "me", tmp_path / "work"
    home.mkdir(parents=True)
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(UserError, match=r"is (the current|your home) folder, or holds it"):
        replaceable(Path(out.replace("~", str(home))))


def test_a_mount_point_is_refused_before_the_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    monkeypatch.setattr(origins, "maker", lambda source: pytest.fail)
    for out in ("disk", "link"):
        with pytest.raises(UserError, match=f"{out} is a mount point.*; give a folder in it as --out"):
            obtain({"name": "tiny", "source": {"kind": "random"}}, tmp_path / out)
    assert replaceable(tmp_path / "disk" / "model") == tmp_path / "disk" / "model"


@pytest.mark.parametrize("out", ["typo/../other", "other", "link"])
def test_another_folder_is_refused_by_whatever_path(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"it holds thesis\.txt, and no mark of lkv model"):
        replaceable(tmp_path / out)
    assert tree(tmp_path) == before


def test_a_link_to_a_models_folder_stays(tmp_path: Path) -> None:
    made(tmp_path / "real", weights="old")
    (tmp_path / "link").symlink_to("real")
    replace(replaceable(tmp_path / "link"), made(tmp_path / "fresh", weights="new"))
    assert os.readlink(tmp_path / "link") == "real"
    assert (tmp_path / "link" / "weights").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_what_came_into_a_folder_while_the_model_was_made_is_not_deleted(tmp_path: Path) -> None:
    own = replaceable(made(tmp_path / "own"))
    (own / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    fresh = made(tmp_path / "fresh")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        replace(own, fresh)
    assert {name: kind for name, kind in tree(tmp_path).items() if "fresh" not in name} == before


def test_the_earlier_model_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    own = made(tmp_path / "own")
    before = tree(tmp_path)
    with pytest.raises(FileNotFoundError):
        replace(own, tmp_path / "missing")
    assert tree(tmp_path) == before


# How files are written


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as stream:
        stream.write("new")
    assert os.readlink(tmp_path / "link") == "target"
    assert (tmp_path / "target").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    with atomic_write(tmp_path / "pipe") as stream:
        stream.write("figures")
    reader.join(10)
    assert read == ["figures"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("to_file", [True, False])
def test_standard_output_is_written_through(to_file: bool, tmp_path: Path) -> None:
    """Into a file, too: behind what was printed, and the file stays the one that was opened."""
    code = "import sys\nfrom lkv.files.atomic import *\nprint('first')\n"
    code += "with atomic_write('/dev/stdout') as stream: stream.write('figures')"
    with (tmp_path / "out").open("w+b") as out:
        to = out if to_file else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=to, check=True, cwd=ROOT)
        out.seek(0)
        assert (out.read() if to_file else done.stdout) == b"first\nfigures"
    assert os.listdir(tmp_path) == ["out"]


def test_a_device_that_is_no_stream_is_refused_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_write("/dev/null") as stream:
        stream.write("figures")
    assert Path("/dev/null").is_char_device()
    before = sorted(os.listdir("/dev"))
    with (
        pytest.raises(UserError, match="/dev/zero is a device or socket, not a file"),
        atomic_write("/dev/zero"),
    ):
        pass
    assert Path("/dev/zero").is_char_device()
    assert sorted(os.listdir("/dev")) == before


def test_data_that_is_read_again_is_not_written_to_a_stream(
    place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    for verb, flag in (("data_ruler", "out"), ("evaluate", "journal"), ("judge", "journal")):
        assert "/dev/stdout is no file" in refused(capsys, *command(verb, **{flag: "/dev/stdout"}))
    assert cli(command("evaluate", out="/dev/stdout", log="/dev/null")) == 0
    assert cli(command("claims", out="/dev/stdout")) == 0
    assert nothing_runs == ["evaluate", "claims"]


def test_what_is_written_more_than_once_or_under_several_names_is_not_written_to_a_stream(
    place: Path, capsys: pytest.CaptureFixture[str], nothing_runs: list[str]
) -> None:
    os.mkfifo(place / "pipe")
    for stream in (place / "pipe", "/dev/stdout", "/dev/null"):
        for verb, flag in (("judge", "judgements"), ("latency", "out")):
            assert f"--{flag} {stream} is no file" in line_of(capsys, command(verb, **{flag: stream}))
        for verb in ("plot", "table"):
            line = line_of(capsys, command(verb, out=stream))
            assert f"--out {stream} is no file, and pdf" in line and "give a path without suffix" in line
        assert "is no folder" in line_of(capsys, command("model", out=stream))
    assert not Path("/dev/null.pdf").exists()
    assert nothing_runs == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_takes_nothing_leaves_the_old_file_and_names_the_path(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it").write_text("old")

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("fsync", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(writing.os, name, full)
            with pytest.raises(OSError, match=os.strerror(number)) as raised:
                write(tmp_path / "it")
        assert raised.value.filename == str(tmp_path / "it")
        assert tree(tmp_path) == {"it": hashlib.sha256(b"old").hexdigest()}


def write(path: Path) -> None:
    with atomic_write(path) as stream:
        stream.write("new")


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "☃" * 85])
def test_the_longest_name_that_a_file_may_have_can_be_written(name: str, tmp_path: Path) -> None:
    with atomic_write(tmp_path / name) as stream:
        stream.write("figures")
    assert os.listdir(tmp_path) == [name]


def test_what_dead_processes_left_is_swept_and_what_live_ones_write_is_not(tmp_path: Path) -> None:
    code = "import os\nfrom lkv.files.atomic import *\n"
    code += f"from pathlib import Path\nplace = Path({str(tmp_path)!r})\n"
    code += "with atomic_write(place / 'it'), temporary_folder(place / 'model') as folder:\n"
    code += "    (folder / 'weights').write_text('1')\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    left = os.listdir(tmp_path)
    assert len(left) == 2 and all(name.endswith(SUFFIX) for name in left)
    users = [".it.lkv-tmp", "it.0123abcd.lkv-tmp", ".it.0123abcd.tmp"]
    for name in users:
        (tmp_path / name).write_text("the user's")
    with atomic_write(tmp_path / "other") as stream:
        with temporary_folder(tmp_path / "model") as folder:
            sweep(tmp_path)
            assert folder.is_dir()
        stream.write("figures")
    assert sorted(os.listdir(tmp_path)) == sorted([*users, "other"])


def test_a_verb_sweeps_beside_its_outputs(place: Path, nothing_runs: list[str]) -> None:
    (place / f".scores.csv.0123abcd{SUFFIX}").write_text("half")
    assert cli(command("score", out="scores.csv")) == 0
    assert not list(place.glob(f".*{SUFFIX}"))


def test_a_lock_that_cannot_be_had_does_not_stop_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(writing.fcntl, "flock", none)
    (tmp_path / f".it.0123abcd{SUFFIX}").write_text("perhaps a neighbour's")
    with atomic_write(tmp_path / "it") as stream:
        stream.write("figures")
    assert (tmp_path / "it").read_text() == "figures"
    assert len(os.listdir(tmp_path)) == 2
