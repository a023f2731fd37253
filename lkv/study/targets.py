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

WITH_ARMS = ("averages", "accuracy")  # plots that may show arms next to the methods
INSPECTED = ("recall", "kept")  # plots of a study whose config says `inspect`
REPORTS = {"table1": ("pdf", "csv", "md", "tex", "html")} | dict.fromkeys(PLOTS, ("pdf", "svg", "png"))


class Title(NamedTuple):
    """The title of a report in report.html, and the category that lists it."""

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
    """The files that `snakemake all` makes: reports, provenance, MT-Bench's answers (without a judge too)."""
    answers = [paths(config).answers.format(model=model) for model in config["models"]]
    made = [*study_reports(config), paths(config).provenance, *(answers if config.get(MTBENCH) else [])]
    if config["ablation"]:
        made.append(paths(config).arms)
    return made + ([paths(config).ablation] if ablation_files(config) else [])


def study_reports(config: Mapping[str, Any]) -> list[str]:
    """Every report that the study has results for."""
    kinds = list(REPORTS) if sample_files(config) else ["latency"]
    left_out = {"ablation"} if not ablation_files(config) else set()
    left_out |= set(INSPECTED) if not inspect_files(config, "kept") else set()
    left_out |= {"training"} if not trained(config) else set()
    return _report_files(kind for kind in kinds if kind not in left_out)


def published_reports(published: str, root: Path = Path()) -> list[str]:
    """Every report that a published study has files for."""
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


def report_options(kind: str = "") -> dict[str, Any]:
    """Arguments of Snakemake's `report` for reports of one kind, or of the wildcard's kind."""

    def of(wildcards: Any) -> Title:
        return title(kind or wildcards.kind)

    return {
        "caption": f"../report/{kind or 'plot'}.rst",
        "category": lambda wildcards: of(wildcards).category,
        "labels": lambda wildcards: {"figure": of(wildcards).text},
    }


def published(configured: str, root: Path = Path()) -> list[str]:
    """Studies other than the configured one with results here; folders with unusual names are skipped."""
    names = words(path.parent.name for path in root.glob("results/*/provenance.json"))
    return [name for name in names if name != configured]


def plot_inputs(kind: str, study: str, config: Mapping[str, Any] | None = None) -> list[str]:
    """The result files that a plot reads, of the configured study (`config`) or of a published one."""
    files = [str(stored(PATHS[key].format(study=study))) for key in PLOTS[kind]]
    return files + (arms_in_tables(study, config) if kind in WITH_ARMS else [])


def arms_in_tables(study: str, config: Mapping[str, Any] | None = None, root: Path = Path()) -> list[str]:
    """ablation.csv, if `ablation.beside` shows any arm in tables and plots."""
    name = PATHS["ablation"].format(study=study)
    there = (config["ablation"] or {}).get("beside") if config else (root / name).is_file()
    return [name] if there else []


def claim_inputs(study: str, configured: str, root: Path = Path()) -> list[str]:
    """The files by which a published study's claims are judged: its own that exist, and its companions'."""
    keys = ("provenance", "accuracy", "paired", "ablation")
    names = [PATHS[key].format(study=study) for key in keys] + [PATHS["latency"].format(study=LATENCY)]
    companions = companion_studies(study, configured, root)
    also = [PATHS[key].format(study=name) for name in companions for key in keys[:3]]
    return [name for name in names if (root / name).is_file()] + also


def companion_studies(study: str, configured: str, root: Path = Path()) -> list[str]:
    """The published studies STUDY-… with scores, which a study's claims read too."""
    named = [name for name in published(configured, root) if name.startswith(f"{study}-")]
    return [name for name in named if (root / PATHS["accuracy"].format(study=name)).is_file()]


def also_flags(study: str, configured: str) -> list[str]:
    """Command-line words for the companion studies of a study."""
    return flags({"also": [f"results/{name}" for name in companion_studies(study, configured)]}, "also")
