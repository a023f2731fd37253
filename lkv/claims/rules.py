"""The rules: cells in, a verdict and the figure behind it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lkv.claims.evidence import (
    FAILS,
    HOLDS,
    PART,
    UNTESTABLE,
    Cell,
    Evidence,
    Overhead,
    Place,
    Unsettled,
    against,
    arm_against,
    averages,
    overhead,
    pick,
    place,
    thousands,
)
from lkv.results.summarise import REFERENCE

LEVEL = 0.05
MARGIN = 2.0  # points of score: a loss that does not matter
SHORT_PROMPTS = "upto1k"  # the arm that was trained on prompts of at most 1,024 tokens


@dataclass(frozen=True)
class Finding:
    """A verdict, and the figure that it rests on in words."""

    verdict: str
    figure: str


@dataclass(frozen=True)
class Claim:
    """A claim in our words, where the paper makes it, its figure there, and what decides it."""

    id: str
    text: str
    source: str
    paper: str
    rule: str
    judge: Callable[[Evidence], Finding]
    files: tuple[str, ...]  # keys of the study's files that the figure is made from
    temperatures: tuple[float, ...] = ()  # of its rows; they may lie in a study beside


def judged(claim: Claim, evidence: Evidence) -> Finding:
    """The claim's finding; where a file, arm or budget is missing the verdict says so."""
    try:
        return claim.judge(evidence)
    except Unsettled as outcome:
        return Finding(outcome.verdict, str(outcome))


