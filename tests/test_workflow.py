"""The workflow's plan, by dry runs in a copy without results; config errors; the commands that rules call."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lkv.cli.parser import parser
from lkv.errors import UserError
from lkv.report import kinds
from lkv.results import paths
from lkv.study import arms, commands, jobs, models, schema, targets
from lkv.study import check as study

ROOT = Path(__file__).parents[1]
TINY = "config/tiny.yaml"
ALWAYS = ("--cores", "8", "--nocolor")


def working_copy(folder: Path) -> Path:
    """The workflow's own files in `folder`, without results; lkv itself stays where it is installed."""
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy2(ROOT / "Snakefile", folder)
    return folder


def snakemake(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.STDOUT),
        **options,
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def planned(output: str) -> Counter[str]:
    """Rule → number of jobs, from a dry run's last table; without `all`."""
    table = output.rsplit("Job stats:", 1)[1].split("total", 1)[0]
    jobs = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    return Counter({name: n for name, n in jobs.items() if name != "all"})


def block(output: str, rule: str) -> str:
    """The first job of a rule in a dry run's list."""
    return output.split(f"rule {rule}:", 1)[1].split("\n[", 1)[0]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return working_copy(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def tiny_plan(clean: Path) -> str:
    return snakemake(clean, "-np", *ALWAYS, "--configfile", TINY, "--", "all").stdout


@pytest.fixture
def tiny() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / TINY).read_text()))


def test_tiny_study_plans_exactly_its_jobs(tiny_plan: str) -> None:
    assert planned(tiny_plan) == {
        "model": 1,
        "data_train": 1,
        "data_ruler": 2,
        "train": 2,
        "evaluate": 2,
        "ablate": 1,
        "latency": 1,
        "summarise": 1,
        "gather_training": 1,
        "gather_latency": 1,
        "gather_arms": 1,
        "ablation": 1,
        "study_config": 1,
        "inspect": 2,
        "gather_recall": 1,
        "gather_kept": 1,
        "provenance": 1,
        "table": 1,
        "plot": 8,
    }


def test_every_rule_calls_a_verb_that_the_command_line_has(tiny_plan: str) -> None:
    commands = re.findall(r"^Shell command: (.*)$", tiny_plan, re.MULTILINE)
    calls = [shlex.split(line)[3:] for line in commands if line.startswith("python -m lkv ")]
    assert len(calls) == sum(planned(tiny_plan).values()) - 1  # study_config alone has no verb
    for call in calls:
        parsed = parser().parse_args(call)
        assert parsed.log, call


def test_the_papers_study_is_planned_whole_without_any_of_its_files(clean: Path) -> None:
    run = snakemake(clean, "-np", *ALWAYS, "--configfile", "config/paper.yaml", "--", "all")
    jobs = planned(run.stdout)
    assert (
        jobs
        | {
            "model": 6,
            "data_train": 6,
            "train": 6,
            "data_ruler": 6 * 13 * 4,
            "data_given": 6 * (16 + 2),
            "evaluate": 6 * (13 * 4 + 16 + 2),
            "mtbench": 6,
            "judge": 6,
            "latency": 6,
        }
        == jobs
    )
    commands = re.findall(r"^Shell command: (python -m lkv .*)$", run.stdout, re.MULTILINE)
    for line in commands:
        parser().parse_args(shlex.split(line)[3:])
    drafts = {line.split("--draft ")[1].split()[0] for line in commands if "--draft " in line}
    assert drafts == {"models/llama-3.2-1b-instruct", "models/qwen3-1.7b"}
    rates = Counter(
        line.split("--learning-rate ")[1].split()[0] for line in commands if " train " in line[:20]
    )
    assert rates == {"0.001": 3, "0.0002": 3}
    assert "--budgets 128 " in next(line for line in commands if "evaluate" in line and "/ruler/" in line)


def test_without_a_judge_mtbench_is_answered_and_not_scored(tmp_path: Path) -> None:
    folder = working_copy(tmp_path)
    config = yaml.safe_load((folder / TINY).read_text()) | {
        "mtbench": {"questions": "q.jsonl", "max_new_tokens": 64}
    }
    (folder / "config/mine.yaml").write_text(yaml.safe_dump(config))
    plan = snakemake(folder, "-n", *ALWAYS, "--configfile", "config/mine.yaml", "--", "all").stdout
    assert planned(plan)["mtbench"] == 1
    assert planned(plan)["judge"] == 0


