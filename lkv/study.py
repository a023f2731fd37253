"""What the workflow knows of a study: its files, its targets, and whether its config makes sense.

Pure and light (no torch, no snakemake): the rules read values from here, the tests call it directly.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import yaml

from lkv.bench import longbench, longproc, ruler
from lkv.checks import check_study
from lkv.data.mixture import SCHEMAS as PROMPT_SCHEMAS
from lkv.data.prompts import KINDS
from lkv.errors import UserError, one_of
from lkv.markup import rst_code, rst_text
from lkv.names import WORD, checked, words
from lkv.records import read_provenance, stored
from lkv.registry import FULL, METHODS, SELF
from lkv.strict_yaml import dump_yaml as dump_yaml  # of the workflow's study_config
from lkv.strict_yaml import read_yaml

SHIPPED = Path(__file__).resolve().parents[1]  # what ships with the project, beside its Snakefile
SCHEMAS = SHIPPED / "workflow/schemas"

SPEC = "config/models/{model}.yaml"

# {study} is filled from the config, the rest are the rules' wildcards.
PATHS = {
    "model": "models/{model}/model.json",
    "train_data": "data/{study}/train/{model}/{arm}.jsonl",
    "train_facts": "data/{study}/train/{model}/{arm}.json",
    "data": "data/{study}/{benchmark}/{model}/{task}@{length}.jsonl",
    "data_facts": "data/{study}/{benchmark}/{model}/{task}@{length}.json",
    "adapter": "results/{study}/adapters/{model}/{arm}/lookahead.json",
    "training_part": "results/{study}/training/{model}/{arm}.csv",
    "journal": "results/{study}/journal/{model}/{task}@{length}.jsonl",
    "samples": "results/{study}/samples/{model}/{task}@{length}.csv",
    "answers": "results/{study}/answers/{model}/mtbench.jsonl",
    "judgements": "results/{study}/judgements/{model}.csv",
    "latency_part": "results/{study}/latency/{model}.csv",
    "recall_part": "results/{study}/inspect/{model}/{task}@{length}.recall.csv",
    "kept_part": "results/{study}/inspect/{model}/{task}@{length}.kept.csv",
    "recall": "results/{study}/recall_by_layer.csv",
    "kept": "results/{study}/kept.csv",
    "ablation_journal": "results/{study}/ablation/{model}/{task}@{length}.jsonl",
    "ablation_samples": "results/{study}/ablation/{model}/{task}@{length}.csv",
    "ablation": "results/{study}/ablation.csv",
    "arms": "results/{study}/arms.csv",
    "accuracy": "results/{study}/accuracy.csv",
    "paired": "results/{study}/paired.csv",
    "training": "results/{study}/training.csv",
    "latency": "results/{study}/latency.csv",
    "config": "results/{study}/config.yaml",
    "provenance": "results/{study}/provenance.json",
}

MODEL_CARD = Path(PATHS["model"]).name  # it stands for a folder with a model
CARD = Path(PATHS["adapter"]).name  # written last, it stands for a folder of trained modules

# What each plot reads, by the keys of PATHS, and the formats of a report.
PLOTS = {
    "latency": ("latency",),
    "pareto": ("accuracy", "latency"),
    "training": ("training", "provenance"),
    "averages": ("accuracy", "provenance"),
    "accuracy": ("accuracy", "provenance"),
    "ablation": ("ablation", "arms"),
    "recall": ("recall",),
    "kept": ("kept",),
}
WITH_ARMS = ("averages", "accuracy")  # plots in which arms may stand beside the methods
INSPECTED = ("recall", "kept")  # plots of a study whose config says `inspect`
REPORTS = {"table1": ("pdf", "csv", "md", "tex", "html")} | dict.fromkeys(PLOTS, ("pdf", "svg", "png"))


class Title(NamedTuple):
    """What report.html calls a report, and where it stands there."""

    text: str
    category: str


TITLES = {
    "table1": Title("All scores, to sort and filter", "Scores"),
    "averages": Title("Score over budget, on average", "Scores"),
    "accuracy": Title("Score over budget, task by task", "Scores"),
    "pareto": Title("Score against overhead", "Scores"),
    "latency": Title("Overhead and its phases", "Time and memory"),
    "training": Title("KL over training", "Training"),
    "ablation": Title("LookaheadKV's arms", "Training"),
    "recall": Title("Recall by layer", "Insight"),
    "kept": Title("Tokens that survive", "Insight"),
}

LATENCY = "latency-h100"  # the published study with the paper's shape and machine

# A stage's number is raised by hand when its code changes what it writes: finished studies then run it again.
VERSIONS = {
    "model": 1, "data": 2, "train": 3, "evaluate": 3, "inspect": 1, "judge": 1, "latency": 4,
    "summarise": 2, "report": 3,
}  # fmt: skip

# The config key, and the flag of `lkv data ruler`, that says where a task's haystack comes from.
SOURCES = {"essays": "haystack", "squad": "squad", "hotpotqa": "hotpotqa"}


# What an arm may change: how it is trained, on what data, and how its importance becomes a choice.
DATA_KEYS = ("samples", "lengths", "response_tokens", "answers", "mixture", "sources", "max_tokens")
RECIPE_KEYS = ("group", "pool", "kernel", "order", "beside")
RECIPE_CHOICES = {
    "group": ("mean", "max"),
    "pool": ("max", "avg", "none"),
    "order": ("group_pool", "pool_group"),
}  # the others: numbers

NOT_GIVEN = "the true answers are known of offline prompts alone, not of data sets"

MOST = 10**18  # every number of a config is smaller
# In texts: what no line shows, what begins markup in report.html, and Snakemake's wildcards.
UNFIT = "[<{}\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"

MTBENCH = "mtbench"  # evaluated by rules of its own: two turns, and a judge


class Cell(NamedTuple):
    """What one evaluation job measures."""

    benchmark: str
    task: str
    length: int  # 0 where a benchmark's prompts have lengths of their own


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """Every task at every length, MT-Bench apart."""
    ruler = config.get("ruler") or {"tasks": [], "lengths": []}
    found = [Cell("ruler", task, length) for task in ruler["tasks"] for length in ruler["lengths"]]
    for benchmark in ("longbench", "longproc"):
        found += [Cell(benchmark, task, 0) for task in (config.get(benchmark) or {"tasks": []})["tasks"]]
    return found


def cell(config: Mapping[str, Any], task: str, length: int | str) -> Cell:
    return next(c for c in cells(config) if (c.task, c.length) == (task, int(length)))


def tasks(config: Mapping[str, Any], benchmark: str) -> list[str]:
    return list((config.get(benchmark) or {"tasks": []})["tasks"])


def files(config: Mapping[str, Any], key: str, models: Iterable[str] | None = None) -> list[str]:
    """A path of PATHS for every model and every evaluated cell."""
    pattern = getattr(paths(config), key)
    return [
        pattern.format(model=model, **c._asdict())
        for model in models or config["models"]
        for c in cells(config)
    ]


def sample_files(config: Mapping[str, Any]) -> list[str]:
    """Every file of scored samples: MT-Bench's are there once a judge is named."""
    found = files(config, "samples")
    if judged(config):
        pattern = paths(config).samples
        found += [pattern.format(model=model, task=MTBENCH, length=0) for model in config["models"]]
    return found


