"""Promises about other people's configs, folders and facts: no shell and no document interprets them."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from docutils.core import publish_parts
from test_report import PROVENANCE, make_study
from test_workflow import ALWAYS, ROOT, TINY, snakemake, working_copy

from lkv.errors import UserError
from lkv.files.json_files import write_json
from lkv.files.markup import inert, latex_text, rst_text
from lkv.files.names import WORD
from lkv.report.claims import write_claims
from lkv.report.plots import plot
from lkv.report.table import write_table
from lkv.study import commands, front, schema, targets

SCHEMA = schema.SCHEMAS / "config.schema.yaml"
QUIET = ["$(touch MARK)", "`touch MARK`", "x; touch MARK", 'it\'s "quoted" & | more', "a $HOME *"]
LOUD = ["-x", "--out=elsewhere", "a\nb", "name\n", "\x00", "</script><script>", "a\u2028b", "{x}"]
# Keys whose texts are free: paths, addresses, and names at places of other people.
FREE = {
    "ruler.ready", "ruler.haystack", "ruler.squad", "ruler.hotpotqa", "longbench.source", "longproc.data",
    "mtbench.questions", "mtbench.references", "mtbench.judge.model", "mtbench.judge.prompts",
    "train.sources.0.schema", "train.sources.0.data", "train.sources.0.split", "train.sources.0.licence",
    "adapters.tiny-llama",
}  # fmt: skip
PREFIX = {"longbench.source": "folder:", "ruler.ready": "folder:", "train.sources.0.data": "file:"}


def full() -> dict[str, Any]:
    """A config in which every key stands."""
    found = yaml.safe_load((ROOT / TINY).read_text())
    found |= {
        "speckv": {"drafts": {"tiny-llama": "self"}},
        "adapters": {"tiny-llama": "adapters/tiny"},
        "longbench": {"tasks": ["qasper"], "source": "folder:x"},
        "longproc": {"tasks": ["html_to_tsv_0.5k"], "data": "x"},
        "mtbench": {"questions": "q", "judge": {"url": "http://h/v1", "model": "m"}, "max_new_tokens": 64},
    }
    found["train"]["sources"] = [{"name": "n", "schema": "text", "data": "file:x", "count": 9}]
    found["ablation"] |= {"reference": "main", "beside": ["nopool"]}
    found["inspect"]["lengths"] = [1024]
    return dict(found)


def texts(
    schema: dict[str, Any], whole: dict[str, Any], path: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """The path of every text that the schema knows; of a list its first item, of free keys one."""
    if "$ref" in schema:
        part = whole
        for key in schema["$ref"].removeprefix("#/").split("/"):
            part = part[key]
        schema = part
    kinds = schema.get("type", [])
    if "string" in kinds or any(isinstance(value, str) for value in schema.get("enum", [])):
        yield path
    for key, part in schema.get("properties", {}).items():
        yield from texts(part, whole, (*path, key))
    if "items" in schema and "string" not in kinds:
        yield from texts(schema["items"], whole, (*path, 0))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from texts(
            schema["additionalProperties"], whole, (*path, "tiny-llama" if "arms" not in path else "x")
        )


def changed(path: tuple[Any, ...], value: str) -> dict[str, Any]:
    config = copy.deepcopy(full())
    part: Any = config
    for key, following in pairwise(path):
        if isinstance(part, dict) and not part.get(key):
            part[key] = [] if following == 0 else {}
        part = part[key] if not (isinstance(part, list) and not part) else part
    if isinstance(part, list):
        part[:1] = [value]
    else:
        part[path[-1]] = value
    return config


PATHS = list(texts(yaml.safe_load(SCHEMA.read_text()), yaml.safe_load(SCHEMA.read_text())))


def dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def accepted(path: tuple[Any, ...], value: str) -> bool:
    with suppress(UserError):
        schema.check(changed(path, PREFIX.get(dotted(path), "") + value), SCHEMA, "c.yaml")
        return True
    return False


def test_the_walk_finds_every_text_of_the_schema() -> None:
    assert len(PATHS) > 50
    assert {dotted(path) for path in PATHS} >= FREE | {
        "study",
        "models.0",
        "methods.0",
        "train.arm",
        "device",
    }


@pytest.mark.parametrize("path", PATHS, ids=dotted)
def test_every_text_of_a_config_is_a_name_or_free_and_no_option_or_markup(path: tuple[Any, ...]) -> None:
    for value in QUIET:
        assert accepted(path, value) == (dotted(path) in FREE), value
    for value in LOUD[2:] if dotted(path) in PREFIX else LOUD:
        assert not accepted(path, value), value
    with pytest.raises(UserError, match=r"c\.yaml, ") as caught:
        schema.check(changed(path, "a\nb"), SCHEMA, "c.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["$(touch MARK)", "x y", "main\n", "-x", "../x"])
def test_names_that_are_keys_are_names(name: str) -> None:
    for section, value in (("adapters", "folder"), ("ablation", {"lora": "none"}), ("speckv", "self")):
        config = full()
        part = {"adapters": ("adapters",), "ablation": ("ablation", "arms"), "speckv": ("speckv", "drafts")}
        at = config
        for key in part[section]:
            at = at[key]
        at[name] = value
        with pytest.raises(UserError, match=r"^c\.yaml, ") as caught:
            schema.check(config, SCHEMA, "c.yaml")
        assert "\n" not in str(caught.value)


def test_a_models_name_leads_out_of_no_folder() -> None:
    for name in ("../../etc/x", "/etc/x", "x\n", "$(x)"):
        with pytest.raises(UserError, match=r"models: .* is not allowed; allowed: letters"):
            schema.model_spec(name, ROOT)


# The shell


def test_every_value_in_every_shell_command_of_the_workflow_is_quoted() -> None:
    found = 0
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for command in re.findall(r"^    shell:\n((?:        .*\n)+)", path.read_text(), re.MULTILINE):
            values = re.findall(r"\{[^}]*\}", command)
            assert [value for value in values if not value.endswith(":q}")] == [], path.name
            found += len(values)
    assert found > 100


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy whose config says whatever it may, with folders in results/ of any name."""
    folder = working_copy(tmp_path_factory.mktemp("evil"))
    free = 'it\'s $(touch MARK) `touch MARK`; touch MARK & "$HOME"'
    config = yaml.safe_load((folder / TINY).read_text())
    del config["train"], config["ablation"]
    own = folder / free
    own.mkdir()
    for name in ("lookahead.json", "e.txt", "q.json"):
        (own / name).write_text("{}")
    config |= {
        "adapters": {"tiny-llama": free},
        "longbench": {"tasks": ["qasper"], "source": f"folder:{free}"},
        "longproc": {"tasks": ["html_to_tsv_0.5k"], "data": free},
        "mtbench": {
            "questions": free, "references": free, "max_new_tokens": 64,
            "judge": {"url": "http://h/$(touch%09MARK)", "model": free, "prompts": free},
        },
    }  # fmt: skip
    config["ruler"] |= {
        "tasks": ["niah_single_2", "qa_1"],
        "haystack": f"{free}/e.txt",
        "squad": f"{free}/q.json",
    }
    (folder / "config/evil.yaml").write_text(yaml.safe_dump(config))
    for name in ("$(touch MARK)", "a;touch MARK", "-x", "fine"):
        (folder / "results" / name).mkdir(parents=True)
        for file in ("provenance.json", "accuracy.csv", "latency.csv"):
            (folder / "results" / name / file).write_text("{}")
    return folder


