"""Promises of what is known before anything runs: configs, their values together, and other people's YAML."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_workflow import ALWAYS, ROOT, planned, snakemake

from lkv.cli.main import main
from lkv.data.tables import File, open_table
from lkv.errors import UserError
from lkv.files.json_files import read_json, read_jsonl
from lkv.files.strict_yaml import dump_yaml, parse_yaml, read_yaml
from lkv.registry import METHODS, SELF, get, smallest_budget
from lkv.results.csv_files import read_csv
from lkv.study import check as study
from lkv.study import schema
from lkv.study.budgets import check_budgets
from lkv.study.named_files import check_files

MARK = b"\xef\xbb\xbf"  # the byte order mark that some Windows tools write


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "config/tiny.yaml").read_text()))


def refused(config: dict[str, Any], *changes: tuple[str, Any], root: Path = ROOT) -> str:
    """The one line that a study's check says of a config with these values."""
    config = copy.deepcopy(config)
    for dotted, value in changes:
        *parents, last = dotted.split(".")
        inside = config
        for key in parents:
            inside = inside[key]
        inside[last] = value
    with pytest.raises(UserError) as error:
        study.validate(config, root, "x.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- values that do not go together -----------------------------------------------------------------------


def test_the_registrys_smallest_budgets_are_those_of_the_methods() -> None:
    smallest = {"streamingllm": 4} | dict.fromkeys(
        ("h2o", "snapkv", "pyramidkv", "laq", "laqpp", "speckv"), 32
    )
    assert {name: smallest_budget(name) for name in METHODS} == dict.fromkeys(METHODS, 1) | smallest
    for name in METHODS:
        if name != "lookaheadkv":
            assert get(name, draft=SELF if name == "speckv" else None).smallest_budget == smallest_budget(
                name
            )


LATE = {
    "study": "late", "models": ["tiny-llama"], "device": "cpu", "dtype": "float32",
    "methods": ["full", "snapkv", "lookaheadkv"], "budgets": [16], "lookaheadkv": {"kernel": 6},
    "ruler": {"tasks": ["niah_single_1"], "lengths": [1024], "samples": 3.0, "max_new_tokens": 8},
    "train": {
        "samples": 8, "lengths": [192], "response_tokens": 4, "steps": 2, "batch": 2, "held_out": 2,
        "learning_rate": 0.002, "warmup_steps": 1, "mixture": {"dictionary": 1, "log": 1},
    },
    "latency": {"lengths": [256], "budgets": [64], "methods": ["full", "snapkv"], "repeats": 1},
}  # fmt: skip
NO_QA = LATE["ruler"] | {"tasks": ["niah_single_1", "qa_1"], "samples": 3, "squad": "hub:a/b"}  # type: ignore[operator]
MENDED = {"budgets": [32], "lookaheadkv": {"kernel": 5}, "ruler": LATE["ruler"] | {"samples": 3}}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("budgets", "budgets: budget 16 is too small for snapkv, which needs 32; give 32 or more, or leave"),
        ("lookaheadkv", "lookaheadkv.kernel: 6 is not allowed; allowed: an odd integer of 1 or more"),
        ("ruler", "ruler.samples: 3.0 is not allowed; allowed: an integer of 1 or more"),
    ],
)
def test_a_mistake_that_a_job_would_find_is_found_by_the_check(key: str, said: str) -> None:
    study.validate(LATE | MENDED, ROOT)
    assert f"x.yaml, {said}" in refused({**LATE, **MENDED, key: LATE[key]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("ruler.budgets", [3])], "ruler.budgets: budget 3 is too small for streamingllm, which"),
        ([("latency.budgets", [31])], "latency.budgets: budget 31 is too small for snapkv"),
        ([("inspect.budgets", [8])], "inspect.budgets: budget 8 is too small for"),
        ([("ablation.arms.nopool.kernel", 2)], "ablation.arms.nopool.kernel: 2 is not allowed"),
        ([("ruler.lengths", [1024, 4096])], "ruler.lengths: 4096 tokens are beyond the 2048 that tiny-"),
        ([("ruler.lengths", [16])], "ruler.lengths: 16 leaves no room beside the 16 tokens that niah"),
        ([("train.lengths", [192, 2044])], "train.lengths: prompts of 2044 tokens and answers of 8 are"),
        (
            [("ablation.arms.tokens.lengths", [2041])],
            "ablation.arms.tokens.lengths: prompts of 2041 tokens and answers of 8 are beyond the 2048",
        ),
        ([("train.steps", 2.0)], "train.steps: 2.0 is not allowed; allowed: an integer"),
        ([("train.learning_rate", float("nan"))], "train.learning_rate: NaN is not allowed"),
        ([("train.mixture", {"log": float("inf")})], "train.mixture.log: Infinity is not allowed"),
        ([("seed", 2**32)], "seed: 4294967296 is not allowed; allowed: an integer from 0 to 4294967295"),
        ([("train.steps", 10**18)], "train.steps: 1000000000000000000 is not allowed"),
        ([("study", "tiny\n")], r'x.yaml, study: "tiny\n" is not allowed, as it holds "\n"; write it on'),
        ([("ruler.haystack", "a\x00b")], r'x.yaml, ruler.haystack: "a\u0000b" is not allowed'),
        ([("speckv", {"drafts": {"llama": "self"}})], "model in x.yaml, speckv.drafts: 'llama' (did you"),
        ([("mtbench", {"questions": "q.jsonl"})], "mtbench.max_new_tokens: two answers of 1024"),
        (
            [("protocol", {"name": "kvcache_factory"}), ("ruler", NO_QA)],
            "ruler.tasks: the protocol kvcache_factory has no qa_1",
        ),
        (
            [("protocol", {"max_prompt": 4096}), ("longbench", {"tasks": ["trec"], "source": "folder:x"})],
            "protocol.max_prompt: 4096 tokens are beyond the 2048",
        ),
        (
            [("methods", ["speckv"]), ("speckv", {"drafts": {"tiny-llama": "short"}})],
            "ruler.lengths: 1024 tokens are beyond the 512 that short reads",
        ),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(
    changes: list[tuple[str, Any]], said: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "config/models", tmp_path / "config/models")
    spec = yaml.safe_load((ROOT / "config/models/tiny-llama.yaml").read_text()) | {"name": "short"}
    (tmp_path / "config/models/short.yaml").write_text(
        yaml.safe_dump(spec | {"source": spec["source"] | {"context": 512}})
    )
    assert said in refused(tiny, *changes, root=tmp_path)


