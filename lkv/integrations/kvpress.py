"""The same grid under kvpress 0.5.5, for lkv throughput.

Run `python -m lkv.integrations.kvpress` in kvpress' environment.

Imports nothing of this project: kvpress needs transformers below 5.3. Every cell is a call of kvpress' own
pipeline, as its users run it: prefill, press, greedy decoding, one at a time. A budget becomes the ratio that
keeps as many entries of this prompt; the whole prompt is its context, as in question-aware evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

METHODS = ("streamingllm", "snapkv", "random")  # not PyramidKV, whose layers differ: SDPA gets a mask of one
COLUMNS = (
    "engine", "model", "run", "samples", "cells", "new_tokens", "seconds", "cells_per_s", "methods",
    "budgets", "device", "dtype",
)  # fmt: skip
HEADER = ",".join(COLUMNS).encode()


def press(name: str, ratio: float) -> Any:
    """kvpress' method of our name, with the LookaheadKV paper's settings where it has them."""
    import kvpress

    if name == "streamingllm":
        return kvpress.StreamingLLMPress(ratio, n_sink=4)
    if name == "snapkv":
        return kvpress.SnapKVPress(ratio, window_size=32, kernel_size=7)
    return kvpress.RandomPress(ratio)


def main() -> None:
    import torch
    import transformers
    from kvpress import KVPressTextGenerationPipeline

    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), trust_remote_code=False, use_safetensors=True
    )
    torch.nn.Module.to(model, device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    pipe = KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer, device=device)
    records = read(args.data, args.samples)
    grid = [(None, 0), *((name, budget) for name in METHODS for budget in args.budgets)]
    new_tokens, seconds = timed(partial(answer, pipe, tokenizer), records, grid, device)
    cells = len(records) * len(grid)
    row = {
        "engine": "kvpress",
        "model": Path(args.model).name,
        "run": 1,
        "samples": len(records),
        "cells": cells,
        "new_tokens": new_tokens,
        "seconds": round(seconds, 3),
        "cells_per_s": round(cells / seconds, 4),
        "methods": " ".join(["full", *METHODS]),
        "budgets": " ".join(map(str, args.budgets)),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "dtype": args.dtype,
    }
    write(args.out, row)


def arguments() -> argparse.Namespace:
    """The command line's values. An --out that is there and is no table of this script is refused."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="files of lkv data ruler")
    parser.add_argument("--samples", type=int, required=True, help="of each file, the first so many")
    parser.add_argument("--budgets", nargs="+", type=int, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    table = not args.out.exists() or args.out.read_bytes()[: len(HEADER)] in (b"", HEADER)
    if args.out in args.data or not table:
        parser.error(f"{args.out} is there and is no table of this script; give another --out")
    return args


def read(paths: Sequence[Path], samples: int) -> list[dict[str, Any]]:
    """The first `samples` records of each file."""
    records = []
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            records += [json.loads(line) for _, line in zip(range(samples), lines, strict=False)]
    return records


def answer(pipe: Any, tokenizer: Any, record: dict[str, Any], name: str | None, budget: int) -> int:
    """The number of tokens of one cell's answer; None as `name` is the full cache."""
    given = {"question": "", "answer_prefix": record["answer_prefix"]}
    used = None
    if name is not None:
        made = pipe.preprocess(record["input"], [""], record["answer_prefix"], 1 << 30)
        length = made["context_ids"].shape[1]
        used = press(name, max(0.0, 1 - budget / length))
    said = pipe(record["input"], press=used, max_new_tokens=record["max_new_tokens"], **given)["answer"]
    return len(tokenizer(said, add_special_tokens=False).input_ids)


def timed(
    answered: Callable[[dict[str, Any], str | None, int], int],
    records: list[dict[str, Any]],
    grid: Sequence[tuple[str | None, int]],
    device: str,
) -> tuple[int, float]:
    """(new tokens, seconds) of the whole grid on every record; three cells before it warm the device up."""
    import torch

    for name, budget in grid[:3]:
        answered(records[0], name, budget)
    new_tokens, start = 0, time.perf_counter()
    for number, record in enumerate(records, 1):
        new_tokens += sum(answered(record, name, budget) for name, budget in grid)
        if device == "cuda":
            torch.cuda.synchronize()
        print(
            f"{number}/{len(records)}: {number * len(grid) / (time.perf_counter() - start):.2f} cells/s",
            flush=True,
        )
    return new_tokens, time.perf_counter() - start


def write(out: Path, row: dict[str, Any]) -> None:
    """Writes a table of one row, whole or not at all."""
    half = out.with_name(f".{out.name}.half")
    with half.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    half.replace(out)


if __name__ == "__main__":
    main()