def judged(config: Mapping[str, Any]) -> bool:
    return bool((config.get(MTBENCH) or {}).get("judge"))


def budgets(config: Mapping[str, Any], benchmark: str, length: int = 0) -> list[int]:
    """The benchmark's own budgets, or the study's. Of prompts of one length (0: each has its own) those that
    evict something, or the smallest alone."""
    named = config[benchmark].get("budgets") or config["budgets"]
    return [budget for budget in named if not length or budget < length] or [min(named)]


def methods(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The methods that a model is run under: SpecKV only where it has a draft."""
    named = config[of]["methods"] if of else config["methods"]
    return [name for name in named if name != "speckv" or model in config["speckv"]["drafts"]]


def draft(config: Mapping[str, Any], model: str, of: str | None = None) -> str | None:
    """SpecKV's draft model for a model, where that is run under SpecKV."""
    return config["speckv"]["drafts"].get(model) if "speckv" in methods(config, model, of) else None


def needed_models(config: Mapping[str, Any]) -> list[str]:
    """The study's models and their drafts."""
    drafts = [draft(config, model) for model in config["models"]]
    return list(dict.fromkeys([*config["models"], *(name for name in drafts if name and name != SELF)]))


def fetched_models(config: Mapping[str, Any]) -> list[str]:
    """The models, drafts too, that are run as they are and not as a shape alone."""
    stages: list[str | None] = [None, "latency"] if config["methods"] else ["latency"]
    found = []
    for name in config["models"]:
        of_real = [of for of in stages if not shape_alone(config, name, of)]
        found += [name] * bool(of_real) + [draft(config, name, of) or SELF for of in of_real]
    return [name for name in dict.fromkeys(found) if name != SELF]


def trained(config: Mapping[str, Any]) -> list[str]:
    """The models whose modules are trained here: those that a stage uses and `adapters` does not give."""
    return [name for name in _adapted(config) if name not in config["adapters"]]


def _adapted(config: Mapping[str, Any]) -> list[str]:
    """The models whose modules a stage uses; the ablation uses every model's."""
    return [
        name
        for name in config["models"]
        if config["ablation"] or any(adapter(config, name, of) for of in (None, "latency"))
    ]


def adapter_files(config: Mapping[str, Any]) -> list[str]:
    """The marker files of all modules that the study uses: the given ones, then its own, arm by arm."""
    given = [given_card(config, name) for name in _adapted(config) if name in config["adapters"]]
    pattern = paths(config).adapter
    own = [pattern.format(model=m, arm=arm) for m in trained(config) for arm in trained_arms(config)]
    return list(dict.fromkeys(given)) + own


def given_card(config: Mapping[str, Any], model: str) -> str:
    """The marker file of the modules that `adapters` gives a model."""
    return str(at(Path(config["adapters"][model]) / CARD))


def adapter(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The adapter's marker file, where LookaheadKV is among the methods and its weights matter."""
    if "lookaheadkv" not in methods(config, model, of) or shape_alone(config, model, of):
        return []
    if model in config["adapters"]:
        return [given_card(config, model)]
    return [paths(config).adapter.format(model=model, arm=main_arm(config))]


def main_arm(config: Mapping[str, Any]) -> str:
    """The arm that stands in every table as LookaheadKV."""
    return str((config.get("train") or {"arm": "main"}).get("arm", "main"))


def reference_arm(config: Mapping[str, Any]) -> str:
    """The arm that the ablation's others are compared with."""
    return str((config["ablation"] or {}).get("reference") or main_arm(config))


def arms(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm → the values of `train` and `lookaheadkv` that are its own: the main arm's first."""
    if not config["train"]:
        return {}
    main = config["train"] | config["lookaheadkv"]
    others = (config["ablation"] or {"arms": {}})["arms"]
    return {main["arm"]: main} | {name: main | own | {"arm": name} for name, own in others.items()}


def same_data(config: Mapping[str, Any], arm: str) -> str:
    """The first arm whose training prompts are this arm's. Offline ones also serve an arm of shorter answers,
    as greedy answers begin alike; which prompts of data sets fit depends on the answers' length."""
    known = arms(config)
    own, keys = known[arm], [key for key in DATA_KEYS if key != "response_tokens" or known[arm]["sources"]]
    return next(
        name
        for name, other in known.items()
        if all(other[key] == own[key] for key in keys) and other["response_tokens"] >= own["response_tokens"]
    )


def same_modules(config: Mapping[str, Any], arm: str) -> str:
    """The first arm whose trained modules are this arm's; the recipes may differ."""
    known, keys = arms(config), [key for key in config["train"] if key not in ("arm", "gpus")]
    return next(name for name, own in known.items() if all(own[key] == known[arm][key] for key in keys))


def trained_arms(config: Mapping[str, Any]) -> list[str]:
    """Arms that have modules of their own."""
    return [name for name in arms(config) if same_modules(config, name) == name]


def trained_data(config: Mapping[str, Any]) -> list[str]:
    """Arms that have training prompts of their own."""
    return list(dict.fromkeys(same_data(config, name) for name in trained_arms(config)))


def arm_words(config: Mapping[str, Any], model: str) -> list[str]:
    """Command-line words `arm=folder,key=value,…` for every arm of the ablation, the reference first."""
    words, known = [], arms(config)
    for name, own in {reference_arm(config): known[reference_arm(config)], **known}.items():
        of_arm = same_modules(config, name)
        [folder] = folders([paths(config).adapter.format(model=model, arm=of_arm)])
        words.append(f"{name}={folder}," + ",".join(f"{key}={own[key]}" for key in RECIPE_KEYS))
    return words


def ablation_flags(config: Mapping[str, Any]) -> list[str]:
    own = config["ablation"]
    return flags(own | {"budgets": own["budgets"] or config["budgets"]}, "budgets", "samples") if own else []


def ablated(config: Mapping[str, Any]) -> list[Cell]:
    """The evaluated cells that the arms are run on as well."""
    return part_of_cells(config, "ablation")


def part_of_cells(config: Mapping[str, Any], section: str) -> list[Cell]:
    """The evaluated cells of the tasks and lengths that a section names, or all; none without the section."""
    own = config[section]
    if not own:
        return []
    named = {"task": own.get("tasks"), "length": own.get("lengths")}
    return [
        c
        for c in cells(config)
        if all(names is None or getattr(c, key) in names for key, names in named.items())
    ]


def ablation_files(config: Mapping[str, Any]) -> list[str]:
    """Every file of scored samples of the ablation."""
    pattern = paths(config).ablation_samples
    return [pattern.format(model=m, **c._asdict()) for m in config["models"] for c in ablated(config)]


def shape_alone(config: Mapping[str, Any], model: str, of: str | None = "latency") -> bool:
    """Whether a model is timed with random weights, made from the shape in its spec."""
    return of == "latency" and model in config["latency"]["random"]


def draft_card(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The marker file of a model's draft model, where there is one; its spec, where the shape is enough."""
    name = draft(config, model, of)
    if name in (None, SELF):
        return []
    return [spec_file(name) if shape_alone(config, model, of) else PATHS["model"].format(model=name)]


def timed_model(config: Mapping[str, Any], model: str) -> str:
    """What stands for a model in the latency study: its marker file, or its spec for a shape alone."""
    return spec_file(model) if shape_alone(config, model) else PATHS["model"].format(model=model)


def latency_flags(config: Mapping[str, Any], model: str) -> list[str]:
    """Command-line words for which model is timed, and how."""
    own, flag = config["latency"], "--shape" if shape_alone(config, model) else "--model"
    words = [flag, *folders([timed_model(config, model)])]
    words += flags(own, "lengths", "budgets", "repeats", "warmups", "ways")
    return words + (["--batches"] if own["batches"] else [])


def parts(
    config: Mapping[str, Any],
    model: str,
    adapters: Sequence[str],
    drafts: Sequence[str],
    of: str | None = None,
) -> list[str]:
    """Command-line words for what methods bring along: an adapter, a draft model, LookaheadKV's recipe."""
    given = {
        "adapter": folders(adapters) or None,
        "draft": (folders(drafts) or [SELF]) if draft(config, model, of) else None,
    }
    return flags(given, *given) + flags(config["lookaheadkv"], *RECIPE_KEYS)


def protocol_flags(config: Mapping[str, Any]) -> list[str]:
    """Command-line words for the protocol; what they leave out is the model's own."""
    own = config["protocol"]
    words = flags({"protocol": own["name"], **own}, "protocol", "template", "max_prompt")
    return words + ([] if own["question_aware"] else ["--question-blind"])


def given_flags(config: Mapping[str, Any], benchmark: str) -> list[str]:
    """Command-line words for a benchmark whose records are given: where they lie, and how many to take."""
    where = {"longbench": "source", "longproc": "data_folder"}[benchmark]
    values = config[benchmark] | {"data_folder": config[benchmark].get("data")}
    return flags(values, where, "samples", "max_new_tokens")


def inspect_files(config: Mapping[str, Any], key: str) -> list[str]:
    """The parts of recall_by_layer.csv or kept.csv; none where nothing is inspected."""
    pattern, inspected = getattr(paths(config), key), part_of_cells(config, "inspect")
    return [pattern.format(model=model, **c._asdict()) for model in config["models"] for c in inspected]


def inspect_flags(config: Mapping[str, Any], benchmark: str) -> list[str]:
    """Command-line words for what is inspected; none where nothing is."""
    own = config["inspect"]
    given = own and own | {"budgets": own["budgets"] or budgets(config, benchmark)}
    return flags(given, "budgets", "samples") if given else []


def mtbench_flags(config: Mapping[str, Any]) -> list[str]:
    own = config.get(MTBENCH)
    return (
        flags(
            own | {"budgets": budgets(config, MTBENCH)},
            "questions",
            "references",
            "samples",
            "max_new_tokens",
            "budgets",
        )
        if own
        else []
    )


def judge_flags(config: Mapping[str, Any]) -> list[str]:
    own = (config.get(MTBENCH) or {}).get("judge")
    return flags(own, *own) if own else []


def train_flags(config: Mapping[str, Any], model: str, arm: str, root: Path = Path()) -> list[str]:
    """Command-line words for an arm's training. The learning rate is the arm's, or else the model's own."""
    known = arms(config)
    own = known[arm]
    own["learning_rate"] = own["learning_rate"] or model_spec(model, root)["learning_rate"]
    what = ["arm", "tokens", "lora", "loss"]
    if own["response_tokens"] < known[same_data(config, arm)]["response_tokens"]:
        what.append("response_tokens")
    return flags(own, *what, "steps", "batch", "learning_rate", "warmup_steps", "held_out")


def train_seed(config: Mapping[str, Any], arm: str) -> int:
    """What an arm's modules and the order of its prompts are drawn from; the prompts are the study's."""
    own = arms(config)[arm]["seed"]
    return int(config["seed"] if own is None else own)


def prompt_flags(config: Mapping[str, Any], arm: str) -> list[str]:
    """Command-line words for an arm's training prompts: an offline mixture, or data sets.

    `answers` is a flag only where it is not the default: what was made before there was a choice stays.
    """
    train = arms(config)[arm]
    if train["sources"] is None:
        chosen = ["answers"] if train["answers"] != "model" else []
        return flags(train, "samples", "lengths", "response_tokens", "mixture", *chosen)
    sources = [json.dumps({k: v for k, v in source.items() if v is not None}) for source in train["sources"]]
    return flags(train | {"sources": sources}, "sources", "max_tokens", "response_tokens")


def paths(config: Mapping[str, Any]) -> SimpleNamespace:
    """PATHS with the study's name filled in; the wildcards stay."""
    return SimpleNamespace(**{key: path.replace("{study}", config["study"]) for key, path in PATHS.items()})


def targets(config: Mapping[str, Any]) -> list[str]:
    """What `snakemake all` makes: every report that its figures allow, where everything came from, and
    MT-Bench's answers, which need no judge."""
    answers = [paths(config).answers.format(model=model) for model in config["models"]]
    made = [*rendered(config), paths(config).provenance, *(answers if config.get(MTBENCH) else [])]
    if config["ablation"]:
        made.append(paths(config).arms)
    return made + ([paths(config).ablation] if ablation_files(config) else [])


def rendered(config: Mapping[str, Any]) -> list[str]:
    """Every report that the study's figures allow."""
    kinds = list(REPORTS) if sample_files(config) else ["latency"]
    left_out = {"ablation"} if not ablation_files(config) else set()
    left_out |= set(INSPECTED) if not inspect_files(config, "kept") else set()
    left_out |= {"training"} if not trained(config) else set()
    return _report_files(kind for kind in kinds if kind not in left_out)


def renderable(published: str, root: Path = Path()) -> list[str]:
    """Every report that a published study's files allow."""
    read = {"table1": ("accuracy", "paired", "provenance")} | PLOTS
    there = {
        key: stored(root / PATHS[key].format(study=published)).is_file()
        for keys in read.values()
        for key in keys
    }
    return _report_files((kind for kind in REPORTS if all(there[key] for key in read[kind])), f"{published}/")


def _report_files(kinds: Iterable[str], folder: str = "") -> list[str]:
    return [f"reports/{folder}{kind}.{ending}" for kind in kinds for ending in REPORTS[kind]]


def title(kind: str) -> Title:
    return TITLES.get(kind, Title(kind, "Figures"))


def shown(kind: str = "") -> dict[str, Any]:
    """Arguments of Snakemake's `report` for reports of one kind, or of the kind that a wildcard names."""

    def of(wildcards: Any) -> Title:
        return title(kind or wildcards.kind)

    return {
        "caption": f"../report/{kind or 'plot'}.rst",
        "category": lambda wildcards: of(wildcards).category,
        "labels": lambda wildcards: {"figure": of(wildcards).text},
    }


def facts(results: str) -> dict[str, Any]:
    """A study's provenance.json, for the words at the front of report.html."""
    return read_provenance(Path(results, "provenance.json"))


def facts_as_code(results: str) -> str:
    return rst_code(facts(results))


def front(results: str) -> str:
    """The facts at the front of report.html, as reStructuredText: whose study it is, and what it rests on."""
    known = facts(results)
    lengths = ", ".join(map(str, _list(known, "config", "latency", "lengths")))
    told = {"Study": [known.get("study")], "Models": _list(known, "config", "models")}
    for section, label in (("ruler", "RULER"), ("longbench", "LongBench"), ("longproc", "LongProc")):
        told[label] = _list(known, "config", section, "tasks")
    told |= {
        "Timed at": [f"{lengths} tokens"],
        "Device": [f"{known.get('device')}, attention {known.get('backend')}, {known.get('dtype')}"],
        "Code, by its commit": [f"{known.get('commit')}{', with local changes' * bool(known.get('dirty'))}"],
    }
    return "\n".join(
        f":{label}: {', '.join(map(rst_text, values))}" for label, values in told.items() if values
    )


def _list(value: Any, *keys: str) -> list[Any]:
    """What lies under these keys, where a stranger's file has a list there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, list) else []


def published(configured: str, root: Path = Path()) -> list[str]:
    """Studies whose results lie here as plain files, the configured one apart. What is no name is none."""
    found = words(path.parent.name for path in root.glob("results/*/provenance.json"))
    return [name for name in found if name != configured]


def plotted(kind: str, study: str, config: Mapping[str, Any] | None = None) -> list[str]:
    """The result files that a plot of a study reads: the configured one, or a published one as it is."""
    files = [str(stored(PATHS[key].format(study=study))) for key in PLOTS[kind]]
    return files + (beside_methods(study, config) if kind in WITH_ARMS else [])


def beside_methods(study: str, config: Mapping[str, Any] | None = None, root: Path = Path()) -> list[str]:
    """The file of the arms that stand beside the methods, where there are any."""
    name = PATHS["ablation"].format(study=study)
    there = (config["ablation"] or {}).get("beside") if config else (root / name).is_file()
    return [name] if there else []


def claimed(study: str, configured: str, root: Path = Path()) -> list[str]:
    """The files that the claims of a published study are judged by: those that are there, and what is read of
    the studies beside it."""
    keys = ("provenance", "accuracy", "paired", "ablation")
    names = [PATHS[key].format(study=study) for key in keys] + [PATHS["latency"].format(study=LATENCY)]
    also = [PATHS[key].format(study=name) for name in beside(study, configured, root) for key in keys[:3]]
    return [name for name in names if (root / name).is_file()] + also


def beside(study: str, configured: str, root: Path = Path()) -> list[str]:
    """The published studies STUDY-… with scores, which are read beside a study's own for its claims."""
    named = [name for name in published(configured, root) if name.startswith(f"{study}-")]
    return [name for name in named if (root / PATHS["accuracy"].format(study=name)).is_file()]


def also_flags(study: str, configured: str) -> list[str]:
    """Command-line words for the studies read beside a study."""
    return flags({"also": [f"results/{name}" for name in beside(study, configured)]}, "also")


def any_of(names: Iterable[object]) -> str:
    """A wildcard constraint that matches these names and nothing else, for no names nothing at all."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def total(resources: Mapping[str, Any], name: str) -> int:
    """How many of a resource one snakemake call may use (--resources gpu=2); 1 where nobody said."""
    given = dict(resources).get(name, 1)
    return max(1, int(getattr(given, "value", given)))


def spread(config: Mapping[str, Any], arm: str, gpus: int) -> int:
    """How many processes, each on a GPU of its own, share an arm's training, where there are `gpus`."""
    return max(1, min(int(arms(config)[arm]["gpus"]), gpus))


def ruler_sources(task: str) -> list[str]:
    """The config keys, and `lkv data ruler` flags, of the text that a RULER task reads: one, or none."""
    return [SOURCES[kind] for kind in [ruler.TASKS[task].haystack] if kind in SOURCES]


def ruler_files(config: Mapping[str, Any], task: str) -> list[str]:
    """The local files behind them; `pydoc` and what lies on a hub are none."""
    if config["ready"] is not None:
        return []
    return [file for key in ruler_sources(task) if (file := local(config[key]))]


def ruler_flags(config: Mapping[str, Any], task: str) -> list[str]:
    """Command-line words that say what a RULER task is made of."""
    sources = ["ready"] if config["ready"] is not None else ruler_sources(task)
    return flags(config, "samples", "max_new_tokens", *sources)


def local(source: str) -> str:
    """The path of a text source that is a local file, without its checksum; empty where it is none."""
    return "" if source == "pydoc" or source.startswith("hub:") else source.partition("#")[0]


def folders(files: Iterable[str]) -> list[str]:
    """The folders that marker files (model.json, lookahead.json) stand for; a spec stands for itself."""
    return [file if file.endswith(".yaml") else str(Path(file).parent) for file in files]


def shell_prefix(cpus: int) -> str:
    """Bash before every job: stop at errors; no more threads than CPUs (`--cores 8` on a smaller machine)."""
    fewer = f"$((OMP_NUM_THREADS < {cpus} ? OMP_NUM_THREADS : {cpus}))"
    return f"set -euo pipefail; export OMP_NUM_THREADS={fewer}; export MKL_NUM_THREADS=$OMP_NUM_THREADS; "


def flags(values: Mapping[str, Any], *keys: str) -> list[str]:
    """Command-line words `--key value ...`; a mapping becomes k=v words, None or nothing no flag at all."""
    words: list[str] = []
    for key in keys:
        value = values[key]
        if isinstance(value, Mapping):
            value = [f"{name}={amount}" for name, amount in value.items()]
        items = value if isinstance(value, list) else [] if value is None else [value]
        if items:
            words += [f"--{key.replace('_', '-')}", *map(str, items)]
    return words


def read_config(path: Path, root: Path = Path()) -> dict[str, Any]:
    """The study config in a file, checked."""
    if not path.is_file():
        raise UserError(f"no such config: {path}; one is a file like config/demo.yaml")
    return validate(read_yaml(path), root, str(path))


def read_plainly(files: Iterable[str | Path]) -> None:
    """Refuses what Snakemake's own reader of config files lets pass: see lkv.strict_yaml."""
    for file in files:
        if Path(file).suffix != ".json":
            read_yaml(Path(file), os.path.relpath(file))


def validate(config: Mapping[str, Any], root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The study config with its defaults filled in, or a UserError of one line that starts with `source`."""
    study = check(config, SCHEMAS / "config.schema.yaml", source)
    _check_methods(study, source)
    drafts = [name for name in study["speckv"]["drafts"].values() if name != SELF]
    specs = {name: model_spec(name, root, source) for name in [*study["models"], *drafts]}
    _check_adapters(study, root, source)
    if train := study["train"]:
        for name in study["models"]:
            given = name in study["adapters"] or train["learning_rate"]
            if not given and not specs[name]["learning_rate"]:
                raise UserError(
                    f"{source}, train.learning_rate: missing, and config/models/{name}.yaml has none; "
                    "give a number above 0"
                )
        for name, values in arms(study).items():
            place = f"{source}, train" if name == train["arm"] else f"{source}, ablation.arms.{name}"
            _check_training(values, place)
    elif needing := trained(study):
        raise UserError(
            f"{source}, train: missing, and lookaheadkv needs modules for {', '.join(needing)}; add it, or "
            "name folders of trained ones in adapters"
        )
    if inspected := study["inspect"]:
        _check_part(study, "inspect", "lengths", inspected["lengths"], source)
    _check_latency(study, root, source)
    _check_benchmarks(study, root, source)
    if study["ablation"]:
        _check_ablation(study, source)
    check_study(study, specs, source)
    return study


def _check_methods(study: Mapping[str, Any], source: str) -> None:
    known = [FULL, *METHODS]
    for key, names in (("methods", study["methods"]), ("latency.methods", study["latency"]["methods"])):
        for name in names:
            if name not in known:
                raise one_of(f"method in {source}, {key}:", name, known)
        if "speckv" in names and not study["speckv"]["drafts"]:
            raise UserError(
                f"{source}, {key}: speckv needs draft models; name one a model in speckv.drafts, or self"
            )
    if FULL not in study["latency"]["methods"]:
        raise UserError(
            f"{source}, latency.methods: {FULL!r} is missing; overheads are counted from it, so add it"
        )
    for name in study["speckv"]["drafts"]:
        if name not in study["models"]:
            way_out = "give one of the study's models, or drop the entry"
            raise one_of(f"model in {source}, speckv.drafts:", name, study["models"], way_out)


def _check_adapters(study: Mapping[str, Any], root: Path, source: str) -> None:
    for name, folder in study["adapters"].items():
        if name not in study["models"]:
            way_out = "give one of the study's models, or drop the entry"
            raise one_of(f"model in {source}, adapters:", name, study["models"], way_out)
        if not at(Path(folder) / CARD, root).is_file():
            raise UserError(
                f"{source}, adapters.{name}: no {CARD} in {folder}; give a folder of trained modules, as lkv "
                "train writes it, or drop the entry and they are trained"
            )
        if study["ablation"]:
            raise UserError(
                f"{source}, adapters.{name}: given modules have no arms beside them, which ablation.arms "
                "compares with the study's own trained arm; drop one of the two"
            )


def _check_latency(study: Mapping[str, Any], root: Path, source: str) -> None:
    repeats, lengths = study["latency"]["repeats"], study["latency"]["lengths"]
    if isinstance(repeats, list) and len(repeats) != len(lengths):
        raise UserError(
            f"{source}, latency.repeats: {len(repeats)} numbers for {len(lengths)} lengths; give one number, "
            "or one a length"
        )
    for name in study["latency"]["random"]:
        if name not in study["models"]:
            raise one_of(f"model in {source}, latency.random:", name, study["models"])
        for made in (name, draft(study, name, "latency")):
            if made not in (None, SELF) and model_spec(made, root, source)["shape"] is None:
                raise UserError(
                    f"{source}, latency.random: config/models/{made}.yaml has no `shape` to make random "
                    "weights from; add it, or time real ones"
                )


def _check_ablation(study: Mapping[str, Any], source: str) -> None:
    own = study["ablation"]
    if study["train"]["arm"] in own["arms"]:
        raise UserError(
            f"{source}, ablation.arms: {study['train']['arm']!r} is the study's own arm (train.arm); "
            "give another name"
        )
    if reference_arm(study) not in arms(study):
        raise one_of(f"arm in {source}, ablation.reference:", own["reference"], arms(study))
    for name in own["beside"]:
        if name not in own["arms"]:
            raise one_of(f"arm in {source}, ablation.beside:", name, own["arms"])
    for key in ("tasks", "lengths"):
        _check_part(study, "ablation", key, own[key], source)


def _check_part(
    study: Mapping[str, Any], section: str, key: str, names: Sequence[Any] | None, source: str
) -> None:
    """Whether `names` of a section's `tasks` or `lengths` are among the study's."""
    known = list(dict.fromkeys(getattr(c, key[:-1]) for c in cells(study)))
    for name in names or []:
        if name not in known:
            raise one_of(f"{key[:-1]} in {source}, {section}.{key}:", name, known)


def _check_training(train: Mapping[str, Any], place: str) -> None:
    if (train["mixture"] is None) == (train["sources"] is None):
        given = "neither" if train["mixture"] is None else "both"
        raise UserError(f"{place}: {given} of mixture and sources given; give one of them")
    if train["mixture"] is not None:
        for key in ("samples", "lengths"):
            if train[key] is None:
                raise UserError(f"{place}: the key {key!r} is missing, which a mixture needs")
        for kind in train["mixture"]:
            if kind not in KINDS:
                raise one_of(f"kind of training prompt in {place}.mixture:", kind, KINDS)
    else:
        for item in train["sources"]:
            if item["schema"] not in PROMPT_SCHEMAS:
                raise one_of(f"schema in {place}.sources:", item["schema"], PROMPT_SCHEMAS)
        if train["answers"] == "given":
            raise UserError(f"{place}.answers: given, but {NOT_GIVEN}; allowed: model, or a mixture")
    samples = train["samples"] or sum(item["count"] for item in train["sources"])
    if samples - train["held_out"] < train["batch"]:
        raise UserError(
            f"{place}.samples: {samples} less {train['held_out']} held out do not fill a "
            f"batch of {train['batch']}; allowed: {train['held_out'] + train['batch']} or more"
        )
    if train["warmup_steps"] > train["steps"]:
        raise UserError(
            f"{place}.warmup_steps: {train['warmup_steps']} is more than the {train['steps']} steps; "
            "allowed: 0 to the steps"
        )


def _check_benchmarks(study: Mapping[str, Any], root: Path, source: str) -> None:
    known: dict[str, Mapping[str, object]] = {
        "ruler": ruler.TASKS,
        "longbench": longbench.TASKS,
        "longproc": longproc.TASKS,
    }
    if any(study.get(benchmark) for benchmark in (*known, MTBENCH)):
        for key in ("methods", "budgets"):
            if not study[key]:
                raise UserError(f"{source}: the key {key!r} is missing or empty, which a benchmark needs")
    for benchmark, allowed in known.items():
        for task in tasks(study, benchmark):
            if task not in allowed:
                raise one_of(f"{benchmark} task in {source}, {benchmark}.tasks:", task, allowed)
    made = study.get("ruler")
    for task in tasks(study, "ruler") if made and made["ready"] is None else []:
        for key in ruler_sources(task):
            file = made[key]  # type: ignore[index]
            if file is None:
                raise UserError(
                    f"{source}, ruler.{key}: the task {task} reads a text of yours; name it, or drop the task"
                )
            if local(file) and not (root / local(file)).is_file():
                raise UserError(f"{source}, ruler.{key}: no such file: {file}; correct the path")


def check_files(config: Mapping[str, Any], rules: Iterable[str], source: str = "config") -> None:
    """Refuses what a key names and is not there, of the keys that jobs of these rules read."""
    needed = set(rules)
    for rule, place, path in _named_files(config):
        if rule in needed and not (Path(path).exists() or glob(path)):
            raise UserError(f"{source}, {place}: no such file or folder: {path}; correct the path")


def _named_files(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(rule that reads it, config key, path) of the files and folders that a config names."""
    ruler, longproc, mtbench = (config.get(name) or {} for name in ("ruler", "longproc", MTBENCH))
    asked = {
        ("data_ruler", "ruler.ready"): ruler.get("ready"),
        ("data_given", "longbench.source"): (config.get("longbench") or {}).get("source"),
        ("data_given", "longproc.data"): longproc.get("data"),
        ("mtbench", "mtbench.questions"): mtbench.get("questions"),
        ("mtbench", "mtbench.references"): mtbench.get("references"),
        ("judge", "mtbench.judge.prompts"): (mtbench.get("judge") or {}).get("prompts"),
    }
    for name, arm in arms(config).items():
        for item in arm["sources"] or []:
            data = item["data"] if isinstance(item["data"], list) else [item["data"]]
            for at, one in enumerate(data):
                asked["data_train", f"sources of the arm {name}, {item['name']}, data[{at}]"] = one
    for (rule, place), given in asked.items():
        kind, _, rest = (given or "hub:").partition(":")
        path = rest if kind in ("folder", "zip", "file") else given or ""
        if kind != "hub":
            yield rule, place, os.path.expanduser(path)


def model_spec(name: str, root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The checked content of config/models/NAME.yaml."""
    checked(f"{source}, models:", name, WORD, "letters, digits, '.', '_', '+', '-', no other at the front")
    path = Path(SPEC.format(model=name))
    if not (found := at(path, root)).is_file():
        known = {spec.stem for base in (root, SHIPPED) for spec in (base / path.parent).glob("*.yaml")}
        raise one_of(f"model in {source}, models:", name, sorted(known), f"a new one is a file {path}")
    return read_spec(found, str(path))


def spec_file(name: str) -> str:
    """A model's file, of the working directory or as it ships."""
    return str(at(SPEC.format(model=name)))


def at(path: str | Path, root: Path = Path()) -> Path:
    """Where a file lies that may ship with the project: under `root` (the working directory), or beside the
    Snakefile."""
    mine, shipped = root / path, SHIPPED / path
    return shipped if shipped.exists() and not mine.exists() else mine


def read_spec(path: Path, source: str = "") -> dict[str, Any]:
    """The checked content of a model spec, whose name is its file's; errors start with `source`."""
    source = source or str(path)
    if not path.is_file():
        raise UserError(f"no such model spec: {path}; one is a file like config/models/NAME.yaml")
    spec = check(read_yaml(path, source), SCHEMAS / "model.schema.yaml", source)
    if spec["name"] != path.stem:
        allowed = f"allowed: {path.stem}"
        raise UserError(f"{source}, name: {spec['name']!r} differs from the file's name; {allowed}")
    return spec


@cache
def _schema(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def check(value: Any, schema_file: Path, source: str) -> dict[str, Any]:
    """`value` with the schema's defaults, or a UserError: the first wrong key, its value, what is allowed."""
    schema = _schema(schema_file)
    filled = _with_defaults(value, schema)
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend
    except ModuleNotFoundError:  # a machine that only runs verbs: the workflow's has checked the file
        _check_texts(filled, source)
        return dict(filled)
    # In one place an unknown key comes before a missing one (the schemas' order): often it is that, misspelt.
    errors = sorted(
        extend(Draft202012Validator, type_checker=_types(Draft202012Validator))(schema).iter_errors(filled),
        key=lambda error: [str(part) for part in error.absolute_path],
    )
    if errors:
        raise _explained(errors[0], source)
    _check_texts(filled, source)
    return dict(filled)


def _types(validator: Any) -> Any:
    """JSON Schema's types, but 3.0 is no integer, and a number is finite and of no more than 18 digits."""
    number = validator.TYPE_CHECKER.is_type

    def integer(_: Any, value: Any) -> bool:
        return isinstance(value, int) and number(value, "integer") and abs(value) < MOST

    def finite(_: Any, value: Any) -> bool:
        return number(value, "number") and -MOST < value < MOST

    return validator.TYPE_CHECKER.redefine_many({"integer": integer, "number": finite})


def _check_texts(value: Any, source: str, place: str = "") -> None:
    """No text, nor any key, holds a control character, half a character, '<' or a brace, or begins as an
    option does: texts become words of command lines, names of rules' files and parts of pages.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_texts(str(key), source, place)
            _check_texts(part, source, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for at, part in enumerate(value):
            _check_texts(part, source, f"{place}[{at}]")
    elif isinstance(value, str) and (found := re.search(f"^-|{UNFIT}", value)):
        where = f"{source}, {place}" if place else source
        given, what = json.dumps(value), json.dumps(found[0])
        if what == '"-"':
            raise UserError(f"{where}: {given} would be read as an option; a path may begin with ./")
        way_out = "leave it out" if found[0] in "<{}" else "write it on one line"
        raise UserError(f"{where}: {given} is not allowed, as it holds {what}; {way_out}")


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """Schema defaults for absent keys, objects within objects too; keys in the schema's order."""
    if not isinstance(value, Mapping) or "properties" not in schema:
        return copy.deepcopy(value)
    filled = {}
    for key, part in schema["properties"].items():
        if key in value or "default" in part:
            filled[key] = _with_defaults(value.get(key, part.get("default")), part)
    return filled | {key: value[key] for key in value if key not in filled}


def _explained(error: Any, source: str) -> UserError:
    """One line from a jsonschema error."""
    place = f"{source}, {_dotted(error.absolute_path)}" if error.absolute_path else source
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]
            return one_of(f"key in {place}:", next(key for key in error.instance if key not in known), known)
        case "required":
            key = next(key for key in error.validator_value if key not in error.instance)
            meaning = error.schema.get("properties", {}).get(key, {}).get("description", "")
            return UserError(f"{place}: the key {key!r} is missing; it holds: {meaning}")
        case "enum":
            return one_of(f"value in {place}:", error.instance, error.validator_value)
    given = json.dumps(error.instance, ensure_ascii=False, default=str)
    return UserError(
        f"{place}: {given} is not allowed; allowed: {error.schema.get('description', error.message)}"
    )


def _dotted(keys: Sequence[str | int]) -> str:
    """train.lengths[0] for the path train, lengths, 0."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")
