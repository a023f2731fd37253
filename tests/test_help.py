"""Promises of the help: grouped commands, every flag explained, true defaults, examples that run."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lkv import __version__
from lkv.cli import completion, outputs
from lkv.cli.command import shown
from lkv.cli.main import main
from lkv.cli.parser import GROUPS, parser
from lkv.registry import METHODS
from lkv.report.kinds import PLOTS
from lkv.results.paths import paths
from lkv.study import jobs
from lkv.study.check import read_config
from lkv.study.settings.benchmarks import Judging, LongBench, MTBench, Protocol, Ruler
from lkv.study.settings.declare import MISSING, declared
from lkv.study.settings.study import Inspect, Latency, Study
from lkv.study.settings.training import Choosing, Train

ROOT = Path(__file__).parents[1]
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser; those with commands of their own (`data`) are gone into."""
    found, todo = {}, [("", parser())]
    while todo:
        name, made = todo.pop()
        inner = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
        for action in inner:
            todo += [(f"{name} {each}".strip(), child) for each, child in action.choices.items()]
        if not inner:
            found[name] = made
    return found


PARSERS = parsers()
FLAGS = [(name, action) for name, made in PARSERS.items() for action in made._actions]


def helped(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and err == ""
    return out


def example(text: str) -> list[str]:
    """The words of the example that a command's help ends with, as a shell reads them."""
    [call] = re.findall(r"\nexample[^:]*(?:https:[^:]*)?:\n  (lkv .*)", text, re.DOTALL)
    return shlex.split(call.replace("\\\n", " "))


@pytest.mark.parametrize("name", ["", "data", *PARSERS])
def test_help_says_what_a_command_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = helped(name, capsys)
    assert out.startswith(f"usage: lkv {name}".rstrip())
    assert "None" not in out and "==SUPPRESS==" not in out


def test_the_first_page_lists_the_commands_by_what_people_want(capsys: pytest.CaptureFixture[str]) -> None:
    out = helped("", capsys)
    places = [out.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    assert list(GROUPS)[-1] == "steps that the workflow calls"  # last: nobody types them


@pytest.mark.parametrize(("name", "action"), FLAGS, ids=lambda part: getattr(part, "dest", part))
def test_every_flag_is_explained_and_shows_its_default(name: str, action: argparse.Action) -> None:
    formatter = PARSERS[name]._get_formatter()
    text = formatter._expand_help(action)
    assert len(action.help or "") > 8 and text[0] not in " (", text
    if not action.option_strings or action.nargs == 0:
        return
    if action.required:
        assert text.endswith("(required)") and "default" not in text
        return
    [said] = re.findall(r"\(default: ([^)]*)\)$", text)
    if action.default not in (None, []):
        assert said == shown(action.default)
        words = [action.option_strings[0], *said.split()]
        alone = argparse.ArgumentParser()
        alone._add_action(action)
        action_required, action.required = action.required, False
        assert vars(alone.parse_args(words))[action.dest] == action.default
        action.required = action_required


OF_A_CONFIG: dict[str, list[tuple[type, str]]] = {
    "train": [(Train, key) for key in ("arm", "tokens", "lora", "loss", "batch", "warmup_steps", "held_out")],
    "data train": [(Train, key) for key in ("response_tokens", "answers", "max_tokens")] + [(Study, "seed")],
    "data ruler": [(Ruler, "haystack"), (Ruler, "max_new_tokens"), (Protocol, "template"), (Study, "seed")],
    "data longbench": [(LongBench, "samples"), (Protocol, "max_prompt")],
    "evaluate": [(Choosing, key) for key in declared(Choosing)]
    + [(Protocol, "temperatures"), (Study, "dtype")],
    "inspect": [(Inspect, "samples"), (Study, "device")],
    "mtbench": [(MTBench, "max_new_tokens"), (MTBench, "references")],
    "judge": [(Judging, key) for key in ("temperature", "prompts", "key_variable")],
    "latency": [(Latency, key) for key in ("warmups", "ways", "batches")],
}


@pytest.mark.parametrize(("name", "keys"), OF_A_CONFIG.items())
def test_a_flag_has_the_default_of_the_configs_key(name: str, keys: list[tuple[type, str]]) -> None:
    for section, key in keys:
        default = declared(section)[key].default
        assert default is not MISSING
        assert PARSERS[name].get_default(key) == default, key


def there() -> set[str]:
    """What lies in a checkout after `make demo`, beside the repository's own files."""
    demo = read_config(ROOT / "config/demo.yaml", ROOT)
    [model] = demo["models"]
    at = vars(paths(demo))
    arm = {"model": model, "arm": "main"}
    files = [
        at["train_data"].format(**arm),
        at["adapter"].format(**arm),
        at["latency_part"].format(model=model),
    ]
    folders = [f"models/{model}", str(Path(at["adapter"].format(**arm)).parent)]
    return {*files, *folders, at["config"], *jobs.files(demo, "data"), *jobs.sample_files(demo)}


@pytest.mark.parametrize("name", PARSERS)
def test_the_example_runs_as_printed_after_make_demo(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = example(helped(name, capsys))
    assert words[: 1 + len(name.split())] == ["lkv", *name.split()]
    args = parser().parse_args(words[1:])
    assert args.run is COMMANDS[name].run
    if not COMMANDS[name].needs:
        for flag, path in outputs._reads(args):
            if str(path) not in ("pydoc", "self"):
                assert (ROOT / path).exists() or str(path) in there(), f"--{flag} {path}"
    for _, output in outputs._written(args):
        assert output.path.parts[1] == "mine" or name == "model", output.path  # nothing of the demo's


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"lkv {__version__}\n"


@pytest.mark.parametrize("kind", ["methods", "models", "tasks", "plots"])
def test_what_there_is_can_be_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"\S+ +\S.*", line) for line in lines)
    names = [line.split()[0] for line in lines]
    wanted = {
        "methods": ["full", *METHODS],
        "models": sorted(path.stem for path in (ROOT / "config/models").glob("*.yaml")),
        "plots": list(PLOTS),
    }
    if kind == "tasks":
        assert len(names) == 13 + 16 + 3 and {"niah_single_1", "qasper", "html_to_tsv_2k"} < set(names)
    else:
        assert names == wanted[kind]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_flags(shell: str) -> None:
    pytest.importorskip("shtab")
    script = completion.script(parser(), shell)
    assert all(word in script for word in ("evaluate", "longbench", "--warmup-steps", "pool_group"))


def test_completion_without_its_package_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "lkv: error: shell completion needs the package shtab; pip install 'lkv[completion]'\n"
    )


def test_the_help_is_quick() -> None:
    """By what it does not import; torch alone takes seconds."""
    heavy = "{'torch', 'transformers', 'pandas', 'numpy', 'jsonschema', 'shtab', 'matplotlib'}"
    code = f"import sys, lkv.cli.parser as p; p.parser().format_help(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
