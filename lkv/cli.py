"""`lkv VERB`: one verb a stage, what one Snakemake rule calls. Verbs import what they need when they run."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lkv.errors import UserError, one_of
from lkv.registry import FULL, METHODS
from lkv.study import VERSIONS, read_spec

if TYPE_CHECKING:
    from lkv.interface import Method
    from lkv.models import Loaded

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def model(args: Arguments) -> None:
    """bring a model to a local folder, once"""
    from lkv.models import obtain

    spec = read_spec(args.spec)
    obtain(spec, args.out)
    log.info("model %s from %s in %s", spec["name"], spec["source"]["kind"], args.out)


def data_train(args: Arguments) -> None:
    """training prompts with the model's own answers"""
    from lkv.data.frozen import freeze
    from lkv.data.prompts import build
    from lkv.responses import respond

    loaded = _load(args)
    mixture = dict(_weight(item) for item in args.mixture)
    prompts = list(build(loaded.tokenizer, args.samples, args.lengths, mixture, args.seed))
    answered = sorted(respond(loaded, prompts, args.response_tokens, args.batch), key=lambda p: p["id"])
    freeze(
        args.out, answered, seed=args.seed, mixture=mixture, model=loaded.name, fingerprint=loaded.fingerprint
    )
    log.info("%d prompts of %s tokens in %s", len(answered), args.lengths, args.out)


def data_ruler(args: Arguments) -> None:
    """one RULER task at one length, frozen with its hash"""
    from lkv.bench import ruler
    from lkv.data.frozen import freeze
    from lkv.models import load_tokenizer

    tokenizer = load_tokenizer(args.model)
    records = ruler.build(
        args.task,
        args.length,
        args.samples,
        args.seed,
        tokenizer,
        haystack=args.haystack,
        squad=args.squad,
        hotpotqa=args.hotpotqa,
        max_new_tokens=args.max_new_tokens,
    )
    freeze(args.out, records, seed=args.seed, task=args.task, length=args.length, tokenizer=args.model.name)
    log.info("%s@%d: %d samples in %s", args.task, args.length, args.samples, args.out)


def train(args: Arguments) -> None:
    """train the lookahead tokens and their LoRA"""
    from lkv.data.frozen import load
    from lkv.device import describe
    from lkv.provenance import commit, package_versions
    from lkv.records import require, sha256_file
    from lkv.train import Schedule, train

    loaded = _load(args)
    needed = ("id", "kind", "length", "ids", "response")
    prompts = [require(prompt, needed, args.data, "lkv data train") for prompt in load(args.data)]
    schedule = Schedule(
        args.steps, args.batch, args.learning_rate, args.warmup_steps, args.held_out, args.seed
    )
    kinds = sorted({prompt["kind"] for prompt in prompts})
    lengths = sorted({prompt["length"] for prompt in prompts})
    provenance = {
        "trained_on": f"{len(prompts) - args.held_out} self-answered offline prompts ({', '.join(kinds)}) of "
        f"{lengths[0]} to {lengths[-1]} tokens",
        "data_sha256": sha256_file(args.data),
        "model_fingerprint": loaded.fingerprint,
        "dtype": loaded.dtype,
        "device": describe(loaded.model.device)[0],
        "commit": commit(),
        "packages": package_versions(),
    }
    keep = int(args.keep_gib * 2**30)
    adapter = train(
        loaded, prompts, schedule, args.arm, args.out, args.csv, provenance, keep, version=VERSIONS["train"]
    )
    card = adapter.card
    log.info("held-out KL %s -> %s in %s", card["held_out_kl_before"], card["held_out_kl_after"], args.out)


def evaluate(args: Arguments) -> None:
    """one task under all methods and budgets"""
    from lkv.data.frozen import load
    from lkv.evaluate import RECORD, evaluate
    from lkv.records import require

    loaded = _load(args)
    methods = [method for method in _methods(args, loaded) if method is not None]
    labels = {"study": args.study, "protocol": args.protocol}
    notice = evaluate(
        loaded,
        [require(record, RECORD, args.data, "lkv data ruler") for record in load(args.data)],
        methods,
        args.budgets,
        labels,
        args.seed,
        args.journal,
        args.out,
        VERSIONS["evaluate"],
    )
    if notice:
        log.warning(notice)
        print(f"lkv: {notice}", file=sys.stderr)
    log.info("%d methods x %d budgets in %s", len(methods), len(args.budgets), args.out)


