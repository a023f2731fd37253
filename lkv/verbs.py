"""What each verb of the command line does. Verbs import what they need when they run."""

from __future__ import annotations

import argparse
import logging
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lkv import terminal
from lkv.checks import check_budgets, check_kernel, check_once, check_training
from lkv.errors import UserError, one_of, plain
from lkv.protocol import Protocol, protocol
from lkv.registry import FULL, SELF, check_given
from lkv.study import CARD, MODEL_CARD, NOT_GIVEN, RECIPE_CHOICES, RECIPE_KEYS, VERSIONS, read_spec

if TYPE_CHECKING:
    from lkv.data.shards import Stored
    from lkv.interface import Method, PromptRows, Recipe
    from lkv.models import Loaded

Arguments = argparse.Namespace
WARMUP = 8  # steps of a training whose command line names none
log = logging.getLogger("lkv")


def model(args: Arguments) -> None:
    """bring a model to a local folder, once"""
    from lkv.models import obtain

    spec = read_spec(args.spec)
    obtain(spec, args.out)
    log.info("model %s from %s in %s", spec["name"], spec["source"]["kind"], args.out)


def data_train(args: Arguments) -> None:
    """training prompts with the model's own answers, or with true ones"""
    from lkv.data.prompts import KINDS
    from lkv.data.shards import Stored, join
    from lkv.parallel import group
    from lkv.responses import respond_sharded
    from lkv.support import require_lookahead

    if bool(args.mixture) == bool(args.sources):
        raise UserError("give either --mixture (offline prompts) or --sources (data sets)")
    if args.sources and args.answers == "given":
        raise UserError(f"--answers given: {NOT_GIVEN}; allowed: --answers model, or a --mixture")
    if args.mixture and not (args.samples and args.lengths):
        raise UserError("--mixture needs --samples and --lengths")
    for kind, _ in args.mixture or []:
        if kind not in KINDS:
            raise one_of("kind of training prompt", kind, KINDS)
    check_once([kind for kind, _ in args.mixture or []], "--mixture")
    loaded = _load(args)
    require_lookahead(loaded.model)
    prompts = args.out.with_suffix(".prompts.jsonl")
    with group(loaded.model.device) as together:
        built = _build_prompts(args, loaded, prompts) if together.first else None
        together.wait()
        stored, facts = built or (Stored(prompts), {})
        shards = respond_sharded(
            loaded,
            stored,
            args.response_tokens,
            args.batch,
            args.out.with_suffix(".answers"),
            version=VERSIONS["data"],
            notify=_notify,
            group=together,
        )
    if not together.first:
        return
    join(args.out, stored, shards, seed=args.seed, model=loaded.name, fingerprint=loaded.fingerprint, **facts)
    log.info("%d prompts in %s", len(stored), args.out)


def _build_prompts(args: Arguments, loaded: Loaded, prompts: Path) -> tuple[Stored, dict[str, Any]]:
    """Freezes the training prompts, unanswered, in the file `prompts`: they, and what to say of them."""
    from lkv.data.frozen import freeze, sidecar
    from lkv.data.mixture import frozen_mixture, notices
    from lkv.data.prompts import build
    from lkv.data.shards import Stored
    from lkv.records import read_json
    from lkv.responses import check_fits

    if args.sources:
        context = loaded.context or args.max_tokens + args.response_tokens
        longest = min(args.max_tokens, context - args.response_tokens)
        stored = frozen_mixture(prompts, args.sources, loaded.tokenizer, longest, args.seed, VERSIONS["data"])
        for notice in notices(read_json(sidecar(prompts))["sources"]):
            _notify(notice)
        return stored, {"sources": args.sources}
    check_fits(loaded, max(args.lengths), args.response_tokens)
    facts: dict[str, Any] = {"mixture": dict(args.mixture)}
    built = build(loaded.tokenizer, args.samples, args.lengths, facts["mixture"], args.seed)
    freeze(prompts, built if args.answers == "given" else map(_unanswered, built))
    stored = Stored(prompts)
    if args.answers == "given":
        given = sum(prompt["answer"] is not None for prompt in stored)
        facts["answers"] = {"given": given, "model": len(stored) - given}
    return stored, facts


