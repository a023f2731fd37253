"""All commands with their flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lkv.bench.protocol import PROTOCOLS
from lkv.cli import (
    benchmark_data,
    generate,
    latency,
    model,
    report,
    train,
    training_data,
)
from lkv.cli import evaluate as verbs
from lkv.cli.arguments import (
    WAYS,
    Parser,
    method_name,
    positive_number,
    rate_number,
    seed_number,
    small_number,
    source_word,
    temperature_number,
    weighted_name,
    whole_number,
)
from lkv.registry import FULL, METHODS
from lkv.report.kinds import PLOTS
from lkv.study.commands import RECIPE_CHOICES

Arguments = argparse.Namespace


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
            "--processes", type=small_number, default=1, help="that share this work, each on a GPU of its own"
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
        made.add_argument("--kernel", type=small_number, default=7, help="entries pooled")
        made.add_argument("--order", choices=RECIPE_CHOICES["order"], default="group_pool")
        made.add_argument(
            "--beside",
            type=whole_number,
            default=0,
            help="the prompt's last tokens that look as well as LookaheadKV's",
        )

    def compares(made: argparse.ArgumentParser, study: bool = True) -> None:
        adapts(made)
        made.add_argument(
            "--methods", nargs="+", type=method_name, required=True, help=", ".join([FULL, *METHODS])
        )
        made.add_argument("--budgets", nargs="+", type=positive_number, required=True, help="entries kept")
        if study:
            made.add_argument("--study", required=True)

    def follows(made: argparse.ArgumentParser) -> None:
        made.add_argument("--protocol", default="official", help=", ".join(PROTOCOLS))
        made.add_argument(
            "--template", choices=["tasks", "all", "none"], help="which tasks get the chat template"
        )
        made.add_argument(
            "--max-prompt", type=positive_number, help="LongBench: cut longer prompts in the middle"
        )
        made.add_argument(
            "--question-blind", action="store_true", help="the question is read after the eviction"
        )

    p = verb(
        model.model,
        "model",
        "lkv model --spec config/models/smollm2-135m-instruct.yaml --out models/smollm2-135m-instruct",
    )
    p.add_argument("--spec", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    data = under_top.add_parser("data", help="build training prompts or benchmark data")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    kinds.type = str
    p = verb(
        training_data.data_train,
        "train",
        "lkv data train --model models/M --samples 128 --lengths 256 512 --mixture table=1 code=1 "
        "--out train.jsonl",
        kinds,
    )
    runs_model(p)
    spreads(p)
    p.add_argument("--mixture", nargs="+", type=weighted_name, help="offline prompts: KIND=WEIGHT")
    p.add_argument("--samples", type=positive_number, help="how many offline prompts")
    p.add_argument(
        "--lengths", nargs="+", type=positive_number, help="tokens of the offline prompts, in turn"
    )
    p.add_argument(
        "--sources",
        nargs="+",
        type=source_word,
        help='data sets: {"name", "schema", "data", "count"} as JSON',
    )
    p.add_argument("--max-tokens", type=positive_number, default=16384, help="of a source's prompt at most")
    p.add_argument("--response-tokens", type=positive_number, default=32)
    p.add_argument(
        "--answers",
        choices=["model", "given"],
        default="model",
        help="the model's own, or the true ones where an offline prompt has one",
    )
    p.add_argument("--batch", type=positive_number, help="prompts answered at once (default: as many as fit)")
    p.add_argument("--seed", type=seed_number, default=0)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        benchmark_data.data_ruler,
        "ruler",
        "lkv data ruler --model models/M --task niah_single_1 --length 1024 --samples 6 --out niah.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer sizes the prompts")
    p.add_argument("--task", required=True)
    p.add_argument("--length", type=positive_number, required=True, help="tokens, generated ones included")
    p.add_argument("--samples", type=positive_number, required=True)
    p.add_argument("--max-new-tokens", type=positive_number, help="cap below the task's official number")
    p.add_argument("--haystack", default="pydoc", help="pydoc, an essays file, or hub:OWNER/NAME")
    p.add_argument("--squad", help="SQuAD 2.0 JSON, for qa_1")
    p.add_argument("--hotpotqa", help="HotpotQA JSON, for qa_2")
    p.add_argument("--ready", help="ready-made samples, kvpress' or RULER's: folder:PATH or hub:OWNER/NAME")
    follows(p)
    p.add_argument("--seed", type=seed_number, default=0)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        benchmark_data.data_longbench,
        "longbench",
        "lkv data longbench --model models/M --task qasper --source zip:data.zip --max-prompt 7500 "
        "--out qasper.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer cuts the prompts")
    p.add_argument("--task", required=True)
    p.add_argument("--source", required=True, help="folder:PATH, zip:PATH or hub:OWNER/NAME")
    p.add_argument("--samples", type=positive_number, help="the first so many; default: all")
    p.add_argument("--max-new-tokens", type=positive_number, help="cap below the task's official number")
    follows(p)
    p.add_argument("--out", type=Path, required=True)
    p = verb(
        benchmark_data.data_longproc,
        "longproc",
        "lkv data longproc --model models/M --task html_to_tsv_0.5k --data-folder LongProc/data "
        "--out html.jsonl",
        kinds,
    )
    p.add_argument("--model", type=Path, required=True, help="folder whose tokenizer counts the tokens")
    p.add_argument("--task", required=True)
    p.add_argument("--data-folder", type=Path, required=True, help="data folder of a local copy of LongProc")
    p.add_argument("--samples", type=positive_number, help="the first so many; default: all")
    p.add_argument("--max-new-tokens", type=positive_number, help="cap below the task's official number")
    follows(p)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        train.train,
        "train",
        "lkv train --model models/M --data train.jsonl --steps 100 --out adapter --csv training.csv",
    )
    runs_model(p)
    spreads(p)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--arm", default="main", help="a name for this choice of data and settings")
    p.add_argument("--tokens", type=small_number, default=32, help="lookahead tokens")
    p.add_argument("--lora", choices=["all", "qk", "none"], default="all", help="linears that carry LoRA")
    p.add_argument("--loss", choices=["kl", "mse"], default="kl")
    p.add_argument(
        "--response-tokens", type=positive_number, help="of the answers at most (default: all of them)"
    )
    p.add_argument("--steps", type=positive_number, required=True)
    p.add_argument("--batch", type=positive_number, default=8)
    p.add_argument("--learning-rate", type=rate_number, default=1e-3)
    p.add_argument("--warmup-steps", type=whole_number, help=f"of linear warm-up (default: {train.WARMUP})")
    p.add_argument("--held-out", type=whole_number, default=8, help="prompts kept for the held-out KL")
    p.add_argument("--keep-gib", type=rate_number, default=2.0, help="prefilled prompts held between epochs")
    p.add_argument("--seed", type=seed_number, default=0)
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
    p.add_argument("--samples", type=positive_number, help="the first so many; default: all")
    p.add_argument("--seed", type=seed_number, default=0)
    p.add_argument(
        "--temperatures",
        nargs="+",
        type=temperature_number,
        default=[0.0],
        help="0 (default): greedy answers",
    )
    p.add_argument("--jobs-per-gpu", type=small_number, default=1, help="evaluations that share a GPU")
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
    p.add_argument("--samples", type=positive_number, default=8, help="the first so many")
    p.add_argument("--seed", type=seed_number, default=0)
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
    p.add_argument("--samples", type=positive_number, help="the first so many questions; default: all")
    p.add_argument("--max-new-tokens", type=positive_number, default=1024, help="tokens of an answer at most")
    p.add_argument("--seed", type=seed_number, default=0)
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
    p.add_argument("--temperature", type=temperature_number, default=0.0)
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

    p = verb(report.plan, "plan", "lkv plan --config config/paper.yaml")
    p.add_argument("--config", type=Path, required=True)

    p = verb(
        latency.latency,
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
    p.add_argument("--lengths", nargs="+", type=positive_number, required=True)
    p.add_argument(
        "--repeats",
        nargs="+",
        type=small_number,
        default=[10],
        help="timed runs: one number, or one a length",
    )
    p.add_argument("--warmups", type=whole_number, default=2)
    p.add_argument(
        "--ways", nargs="+", choices=WAYS, default=["whole"], help="evict after the pass, or layer by layer"
    )
    p.add_argument("--batches", action="store_true", help="also time a decode step of all rows that fit")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        latency.throughput,
        "throughput",
        "lkv throughput --model models/M --data niah.jsonl vt.jsonl --methods snapkv random "
        "--budgets 64 128 --out throughput.csv",
    )
    runs_model(p)
    compares(p, study=False)
    p.add_argument("--data", nargs="+", type=Path, required=True, help="files of lkv data ruler")
    p.add_argument("--samples", type=positive_number, default=1000000, help="of each file, the first so many")
    p.add_argument("--against", type=Path, help="CSV of python -m lkv.integrations.kvpress; prints the ratio")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        report.summarise,
        "summarise",
        "lkv summarise --samples a.csv b.csv --out accuracy.csv --paired paired.csv",
    )
    p.add_argument("--samples", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--paired", type=Path, required=True)
    p.add_argument("--seed", type=seed_number, default=0)

    p = verb(
        report.ablation,
        "ablation",
        "lkv ablation --samples a.csv b.csv --arm main --out ablation.csv",
    )
    p.add_argument("--samples", nargs="+", type=Path, required=True, help="of lkv evaluate --arms")
    p.add_argument("--arm", default="main", help="the arm that the others are compared with")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=seed_number, default=0)

    p = verb(
        train.arms,
        "arms",
        "lkv arms --cards results/mine/adapters/M/*/lookahead.json --out arms.csv",
    )
    p.add_argument("--cards", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        train.share,
        "share",
        "lkv share --adapter results/mine/adapters/M/main --licence Apache-2.0 --out adapters/M",
    )
    p.add_argument("--adapter", type=Path, required=True, help="the folder that lkv train wrote")
    p.add_argument("--licence", required=True, help="of the modules, for the card: usually the model's")
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        report.gather,
        "gather",
        "lkv gather --kind latency --parts a.csv b.csv --out latency.csv",
    )
    p.add_argument("--kind", choices=["training", "latency", "recall", "kept"], required=True)
    p.add_argument("--parts", nargs="+", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)

    p = verb(
        report.provenance,
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
        report.table,
        "table",
        "lkv table --results results/demo --out reports/table1",
    )
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="path without suffix")

    p = verb(
        report.plot,
        "plot",
        "lkv plot latency --results results/demo --out reports/latency",
    )
    p.add_argument("kind", choices=list(PLOTS))
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--model", metavar="NAME", help="of this model of the study alone")
    p.add_argument("--out", type=Path, required=True, help="path without suffix")

    p = verb(
        report.claims,
        "claims",
        "lkv claims --results results/mine --latency results/latency-h100 --out docs/claims.md",
    )
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--latency", type=Path, help="folder whose latency.csv is read; default: --results")
    p.add_argument("--also", nargs="+", type=Path, default=[], help="folders whose scores are read beside")
    p.add_argument("--out", type=Path, required=True, help="Markdown file")

    p = verb(
        generate.generate,
        "generate",
        "lkv generate --model models/M --adapter adapter --budget 128 --prompt-file long.txt",
    )
    runs_model(p)
    adapts(p)
    p.add_argument("--method", default="lookaheadkv", type=method_name)
    p.add_argument("--budget", type=positive_number, required=True)
    p.add_argument("--prompt-file", type=Path, required=True)
    p.add_argument("--max-new-tokens", type=positive_number, default=128)
    return top
