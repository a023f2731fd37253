"""Steps that the workflow calls: `lkv summarise`, `ablation`, `arms`, `gather` and `provenance`"""

from __future__ import annotations

import argparse
from pathlib import Path

from lkv.cli import flags
from lkv.cli.command import Command
from lkv.cli.outputs import GATHERED
from lkv.study.settings.training import Train

Arguments = argparse.Namespace


def summarise(args: Arguments) -> None:
    """sum up scored samples as accuracy.csv and paired.csv"""
    from lkv.results.summarise import write_summary

    write_summary(args.parts, args.out, args.paired, args.seed)


def ablation(args: Arguments) -> None:
    """sum up scored samples of LookaheadKV's arms as ablation.csv"""
    from lkv.results.summarise import write_ablation

    write_ablation(args.parts, args.out, args.arm, args.seed)


# What is read of an adapter's card, and of which kind.
CARD_KINDS = {
    "base_model": "object", "arm": "name", "tokens": "some", "lora": "name", "loss": "name",
    "parameters": "count", "steps": "count", "samples": "count", "held_out_kl_before": "number or null",
    "held_out_kl_after": "number or null", "held_out_recall": "number or null", "trained_on": "text",
}  # fmt: skip


def arms(args: Arguments) -> None:
    """list what each arm was trained on and how well it predicts, from the modules' cards"""
    from lkv.files.json_files import read_json
    from lkv.files.reading import require
    from lkv.results.columns import ARMS_COLUMNS
    from lkv.results.csv_files import write_csv

    rows = []
    for path in args.cards:
        card = require(read_json(path), CARD_KINDS, path, "lkv train")
        base = require(card["base_model"], {"name": "name"}, f"{path}, base_model", "lkv train")
        rows.append(card | {"model": base["name"]})
    write_csv(args.out, rows, ARMS_COLUMNS)


def gather(args: Arguments) -> None:
    """join the CSV files of single models"""
    import pandas as pd

    from lkv.results.csv_files import read_csv, write_csv

    columns = GATHERED[args.kind]
    write_csv(args.out, pd.concat([read_csv(part, columns) for part in args.parts]), columns)


def provenance(args: Arguments) -> None:
    """record what a study's results rest on: code, data, models, device"""
    from lkv.study.provenance import write_provenance

    write_provenance(args.config, args.models, args.data, args.adapters, args.out, args.device, args.dtype)


def summarise_flags(parser: argparse.ArgumentParser) -> None:
    _parts_flag(parser, "CSV files made by lkv evaluate")
    flags.seed(parser)
    flags.out(parser, "CSV of mean scores")
    parser.add_argument(
        "--paired",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV of differences between methods to write",
    )


def ablation_flags(parser: argparse.ArgumentParser) -> None:
    _parts_flag(parser, "CSV files made by lkv evaluate --arms")
    flags.setting(parser, Train, "arm", help="the arm that the others are compared with")
    flags.seed(parser)
    flags.out(parser, "CSV of scores and differences")


def arms_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cards",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="lookahead.json in the folders made by lkv train",
    )
    flags.out(parser, "CSV with a row per arm")


def gather_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=list(GATHERED), help="what the files hold")
    _parts_flag(parser, "CSV files of this kind, one per model")
    flags.out(parser, "CSV")


def provenance_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="results/NAME/config.yaml: the config in use",
    )
    for flag, what in (
        ("models", "folders made by lkv model"),
        ("data", "files made by lkv data"),
        ("adapters", "folders made by lkv train"),
    ):
        metavar = "FILE" if flag == "data" else "FOLDER"
        parser.add_argument(
            f"--{flag}", nargs="*", type=Path, default=[], metavar=metavar, help=f"{what} (default: none)"
        )
    flags.runs(parser)
    flags.out(parser, "JSON")


def _parts_flag(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--parts", nargs="+", type=Path, required=True, metavar="FILE", help=what)


MODEL = "smollm2-135m-instruct"
SAMPLES = f"results/demo/samples/{MODEL}"
COMMANDS = [
    Command(
        "summarise",
        summarise,
        summarise_flags,
        f"--parts {SAMPLES}/niah_single_1@1024.csv {SAMPLES}/niah_single_2@1024.csv "
        "--out results/mine/accuracy.csv --paired results/mine/paired.csv",
    ),
    Command(
        "ablation",
        ablation,
        ablation_flags,
        f"--parts results/arms-cpu/ablation/{MODEL}/niah_single_1@1024.csv.gz --out "
        "results/mine/ablation.csv",
    ),
    Command(
        "arms",
        arms,
        arms_flags,
        f"--cards results/demo/adapters/{MODEL}/main/lookahead.json --out results/mine/arms.csv",
    ),
    Command(
        "gather",
        gather,
        gather_flags,
        f"latency --parts results/demo/latency/{MODEL}.csv --out results/mine/all_latency.csv",
    ),
    Command(
        "provenance",
        provenance,
        provenance_flags,
        f"--config results/demo/config.yaml --models models/{MODEL} --out results/mine/provenance.json",
    ),
]