def test_adapters_are_trained_only_for_those_who_use_them(tmp_path: Path) -> None:
    folder = working_copy(tmp_path)
    config = yaml.safe_load((folder / TINY).read_text()) | {"methods": ["full", "snapkv"]}
    config["latency"]["methods"] = ["full", "h2o"]
    (folder / TINY).write_text(yaml.safe_dump(config))
    given = ("--configfile", TINY)
    samples = "results/tiny/samples/tiny-llama/niah_single_1@1024.csv"
    plan = snakemake(folder, "-n", *ALWAYS, *given, "--", samples, "results/tiny/latency.csv").stdout
    assert planned(plan) == {"model": 1, "data_ruler": 1, "evaluate": 1, "latency": 1, "gather_latency": 1}


def test_with_given_modules_nothing_is_trained(tmp_path: Path, tiny: dict[str, Any]) -> None:
    folder = working_copy(tmp_path)
    (folder / "adapters/tiny").mkdir(parents=True)
    (folder / "adapters/tiny/lookahead.json").write_text("{}")
    tiny |= {"train": None, "ablation": None, "adapters": {"tiny-llama": "adapters/tiny"}}
    (folder / "config/mine.yaml").write_text(yaml.safe_dump(tiny))
    run = snakemake(folder, "-np", *ALWAYS, "--configfile", "config/mine.yaml", "--", "all")
    once = ("model", "summarise", "latency", "gather_latency", "gather_recall", "gather_kept", "study_config")
    assert planned(run.stdout) == {
        **dict.fromkeys((*once, "provenance", "table"), 1),
        **dict.fromkeys(("data_ruler", "evaluate", "inspect"), 2),
        "plot": 6,
    }  # fmt: skip
    for rule, flag in {"evaluate": "adapter", "inspect": "adapter", "latency": "adapter"}.items():
        assert f" --{flag} adapters/tiny --group mean --pool max" in block(run.stdout, rule)
    assert " --adapters adapters/tiny --out " in block(run.stdout, "provenance")
    del tiny["train"]
    tiny["mtbench"] = {"questions": "q.jsonl", "max_new_tokens": 64}
    (folder / "config/mine.yaml").write_text(yaml.safe_dump(tiny))
    run = snakemake(folder, "-np", *ALWAYS, "--configfile", "config/mine.yaml", "--", "all")
    assert " --adapter adapters/tiny " in block(run.stdout, "mtbench")


def test_a_model_of_random_weights_is_timed_from_its_spec_with_nothing_fetched_or_trained(
    clean: Path,
) -> None:
    found = snakemake(clean, "-np", *ALWAYS, "--configfile", "config/latency-h100.yaml", "--", "all").stdout
    once = ("model", "data_train", "train", "gather_latency", "plot", "provenance", "study_config")
    assert planned(found) == Counter({"latency": 4} | dict.fromkeys(once, 1))
    assert "models/smollm2-135m-instruct/model.json" in found
    assert "models/llama" not in found.replace("config/models/", "")
    command = next(line for line in found.splitlines() if "--shape config/models/llama-3.1-8b" in line)
    assert "--draft config/models/llama-3.2-1b-instruct.yaml" in command
    assert "--repeats 10 10 10 10 3 1" in command and "--adapter" not in command


def test_a_given_config_replaces_the_demo_whole(tiny_plan: str) -> None:
    assert "--mixture dictionary=1 log=1 --seed" in block(tiny_plan, "data_train")


def test_plain_call_plans_the_demo_and_takes_single_values_from_the_command_line(clean: Path) -> None:
    run = snakemake(clean, "-np", *ALWAYS, "--config", "seed=7", "study=mine")
    assert planned(run.stdout)["evaluate"] == 4
    evaluate = block(run.stdout, "evaluate")
    assert "--budgets 64 128 256 --adapter results/mine/adapters/" in evaluate
    assert (
        "/main --group mean --pool max --kernel 7 --order group_pool --beside 0 --study mine --seed 7 "
        in evaluate
    )
    made = block(run.stdout, "data_ruler")
    assert "--protocol official --seed 7 " in made


SPREADS = dict.fromkeys(
    ("data_train", "train"), ", processes=1"
)  # rules that may use several GPUs say how many


def test_latency_takes_the_whole_machine_and_other_jobs_one_gpu_and_their_share_of_cores(clean: Path) -> None:
    run = snakemake(clean, "-n", *ALWAYS, "--resources", "gpu=4", "--configfile", TINY, "--", "all")
    assert re.search(r"threads: 8\n.*gpu=4$", block(run.stdout, "latency"), re.MULTILINE)
    for rule in ("data_train", "train", "evaluate", "provenance"):
        assert re.search(
            rf"threads: 2\n.*gpu=1{SPREADS.get(rule, '')}$", block(run.stdout, rule), re.MULTILINE
        ), rule