def _unanswered(prompt: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in prompt.items() if key != "answer"}


def data_ruler(args: Arguments) -> None:
    """one RULER task at one length, frozen with its hash"""
    from lkv.bench import ruler
    from lkv.bench.ruler_ready import build_ready
    from lkv.models import load_tokenizer

    tokenizer, protocol = load_tokenizer(args.model), _protocol(args)
    if args.ready:
        records = build_ready(
            args.task, args.length, args.ready, tokenizer, protocol, args.samples, args.max_new_tokens
        )
    else:
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
            protocol=protocol,
        )
    _freeze(args, records, args.length, seed=args.seed)


def data_longbench(args: Arguments) -> None:
    """one LongBench task, its prompts filled in and cut"""
    from lkv.bench.longbench import build
    from lkv.models import load_tokenizer

    tokenizer, context = load_tokenizer(args.model), _context(args.model)
    protocol, limits = _protocol(args), (args.samples, args.max_new_tokens, context)
    _freeze(args, build(args.task, args.source, tokenizer, protocol, *limits), source=args.source)


def data_longproc(args: Arguments) -> None:
    """one LongProc task from a local copy of its data"""
    from lkv.bench.longproc import build
    from lkv.models import load_tokenizer

    tokenizer, context = load_tokenizer(args.model), _context(args.model)
    protocol, limits = _protocol(args), (args.samples, args.max_new_tokens, context)
    _freeze(args, build(args.task, args.data_folder, tokenizer, protocol, *limits))


def train(args: Arguments) -> None:
    """train the lookahead tokens and their LoRA"""
    from lkv.data.frozen import facts_of
    from lkv.data.shards import ANSWERED, Stored
    from lkv.device import describe
    from lkv.models import read_card
    from lkv.parallel import group
    from lkv.provenance import commit, package_versions
    from lkv.train import Arm, Schedule, train

    prompts = Stored(args.data, ANSWERED)
    if not prompts:
        raise UserError(f"{args.data} has no prompts; make them again with lkv data train")
    made = facts_of(args.data, sources="objects", mixture="object", answers="object")
    check_training(len(prompts), args.held_out, args.batch, args.steps, args.warmup_steps or 0)
    warmup = WARMUP if args.warmup_steps is None else args.warmup_steps
    loaded = _load(args)
    if prompts.largest >= (known := loaded.model.config.get_text_config().vocab_size):
        raise UserError(
            f"{args.data} holds the token {prompts.largest}, the vocabulary of {loaded.name} has {known}; "
            "give prompts that were made for this model"
        )
    schedule = Schedule(args.steps, args.batch, args.learning_rate, warmup, args.held_out, args.seed)
    kinds = [str(source.get("name")) for source in made.get("sources", [])] or sorted(
        made.get("mixture", "?")
    )
    offline, answers = "offline " if made.get("mixture") else "", made.get("answers")
    own = "" if answers else "self-answered "
    true = f"; {answers.get('given')} of all {len(prompts)} answers are given ones" if answers else ""
    cut = f"; answers cut to {args.response_tokens} tokens" if args.response_tokens else ""
    provenance = {
        "trained_on": f"{len(prompts) - args.held_out} {own}{offline}prompts ({', '.join(kinds)}) "
        f"of {min(prompts.lengths, default=0)} to {max(prompts.lengths, default=0)} tokens{true}{cut}",
        "data_sha256": prompts.sha256,
        "model_fingerprint": read_card(args.model)["fingerprint"],
        "dtype": loaded.dtype,
        "device": describe(loaded.model.device)[0],
        "commit": commit(),
        "packages": package_versions(),
    }
    keep = int(args.keep_gib * 2**30)
    arm = Arm(args.arm, args.tokens, args.lora, args.loss, args.response_tokens)
    given = (loaded, prompts, schedule, arm, args.out, args.csv, provenance, keep)
    with group(loaded.model.device) as together:
        adapter = train(*given, version=VERSIONS["train"], group=together)
    if not together.first:
        return
    card = adapter.card
    log.info("held-out KL %s -> %s in %s", card["held_out_kl_before"], card["held_out_kl_after"], args.out)


