"""`lkv mtbench` and `lkv judge`"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lkv.cli import flags
from lkv.cli.command import Command
from lkv.cli.loading import check_comparison, load_model, named_methods, notify
from lkv.registry import EXAMPLE
from lkv.study.settings.benchmarks import Judging, MTBench
from lkv.study.versions import VERSIONS

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def mtbench(args: Arguments) -> None:
    """answer MT-Bench's two turns under methods and budgets"""
    from lkv.bench.mtbench.questions import load_questions
    from lkv.measure.mtbench import answers

    check_comparison(args)
    questions = load_questions(args.questions, args.samples, args.references)
    loaded = load_model(args)
    notice = answers(
        loaded,
        questions,
        [method for method in named_methods(args, loaded) if method is not None],
        args.budgets,
        args.max_new_tokens,
        args.study,
        args.seed,
        args.journal,
        args.out,
        VERSIONS["evaluate"],
    )
    notify(notice)
    log.info("%d questions in %s", len(questions), args.out)


def judge(args: Arguments) -> None:
    """have MT-Bench's answers rated by a model behind an OpenAI-compatible endpoint"""
    from lkv.bench.mtbench.judge import judge, write_samples
    from lkv.bench.mtbench.requests import Judge

    by = Judge(args.url, args.model, args.temperature, args.key_variable)
    notify(judge(args.answers, by, args.journal, args.judgements, args.prompts))
    write_samples(args.judgements, args.answers, args.out)
    log.info("ratings by %s in %s", args.model, args.judgements)


def mtbench_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    for name in ("questions", "references"):
        flags.setting(parser, MTBench, name, type=Path, metavar="FILE")
    flags.settings(parser, MTBench, "samples", "max_new_tokens")
    flags.compares(parser)
    flags.seed(parser)
    flags.runs(parser)
    flags.journal(parser, "answers")
    flags.out(parser, "JSONL of answers")


def judge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--answers", type=Path, required=True, metavar="FILE", help="JSONL of answers made by lkv mtbench"
    )
    flags.settings(parser, Judging, "url", "model", "temperature")
    flags.setting(parser, Judging, "prompts", type=Path, metavar="FILE")
    flags.settings(parser, Judging, "key_variable")
    flags.journal(parser, "ratings")
    parser.add_argument(
        "--judgements", type=Path, required=True, metavar="FILE", help="CSV with a row per rating to write"
    )
    flags.out(parser, "CSV of scored answers")


COMMANDS = [
    Command(
        "mtbench",
        mtbench,
        mtbench_flags,
        "--model models/smollm2-135m-instruct --adapter adapters/smollm2-135m-instruct --questions "
        f"sources/mt_bench/question.jsonl --methods {EXAMPLE} --budgets 64 --study mine "
        "--journal results/mine/mtbench.jsonl --out results/mine/answers.jsonl",
        "MT-Bench's question.jsonl, from FastChat's fastchat/llm_judge/data/mt_bench",
    ),
    Command(
        "judge",
        judge,
        judge_flags,
        "--answers results/mine/answers.jsonl --url http://localhost:8000/v1 --model qwen3-32b "
        "--journal results/mine/judge.jsonl --judgements results/mine/judgements.csv --out "
        "results/mine/mtbench.csv",
        "the answers of lkv mtbench, and a model served at this address",
    ),
]