def test_evaluations_alone_share_a_gpu(clean: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(tiny | {"jobs_per_gpu": 2}, sort_keys=False))
    run = snakemake(
        clean,
        "-n",
        *ALWAYS,
        "--resources",
        "gpu=4",
        "--configfile",
        str(tmp_path / "shared.yaml"),
        "--",
        "all",
    )
    for rule in ("evaluate", "ablate"):
        assert re.search(
            rf"threads: 2\n.*gpu=1{SPREADS.get(rule, '')}$", block(run.stdout, rule), re.MULTILINE
        ), rule
    for rule in ("data_train", "train", "inspect", "provenance"):
        assert re.search(
            rf"threads: 4\n.*gpu=2{SPREADS.get(rule, '')}$", block(run.stdout, rule), re.MULTILINE
        ), rule


@pytest.mark.parametrize(("there", "used"), [(8, 3), (4, 2), (1, 1)])
def test_one_training_takes_as_many_gpus_as_it_may_and_there_are(
    there: int, used: int, clean: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    spread = tiny | {"train": tiny["train"] | {"gpus": 3}, "jobs_per_gpu": 2}
    (tmp_path / "spread.yaml").write_text(yaml.safe_dump(spread, sort_keys=False))
    asked = ["--resources", f"gpu={there}", "--configfile", str(tmp_path / "spread.yaml")]
    run = snakemake(clean, "-np", *ALWAYS, *asked, "--", "all")
    places = used * min(2, there)
    for rule in ("data_train", "train"):
        job = block(run.stdout, rule)
        assert re.search(
            rf"threads: {8 // there * places}\n.*gpu={places}, processes={used}$", job, re.MULTILINE
        )
        assert f" --processes {used} " in job


def test_one_gpu_means_one_job_with_all_cores(tiny_plan: str) -> None:
    assert "threads: 8" in block(tiny_plan, "evaluate")
    assert (
        'gpu=Resource("gpu", 1)' in tiny_plan
        or "gpu: 1" in (ROOT / "profiles/default/config.yaml").read_text()
    )


def test_published_study_is_rendered_by_one_job_that_rebuilds_nothing(tmp_path: Path) -> None:
    folder = working_copy(tmp_path)
    (folder / "results/paper").mkdir(parents=True)
    for name in ("accuracy.csv", "paired.csv", "provenance.json"):
        (folder / "results/paper" / name).write_text("{}")
    run = snakemake(folder, "-np", *ALWAYS, "reports/paper/table1.pdf")
    assert planned(run.stdout) == {"table_published": 1}
    assert "--results results/paper --out reports/paper/table1 " in run.stdout
    (folder / "results/paper/recall_by_layer.csv").write_text("")
    run = snakemake(folder, "-np", *ALWAYS, "reports/paper/recall.pdf")
    assert planned(run.stdout) == {"plot_published": 1}
    # Without latency.csv there is nothing to draw, and no rule that would measure it.
    run = snakemake(folder, "-n", *ALWAYS, "reports/paper/latency.pdf")
    assert run.returncode != 0
    assert "results/paper/latency.csv" in run.stdout


def test_claims_of_a_published_study_are_one_job_over_the_files_that_are_there(tmp_path: Path) -> None:
    folder = working_copy(tmp_path)
    for name in ("paper/provenance.json", "paper/paired.csv", "latency-h100/latency.csv"):
        (folder / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "results" / name).write_text("{}")
    run = snakemake(folder, "-np", *ALWAYS, "reports/paper/claims.md")
    assert planned(run.stdout) == {"claims": 1}
    inputs = "results/paper/provenance.json, results/paper/paired.csv, results/latency-h100/latency.csv"
    assert f"input: {inputs}\n" in block(run.stdout, "claims")
    assert "claims" not in planned(snakemake(folder, "-n", *ALWAYS, "all").stdout)


def test_claims_read_the_published_studies_that_are_named_after_theirs(tmp_path: Path) -> None:
    folder = working_copy(tmp_path)
    for name in ("paper", "paper-warm", "paper-hot", "papers", "other"):
        (folder / "results" / name).mkdir(parents=True)
        for file in ("accuracy.csv", "paired.csv", "provenance.json"):
            (folder / "results" / name / file).write_text("{}")
    (folder / "results/paper-speed").mkdir()  # no scores
    (folder / "results/paper-speed/provenance.json").write_text("{}")
    run = snakemake(folder, "-np", *ALWAYS, "reports/paper/claims.md")
    job = block(run.stdout, "claims")
    assert " --also results/paper-hot results/paper-warm --out reports/paper/claims.md " in job
    read = re.search(r"input: (.*)", job)[1].split(", ")  # type: ignore[index]
    files = ("provenance.json", "accuracy.csv", "paired.csv")
    assert read == [f"results/{n}/{f}" for n in ("paper", "paper-hot", "paper-warm") for f in files]
    [command] = re.findall(r"^Shell command: python -m lkv (.*)$", run.stdout, re.MULTILINE)
    assert len(parser().parse_args(shlex.split(command)).also) == 2
    (folder / "results/paper-hot/paired.csv").unlink()
    run = snakemake(folder, "-n", *ALWAYS, "reports/paper/claims.md")
    assert run.returncode != 0
    assert "results/paper-hot/paired.csv" in run.stdout


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "budgts=[64]",
            "unknown key in config/demo.yaml: 'budgts' (did you mean 'budgets'?); known: study, seed,",
        ),
        (
            "methods=[full,snapKV]",
            "unknown method in config/demo.yaml, methods: 'snapKV' (did you mean 'snapkv'?); known: full,",
        ),
    ],
)
def test_snakemake_stops_at_a_wrong_config_with_one_line(clean: Path, given: str, line: str) -> None:
    run = snakemake(clean, "-n", *ALWAYS, "--config", given, stderr=subprocess.PIPE)
    said = [
        text for text in run.stderr.splitlines() if not text.startswith("Using workflow specific profile")
    ]
    assert run.returncode == 2
    assert len(said) == 1
    assert said[0].startswith(line)


