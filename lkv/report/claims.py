"""docs/claims.md: what was measured, each claim with its figure and verdict, and the rules."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lkv.claims.catalogue import CLAIMS, RULES, TARGETS
from lkv.claims.evidence import TABLES, UNMEASURED, UNTESTABLE, VERDICTS, Evidence, averages, read_evidence
from lkv.claims.rules import Claim, judged
from lkv.files.atomic import atomic_write
from lkv.report.note import arms_run, setting
from lkv.results.paths import PATHS

INTRO = (
    "What the LookaheadKV paper (ICLR 2026, arXiv 2603.10899) claims, what its reviewers doubted, and what "
    "this project measured. The wording is ours. The rules below were written before any accuracy of the "
    "study was measured; the latencies of the H100 were known by then. A rule that changes later changes "
    "in sight, by a commit: since first scores were seen, on samples that the study does not use, that is "
    "which arm the others are compared with, P10's arm, D6's wording, and 8K timed at 8,064 tokens."
)


def write_claims(results: Path, latency: Path | None, also: Sequence[Path], out: Path) -> None:
    """Writes the document; the same results give the same bytes."""
    text = document(read_evidence(results, latency, also), command(results, latency, also, out))
    with atomic_write(out) as stream:
        stream.write(text)


def command(results: Path, latency: Path | None, also: Sequence[Path], out: Path) -> str:
    """The call that makes the document."""
    folders = {"results": [results], "latency": [latency] if latency else [], "also": also, "out": [out]}
    words = [
        " ".join([f"--{flag}", *(folder.as_posix() for folder in given)])
        for flag, given in folders.items()
        if given
    ]
    return " ".join(["lkv claims", *words])


def document(evidence: Evidence, made_by: str) -> str:
    """The whole document as Markdown."""
    rules = [wrapped(f"- **{name}**: {text}", indent="  ") for name, text in RULES]
    parts = [
        "# The claims, one by one",
        wrapped(INTRO),
        f"```sh\n{made_by}\n```",
        "## What was measured",
        "\n".join(measured(evidence)),
        "## The paper's claims (P) and the reviewers' doubts (D)",
        table(CLAIMS, evidence, paper=True),
        "## What the study set out to reach (T)",
        table(TARGETS, evidence, paper=False),
        "## The rules",
        "\n".join(rules),
        *(detail(claim, evidence) for claim in (*CLAIMS, *TARGETS)),
    ]
    return "\n\n".join(parts) + "\n"


def measured(evidence: Evidence) -> list[str]:
    """What the figures rest on, from the study's provenance."""
    known = evidence.provenance
    counts = Counter(judged(claim, evidence).verdict for claim in (*CLAIMS, *TARGETS))
    lines = [
        f"- Study `{evidence.study}`: {made_on(known)}.",
        *(f"- Read beside it, `{name}`: {made_on(facts)}." for name, facts in evidence.beside.items()),
        f"- Models: {', '.join(known.get('models') or {}) or 'none but shapes with random weights'}.",
    ]
    if "ablation" in known:  # evaluated elsewhere
        lines.insert(1, f"- Its arms' scores (`ablation.csv`): {made_on(arms_run(known))}.")
    alike: dict[str, list[str]] = {}
    for name, facts in (known.get("adapters") or {}).items():
        how = f"{facts.get('trained_on') or 'unknown prompts'}; {facts.get('steps') or '?'} steps"
        if facts.get("commit"):
            how += f"; {facts.get('device')}, commit {facts['commit'][:10]}"
        alike.setdefault(how, []).append(f"`{name}`")
    lines += [wrapped(f"- Modules {', '.join(names)}: {how}.", indent="  ") for how, names in alike.items()]
    if known.get("note"):
        lines.append(
            f"- How it was run, and what is missing: `note` in `results/{evidence.study}/provenance.json`."
        )
    if "latency" in evidence.tables:
        devices = ", ".join(dict.fromkeys(evidence.tables["latency"]["device"]))
        lines.append(f"- Latency from `{evidence.latency_study}`: {devices}.")
    return [*lines, "- Verdicts: " + ", ".join(f"{v} {counts[v]}" for v in VERDICTS) + "."]


def made_on(known: Mapping[str, Any]) -> str:
    """A study's device and commit."""
    changes = " with local changes" if known.get("dirty") else ""
    return f"{setting(known)}; commit {str(known.get('commit') or 'unknown')[:10]}{changes}"


def table(claims: Sequence[Claim], evidence: Evidence, paper: bool) -> str:
    """One row a claim."""
    head = ["", "claim", *(["the paper's figure"] if paper else []), "our figure", "verdict"]
    rows: list[Iterable[str]] = [head, ["---"] * len(head)]
    for claim in claims:
        finding = judged(claim, evidence)
        theirs = [f"{claim.paper} ({claim.source})"] if paper else []
        rows.append(
            [
                f"[{claim.id}](#{claim.id.lower()})",
                claim.text,
                *theirs,
                finding.figure,
                f"**{finding.verdict}**",
            ]
        )
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def detail(claim: Claim, evidence: Evidence) -> str:
    """A claim's rule, and the commands that make the files it was judged by."""
    text = f"### {claim.id}\n\n{wrapped(f'{claim.text}. {claim.rule}')}"
    if judged(claim, evidence).verdict in (UNMEASURED, UNTESTABLE):
        return text
    keys = [key for key in claim.files if key not in TABLES or key in evidence.tables]
    calls = []
    for study in judged_by(claim, evidence):
        paths = " ".join(PATHS[key].format(study=study) for key in keys)
        calls.append(f"snakemake --cores 8 --configfile config/{study}.yaml -- {paths}")
    return "\n".join([f"{text}\n\n```sh", *calls, "```"])


def judged_by(claim: Claim, evidence: Evidence) -> list[str]:
    """The studies whose files a claim is judged by."""
    if claim.files == ("latency",):
        return [evidence.latency_study]
    if not claim.temperatures:
        return [evidence.study]
    drawn = [averages(evidence.tables["paired"], "ruler", t)["study"] for t in claim.temperatures]
    return [str(name) for name in dict.fromkeys(name for names in drawn for name in names)]


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