def test_budgets_that_nobody_uses_need_not_fit(tiny: dict[str, Any]) -> None:
    own = {"ruler": tiny["ruler"] | {"budgets": [64]}, "inspect": {"budgets": [64]}}
    study.validate(tiny | {"budgets": [8]} | own, ROOT)


def test_ready_made_sets_keep_the_lengths_of_their_own_tokenizer(tiny: dict[str, Any]) -> None:
    study.validate(tiny | {"ruler": tiny["ruler"] | {"lengths": [4096], "ready": "folder:x"}}, ROOT)


def test_each_budget_is_checked_against_each_method() -> None:
    check_budgets([32, 64], ["full", "snapkv", "streamingllm"], "--budgets")
    with pytest.raises(
        UserError, match=r"^--budgets: budget 3 is too small for streamingllm, which needs 4;"
    ):
        check_budgets([32, 3], ["full", "random", "streamingllm"], "--budgets")


def test_a_running_study_first_looks_for_the_files_that_its_jobs_read(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"name": "mine", "schema": "text", "data": ["file:part-*.jsonl"], "count": 99}
    train = tiny["train"] | {"mixture": None, "lengths": None, "samples": None, "sources": [source]}
    given = {
        "data_train": {"train": train, "ablation": None},
        "data_ruler": {"ruler": tiny["ruler"] | {"ready": "folder:set"}},
        "data_given": {"longbench": {"tasks": ["trec"], "source": "zip:data.zip"}},
        "mtbench": {"mtbench": {"questions": "q.jsonl", "max_new_tokens": 16}},
    }
    named = {
        "data_train": "part-*.jsonl",
        "data_ruler": "set",
        "data_given": "data.zip",
        "mtbench": "q.jsonl",
    }
    for rule, change in given.items():
        config = study.validate(tiny | change, tmp_path)
        check_files(config, ["latency"])
        with pytest.raises(UserError, match=r"no such file or folder: .*; correct the path") as error:
            check_files(config, [rule])
        assert named[rule] in str(error.value)
        (tmp_path / named[rule].replace("*", "1")).touch()
        check_files(config, [rule])