def test_picture_of_the_workflow_is_current(clean: Path) -> None:
    run = snakemake(clean, "--rulegraph", "mermaid-js", "--", "all", stderr=subprocess.DEVNULL)

    def edges(text: str) -> set[tuple[str, str]]:
        names = dict(re.findall(r"(id\d+)\[(\w+)\]", text))
        return {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", text)}

    assert len(edges(run.stdout)) > 20
    assert edges((ROOT / "docs/dag.md").read_text()) == edges(run.stdout), "run make dag"


# ---- the config -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_named_as_their_files(path: Path, tmp_path: Path) -> None:
    """Where the texts lie that they read, which are not in the repository."""
    config = yaml.safe_load(path.read_text())
    for name in ("config", "adapters"):
        (tmp_path / name).symlink_to(ROOT / name)
    for key in commands.SOURCES.values():
        if file := commands.local((config.get("ruler") or {}).get(key) or "pydoc"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
    assert study.validate(config, tmp_path)["study"] == path.stem


SOURCE = {"name": "s", "schema": "text", "data": "file:x.jsonl", "count": 99}


def _put(dotted: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *parents, last = dotted.split(".")
        for key in parents:
            config = config[key]
        config[last] = value

    return change


def _rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update({new: config.pop(old)})


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_put("train.lr", 1), "key in x.yaml, train: 'lr' (did you mean 'lora'?); known: arm, tokens, lora,"),
        (_rename("budgets", "budget"), "key in x.yaml: 'budget' (did you mean 'budgets'?); known: study"),
        (_drop("budgets"), "x.yaml: the key 'budgets' is missing or empty, which a benchmark needs"),
        (_put("budgets", [64, 0]), "x.yaml, budgets[1]: 0 is not allowed; allowed: an integer of 1 or more"),
        (_put("budgets", [64, 64]), "x.yaml, budgets: [64, 64] is not allowed; allowed: a list of different"),
        (_put("budgets", "64"), 'x.yaml, budgets: "64" is not allowed'),
        (_put("seed", True), "x.yaml, seed: true is not allowed; allowed: an integer from 0 to 4294967295"),
        (_put("study", "a\nb"), r'x.yaml, study: "a\nb" is not allowed; allowed: the study'),
        (_put("study", "../up"), 'x.yaml, study: "../up" is not allowed'),
        (_put("device", "gpu"), "value in x.yaml, device: 'gpu' (did you mean 'cpu'?); known: auto, cpu"),
        (_put("models", ["llama-9"]), "model in x.yaml, models: 'llama-9'"),
        (_put("models", ["llama-9"]), "a new one is a file config/models/llama-9.yaml"),
        (_put("latency.methods", ["snapkv"]), "x.yaml, latency.methods: 'full' is missing"),
        (_put("latency.methods", ["full", "laqq"]), "method in x.yaml, latency.methods: 'laqq'"),
        (_put("ruler.tasks", ["niah"]), "ruler task in x.yaml, ruler.tasks: 'niah'"),
        (_put("ruler.tasks", ["qa_1"]), "x.yaml, ruler.squad: the task qa_1 reads a text of yours"),
        (_put("ruler", None), "x.yaml, ruler: null is not allowed"),
        (_put("train.steps", 0), "x.yaml, train.steps: 0 is not allowed; allowed: an integer of 1 or more"),
        (_put("train.learning_rate", "1e-3"), 'x.yaml, train.learning_rate: "1e-3" is not allowed'),
        (_put("train.warmup_steps", 99), "x.yaml, train.warmup_steps: 99 is more than the 6 steps"),
        (_put("train.batch", 13), "16 prompts less 4 held out do not fill a batch of 13; give 17 prompts or"),
        (_put("train.mixture", {"tabel": 1}), "kind of training prompt in x.yaml, train.mixture: 'tabel'"),
        (_put("train.mixture", {}), "x.yaml, train.mixture: {} is not allowed"),
        (_put("train.mixture", {"table": 0}), "x.yaml, train.mixture.table: 0 is not allowed"),
        (_put("train.mixture", None), "x.yaml, train: neither of mixture and sources given; give one"),
        (_put("train.sources", [SOURCE]), "x.yaml, train: both of mixture and sources given; give one"),
        (_put("train.answers", "true"), "value in x.yaml, train.answers: 'true'; known: model, given"),
        (
            lambda config: config["train"].update(sources=[SOURCE], mixture=None, answers="given"),
            "x.yaml, train.answers: given, but the true answers are known of offline prompts alone, not of "
            "data sets; allowed: model, or a mixture",
        ),
        (_put("train.lengths", None), "x.yaml, train: the key 'lengths' is missing, which a mixture needs"),
        (_put("train.learning_rate", None), "train.learning_rate: missing, and config/models/tiny"),
        (_put("protocol", {"name": "helm"}), "value in x.yaml, protocol.name: 'helm'; known: official, kvc"),
        (_put("protocol", "official"), 'x.yaml, protocol: "official" is not allowed; allowed: keys with'),
        (_drop("train"), "x.yaml, train: missing, and lookaheadkv needs modules for tiny-llama"),
        (_put("adapters", {"tiny": "a"}), "model in x.yaml, adapters: 'tiny'; known: tiny-llama; give one"),
        (_put("adapters", {"tiny-llama": "no/x"}), "adapters.tiny-llama: no lookahead.json in no/x; give a"),
        (_put("adapters", {"tiny-llama": 5}), "adapters.tiny-llama: 5 is not allowed; allowed: a folder of"),
        (_put("adapters", ["a"]), 'x.yaml, adapters: ["a"] is not allowed; allowed: model: a folder of'),
        (_put("inspect", {"lengths": [512]}), "length in x.yaml, inspect.lengths: 512; known: 1024"),
        (_put("inspect", {"samples": 0}), "x.yaml, inspect.samples: 0 is not allowed; allowed: an integer"),
        (_put("inspect", {"methods": []}), "key in x.yaml, inspect: 'methods'; known: samples, lengths"),
        (_put("latency.repeats", [2, 3]), "latency.repeats: 2 numbers for 1 lengths; give one"),
        (_put("latency.random", ["tiny"]), "model in x.yaml, latency.random: 'tiny'; known: tiny-llama"),
        (_put("latency.random", ["tiny-llama"]), "config/models/tiny-llama.yaml has no `shape` to make"),
        (_put("longbench", {"tasks": ["qaspr"], "source": "folder:x"}), "longbench.tasks: 'qaspr' (did you"),
        (_put("longbench", {"tasks": ["qasper"], "source": "x"}), 'longbench.source: "x" is not allowed'),
        (_put("longproc", {"tasks": ["html"], "data": "x"}), "longproc task in x.yaml, longproc.tasks:"),
        (_put("ablation.arms", {"main": {}}), "ablation.arms: 'main' is the study's own arm (train.arm)"),
        (_put("ablation.arms", {"n0": {"tokens": 0}}), "x.yaml, ablation.arms.n0.tokens: 0 is not allowed"),
        (_put("ablation.arms", {"a": {"arm": "b"}}), "key in x.yaml, ablation.arms.a: 'arm'; known: tokens"),
        (_put("ablation.arms", {"a": {"batch": 99}}), "x.yaml, ablation.arms.a.samples: 16 prompts less 4"),
        (_put("ablation.tasks", ["vt"]), "task in x.yaml, ablation.tasks: 'vt'; known: niah_single_1,"),
        (_put("ablation.lengths", [9]), "length in x.yaml, ablation.lengths: 9; known: 1024"),
        (_put("methods", ["speckv"]), "x.yaml, methods: speckv needs draft models; name one a model in"),
        (_put("speckv", {"drafts": {"tiny-llama": "llama-9"}}), "model in x.yaml, models: 'llama-9'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(
    tiny: dict[str, Any], change: Callable[[dict[str, Any]], None], said: str
) -> None:
    config = copy.deepcopy(tiny)
    change(config)
    with pytest.raises(UserError) as error:
        study.validate(config, ROOT, "x.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_given_modules_without_trained_arms_refuse_an_ablation(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "lookahead.json").write_text("{}")
    tiny["adapters"] = {"tiny-llama": str(tmp_path)}
    with pytest.raises(UserError, match=r"^x\.yaml, adapters\.tiny-llama: .* ablation\.arms .*; drop one.*$"):
        study.validate(tiny, ROOT, "x.yaml")
    assert models.trained(study.validate(tiny | {"ablation": None}, ROOT)) == []


def test_a_model_with_given_modules_needs_no_learning_rate(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "lookahead.json").write_text("{}")
    tiny |= {"ablation": None, "adapters": {"tiny-llama": str(tmp_path)}}
    tiny["train"]["learning_rate"] = None
    study.validate(tiny, ROOT)


def test_modules_are_used_as_given_for_one_model_and_trained_for_the_other(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "lookahead.json").write_text("{}")
    tiny |= {"models": ["tiny-llama", "tiny-qwen3"], "ablation": None}
    tiny["adapters"] = {"tiny-qwen3": str(tmp_path)}
    config = study.validate(tiny, ROOT)
    own, given = "results/tiny/adapters/tiny-llama/main/lookahead.json", f"{tmp_path}/lookahead.json"
    for of in (None, "latency"):
        assert [models.adapter(config, name, of) for name in config["models"]] == [[own], [given]]
    assert models.trained(config) == ["tiny-llama"]
    assert models.adapter_files(config) == [given, own]
    assert "reports/training.pdf" in targets.targets(config)


def test_missing_essays_file_is_named(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["ruler"] |= {"tasks": ["niah_single_2"], "haystack": str(tmp_path / "essays.json")}
    tiny["ablation"]["tasks"] = None
    with pytest.raises(UserError, match=r"x\.yaml, ruler\.haystack: no such file: .*essays\.json"):
        study.validate(tiny, ROOT, "x.yaml")
    (tmp_path / "essays.json").write_text("{}")
    study.validate(tiny, ROOT, "x.yaml")


def test_defaults_are_filled_in_at_every_depth(tiny: dict[str, Any]) -> None:
    for part, key in (("ruler", "max_new_tokens"), ("train", "held_out"), ("latency", "repeats")):
        del tiny[part][key]
    del tiny["seed"]
    filled = study.validate(tiny, ROOT)
    assert filled["seed"] == 42
    assert (filled["ruler"]["max_new_tokens"], filled["train"]["held_out"]) == (None, 8)
    assert (filled["latency"]["repeats"], filled["latency"]["warmups"]) == (10, 1)


def test_what_was_validated_validates_again_unchanged(tiny: dict[str, Any]) -> None:
    once = study.validate(tiny, ROOT)
    assert study.validate(yaml.safe_load(yaml.safe_dump(once)), ROOT) == once


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "the key 'name' is missing"),
        (
            {"source": {"kind": "torrent"}},
            "source.kind: 'torrent'; known: pypi-gguf, gguf, hub, local, random",
        ),
        ({"source": {"kind": "local"}}, "source: the key 'path' is missing; it holds: the folder"),
        (
            {"source": {"kind": "random", "family": "llama", "path": "x"}},
            "source: 'path'; known: kind, family",
        ),
        ({"source": {"kind": "random", "family": "gpt"}}, "source.family: 'gpt'; known: llama, qwen3"),
        (
            {"source": {"kind": "hub", "repo": "o/n"}, "name": "other"},
            "name: 'other' differs from the file's",
        ),
    ],
)
def test_wrong_model_specs_are_explained(spec: dict[str, Any], said: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "workflow/schemas", tmp_path / "workflow/schemas")
    (tmp_path / "config/models").mkdir(parents=True)
    whole = {"name": "m", "licence": "MIT"} | spec if spec else {}
    (tmp_path / "config/models/m.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(UserError) as error:
        schema.model_spec("m", tmp_path)
    assert said in str(error.value)
    assert "config/models/m.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config", "model"])
