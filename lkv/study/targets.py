"""What `all` makes: a study's reports, with their titles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lkv.files.names import words
from lkv.report.kinds import PLOTS
from lkv.results.csv_files import stored
from lkv.results.paths import PATHS, paths
from lkv.study.commands import flags
from lkv.study.jobs import MTBENCH, ablation_files, inspect_files, sample_files
from lkv.study.models import trained

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
