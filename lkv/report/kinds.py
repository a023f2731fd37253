"""The kinds of plots, and which result files each reads."""

from __future__ import annotations

from lkv.files.strict_yaml import dump_yaml as dump_yaml

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