def test_schemas_refuse_unknown_keys_and_describe_every_known_one(name: str) -> None:
    schema = yaml.safe_load((ROOT / f"workflow/schemas/{name}.schema.yaml").read_text())

    def objects(part: Any) -> list[dict[str, Any]]:
        if isinstance(part, list):
            return [found for item in part for found in objects(item)]
        if not isinstance(part, dict):
            return []
        own = [part] if part.get("type") == "object" else []
        return own + [found for item in part.values() for found in objects(item)]

    found = objects(schema)
    assert len(found) >= 5
    for part in found:
        # train.mixture's keys and a source's are checked by other means: the kinds, and $defs by kind.
        assert "additionalProperties" in part or part["properties"].keys() == {"kind"}
        for key, value in part.get("properties", {}).items():
            place = schema
            for name in value["$ref"].split("/")[1:] if "$ref" in value else []:
                place = place[name]
            assert (place if "$ref" in value else value).get("description"), key


def test_nothing_is_inspected_where_the_config_does_not_say_so(tiny: dict[str, Any]) -> None:
    for given in (tiny | {"inspect": None}, {key: tiny[key] for key in tiny if key != "inspect"}):
        plain = study.validate(given, ROOT)
        assert jobs.inspect_files(plain, "kept") == []
        assert not [name for name in targets.targets(plain) if "recall" in name or "kept" in name]
    filled = study.validate(tiny | {"inspect": {}}, ROOT)
    assert commands.inspect_flags(filled, "ruler") == ["--budgets", "64", "128", "--samples", "8"]
    assert len(jobs.inspect_files(filled, "recall_part")) == 2