def evaluate(args: Arguments) -> None:
    """one task under all methods and budgets"""
    from lkv.evaluate import evaluate

    _check(args)
    records = _records(args.data)
    loaded = _load(args)
    methods = [method for method in _methods(args, loaded) if method is not None]
    methods += [_of_arm(word, args, loaded) for word in args.arms]
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
    _notify(notice)
    log.info("%d methods x %d budgets in %s", len(methods), len(args.budgets), args.out)


def inspect(args: Arguments) -> None:
    """recall of the oracle's choice by layer, and which tokens survive"""
    from lkv.inspection import inspect

    _check(args)
    records = _records(args.data)[: args.samples]
    loaded = _load(args)
    methods = [method for method in _methods(args, loaded) if method is not None]
    given = (records, methods, args.budgets, args.study, args.seed)
    inspect(loaded, *given, args.recall, args.kept)
    log.info("%d methods x %d budgets in %s and %s", len(methods), len(args.budgets), args.recall, args.kept)


def mtbench(args: Arguments) -> None:
    """MT-Bench's two turns under all methods and budgets"""
    from lkv.bench.mtbench import load_questions
    from lkv.turns import answers

    _check(args)
    questions = load_questions(args.questions, args.samples, args.references)
    loaded = _load(args)
    notice = answers(
        loaded,
        questions,
        [method for method in _methods(args, loaded) if method is not None],
        args.budgets,
        args.max_new_tokens,
        args.study,
        args.seed,
        args.journal,
        args.out,
        VERSIONS["evaluate"],
    )
    _notify(notice)
    log.info("%d questions in %s", len(questions), args.out)


def judge(args: Arguments) -> None:
    """ratings of MT-Bench's answers, by any OpenAI-compatible endpoint"""
    from lkv.bench.judge import Judge, judge, write_samples

    by = Judge(args.url, args.model, args.temperature, args.key_variable)
    _notify(judge(args.answers, by, args.journal, args.judgements, args.prompts))
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
        _notify(notice)
    log.info("%s", out)


def latency(args: Arguments) -> None:
    """what each method adds to a plain prefill"""
    from lkv.latency import filler, latency
    from lkv.records import LATENCY_COLUMNS, write_csv
    from lkv.writing import is_stream

    if bool(args.model) == bool(args.shape):
        raise UserError("give either --model (real weights) or --shape (a model's YAML: random weights)")
    if len(args.repeats) not in (1, len(args.lengths)):
        raise UserError(
            f"{len(args.repeats)} --repeats for {len(args.lengths)} --lengths; give one, or one a length"
        )
    _check(args)
    if args.shape:
        loaded, methods = _of_shape(args)
        vocabulary = loaded.model.config.vocab_size
        draw = random.Random(0)
        prompts = {length: draw.choices(range(vocabulary), k=length) for length in args.lengths}
    else:
        loaded = _load(args)
        methods = _methods(args, loaded)
        prompts = {length: filler(loaded.tokenizer, length) for length in args.lengths}
    each = args.repeats if len(args.repeats) > 1 else args.repeats * len(args.lengths)
    rows: list[dict[str, Any]] = []
    measured = latency(
        loaded,
        prompts,
        methods,
        args.budgets,
        dict(zip(args.lengths, each, strict=True)),
        args.warmups,
        args.study,
        "random" if args.shape else "real",
        args.ways,
        _draft_shape(args),
        args.batches,
    )
    for of_length in measured:
        rows += of_length
        if not is_stream(args.out):
            write_csv(args.out, rows, LATENCY_COLUMNS)  # what is measured stays, whatever stops the rest
    write_csv(args.out, rows, LATENCY_COLUMNS)
    log.info("%d rows in %s", len(rows), args.out)


def _draft_shape(args: Arguments) -> Any:
    """The sizes of SpecKV's draft model, for what its overhead should be."""
    from lkv.theory import Shape

    if not args.shape or args.draft in (None, SELF):
        return None
    return Shape(**read_spec(Path(args.draft))["shape"])


