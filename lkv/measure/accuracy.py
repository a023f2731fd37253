"""Evaluation: one task at one length, all methods and budgets from one prefill a sample.

Samples go in waves: as many prompts as fit are read, and all their rows are decoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lkv import bench
from lkv.errors import UserError
from lkv.eviction.pipeline import check_budgets
from lkv.interface import Method
from lkv.measure.conditions import Cell, Record, protocol_label
from lkv.measure.reading import answer_wave
from lkv.measure.samples import PendingSample, samples_of, waves_of
from lkv.model.load import Loaded
from lkv.results.columns import SAMPLE_COLUMNS
from lkv.results.csv_files import write_csv
from lkv.results.journal import Journal


def evaluate(
    loaded: Loaded,
    records: Sequence[Record],
    methods: Sequence[Method],
    budgets: Sequence[int],
    study: str,
    seed: int,
    journal_path: str | Path,
    out: str | Path,
    version: int = 1,
    temperatures: Sequence[float] = (0.0,),
) -> str:
    """Runs what the journal lacks, then writes one CSV row a sample × method × budget; returns a notice.

    The full cache always runs: recall and the oracle need its answer. A new `version` makes the journal's
    finished cells stale; scores are taken anew from their predictions. At a temperature of 0 answers are
    greedy; above it they are drawn with the same noise for all methods, and their rows' protocol names it.
    """
    if not records:
        raise UserError("the data file has no records; build it again with lkv data")
    for method in methods:
        check_budgets(method, budgets)
    journal = Journal(journal_path)
    facts = [
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.backend,
        loaded.model.device.type,
        sorted(loaded.stop),
    ]
    rows: list[dict[str, Any]] = []
    named = f"{records[0]['task']}@{records[0]['length']}"

    def finish(sample: PendingSample, cells: dict[Cell, dict[str, Any]]) -> None:
        journal.append([{"key": key, **cells[cell]} for cell, key in sample.missing.items()])
        bar.update(1)

    with tqdm(total=len(records) * len(temperatures), desc=f"evaluate {named}", unit="sample") as bar:
        for temperature in temperatures:
            told = [record | {"protocol": protocol_label(record, temperature)} for record in records]
            for wave in waves_of(loaded, samples_of(loaded, told, methods, budgets, seed, facts), journal):
                todo = [sample for sample in wave if sample.missing]
                bar.update(len(wave) - len(todo))
                if todo:
                    answer_wave(loaded, todo, methods, budgets, temperature, finish)
                for sample in wave:
                    keys = sample.cells.values()
                    rows += [_row(study, loaded.name, sample.record, journal.cells[key]) for key in keys]
    rows.sort(key=lambda row: row["sample"])  # stable: the cells of a sample stay in their order
    write_csv(out, rows, SAMPLE_COLUMNS)
    return journal.notice


def _row(study: str, model: str, record: Record, cell: Record) -> dict[str, Any]:
    named = ("benchmark", "task", "length", "planned", "protocol", "haystack")
    return {
        "study": study,
        "model": model,
        **{name: record[name] for name in named},
        "score": bench.score(record, cell["prediction"]),
        **{name: cell[name] for name in SAMPLE_COLUMNS if name in cell},
    }