# ---- helpers ----------------------------------------------------------------------------------------------


def test_targets_of_all_are_what_the_rules_make(tiny_plan: str) -> None:
    tiny = study.read_config(ROOT / TINY, ROOT)
    made = re.findall(r"(?:reports|results)/[\w./]+", block(tiny_plan, "all"))
    assert sorted(made) == sorted(targets.targets(tiny))


def test_paths_leave_only_the_rules_wildcards(tiny: dict[str, Any]) -> None:
    found = vars(paths.paths(study.validate(tiny, ROOT)))
    wildcards = {name for path in found.values() for name in re.findall(r"{(\w+)}", path)}
    assert wildcards == {"model", "arm", "benchmark", "task", "length"}
    assert found["adapter"] == "results/tiny/adapters/{model}/{arm}/lookahead.json"


def test_arms_share_what_they_do_not_change(tiny: dict[str, Any]) -> None:
    tiny["ablation"]["arms"] = {
        "short": {"response_tokens": 4},
        "longer": {"response_tokens": 9, "tokens": 8},
        "avg": {"pool": "avg"},
    }
    config = study.validate(tiny, ROOT)
    assert {arm: arms.same_data(config, arm) for arm in arms.arms(config)} == {
        "main": "main", "short": "main", "longer": "longer", "avg": "main",
    }  # fmt: skip
    assert arms.trained_arms(config) == ["main", "short", "longer"]
    assert arms.trained_data(config) == ["main", "longer"]
    assert commands.arm_words(config, "tiny-llama")[-1] == (
        "avg=results/tiny/adapters/tiny-llama/main,group=mean,pool=avg,kernel=7,order=group_pool,beside=0"
    )
    flags = {
        arm: " ".join(commands.train_flags(config, "tiny-llama", arm, ROOT)) for arm in arms.arms(config)
    }
    assert "--tokens 8" in flags["longer"] and "--response-tokens 4" in flags["short"]
    assert not any("--response-tokens" in flags[arm] for arm in ("main", "longer"))
    assert "--response-tokens 9" in " ".join(commands.prompt_flags(config, "longer"))