def test_no_shell_interprets_a_config(evil: Path) -> None:
    """The commands that the workflow would run are run, with a python that does nothing but say its words."""
    plan = snakemake(evil, "-np", *ALWAYS, "--configfile", "config/evil.yaml", "--", "all")
    commands = re.findall(
        r"^Shell command: (.*(?:\n(?!\[|rule |Job |Shell |\w+ \w+:).+)*)", plan.stdout, re.MULTILINE
    )
    assert len(commands) > 15, plan.stdout
    (evil / "bin").mkdir()
    (evil / "bin/python").write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >> words\n')
    (evil / "bin/python").chmod(0o755)
    for command in commands:
        if command.startswith("python "):
            subprocess.run(["bash", "-c", f'PATH="$PWD/bin:$PATH"; {command}'], cwd=evil, check=True)
    said = (evil / "words").read_text().split("\0")
    free = next(path.name for path in evil.iterdir() if path.name.startswith("it's"))
    assert said.count(free) > 5 and f"folder:{free}" in said and f"{free}/e.txt" in said
    assert not (evil / "MARK").exists()


def test_what_runs_for_real_runs_nothing_else(evil: Path) -> None:
    run = snakemake(evil, *ALWAYS, "--configfile", "config/evil.yaml", "--", "results/tiny/config.yaml")
    assert run.returncode == 0, run.stdout
    stored = yaml.safe_load((evil / "results/tiny/config.yaml").read_text())
    assert stored["longproc"]["data"].startswith("it's $(touch MARK)")
    assert not (evil / "MARK").exists()