def _of_shape(args: Arguments) -> tuple[Loaded, list[Method | None]]:
    """A model of random weights, and the methods with a draft model and an adapter of the same kind."""
    from lkv import device
    from lkv.lookahead import LookaheadKV
    from lkv.models import of_shape
    from lkv.registry import get

    place = device.pick(args.device)
    loaded = of_shape(read_spec(args.shape), place, args.dtype)
    print(f"{loaded.name}, random weights, on {place}, {loaded.dtype}, attention {loaded.backend}")
    draft: Loaded | Literal["self"] | None = SELF if args.draft == SELF else None
    if "speckv" in args.methods and args.draft not in (None, SELF):
        draft = of_shape(read_spec(Path(args.draft)), place, args.dtype)
    adapter = LookaheadKV.create(loaded.model).requires_grad_(False).to(loaded.model.dtype)
    return loaded, [
        None if name == FULL else get(name, adapter, None, draft, loaded.tokenizer) for name in args.methods
    ]


def throughput(args: Arguments) -> None:
    """how many cells a second are evaluated, beside kvpress"""
    from lkv.records import THROUGHPUT_COLUMNS, read_csv
    from lkv.throughput import ratio, throughput

    _check(args)
    if args.against:
        read_csv(args.against, THROUGHPUT_COLUMNS)  # now, not after the runs
    tasks = [_records(path)[: args.samples] for path in args.data]
    loaded = _load(args)
    methods = [method for method in _methods(args, loaded) if method is not None]
    rows = throughput(loaded, tasks, methods, args.budgets, args.out)
    for row in rows:
        speed = f"{row['seconds']:.1f} s, {row['cells_per_s']:.1f} a second"
        print(f"run {row['run']}: {row['cells']} cells in {speed}")
    if args.against:
        print(ratio(rows, args.against))


def summarise(args: Arguments) -> None:
    """sample rows to accuracy.csv and paired.csv"""
    from lkv.summarise import write_summary

    write_summary(args.samples, args.out, args.paired, args.seed)


def ablation(args: Arguments) -> None:
    """sample rows of LookaheadKV's arms to ablation.csv"""
    from lkv.summarise import write_ablation

    write_ablation(args.samples, args.out, args.arm, args.seed)


# What is read of an adapter's card, and of which kind.
CARD_KINDS = {
    "base_model": "object", "arm": "name", "tokens": "some", "lora": "name", "loss": "name",
    "parameters": "count", "steps": "count", "samples": "count", "held_out_kl_before": "number or null",
    "held_out_kl_after": "number or null", "held_out_recall": "number or null", "trained_on": "text",
}  # fmt: skip


def arms(args: Arguments) -> None:
    """what each trained arm is and how well it predicts, from the adapters' cards"""
    from lkv.records import ARMS_COLUMNS, read_json, require, write_csv

    rows = []
    for path in args.cards:
        card = require(read_json(path), CARD_KINDS, path, "lkv train")
        base = require(card["base_model"], {"name": "name"}, f"{path}, base_model", "lkv train")
        rows.append(card | {"model": base["name"]})
    write_csv(args.out, rows, ARMS_COLUMNS)


def share(args: Arguments) -> None:
    """trained modules in bfloat16, with a model card, to give away"""
    from lkv.share import share

    share(args.adapter, args.out, args.licence)
    log.info("%s", args.out)


def gather(args: Arguments) -> None:
    """join the parts that single models wrote"""
    import pandas as pd

    from lkv.records import (
        KEPT_COLUMNS,
        LATENCY_COLUMNS,
        RECALL_COLUMNS,
        TRAINING_COLUMNS,
        read_csv,
        write_csv,
    )

    columns = {
        "training": TRAINING_COLUMNS,
        "latency": LATENCY_COLUMNS,
        "recall": RECALL_COLUMNS,
        "kept": KEPT_COLUMNS,
    }[args.kind]
    write_csv(args.out, pd.concat([read_csv(part, columns) for part in args.parts]), columns)


def provenance(args: Arguments) -> None:
    """what a study's figures rest on: code, data, models, device"""
    from lkv.provenance import write_provenance

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