def test_the_arm_that_others_are_compared_with_comes_first(tiny: dict[str, Any]) -> None:
    tiny["ablation"] = {"arms": {"n8": {"tokens": 8}, "brief": {"steps": 2}}}
    for reference, names in (("brief", ["brief", "main", "n8"]), (None, ["main", "n8", "brief"])):
        tiny["ablation"]["reference"] = reference
        words = commands.arm_words(study.validate(tiny, ROOT), "tiny-llama")
        assert [word.partition("=")[0] for word in words] == names
    tiny["ablation"]["reference"] = "breif"
    with pytest.raises(UserError, match=r"breif.*main, n8, brief"):
        study.validate(tiny, ROOT)


def test_arms_beside_the_methods_are_read_by_the_plots_of_scores(tiny: dict[str, Any]) -> None:
    tiny["ablation"] = {"arms": {"n8": {"tokens": 8}}, "beside": ["n8"]}
    config = study.validate(tiny, ROOT)
    for kind in kinds.PLOTS:
        reads = "results/tiny/ablation.csv" in targets.plot_inputs(kind, "tiny", config)
        assert reads == (kind in ("averages", "accuracy", "ablation")), kind
    config["ablation"]["beside"] = []
    assert targets.arms_in_tables("tiny", config) == []
    tiny["ablation"]["beside"] = ["n9"]
    with pytest.raises(UserError, match=r"ablation.beside: n9.*n8|n9.*n8"):
        study.validate(tiny, ROOT)


def test_an_arm_of_another_seed_is_trained_anew_on_the_same_prompts(tiny: dict[str, Any]) -> None:
    tiny["ablation"]["arms"] = {"again": {"seed": 7}}
    config = study.validate(tiny, ROOT)
    assert arms.trained_arms(config) == ["main", "again"] and arms.trained_data(config) == ["main"]
    assert arms.train_seed(config, "again") == 7
    assert arms.train_seed(config, "main") == config["seed"] != 7


