"""`lkv VERB`: one verb a stage, what one Snakemake rule calls. Words and errors; lkv.verbs does the work."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lkv import outputs, signals, terminal, verbs
from lkv.errors import Lost, UserError, one_of, out_of_memory, plain, unshown
from lkv.launch import LOST, launch, world
from lkv.protocol import PROTOCOLS
from lkv.reading import parse
from lkv.registry import FULL, METHODS
from lkv.study import PLOTS, RECIPE_CHOICES
from lkv.writing import remove_temporaries

Arguments = argparse.Namespace
WAYS = ("whole", "layerwise")  # lkv.latency's
log = logging.getLogger("lkv")


MOST = 10**7  # of whatever is counted; more is a slip of the finger, and would fill the memory first
FEW = 10**4  # of what has to be there all at once
DIGITS = 19  # enough for every number that is allowed; Python refuses to read thousands
NUMBER = r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]{1,3})?"  # float() also takes digits of other scripts, and nan


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch(rf"[0-9]{{1,{DIGITS}}}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a whole number of {least} or more, {most:,} at most"
        )
    return int(text)


def _count(text: str) -> int:
    return _whole(text, 0, MOST)


def _positive(text: str) -> int:
    return _whole(text, 1, MOST)


def _few(text: str) -> int:
    return _whole(text, 1, FEW)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)  # as in a config


def _number(text: str, most: float) -> float:
    value = float(text) if re.fullmatch(NUMBER, text) else math.nan
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of 0 or more, {most:,} at most")
    return value


def _temperature(text: str) -> float:
    return _number(text, 100)


def _rate(text: str) -> float:
    if not (value := _number(text, FEW)):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value


def _text(text: str) -> str:
    if not text or unshown(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is empty, or holds control characters or no UTF-8")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _weight(item: str) -> tuple[str, float]:
    kind, _, weight = item.partition("=")
    try:
        return kind, _number(weight or "1", MOST)
    except argparse.ArgumentTypeError:
        raise UserError(f"mixture item {item[:80]!r} is not KIND=WEIGHT; for example table=2") from None


def _source(item: str) -> dict[str, Any]:
    wanted = (
        f"source {item[:80]!r} is not a JSON object ({{}}); give "
        '{"name": NAME, "schema": SCHEMA, "data": "hub:OWNER/NAME" or "file:PATH", "count": COUNT}'
    )
    source = parse(item, wanted)
    if not isinstance(source, dict):
        raise UserError(wanted.replace("{}", f"found {type(source).__name__}", 1))
    return source


def _method_name(name: str) -> str:
    if name != FULL and name not in METHODS:
        raise one_of("method", name, [FULL, *METHODS])
    return name


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all of ours; every text and every path is checked."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register("type", None, _text)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The command line; each verb's help ends with an example."""
    top = Parser(
        prog="lkv",
        description="Train, run and compare LookaheadKV and other KV cache eviction methods.",
        epilog="example: lkv generate --help; in a study every verb is called by snakemake --cores 8 all",
    )
    under_top = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    under_top.type = str  # words behind a verb are checked by its own parser, by name

    def verb(
        run: Callable[[Arguments], None],
        name: str,
        example: str,
        under: argparse._SubParsersAction[Parser] = under_top,
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

    def spreads(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--processes", type=_few, default=1, help="that share this work, each on a GPU of its own"
        )

    def adapts(made: argparse.ArgumentParser) -> None:
        made.add_argument("--adapter", type=Path, help="folder made by lkv train, for lookaheadkv")
        made.add_argument("--draft", help="SpecKV's draft model: a folder made by lkv model, or self")
        made.add_argument(
            "--group", choices=RECIPE_CHOICES["group"], default="mean", help="LookaheadKV's, over query heads"
        )
        made.add_argument(
            "--pool", choices=RECIPE_CHOICES["pool"], default="max", help="LookaheadKV's, along the prompt"
        )
        made.add_argument("--kernel", type=_few, default=7, help="entries pooled")
        made.add_argument("--order", choices=RECIPE_CHOICES["order"], default="group_pool")
        made.add_argument(
            "--beside",
            type=_count,
            default=0,
            help="the prompt's last tokens that look as well as LookaheadKV's",
        )

    def compares(made: argparse.ArgumentParser, study: bool = True) -> None:
        adapts(made)
        made.add_argument(
            "--methods", nargs="+", type=_method_name, required=True, help=", ".join([FULL, *METHODS])
        )
        made.add_argument("--budgets", nargs="+", type=_positive, required=True, help="entries kept")
        if study:
            made.add_argument("--study", required=True)

    def follows(made: argparse.ArgumentParser) -> None:
        made.add_argument("--protocol", default="official", help=", ".join(PROTOCOLS))
        made.add_argument(
            "--template", choices=["tasks", "all", "none"], help="which tasks get the chat template"
        )
        made.add_argument("--max-prompt", type=_positive, help="LongBench: cut longer prompts in the middle")
        made.add_argument(
            "--question-blind", action="store_true", help="the question is read after the eviction"
        )

    p = verb(
        verbs.model,
        "model",
        "lkv model --spec config/models/smollm2-135m-instruct.yaml --out models/smollm2-135m-instruct",
    )
    p.add_argument("--spec", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    data = under_top.add_parser("data", help="build training prompts or benchmark data")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    kinds.type = str
    p = verb(
        verbs.data_train,
        "train",
        "lkv data train --model models/M --samples 128 --lengths 256 512 --mixture table=1 code=1 "
        "--out train.jsonl",
        kinds,
    )
    runs_model(p)
    spreads(p)
    p.add_argument("--mixture", nargs="+", type=_weight, help="offline prompts: KIND=WEIGHT")
    p.add_argument("--samples", type=_positive, help="how many offline prompts")
    p.add_argument("--lengths", nargs="+", type=_positive, help="tokens of the offline prompts, in turn")
    p.add_argument(
        "--sources", nargs="+", type=_source, help='data sets: {"name", "schema", "data", "count"} as JSON'
    )
    p.add_argument("--max-tokens", type=_positive, default=16384, help="of a source's prompt at most")
    p.add_argument("--response-tokens", type=_positive, default=32)
    p.add_argument(
        "--answers",
        choices=["model", "given"],
        default="model",
        help="the model's own, or the true ones where an offline prompt has one",
    )
    p.add_argument("--batch", type=_positive, help="prompts answered at once (default: as many as fit)")
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        verbs.data_ruler,
        "ruler",
        "lkv data ruler --model models/M --task niah_single_1 --length 1024 --samples 6 --out niah.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer sizes the prompts")
    p.add_argument("--task", required=True)
    p.add_argument("--length", type=_positive, required=True, help="tokens, generated ones included")
    p.add_argument("--samples", type=_positive, required=True)
    p.add_argument("--max-new-tokens", type=_positive, help="cap below the task's official number")
    p.add_argument("--haystack", default="pydoc", help="pydoc, an essays file, or hub:OWNER/NAME")
    p.add_argument("--squad", help="SQuAD 2.0 JSON, for qa_1")
    p.add_argument("--hotpotqa", help="HotpotQA JSON, for qa_2")
    p.add_argument("--ready", help="ready-made samples, kvpress' or RULER's: folder:PATH or hub:OWNER/NAME")
    follows(p)
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        verbs.data_longbench,
        "longbench",
        "lkv data longbench --model models/M --task qasper --source zip:data.zip --max-prompt 7500 "
        "--out qasper.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer cuts the prompts")
    p.add_argument("--task", required=True)
    p.add_argument("--source", required=True, help="folder:PATH, zip:PATH or hub:OWNER/NAME")
    p.add_argument("--samples", type=_positive, help="the first so many; default: all")
    p.add_argument("--max-new-tokens", type=_positive, help="cap below the task's official number")
    follows(p)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        verbs.data_longproc,
        "longproc",
        "lkv data longproc --model models/M --task html_to_tsv_0.5k --data-folder LongProc/data "
        "--out html.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer counts the tokens")
    p.add_argument("--task", required=True)
    p.add_argument("--data-folder", type=Path, required=True, help="data folder of a local copy of LongProc")
    p.add_argument("--samples", type=_positive, help="the first so many; default: all")
    p.add_argument("--max-new-tokens", type=_positive, help="cap below the task's official number")
    follows(p)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.train,
        "train",
        "lkv train --model models/M --data train.jsonl --steps 100 --out adapter --csv training.csv",
    )
    runs_model(p)
    spreads(p)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--arm", default="main", help="a name for this choice of data and settings")
    p.add_argument("--tokens", type=_few, default=32, help="lookahead tokens")
    p.add_argument("--lora", choices=["all", "qk", "none"], default="all", help="linears that carry LoRA")
    p.add_argument("--loss", choices=["kl", "mse"], default="kl")
    p.add_argument("--response-tokens", type=_positive, help="of the answers at most (default: all of them)")
    p.add_argument("--steps", type=_positive, required=True)
    p.add_argument("--batch", type=_positive, default=8)
    p.add_argument("--learning-rate", type=_rate, default=1e-3)
    p.add_argument("--warmup-steps", type=_count, help=f"of linear warm-up (default: {verbs.WARMUP})")
    p.add_argument("--held-out", type=_count, default=8, help="prompts kept for the held-out KL")
    p.add_argument("--keep-gib", type=_rate, default=2.0, help="prefilled prompts held between epochs")
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--csv", type=Path, required=True)

    p = verb(
        verbs.evaluate,
        "evaluate",
        "lkv evaluate --model models/M --data niah.jsonl --adapter adapter --methods full snapkv "
        "lookaheadkv --budgets 64 128 --study mine --journal j.jsonl --out niah.csv",
    )
    runs_model(p)
    compares(p)
    p.add_argument(
        "--arms",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER[,KEY=VALUE...]",
        help="adapters, each with its group, pool, kernel, order, beside; the first is lookaheadkv",
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--samples", type=_positive, help="the first so many; default: all")
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument(
        "--temperatures", nargs="+", type=_temperature, default=[0.0], help="0 (default): greedy answers"
    )
    p.add_argument("--jobs-per-gpu", type=_few, default=1, help="evaluations that share a GPU")
    p.add_argument("--journal", type=Path, required=True, help="finished cells; makes a second run resume")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.inspect,
        "inspect",
        "lkv inspect --model models/M --data niah.jsonl --adapter adapter --methods snapkv lookaheadkv "
        "--budgets 64 128 --study mine --recall recall.csv --kept kept.csv",
    )
    runs_model(p)
    compares(p)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--samples", type=_positive, default=8, help="the first so many")
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument("--recall", type=Path, required=True, help="CSV: recall by layer and KV head")
    p.add_argument("--kept", type=Path, required=True, help="CSV: the first sample's kept tokens")

    p = verb(
        verbs.mtbench,
        "mtbench",
        "lkv mtbench --model models/M --questions question.jsonl --adapter adapter --methods full snapkv "
        "lookaheadkv --budgets 64 128 --study mine --journal j.jsonl --out answers.jsonl",
    )
    runs_model(p)
    compares(p)
    p.add_argument("--questions", type=Path, required=True, help="MT-Bench's question.jsonl")
    p.add_argument("--references", type=Path, help="answers that the judge reads beside the model's")
    p.add_argument("--samples", type=_positive, help="the first so many questions; default: all")
    p.add_argument("--max-new-tokens", type=_positive, default=1024, help="tokens of an answer at most")
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument("--journal", type=Path, required=True, help="finished cells; makes a second run resume")
    p.add_argument("--out", type=Path, required=True, help="the answers, as JSONL")

    p = verb(
        verbs.judge,
        "judge",
        "lkv judge --answers answers.jsonl --url http://localhost:8000/v1 --model JUDGE --journal j.jsonl "
        "--judgements judgements.csv --out mtbench.csv",
    )
    p.add_argument("--answers", type=Path, required=True, help="file made by lkv mtbench")
    p.add_argument("--url", required=True, help="base URL of an OpenAI-compatible endpoint")
    p.add_argument("--model", required=True, help="the judge's name there")
    p.add_argument("--temperature", type=_temperature, default=0.0)
    p.add_argument("--prompts", type=Path, help="FastChat's judge_prompts.jsonl; default: our own wording")
    p.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable with the key")
    p.add_argument("--journal", type=Path, required=True, help="finished ratings; makes a second run resume")
    p.add_argument("--judgements", type=Path, required=True, help="one CSV row a rating")
    p.add_argument("--out", type=Path, required=True, help="one CSV row an answer, scored")

    p = verb(
        verbs.score,
        "score",
        "lkv score --benchmark longbench pred/llama2-7b-chat --out scores.csv",
    )
    p.add_argument("--benchmark", choices=["longbench", "ruler"], required=True)
    p.add_argument(
        "path", type=Path, help="folder of TASK.jsonl or of TASK/METHOD.json, or kvpress' predictions.csv"
    )
    p.add_argument("--method", help="of TASK/METHOD.json, where there are several")
    p.add_argument(
        "--cleaning", choices=["kvpress", "ruler"], help="of answers; default: as the harness that wrote them"
    )
    p.add_argument(
        "--code", choices=["difflib", "levenshtein"], default="difflib", help="how code is compared"
    )
    p.add_argument("--out", type=Path, help="CSV: task,n,score; default: PATH/scores.csv or beside PATH")

    p = verb(verbs.plan, "plan", "lkv plan --config config/paper.yaml")
    p.add_argument("--config", type=Path, required=True)

    p = verb(
        verbs.latency,
        "latency",
        "lkv latency --model models/M --adapter adapter --methods full snapkv lookaheadkv "
        "--budgets 128 --lengths 512 1024 --study mine --out latency.csv",
    )
    p.add_argument("--model", type=Path, help="folder made by lkv model")
    p.add_argument(
        "--shape", type=Path, help="a model's YAML: random weights of its shape (--draft likewise)"
    )
    runs_model(p, model=False)
    compares(p)
    p.add_argument("--lengths", nargs="+", type=_positive, required=True)
    p.add_argument(
        "--repeats", nargs="+", type=_few, default=[10], help="timed runs: one number, or one a length"
    )
    p.add_argument("--warmups", type=_count, default=2)
    p.add_argument(
        "--ways", nargs="+", choices=WAYS, default=["whole"], help="evict after the pass, or layer by layer"
    )
    p.add_argument("--batches", action="store_true", help="also time a decode step of all rows that fit")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.throughput,
        "throughput",
        "lkv throughput --model models/M --data niah.jsonl vt.jsonl --methods snapkv random "
        "--budgets 64 128 --out throughput.csv",
    )
    runs_model(p)
    compares(p, study=False)
    p.add_argument("--data", nargs="+", type=Path, required=True, help="files of lkv data ruler")
    p.add_argument("--samples", type=_positive, default=1000000, help="of each file, the first so many")
    p.add_argument("--against", type=Path, help="CSV of python -m lkv.kvpress_run; prints the ratio")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.summarise,
        "summarise",
        "lkv summarise --samples a.csv b.csv --out accuracy.csv --paired paired.csv",
    )
    p.add_argument("--samples", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--paired", type=Path, required=True)
    p.add_argument("--seed", type=_seed, default=0)

    p = verb(
        verbs.ablation,
        "ablation",
        "lkv ablation --samples a.csv b.csv --arm main --out ablation.csv",
    )
    p.add_argument("--samples", nargs="+", type=Path, required=True, help="of lkv evaluate --arms")
    p.add_argument("--arm", default="main", help="the arm that the others are compared with")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=_seed, default=0)

    p = verb(
        verbs.arms,
        "arms",
        "lkv arms --cards results/mine/adapters/M/*/lookahead.json --out arms.csv",
    )
    p.add_argument("--cards", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.share,
        "share",
        "lkv share --adapter results/mine/adapters/M/main --licence Apache-2.0 --out adapters/M",
    )
    p.add_argument("--adapter", type=Path, required=True, help="the folder that lkv train wrote")
    p.add_argument("--licence", required=True, help="of the modules, for the card: usually the model's")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.gather,
        "gather",
        "lkv gather --kind latency --parts a.csv b.csv --out latency.csv",
    )
    p.add_argument("--kind", choices=["training", "latency", "recall", "kept"], required=True)
    p.add_argument("--parts", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        verbs.provenance,
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
        verbs.table,
        "table",
        "lkv table --results results/demo --out reports/table1",
    )
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="path without suffix")

    p = verb(
        verbs.plot,
        "plot",
        "lkv plot latency --results results/demo --out reports/latency",
    )
    p.add_argument("kind", choices=list(PLOTS))
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--model", metavar="NAME", help="of this model of the study alone")
    p.add_argument("--out", type=Path, required=True, help="path without suffix")

    p = verb(
        verbs.claims,
        "claims",
        "lkv claims --results results/mine --latency results/latency-h100 --out docs/claims.md",
    )
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--latency", type=Path, help="folder whose latency.csv is read; default: --results")
    p.add_argument("--also", nargs="+", type=Path, default=[], help="folders whose scores are read beside")
    p.add_argument("--out", type=Path, required=True, help="Markdown file")

    p = verb(
        verbs.generate,
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
    """Runs one verb. Exit code 0, 2 with one clear line for what the user can mend, or 128 + a signal's."""
    terminal.prepare()
    with signals.heard() as heard:
        try:
            return terminal.finish(_main(argv))
        except BaseException as error:
            number = heard.number or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            if number is None:
                raise
            remove_temporaries()
            return _fail(signals.message(number), 128 + number)


def _main(argv: Sequence[str] | None) -> int:
    _quiet(None)
    try:
        args = parser().parse_args(argv)
        if (
            world() == 1 or os.environ.get("RANK") == "0"
        ):  # the other processes would look while the first writes
            outputs.check_log(args)
            _quiet(args.log)
            outputs.check(args)
        if (processes := getattr(args, "processes", 1)) > 1 and world() == 1:
            return launch(processes, [sys.executable, "-m", "lkv", *(sys.argv[1:] if argv is None else argv)])
        if processes > 1 and world() != processes:
            raise UserError(
                f"--processes {processes} within {world()} processes started elsewhere; leave it out"
            )
        _quiet(args.log)
        args.run(args)
    except UserError as error:
        return _fail(str(error))
    except Lost as error:
        log.error(error)
        if os.environ.get("RANK") != "0":  # what the first says is shown in any case
            terminal.say(f"lkv: error: {plain(error)}")
        return LOST
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            return terminal.GONE
        if error.errno is None:
            raise
        place = error.filename2 or error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _fail(f"cannot write {place}: {error.strerror}; free some space")
        return _fail(f"{place}: {error.strerror}; correct the path, or its permissions")
    except Exception as error:
        if not (message := out_of_memory(error)):
            raise
        return _fail(message)
    return 0


def _fail(message: str, code: int = 2) -> int:
    log.error(plain(message))
    terminal.say(f"lkv: error: {plain(message)}")
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