def generate(args: Arguments) -> None:
    """answer a prompt from an evicted cache"""
    import torch

    from lkv.chat import chat_ids
    from lkv.generate import generate

    args.methods, args.budgets = [args.method], [args.budget]
    _check(args)
    text = _text(args.prompt_file)
    loaded = _load(args)
    _check_head(loaded, text, args.max_new_tokens)
    ids = torch.tensor([chat_ids(loaded.tokenizer, text)])
    [method] = _methods(args, loaded)
    done = generate(loaded.model, ids, method, args.budget, args.max_new_tokens)
    print(loaded.tokenizer.decode(done.tokens, skip_special_tokens=True), flush=True)
    terminal.say(
        f"\n{args.method}: kept {done.kept:.0f} of {done.prompt_tokens} tokens a layer and KV head; "
        f"cache {done.cache_bytes / 2**20:.1f} MiB of {done.full_cache_bytes / 2**20:.1f} MiB; "
        f"TTFT {done.ttft_s:.3f} s; {done.tokens_per_s:.1f} tokens/s; "
        f"{loaded.backend}, {loaded.dtype}, {loaded.model.device}"
    )


def _check_head(loaded: Loaded, text: str, new: int) -> None:
    """Refuses a text whose first part is too long already: a whole library would take gigabytes."""
    from lkv.chat import token_ids
    from lkv.responses import check_fits

    head = text[: 32 * (loaded.context or len(text))]  # characters; few texts have so many a token
    if len(head) < len(text):
        check_fits(loaded, len(token_ids(loaded.tokenizer, [head])[0]), new)


def _notify(notice: str) -> None:
    if notice:
        log.warning(plain(notice))
        terminal.say(f"lkv: {plain(notice)}")


def plan(args: Arguments) -> None:
    """what a study will cost: jobs, prompts, tokens, GPU-hours, disk"""
    from lkv.plan import lines
    from lkv.study import read_config

    print("\n".join(lines(read_config(args.config))))


def _records(path: Path) -> list[dict[str, Any]]:
    """A benchmark's frozen prompts."""
    from lkv.bench import score
    from lkv.data.frozen import load
    from lkv.evaluate import RECORD
    from lkv.records import require

    found = []
    for number, record in enumerate(load(path), 1):
        place = f"{path}, line {number}"
        found.append(require(record, RECORD, place, "lkv data"))
        try:
            score(record, "")  # whether it can be scored is known before the model runs
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not found:
        raise UserError(f"{path} has no records; build it again with lkv data")
    return found


def _load(args: Arguments) -> Loaded:
    from lkv import device
    from lkv.models import load

    place = device.pick(args.device, getattr(args, "jobs_per_gpu", 1), _notify)
    loaded = load(args.model, place, args.dtype)
    facts = f"{loaded.name} on {loaded.model.device}, {loaded.dtype}, attention {loaded.backend}"
    facts += f"; {loaded.note}" if loaded.note else ""
    log.info(facts)
    if args.verb != "generate":  # whose standard output is the answer alone
        print(facts)
    return loaded


def _methods(args: Arguments, loaded: Loaded) -> list[Method | None]:
    from lkv.lookahead import LookaheadKV
    from lkv.models import load
    from lkv.registry import get

    adapter = LookaheadKV.from_pretrained(args.adapter, loaded.model) if args.adapter else None
    recipe, beside = _recipe(vars(args))
    draft: Loaded | Literal["self"] | None = SELF if args.draft == SELF else None
    if "speckv" in args.methods and args.draft not in (None, SELF):
        draft = load(Path(args.draft), loaded.model.device, args.dtype)
    return [
        None if name == FULL else get(name, adapter, recipe, draft, loaded.tokenizer, beside)
        for name in args.methods
    ]