# ---- YAML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml, line 3: the key 'a' a second time (first on line 1) is not allowed"),
        ("a:\n  b: 1\n  b: 2", "f.yaml, line 3: the key 'b' a second time"),
        ("lengths: [02000]", "line 1: 02000 (octal to some readers) is not allowed here; write it without"),
        ("t: 1:30", "1:30 (base 60 to some readers)"),
        ("no: 1", "no (true or false to some readers)"),
        ("a: Yes", "Yes (true or false to some readers) is not allowed here; write true or false"),
        ("a: .nan", ".nan (not a finite number)"),
        ("a: -.INF", "-.INF (not a finite number)"),
        ("a: 1_000", "1_000 (a number to some readers)"),
        ("a: 0x1f", "0x1f (not a decimal number)"),
        ("a: 1e3", "1e3 (text to some readers, a number to others) is not allowed here; write it as 0.001"),
        ("a: 2026-13-45", "2026-13-45 (a date to some readers) is not allowed here; put it in quotes"),
        ("a: !!int abc", "the tag 'tag:yaml.org,2002:int' is not allowed here; write the value without it"),
        ("a: !!python/object/apply:os.getcwd []", "the tag 'tag:yaml.org,2002:python/object"),
        ("a: &a [*a]", "a value that contains itself"),
        ("a: " + "9" * 5000, "a number of 5000 digits is not allowed here; allowed: 18 digits at most"),
        ("1: 2", "the key '1', which is no text"),
        ("? [a]\n: 2", "a key that is a list or a mapping"),
        ("a: " + "[" * 60 + "]" * 60, "a value nested too deep is not allowed here; allowed: 50 levels"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deep"),
        ("a: [", "f.yaml: not YAML (while parsing a flow node"),
        ("a: 1\n---\nb: 2", "f.yaml: not YAML (expected a single document"),
    ],
)  # fmt: skip
def test_what_yaml_readers_disagree_on_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "f.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_aliases_that_would_fill_the_memory_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    with pytest.raises(UserError, match="more than 100,000 values, aliases expanded"):
        parse_yaml("\n".join(lines), "f.yaml")


TEXTS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))  # the others are refused in a config
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e9, 1e9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    assert parse_yaml(dump_yaml(value), "f.yaml") == value


@pytest.mark.parametrize("text", ["08", "1e3", "no", "Y", "1:30", "0x1f", "2026-13-45", "=", "1_0", "-.inf"])
def test_names_that_look_like_something_else_are_written_in_quotes(text: str) -> None:
    assert dump_yaml({"study": text}) == f"study: '{text}'\n"


SHIPPED = [path for folder in ("config", "results") for path in (ROOT / folder).glob("**/*.yaml")]