def test_a_folder_in_results_whose_name_is_none_is_no_study(evil: Path) -> None:
    assert targets.published("tiny", evil) == ["fine"]
    assert targets.companion_studies("x", "tiny", evil) == []
    assert all(re.fullmatch(WORD, path.name) for path in (ROOT / "results").iterdir() if path.is_dir())


# Documents

EVIL = [
    "<script>alert(1)</script>", "</title><script>x</script>", '#read("/etc/passwd")', r"\input{/etc/passwd}",
    "${x} $y$ #{z}", "|x|", "``\n\n.. include:: /etc/passwd\n\n",
    "\u2028.. raw:: html\u2028\u2028   <script>x</script>",
    "`x <javascript:alert(1)>`_", ":raw:`x`", "a\x1d.. include:: /etc/passwd", "![x](javascript:alert(1))",
]  # fmt: skip


def page(text: str) -> str:
    return str(publish_parts(text, writer="html")["html_body"])


@pytest.mark.parametrize("text", EVIL)
def test_facts_of_a_study_from_elsewhere_are_shown_in_its_report_and_never_read(
    text: str, tmp_path: Path
) -> None:
    config = {"models": [text, "m"], "ruler": {"tasks": [text]}, "latency": {"lengths": [text]}}
    facts = dict.fromkeys(("study", "device", "backend", "dtype", "commit"), text) | {
        "config": config,
        text: text,
    }
    write_json(tmp_path / "provenance.json", facts)
    found = page(f"{front.front(str(tmp_path))}\n\n{front.facts_as_code(str(tmp_path))}\n")
    assert "<script" not in found and "root:" not in found and "<a " not in found and "<img" not in found
    assert "system-message" not in found
    bare = page(f":X: {rst_text(text)}")
    shown = re.sub("<[^>]*>", "", bare).replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    assert " ".join(text.split()) in shown.replace("&#64;", "@")


@pytest.mark.parametrize("config", [None, {}, {"models": "x", "ruler": [], "latency": {"lengths": 3}}])
def test_facts_of_any_shape_have_a_front(config: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "provenance.json", {"config": config})
    assert "system-message" not in page(front.front(str(tmp_path)))


def test_the_front_of_the_report_includes_no_file_and_pastes_no_fact() -> None:
    text = (ROOT / "workflow/report/workflow.rst").read_text()
    assert "include::" not in text
    assert re.findall(r"\{\{ (.*?) \}\}", text) == ["front.front(results)", "front.facts_as_code(results)"]


def test_names_and_facts_of_others_are_text_in_every_report(tmp_path: Path) -> None:
    name = " ".join(EVIL[:5])
    folder = make_study(tmp_path / "results", model=name, trained_on=name)
    write_json(
        folder / "provenance.json",
        PROVENANCE | {"device": name, "adapters": {f"{name}/main": {"trained_on": name}}},
    )
    write_table(folder, tmp_path / "t")
    for kind in ("averages", "latency"):
        plot(kind, folder, tmp_path / kind)
        assert "<script" not in (tmp_path / f"{kind}.svg").read_text()
    html, md, tex = ((tmp_path / f"t.{suffix}").read_text() for suffix in ("html", "md", "tex"))
    assert html.count("<script") == 1  # the page's own
    assert "<script" not in md.replace("\\<", "")
    assert not re.search(r"\\input\{|\\read", tex) and latex_text(name) in tex
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")
    assert name in set(pd.read_csv(tmp_path / "t.csv")["model"])


def test_claims_show_names_and_facts_of_others_as_text(tmp_path: Path) -> None:
    name = "<script>x</script> [a](javascript:x) `b`"
    folder = make_study(tmp_path / "results", model=name)
    facts = PROVENANCE | {"device": name, "models": {name: {}}, "adapters": {name: {"trained_on": name}}}
    write_json(folder / "provenance.json", facts)
    write_claims(folder, None, [], tmp_path / "claims.md")
    found = (tmp_path / "claims.md").read_text()
    assert not re.search(r"(?<!\\)(<script|\]\(javascript)", found)
    assert inert("smollm2-135m-instruct/main, 3.5 % (a_b)") == "smollm2-135m-instruct/main, 3.5 % (a_b)"
    assert json.loads(json.dumps(inert({"a<": ["<b>", 1, None]}))) == {"a\\<": ["\\<b\\>", 1, None]}


def test_words_of_commands_are_one_word_each() -> None:
    words = commands.flags({"a_b": ["x y", "$(z)"], "c": {"k": "v w"}}, "a_b", "c")
    assert shlex.split(shlex.join(words)) == ["--a-b", "x y", "$(z)", "--c", "k=v w"]
