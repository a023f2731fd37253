"""The note under a table: how to read it, what was measured and on what; all from the study's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lkv.report.source import Block
from lkv.report.style import benchmark_label, length_label, style
from lkv.results.statistics import LEVEL, REPEATS

TIED, SHORT = "°", "†"
BLIND = "question_blind"  # the switch in a protocol's label


def note(
    blocks: Sequence[Block], marks: str, recall: bool, paired: bool, provenance: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """(lead, text) paragraphs in plain text.

    `marks`: those in the table; `recall`: whether it shows any; `paired`: whether there is a paired.csv.
    """
    read = (
        f"0–100, mean of the task means; in brackets its {100 * LEVEL:g} % bootstrap interval (samples "
        f"resampled within each task, {REPEATS:,} times). Bold: best evictor of a column. Full cache and "
        "Oracle (importance from the full cache's own answer) are bounds."
    )
    paragraphs = [
        ("Score", read),
        (
            "Budget C",
            "entries kept per layer and KV head, everything kept counted in (window and sinks too).",
        ),
    ]
    if recall:
        text = (
            "share of the oracle's C most important entries that are among the method's own C, both unpooled "
            "and with nothing forced, averaged over layers and KV heads."
        )
        paragraphs.append(("Recall", text))
    if SHORT in marks:
        paragraphs.append((SHORT, "fewer usable samples than planned (n and n_planned are in the .csv)."))
    if TIED in marks:
        text = f"the {100 * LEVEL:g} % interval of the paired difference to LookaheadKV covers 0."
        paragraphs.append((TIED, text))
    if recall and not paired:
        paragraphs.append((f"{TIED} for recall", "unknown (no paired.csv)."))
    paragraphs.append(("Tasks", _tasks(blocks)))
    paragraphs.append(("Protocol", _protocol(blocks)))
    paragraphs.append(("LookaheadKV's modules", _modules(blocks, provenance)))
    paragraphs += _arms(blocks, provenance)
    paragraphs.append(("Run", _run(provenance)))
    return paragraphs


def setting(provenance: Mapping[str, Any]) -> str:
    """Device, attention back end and dtype, or that they are unknown."""
    if not provenance:
        return "device, back end and dtype unknown (no provenance.json)"
    known = {name: provenance.get(name) or f"{name} unknown" for name in ("device", "backend", "dtype")}
    return f"{known['device']}, attention {known['backend']}, {known['dtype']}"


def _tasks(blocks: Sequence[Block]) -> str:
    """Task lists with their haystacks and the samples a cell; blocks that share them are named together."""
    shared: dict[str, dict[str, list[str]]] = {}
    for block in blocks:
        names = [f"{task} ({haystack})" if haystack else task for task, haystack in block.tasks]
        many = "mean of " + f"{len(names)} tasks" if len(names) > 1 else "one task"
        kinds = ", haystack in brackets" if any(haystack for _, haystack in block.tasks) else ""
        text = f"{many}{kinds}: {', '.join(names)}; {block.samples} samples a cell"
        lengths = shared.setdefault(text, {}).setdefault(benchmark_label(block.benchmark), [])
        if length_label(block.length) not in lengths:
            lengths.append(length_label(block.length))
    return " ".join(
        f"{benchmark} at {' and '.join(lengths)}, {text}."
        for text, where in shared.items()
        for benchmark, lengths in where.items()
    )


def _protocol(blocks: Sequence[Block]) -> str:
    """Each protocol's label, which names every switch, and whether the evicted prompt holds the question."""
    labels: dict[str, list[str]] = {}
    for block in blocks:
        names = labels.setdefault(block.protocol or "unnamed", [])
        if (name := benchmark_label(block.benchmark)) not in names:
            names.append(name)
    texts = []
    for label, names in labels.items():
        blind = BLIND in label.split()
        order = "evicted before the question is read" if blind else "the evicted prompt holds the question"
        texts.append(f"{', '.join(names)}: {label} ({order})")
    greedy = all("temperature=" not in label for label in labels)
    return "; ".join(texts) + ("; greedy decoding." if greedy else "; greedy where no temperature is named.")


def _modules(blocks: Sequence[Block], provenance: Mapping[str, Any]) -> str:
    models = {block.model for block in blocks}
    adapters = provenance.get("adapters") or {}
    arm = ((provenance.get("config") or {}).get("train") or {}).get("arm")
    known = {
        name: facts
        for name, facts in adapters.items()
        if name.rpartition("/")[0] in models and arm in (None, name.rpartition("/")[2])
    }
    if not known:
        return "what they were trained on is unknown (no adapter in provenance.json)."
    return " ".join(
        (f"{name}: " if len(known) > 1 else "") + _training(facts) for name, facts in known.items()
    )


def _arms(blocks: Sequence[Block], provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A paragraph for each arm among the methods: what other modules these are."""
    adapters = provenance.get("adapters") or {}
    places = [(block.model, m) for block in blocks for m in block.average["method"] if "/" in m]
    found = {}
    for model, method in dict.fromkeys(places):
        facts = adapters.get(f"{model}/{method.partition('/')[2]}")
        text = _training(facts) if facts else "other modules, or another use of them."
        found[style(method).label] = f"{text} Evaluated on {setting(arms_run(provenance))}."
    return list(found.items())


def arms_run(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The facts of the run that scored the arms: the study's own, where nothing else is said."""
    return provenance.get("ablation") or provenance


def _training(facts: Mapping[str, Any]) -> str:
    text = f"trained on {str(facts.get('trained_on') or 'unknown prompts').rstrip('. ')}"
    if facts.get("steps") is not None:
        text += f"; {facts['steps']:,} steps"
    for what, before, after in (
        ("training KL, first and last tenth of the steps:", "kl_first", "kl_last"),
        ("held-out KL, before and after:", "held_out_kl_before", "held_out_kl_after"),
    ):
        if facts.get(before) is not None and facts.get(after) is not None:
            text += f"; {what} {facts[before]:#.3g} → {facts[after]:#.3g} nats"
    return text + "."


def _run(provenance: Mapping[str, Any]) -> str:
    commit = provenance.get("commit")
    if not commit:
        return f"{setting(provenance)}; commit unknown."
    changed = " with local changes" if provenance.get("dirty") else ""
    return f"{setting(provenance)}; commit {str(commit)[:10]}{changed}."
