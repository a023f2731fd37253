"""What each verb of the command line does. Verbs import what they need when they run."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from lkv.study.versions import VERSIONS

if TYPE_CHECKING:
    pass
from lkv.cli.loading import check_comparison, load_model, method_of_arm, named_methods, notify, sample_records

Arguments = argparse.Namespace
log = logging.getLogger("lkv")


def evaluate(args: Arguments) -> None:
    """one task under all methods and budgets"""
    from lkv.measure.accuracy import evaluate

    check_comparison(args)
    records = sample_records(args.data)
    loaded = load_model(args)
    methods = [method for method in named_methods(args, loaded) if method is not None]
    methods += [method_of_arm(word, args, loaded) for word in args.arms]
    if args.samples:
        taken = records[: args.samples]
        records = [record | {"planned": min(record["planned"], args.samples)} for record in taken]
    notice = evaluate(
        loaded,
        records,
        methods,
        args.budgets,
        args.study,
        args.seed,
        args.journal,
        args.out,
        VERSIONS["evaluate"],
        args.temperatures,
    )
    notify(notice)
    log.info("%d methods x %d budgets in %s", len(methods), len(args.budgets), args.out)


def inspect(args: Arguments) -> None:
    """recall of the oracle's choice by layer, and which tokens survive"""
    from lkv.measure.recall import inspect

    check_comparison(args)
    records = sample_records(args.data)[: args.samples]
    loaded = load_model(args)
    methods = [method for method in named_methods(args, loaded) if method is not None]
    given = (records, methods, args.budgets, args.study, args.seed)
    inspect(loaded, *given, args.recall, args.kept)
    log.info("%d methods x %d budgets in %s and %s", len(methods), len(args.budgets), args.recall, args.kept)


def mtbench(args: Arguments) -> None:
    """MT-Bench's two turns under all methods and budgets"""
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
    """ratings of MT-Bench's answers, by any OpenAI-compatible endpoint"""
    from lkv.bench.mtbench.judge import judge, write_samples
    from lkv.bench.mtbench.requests import Judge

    by = Judge(args.url, args.model, args.temperature, args.key_variable)
    notify(judge(args.answers, by, args.journal, args.judgements, args.prompts))
    write_samples(args.judgements, args.answers, args.out)
    log.info("ratings by %s in %s", args.model, args.judgements)


def score(args: Arguments) -> None:
    """score predictions that others made"""
    from lkv.bench.published import score_published

    beside = args.path / "scores.csv" if args.path.is_dir() else args.path.parent / "scores.csv"
    out = args.out or beside
    text, notices = score_published(args.benchmark, args.path, out, args.code, args.cleaning, args.method)
    print(text, end="")
    for notice in notices:
        notify(notice)
    log.info("%s", out)