def holm(p: Sequence[float]) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects at LEVEL."""
    rejected = [False] * len(p)
    for rank, at in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[at] > LEVEL / (len(p) - rank):
            break
        rejected[at] = True
    return rejected


def above(cells: Sequence[Cell]) -> Finding:
    """Rule A. Holds: every interval is above 0. In part: more cells are surely above 0 than surely below."""
    sure = holm([cell.p for cell in cells])
    up = sum(cell.low > 0 and known for cell, known in zip(cells, sure, strict=True))
    down = sum(cell.high < 0 and known for cell, known in zip(cells, sure, strict=True))
    verdict = HOLDS if all(cell.low > 0 for cell in cells) else PART if up > down else FAILS
    return Finding(verdict, f"above in {_share(cells, lambda c: c.low > 0)}{_below(cells)}; {_ends(cells)}")


def not_below(cells: Sequence[Cell]) -> Finding:
    """Rule B. Holds: no interval reaches below -MARGIN. In part: more cells keep to it than are below 0."""
    sure = holm([cell.p for cell in cells])
    down = sum(cell.high < 0 and known for cell, known in zip(cells, sure, strict=True))
    within = sum(cell.low >= -MARGIN for cell in cells)
    verdict = HOLDS if within == len(cells) else PART if within > down else FAILS
    share = _share(cells, lambda c: c.low >= -MARGIN)
    return Finding(verdict, f"within {MARGIN:g} points in {share}{_below(cells)}; {_ends(cells)}")


def both(first: Finding, second: Finding) -> Finding:
    """Two conditions: holds where both do, does not where neither does."""
    verdicts = {first.verdict, second.verdict}
    verdict = first.verdict if len(verdicts) == 1 else PART
    return Finding(verdict, f"{first.figure}. {second.figure}")


def share_of(passed: Sequence[bool], figure: str) -> Finding:
    """All, some or none of several conditions."""
    return Finding(HOLDS if all(passed) else PART if any(passed) else FAILS, figure)


def shrinking(evidence: Evidence, methods: Sequence[str], ladders: Mapping[int, Sequence[int]]) -> Finding:
    """Whether a length's largest gap is at one of its two smallest budgets, and its interval lies above that
    of the gap at the largest budget.
    """
    passed, words = [], []
    for method in methods:
        for length, budgets in ladders.items():
            cells = against(evidence, [method], [(length, budget) for budget in budgets])
            for at in range(0, len(cells), len(budgets)):  # a model after the other
                ladder = cells[at : at + len(budgets)]
                top = max(ladder, key=lambda cell: cell.diff)
                passed.append(top in ladder[:2] and top.low > ladder[-1].high)
                words.append(
                    f"{top.where}: {interval(top)} against {interval(ladder[-1])} at C = {budgets[-1]}"
                )
    return share_of(passed, f"in {sum(passed)} of {len(passed)}: " + "; ".join(words))


def longer(
    evidence: Evidence, methods: Sequence[str], lengths: Sequence[int], budget: int, places: Sequence[Place]
) -> Finding:
    """Rule A at the evaluated lengths above the longest training prompt; where there is none, at `places` for
    the arm that was trained on short prompts.
    """
    known = trained_to((evidence.provenance.get("config") or {}).get("train") or {})
    if not known:
        raise Unsettled("provenance.json does not say how long the training prompts were")
    if beyond := [length for length in lengths if length > known]:
        return above(against(evidence, methods, [(length, budget) for length in beyond]))
    cells = [cell for method in methods for cell in arm_against(evidence, SHORT_PROMPTS, method, places)]
    found = above(cells)
    return Finding(found.verdict, f"arm `{SHORT_PROMPTS}`: {found.figure}")


def trained_to(train: Mapping[str, Any]) -> int:
    """The longest training prompt, its answer and the lookahead rows counted in; 0 where it is unknown."""
    longest = train.get("max_tokens") if train.get("sources") else max(train.get("lengths") or [0])
    rows = (train.get("response_tokens") or 0) + (train.get("tokens") or 0)
    return int(longest + rows) if longest else 0


def elsewhere(
    evidence: Evidence, benchmark: str, reason: str, judge: Callable[[Evidence], Finding]
) -> Finding:
    """A benchmark that this study leaves out cannot be tested here, and the reason is given."""
    if "paired" not in evidence.tables or benchmark not in set(evidence.tables["paired"]["benchmark"]):
        raise Unsettled(reason, UNTESTABLE)
    return judge(evidence)


def retained(evidence: Evidence, goals: Mapping[int, float], lengths: Sequence[int]) -> Finding:
    """LookaheadKV's score in per cent of the full cache's, held at its mean; the paired interval's lower end
    decides.
    """
    accuracy = averages(evidence.table("accuracy"), "ruler")
    passed, reached, words = [], [], []
    for budget, goal in goals.items():
        for length in lengths:
            cells = against(evidence, ["full"], [(length, budget)])  # one a model
            fulls = [
                float(pick(accuracy, model=model, method="full", length=length)["mean"])
                for model in dict.fromkeys(accuracy["model"])
            ]
            if not min(fulls) > 0:
                raise Unsettled(f"the full cache scores 0 at {length} tokens", UNTESTABLE)
            for cell, full in zip(cells, fulls, strict=True):
                share, low, high = (100 * (1 + value / full) for value in (cell.diff, cell.low, cell.high))
                passed.append(low >= goal)
                reached.append(share >= goal)
                words.append(
                    f"{place(length, budget)}: {share:.1f} % [{low:.1f}, {high:.1f}], goal {goal:g} %"
                )
    verdict = HOLDS if all(passed) else PART if any(reached) else FAILS
    return Finding(verdict, "; ".join(words))


def recall(evidence: Evidence, goal: float, places: Sequence[tuple[int, int]]) -> Finding:
    """Unpooled recall of the oracle's entries at every place; accuracy.csv has no interval of it."""
    rows = averages(evidence.table("accuracy"), "ruler")
    found = []
    for model in dict.fromkeys(rows["model"]):
        for length, budget in places:
            row = pick(rows, model=model, method=REFERENCE, length=length, budget=budget)
            found.append((float(row["recall_raw"]), place(length, budget)))
    if any(value != value for value, _ in found):
        raise Unsettled("no recall in accuracy.csv: the oracle was not evaluated")
    low, high = min(found), max(found)
    figure = f"{low[0]:.3f} ({low[1]}) to {high[0]:.3f} ({high[1]}); no interval"
    return share_of([value >= goal for value, _ in found], figure)


