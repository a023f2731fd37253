"""What reads results: lkv summarise, ablation, gather, provenance, table, plot, claims and plan"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


Arguments = argparse.Namespace


def summarise(args: Arguments) -> None:
    """sample rows to accuracy.csv and paired.csv"""
    from lkv.results.summarise import write_summary

    write_summary(args.samples, args.out, args.paired, args.seed)


def ablation(args: Arguments) -> None:
    """sample rows of LookaheadKV's arms to ablation.csv"""
    from lkv.results.summarise import write_ablation

    write_ablation(args.samples, args.out, args.arm, args.seed)


def gather(args: Arguments) -> None:
    """join the parts that single models wrote"""
    import pandas as pd

    from lkv.results.columns import KEPT_COLUMNS, LATENCY_COLUMNS, RECALL_COLUMNS, TRAINING_COLUMNS
    from lkv.results.csv_files import read_csv, write_csv

    columns = {
        "training": TRAINING_COLUMNS,
        "latency": LATENCY_COLUMNS,
        "recall": RECALL_COLUMNS,
        "kept": KEPT_COLUMNS,
    }[args.kind]
    write_csv(args.out, pd.concat([read_csv(part, columns) for part in args.parts]), columns)


def provenance(args: Arguments) -> None:
    """what a study's figures rest on: code, data, models, device"""
    from lkv.study.provenance import write_provenance

    write_provenance(args.config, args.models, args.data, args.adapters, args.out, args.device, args.dtype)


def table(args: Arguments) -> None:
    """method x budget as PDF, CSV, Markdown and LaTeX; every cell as HTML"""
    from lkv.report.table import write_table

    write_table(args.results, args.out)


def plot(args: Arguments) -> None:
    """a figure as PDF, SVG and PNG"""
    from lkv.report.plots import plot

    plot(args.kind, args.results, args.out, args.model)


def claims(args: Arguments) -> None:
    """the paper's claims, each with its verdict"""
    from lkv.report.claims import write_claims

    write_claims(args.results, args.latency, args.also, args.out)


def plan(args: Arguments) -> None:
    """what a study will cost: jobs, prompts, tokens, GPU-hours, disk"""
    from lkv.study.check import read_config
    from lkv.study.plan import lines

    print("\n".join(lines(read_config(args.config))))