def latency(args: Arguments) -> None:
    """what each method adds to a plain prefill"""
    from lkv.latency import filler, latency
    from lkv.records import LATENCY_COLUMNS, write_csv

    loaded = _load(args)
    prompts = {length: filler(loaded.tokenizer, length) for length in args.lengths}
    rows = latency(
        loaded, prompts, _methods(args, loaded), args.budgets, args.repeats, args.warmups, args.study
    )
    write_csv(args.out, rows, LATENCY_COLUMNS)
    log.info("%d rows in %s", len(rows), args.out)


def summarise(args: Arguments) -> None:
    """sample rows to accuracy.csv and paired.csv"""
    from lkv.summarise import write_summary

    write_summary(args.samples, args.out, args.paired, args.seed)


def gather(args: Arguments) -> None:
    """join the parts that single models wrote"""
    import pandas as pd

    from lkv.records import LATENCY_COLUMNS, TRAINING_COLUMNS, read_csv, write_csv

    columns = {"training": TRAINING_COLUMNS, "latency": LATENCY_COLUMNS}[args.kind]
    write_csv(args.out, pd.concat([read_csv(part, columns) for part in args.parts]), columns)


def provenance(args: Arguments) -> None:
    """what a study's figures rest on: code, data, models, device"""
    from lkv.provenance import write_provenance

    write_provenance(args.config, args.models, args.data, args.adapters, args.out, args.device, args.dtype)


def table(args: Arguments) -> None:
    """method x budget as PDF, CSV, Markdown and LaTeX"""
    from lkv.report.table import write_table

    write_table(args.results, args.out)


def plot(args: Arguments) -> None:
    """a figure as PDF, SVG and PNG"""
    from lkv.report.plots import plot

    plot(args.kind, args.results, args.out)


def generate(args: Arguments) -> None:
    """answer a prompt from an evicted cache"""
    import torch

    from lkv.chat import chat_ids
    from lkv.generate import generate

    loaded = _load(args)
    ids = torch.tensor([chat_ids(loaded.tokenizer, _text(args.prompt_file))])
    args.methods = [args.method]
    [method] = _methods(args, loaded)
    done = generate(loaded.model, ids, method, args.budget, args.max_new_tokens)
    print(loaded.tokenizer.decode(done.tokens, skip_special_tokens=True))
    print(
        f"\n{args.method}: kept {done.kept:.0f} of {done.prompt_tokens} tokens a layer and KV head; "
        f"cache {done.cache_bytes / 2**20:.1f} MiB of {done.full_cache_bytes / 2**20:.1f} MiB; "
        f"TTFT {done.ttft_s:.3f} s; {done.tokens_per_s:.1f} tokens/s; "
        f"{loaded.backend}, {loaded.dtype}, {loaded.model.device}",
        file=sys.stderr,
    )


def _load(args: Arguments) -> Loaded:
    from lkv import device
    from lkv.models import load

    loaded = load(args.model, device.pick(args.device), args.dtype)
    facts = f"{loaded.name} on {loaded.model.device}, {loaded.dtype}, attention {loaded.backend}"
    log.info(facts)
    if args.verb != "generate":  # whose standard output is the answer alone
        print(facts)
    return loaded


def _methods(args: Arguments, loaded: Loaded) -> list[Method | None]:
    from lkv.lookahead import RECIPE, LookaheadKV
    from lkv.registry import get

    adapter = LookaheadKV.from_pretrained(args.adapter, loaded.model) if args.adapter else None
    if args.kernel % 2 == 0:
        raise UserError(f"a pooling kernel of {args.kernel} has no middle; give an odd number")
    pool = None if args.pool == "none" else args.pool
    recipe = replace(RECIPE, pool=pool, kernel=args.kernel, order=args.order)
    return [None if name == FULL else get(name, adapter, recipe) for name in args.methods]


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such prompt file: {path}; give a text file in UTF-8")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