@pytest.mark.parametrize("path", sorted(SHIPPED), ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_yaml_is_plain(path: Path) -> None:
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


# ---- byte order marks -------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_any_input(tmp_path: Path) -> None:
    from lkv.cli.loading import prompt_text
    from lkv.data.documents import haystack

    def marked(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(MARK + text.encode())
        return tmp_path / name

    assert prompt_text(marked("prompt.txt", "Who?")) == "Who?"
    assert read_json(marked("a.json", '{"b": 1}')) == {"b": 1}
    assert list(read_jsonl(marked("a.jsonl", '{"b": 1}\n{"b": 2}\n'))) == [{"b": 1}, {"b": 2}]
    assert read_yaml(marked("a.yaml", "b: 1")) == {"b": 1}
    assert list(read_csv(marked("a.csv", "b,c\n1,2\n"), ["b"])["b"]) == [1]
    assert haystack(str(marked("essays.txt", "Once.")))[1] == "Once."
    assert haystack(str(marked("essays.json", '{"text": "Once."}')))[1] == "Once."
    for name, text in (("l.jsonl", '{"t": "a"}\n{"t": "b"}\n'), ("l.json", '[{"t": "a"},\n {"t": "b"}]')):
        table = open_table(File(marked(name, text), name), ["t"])
        assert [table[i] for i in range(len(table))] == [{"t": "a"}, {"t": "b"}]


# ---- snakemake from elsewhere -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["snakefile", "directory"])
def test_snakemake_from_elsewhere_finds_what_ships_with_the_project(way: str, tmp_path: Path) -> None:
    if way == "snakefile":
        asked = (tmp_path, "--snakefile", str(ROOT / "Snakefile"))
    else:
        asked = (ROOT, "--directory", str(tmp_path))
    run = snakemake(asked[0], "-np", *ALWAYS, *asked[1:], "--", "all")
    assert run.returncode == 0, run.stdout
    assert planned(run.stdout)["evaluate"] == 4
    spec = ROOT / "config/models/smollm2-135m-instruct.yaml"
    assert f"lkv model --spec {spec} --out models/smollm2-135m-instruct" in run.stdout


def test_a_models_file_of_the_working_directory_comes_first(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = str(ROOT / "config/models/tiny-llama.yaml")
    assert schema.spec_file("tiny-llama") == shipped
    mine = tmp_path / "config/models/tiny-llama.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(Path(shipped).read_text() + "learning_rate: 0.5\n")
    assert schema.spec_file("tiny-llama") == "config/models/tiny-llama.yaml"
    assert schema.model_spec("tiny-llama")["learning_rate"] == 0.5
    assert schema.model_spec("tiny-qwen3")["name"] == "tiny-qwen3"


def test_what_snakemakes_own_reader_lets_pass_is_refused_by_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text((ROOT / "config/tiny.yaml").read_text() + "\nseed: 7\n")
    with pytest.raises(
        UserError, match=r"x\.yaml, line \d+: the key 'seed' a second time \(first on line 3\)"
    ):
        schema.read_plainly([tmp_path / "x.yaml"])
    (tmp_path / "x.json").write_text(json.dumps({"a": "\t"}))
    schema.read_plainly([tmp_path / "x.json"])


# ---- the same on the command line -------------------------------------------------------------------------

EVALUATE = "evaluate --model {0}/gone --data {0}/gone.jsonl --study s --journal {0}/j --out {0}/o.csv "


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (EVALUATE + "--methods snapkv --budgets 31", "--budgets: budget 31 is too small for snapkv"),
        (EVALUATE + "--methods snapkv --budgets 64 64", "--budgets: 64 is given twice; give it once"),
        (EVALUATE + "--methods snapkv snapkv --budgets 64", "--methods: snapkv is given twice"),
        (EVALUATE + "--methods full --budgets 64 --temperatures 0 0.0", "--temperatures: 0.0 is given twice"),
        (
            EVALUATE + "--methods full --budgets 64 --kernel 4",
            "--kernel: a pooling kernel of 4 has no middle",
        ),
        (EVALUATE + "--methods lookaheadkv --budgets 64", "lookaheadkv needs its trained modules"),
        (EVALUATE + "--methods speckv --budgets 64", "speckv needs a model that drafts"),
        (EVALUATE + "--methods speckv --budgets 64 --draft {0}/d", "no such file: {0}/d/model.json; give a"),
        (EVALUATE + "--methods full --budgets 64 --arms a={0}/a", "no such file: {0}/a/lookahead.json; give"),
        (
            EVALUATE + "--methods full --budgets 64 --arms a={0}/a,kernel=2",
            "the arm 'a': a pooling kernel of 2",
        ),
        (EVALUATE + "--methods full --budgets 64", "{0}/gone.json"),
        (
            "latency --model {0}/gone --methods full h2o --budgets 8 --lengths 256 --study s --out {0}/l.csv",
            "--budgets: budget 8 is too small for h2o, which needs 32",
        ),
        (
            "generate --model {0}/gone --method laq --budget 16 --prompt-file {0}/p.txt",
            "--budget: budget 16 is too small for laq, which needs 32",
        ),
        ("generate --model {0}/gone --method h2o --budget 64 --prompt-file {0}/p.txt", "no such prompt file"),
    ],
)
def test_verbs_refuse_what_does_not_go_together_before_they_load_a_model(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.format(tmp_path).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said.format(tmp_path) in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