def test_an_arm_of_given_answers_has_data_of_its_own_and_alone_says_so(tiny: dict[str, Any]) -> None:
    tiny["ablation"]["arms"] = {"given": {"answers": "given"}, "same": {"answers": "model"}}
    config = study.validate(tiny, ROOT)
    assert config["train"]["answers"] == "model"
    assert arms.trained_data(config) == arms.trained_arms(config) == ["main", "given"]
    assert " ".join(commands.prompt_flags(config, "given")).endswith(" --answers given")
    assert "--answers" not in commands.prompt_flags(config, "main")


def test_the_workflow_passes_given_answers_for_their_arm_only(
    clean: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    tiny["ablation"]["arms"] = {"given": {"answers": "given"}}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    run = snakemake(clean, "-np", *ALWAYS, "--configfile", str(tmp_path / "given.yaml"), "--", "all")
    calls = dict(
        re.findall(r"lkv data train .*--out data/tiny/train/tiny-llama/(\w+)\.jsonl (.*)", run.stdout)
    )
    assert {arm: "--answers given" in words for arm, words in calls.items()} == {"main": False, "given": True}


def test_a_budget_that_holds_the_whole_length_is_left_out(tiny: dict[str, Any]) -> None:
    config = study.validate(tiny | {"budgets": [64, 1024, 2048]}, ROOT)
    config["ruler"]["budgets"] = None
    assert jobs.budgets(config, "ruler", 4096) == jobs.budgets(config, "ruler") == [64, 1024, 2048]
    assert jobs.budgets(config, "ruler", 1024) == jobs.budgets(config, "ruler", 32) == [64]


def test_flags_leave_out_what_is_not_there() -> None:
    values = {
        "max_new_tokens": None,
        "steps": 6,
        "lengths": [1, 2],
        "mixture": {"a": 1, "b": 0.5},
        "none": [],
    }
    words = commands.flags(values, "steps", "max_new_tokens", "lengths", "mixture", "none")
    assert words == ["--steps", "6", "--lengths", "1", "2", "--mixture", "a=1", "b=0.5"]


def test_only_tasks_with_a_source_of_text_depend_on_it() -> None:
    ruler = {"haystack": "essays.txt", "squad": "s.json", "hotpotqa": "h.json", "ready": None}
    assert commands.ruler_files(ruler, "niah_multivalue") == ["essays.txt"]
    for elsewhere in ({"haystack": "pydoc"}, {"haystack": "hub:a/essays"}, {"ready": "folder:x"}):
        assert commands.ruler_files(ruler | elsewhere, "niah_multivalue") == []
    assert commands.ruler_files(ruler | {"haystack": "e.json#sha256=0f"}, "niah_multivalue") == ["e.json"]
    assert (commands.ruler_files(ruler, "qa_1"), commands.ruler_files(ruler, "qa_2")) == (
        ["s.json"],
        ["h.json"],
    )
    assert commands.ruler_sources("niah_single_1") == commands.ruler_sources("cwe") == []


def test_published_studies_are_complete_folders_other_than_the_configured_one(tmp_path: Path) -> None:
    for name in ("paper", "demo", "torn"):
        (tmp_path / "results" / name).mkdir(parents=True)
    for name in ("paper", "demo"):
        (tmp_path / "results" / name / "provenance.json").write_text("{}")
    assert targets.published("demo", tmp_path) == ["paper"]
    assert re.fullmatch(jobs.any_of(["a.b"]), "a.b")
    assert not re.fullmatch(jobs.any_of(["a.b"]), "acb")
    assert not re.match(jobs.any_of([]), "")


@pytest.mark.parametrize(("asked", "cpus", "threads"), [(8, 2, 2), (1, 2, 1), (2, 64, 2)])
def test_jobs_get_no_more_threads_than_there_are_cpus(asked: int, cpus: int, threads: int) -> None:
    script = commands.shell_prefix(cpus) + "echo $OMP_NUM_THREADS $MKL_NUM_THREADS"
    environment = {"OMP_NUM_THREADS": str(asked), "MKL_NUM_THREADS": str(asked)}
    run = subprocess.run(["bash", "-c", script], env=environment, text=True, capture_output=True, check=True)
    assert run.stdout.split() == [str(threads)] * 2


def test_study_helpers_load_neither_torch_nor_snakemake() -> None:
    code = "import sys, lkv.study.check, lkv.study.targets; "
    code += "print({'torch', 'transformers', 'snakemake', 'pandas'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), text=True, capture_output=True, check=True
    )
    assert run.stdout.strip() == "set()"