def _weight(item: str) -> tuple[str, float]:
    kind, _, weight = item.partition("=")
    try:
        return kind, float(weight or 1)
    except ValueError:
        raise UserError(f"mixture item {item!r} is not KIND=WEIGHT; for example table=2") from None


def _method_name(name: str) -> str:
    if name != FULL and name not in METHODS:
        raise one_of("method", name, [FULL, *METHODS])
    return name


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all of ours."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The command line; each verb's help ends with an example."""
    top = Parser(
        prog="lkv",
        description="Train, run and compare LookaheadKV and other KV cache eviction methods.",
        epilog="example: lkv generate --help; in a study every verb is called by snakemake --cores 8 all",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        run: Callable[[Arguments], None],
        name: str,
        example: str,
        under: argparse._SubParsersAction[Parser] = verbs,
    ) -> Parser:
        made = under.add_parser(
            name,
            help=run.__doc__,
            description=run.__doc__,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--log", type=Path, help="append one-line records to this file")
        made.set_defaults(run=run)
        return made

    def runs_model(made: argparse.ArgumentParser, model: bool = True) -> None:
        if model:
            made.add_argument("--model", type=Path, required=True, help="folder made by lkv model")
        made.add_argument("--device", default="auto", help="auto, cpu or cuda")
        made.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")

    def adapts(made: argparse.ArgumentParser) -> None:
        made.add_argument("--adapter", type=Path, help="folder made by lkv train")
        made.add_argument(
            "--pool", choices=["max", "avg", "none"], default="max", help="LookaheadKV's pooling"
        )
        made.add_argument("--kernel", type=_positive, default=7, help="entries pooled")
        made.add_argument("--order", choices=["group_pool", "pool_group"], default="group_pool")

    def compares(made: argparse.ArgumentParser) -> None:
        adapts(made)
        made.add_argument(
            "--methods", nargs="+", type=_method_name, required=True, help=", ".join([FULL, *METHODS])
        )
        made.add_argument("--budgets", nargs="+", type=_positive, required=True, help="entries kept")
        made.add_argument("--study", required=True)

    p = verb(
        model,
        "model",
        "lkv model --spec config/models/smollm2-135m-instruct.yaml --out models/smollm2-135m-instruct",
    )
    p.add_argument("--spec", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    data = verbs.add_parser("data", help="build training prompts or benchmark data")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    p = verb(
        data_train,
        "train",
        "lkv data train --model models/M --samples 128 --lengths 256 512 --mixture table=1 code=1 "
        "--out train.jsonl",
        kinds,
    )
    runs_model(p)
    p.add_argument("--samples", type=_positive, required=True)
    p.add_argument("--lengths", nargs="+", type=_positive, required=True, help="prompt tokens, in turn")
    p.add_argument("--response-tokens", type=_positive, default=32)
    p.add_argument("--mixture", nargs="+", required=True, help="KIND=WEIGHT")
    p.add_argument("--batch", type=_positive, default=16, help="prompts answered at once")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        data_ruler,
        "ruler",
        "lkv data ruler --model models/M --task niah_single_1 --length 1024 --samples 6 --out niah.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer sizes the prompts")
    p.add_argument("--task", required=True)
    p.add_argument("--length", type=_positive, required=True, help="tokens, generated ones included")
    p.add_argument("--samples", type=_positive, required=True)
    p.add_argument("--max-new-tokens", type=_positive, help="cap below the task's official number")
    p.add_argument("--haystack", default="pydoc", help="pydoc, or an essays file")
    p.add_argument("--squad", help="SQuAD 2.0 JSON, for qa_1")
    p.add_argument("--hotpotqa", help="HotpotQA JSON, for qa_2")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        train,
        "train",
        "lkv train --model models/M --data train.jsonl --steps 100 --out adapter --csv training.csv",
    )
    runs_model(p)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--arm", default="main")
    p.add_argument("--steps", type=_positive, required=True)
    p.add_argument("--batch", type=_positive, default=8)
    p.add_argument("--learning-rate", type=_rate, default=1e-3)
    p.add_argument("--warmup-steps", type=_count, default=8)
    p.add_argument("--held-out", type=_count, default=8, help="prompts kept for the held-out KL")
    p.add_argument("--keep-gib", type=_rate, default=2.0, help="prefilled prompts held between epochs")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--csv", type=Path, required=True)

    p = verb(
        evaluate,
        "evaluate",
        "lkv evaluate --model models/M --data niah.jsonl --adapter adapter --methods full snapkv "
        "lookaheadkv --budgets 64 128 --study mine --protocol official --journal j.jsonl --out "
        "niah.csv",
    )
    runs_model(p)
    compares(p)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--protocol", required=True, help="the name that every row carries")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--journal", type=Path, required=True, help="finished cells; makes a second run resume")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        latency,
        "latency",
        "lkv latency --model models/M --adapter adapter --methods full snapkv lookaheadkv "
        "--budgets 128 --lengths 512 1024 --study mine --out latency.csv",
    )
    runs_model(p)
    compares(p)
    p.add_argument("--lengths", nargs="+", type=_positive, required=True)
    p.add_argument("--repeats", type=_positive, default=10)
    p.add_argument("--warmups", type=_count, default=2)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        summarise,
        "summarise",
        "lkv summarise --samples a.csv b.csv --out accuracy.csv --paired paired.csv",
    )
    p.add_argument("--samples", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--paired", type=Path, required=True)
    p.add_argument("--seed", type=int, default=0)

    p = verb(
        gather,
        "gather",
        "lkv gather --kind latency --parts a.csv b.csv --out latency.csv",
    )
    p.add_argument("--kind", choices=["training", "latency"], required=True)
    p.add_argument("--parts", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        provenance,
        "provenance",
        "lkv provenance --config config/demo.yaml --models models/M --out provenance.json",
    )
    runs_model(p, model=False)
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--models", nargs="*", type=Path, default=[])
    p.add_argument("--data", nargs="*", type=Path, default=[])
    p.add_argument("--adapters", nargs="*", type=Path, default=[])
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        table,
        "table",
        "lkv table --results results/demo --out reports/table1",
    )
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="path without suffix")

    p = verb(
        plot,
        "plot",
        "lkv plot latency --results results/demo --out reports/latency",
    )
    p.add_argument("kind", choices=["latency", "pareto", "training", "accuracy"])
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="path without suffix")

    p = verb(
        generate,
        "generate",
        "lkv generate --model models/M --adapter adapter --budget 128 --prompt-file long.txt",
    )
    runs_model(p)
    adapts(p)
    p.add_argument("--method", default="lookaheadkv", type=_method_name)
    p.add_argument("--budget", type=_positive, required=True)
    p.add_argument("--prompt-file", type=Path, required=True)
    p.add_argument("--max-new-tokens", type=_positive, default=128)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit code 0, or 2 with one clear line for what the user can mend."""
    _quiet(None)
    try:
        args = parser().parse_args(argv)
        _quiet(args.log)
        args.run(args)
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename2 or error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _fail(f"cannot write {place}: {error.strerror}; free some space")
        return _fail(f"{place}: {error.strerror}; correct the path, or its permissions")
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail(
            "CUDA ran out of memory; use a shorter length, a smaller batch or model, or --device cpu"
        )
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on from what is finished", code=130)
    return 0


def _fail(message: str, code: int = 2) -> int:
    log.error(message)
    print(f"lkv: error: {message}", file=sys.stderr)
    return code


def _quiet(path: Path | None) -> None:
    """One-line log records into `path`; other libraries' notices stay out of the terminal."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a bar in a file is a line each time
    logging.raiseExceptions = False  # a log on a full disk must not print tracebacks over the error
    log.setLevel(logging.INFO)
    log.propagate = False
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    log.handlers[:] = [handler]


if __name__ == "__main__":
    sys.exit(main())