def reported(evidence: Evidence, benchmark: str) -> Finding:
    """Whether the benchmark's figures are there with their intervals."""
    rows = averages(evidence.table("accuracy"), benchmark)
    rows = rows[rows["method"] == REFERENCE].dropna(subset=["ci_low", "ci_high"])
    if rows.empty:
        raise Unsettled(f"no {benchmark} average with an interval")
    words = [f"C = {r.budget}: {r.mean:.1f} [{r.ci_low:.1f}, {r.ci_high:.1f}]" for r in rows.itertuples()]
    return Finding(HOLDS, "; ".join(words))


def near(evidence: Evidence, other: str, points: float, lengths: Sequence[int]) -> Finding:
    """Both overheads in per cent of the plain prefill; the far ends of their ranges decide."""
    passed, words = [], []
    for length in lengths:
        ours, theirs = overhead(evidence, REFERENCE, length), overhead(evidence, other, length)
        apart = 100 * (ours.high / ours.prefill - theirs.low / theirs.prefill)
        passed.append(apart <= points)
        words.append(f"{thousands(length)}: {_percent(ours)} against {_percent(theirs)}")
    return share_of(passed, "; ".join(words))


def times_cheaper(evidence: Evidence, other: str, factor: float, length: int) -> Finding:
    """The other's overhead over LookaheadKV's."""
    ours, theirs = overhead(evidence, REFERENCE, length), overhead(evidence, other, length)
    ratio, low, high = theirs.median / ours.median, theirs.low / ours.high, theirs.high / ours.low
    verdict = HOLDS if low >= factor else PART if low > 1 else FAILS
    return Finding(
        verdict, f"{ratio:.1f} [{low:.1f}, {high:.1f}]: {theirs.median:.0f} ms over {ours.median:.2f} ms"
    )


def share_of_prefill(evidence: Evidence, percent: float, length: int) -> Finding:
    """LookaheadKV's overhead in per cent of the plain prefill."""
    ours = overhead(evidence, REFERENCE, length)
    high, median = (100 * value / ours.prefill for value in (ours.high, ours.median))
    verdict = HOLDS if high <= percent else PART if median <= percent else FAILS
    return Finding(verdict, f"{_percent(ours)} of {ours.prefill:,.0f} ms")


def parameters(evidence: Evidence, percent: float) -> Finding:
    """Trainable parameters of the main arm, in per cent of the model's."""
    models: Mapping[str, Any] = evidence.provenance.get("models") or {}
    adapters: Mapping[str, Any] = evidence.provenance.get("adapters") or {}
    arm = ((evidence.provenance.get("config") or {}).get("train") or {}).get("arm", "main")
    shares = {
        name: 100 * adapters[f"{name}/{arm}"]["parameters"] / facts["parameters"]
        for name, facts in models.items()
        if (adapters.get(f"{name}/{arm}") or {}).get("parameters") and facts.get("parameters")
    }
    if not shares:
        raise Unsettled("no trained modules in provenance.json")
    figure = "; ".join(f"{name}: {share:.2f} %" for name, share in shares.items())
    return share_of([share < percent for share in shares.values()], f"{figure}; a count, no interval")


def interval(cell: Cell) -> str:
    return f"{cell.diff:+.1f} [{cell.low:+.1f}, {cell.high:+.1f}]"


def _percent(o: Overhead) -> str:
    middle, low, high = (100 * value / o.prefill for value in (o.median, o.low, o.high))
    return f"{middle:.2f} % [{low:.2f}, {high:.2f}]"


def _share(cells: Sequence[Cell], true: Callable[[Cell], bool]) -> str:
    return f"{sum(map(true, cells))} of {len(cells)} cells"


def _below(cells: Sequence[Cell]) -> str:
    count = sum(cell.high < 0 for cell in cells)
    return f", below in {count}" if count else ""


def _ends(cells: Sequence[Cell]) -> str:
    low, high = min(cells, key=lambda c: c.diff), max(cells, key=lambda c: c.diff)
    if low == high:
        return f"{interval(low)} ({low.where})"
    return f"from {interval(low)} ({low.where}) to {interval(high)} ({high.where})"