def _check(args: Arguments) -> None:
    """What the words of a verb that compares methods say, before a model is loaded for it."""
    for key in ("methods", "budgets", "lengths", "temperatures"):
        check_once(getattr(args, key, []), f"--{key}")
    check_budgets(args.budgets, args.methods, "--budget" if args.verb == "generate" else "--budgets")
    check_kernel(args.kernel, "--kernel")
    drawn = bool(getattr(args, "shape", None))  # random weights, and modules of the same kind
    for name in args.methods:
        check_given(name, drawn or args.adapter, args.draft)
    drafts = "speckv" in args.methods and args.draft != SELF and not drawn
    arms = [_arm(word, args)[:2] for word in getattr(args, "arms", [])]
    check_once([name for name, _ in arms], "--arms")
    folders = [args.adapter] if args.adapter and "lookaheadkv" in args.methods else []
    for folder in [*folders, *(folder for _, folder in arms)]:
        _check_folder(folder, CARD, "lkv train")
    if drafts:
        _check_folder(args.draft, MODEL_CARD, "lkv model")


def _check_folder(folder: str | Path, card: str, maker: str) -> None:
    if not Path(folder, card).is_file():
        raise UserError(f"no such file: {Path(folder, card)}; give a folder made by {maker}")


def _arm(word: str, args: Arguments) -> tuple[str, str, dict[str, Any]]:
    """Name, folder and recipe of `arm=folder,key=value,…`: flags give what it leaves out."""
    name, _, rest = word.partition("=")
    folder, *settings = rest.split(",")
    given: dict[str, Any] = {key: vars(args)[key] for key in RECIPE_KEYS}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in given:
            raise one_of(f"setting of the arm {name!r}:", key, given)
        if key in RECIPE_CHOICES and value not in RECIPE_CHOICES[key]:
            raise one_of(f"{key} of the arm {name!r}:", value, RECIPE_CHOICES[key])
        if key not in RECIPE_CHOICES and not re.fullmatch("[0-9]{1,4}", value):
            raise UserError(f"{key} of the arm {name!r} is {value!r}; give a whole number, 9999 at most")
        given[key] = value if key in RECIPE_CHOICES else int(value)
    check_kernel(given["kernel"], f"the arm {name!r}")
    return name, folder, given


def _of_arm(word: str, args: Arguments, loaded: Loaded) -> Method:
    """The method of an arm's word; the first arm is `lookaheadkv`."""
    from lkv.lookahead import LookaheadKV

    name, folder, given = _arm(word, args)
    adapter = LookaheadKV.from_pretrained(folder, loaded.model)
    recipe, beside = _recipe(given)
    return adapter.method(recipe, beside, "lookaheadkv" if word == args.arms[0] else f"lookaheadkv/{name}")


def _recipe(given: Mapping[str, Any]) -> tuple[Recipe, PromptRows | None]:
    """LookaheadKV's recipe, and the prompt rows that look as well, from what the command line says."""
    from lkv.interface import PromptRows
    from lkv.lookahead import RECIPE

    pool = None if given["pool"] == "none" else given["pool"]
    recipe = replace(RECIPE, group=given["group"], pool=pool, kernel=given["kernel"], order=given["order"])
    return recipe, PromptRows(given["beside"]) if given["beside"] else None


def _protocol(args: Arguments) -> Protocol:
    """What the command line says, else what the model's card does: a base model's prompts stay raw."""
    from lkv.models import read_card

    card = read_card(args.model)
    named = {
        "name": args.protocol,
        "template": "none" if card["chat_template"] == "none" else args.template,
        "max_prompt": args.max_prompt,
        "question_aware": not args.question_blind,
    }
    return protocol(named, card["max_prompt"])


def _context(folder: Path) -> int | None:
    """How many tokens a model takes, where its card says so."""
    from lkv.models import read_card

    most: int | None = read_card(folder).get("context")
    return most


def _freeze(args: Arguments, records: Iterable[dict[str, Any]], length: int = 0, **facts: Any) -> None:
    """A benchmark's records with their hash; a task without records is an error."""
    from lkv.data.frozen import freeze

    made = freeze(
        args.out,
        records,
        task=args.task,
        length=length,
        tokenizer=args.model.name,
        protocol=_protocol(args).label(args.kind, args.max_new_tokens),
        **facts,
    )
    log.info("%s@%d: %d samples in %s", args.task, length, made, args.out)


def _text(path: Path) -> str:
    from lkv.reading import read_text

    return read_text(path, f"no such prompt file: {path}; give a text file in UTF-8")
