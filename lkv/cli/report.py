"""`lkv table`, `plot` and `claims`"""

from __future__ import annotations

import argparse
from pathlib import Path

from lkv.cli import flags
from lkv.cli.command import Command
from lkv.report.kinds import PLOTS

Arguments = argparse.Namespace


def table(args: Arguments) -> None:
    """render the scores by method and budget as PDF, CSV, Markdown, LaTeX and HTML"""
    from lkv.report.table import write_table

    write_table(args.results, args.out)


def plot(args: Arguments) -> None:
    """draw a figure as PDF, SVG and PNG"""
    from lkv.report.plots import plot

    plot(args.kind, args.results, args.out, args.only_model)


def claims(args: Arguments) -> None:
    """judge each of the paper's claims by a study's results"""
    from lkv.report.claims import write_claims

    write_claims(args.results, args.latency, args.also, args.out)


def table_flags(parser: argparse.ArgumentParser) -> None:
    _results_flag(parser)
    flags.out(parser, "files, named without suffix,", "STEM")


def plot_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=list(PLOTS), help="which figure; lkv ls plots explains them")
    _results_flag(parser)
    parser.add_argument(
        "--only-model", metavar="NAME", help="of this model alone (default: of all of the study)"
    )
    flags.out(parser, "files, named without suffix,", "STEM")


def claims_flags(parser: argparse.ArgumentParser) -> None:
    _results_flag(parser)
    parser.add_argument(
        "--latency",
        type=Path,
        metavar="FOLDER",
        help="results whose latency.csv is read (default: --results)",
    )
    parser.add_argument(
        "--also",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="results of further studies whose scores are read too (default: none)",
    )
    flags.out(parser, "Markdown file")


def _results_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, required=True, metavar="FOLDER", help="results/NAME: the results of a study"
    )


COMMANDS = [
    Command("table", table, table_flags, "--results results/smollm2-h100 --out reports/mine/table1"),
    Command("plot", plot, plot_flags, "latency --results results/latency-h100 --out reports/mine/latency"),
    Command(
        "claims",
        claims,
        claims_flags,
        "--results results/smollm2-h100 --latency results/latency-h100 --out reports/mine/claims.md",
    ),
]
