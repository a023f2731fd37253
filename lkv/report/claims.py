"""docs/claims.md: what was measured, each claim with its figure and verdict, and the rules."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lkv.claims.catalogue import CLAIMS, RULES, TARGETS
from lkv.claims.evidence import UNMEASURED, UNTESTABLE, VERDICTS, Evidence, read_evidence
from lkv.claims.rules import Claim, judged
from lkv.records import atomic_write
from lkv.report.note import setting
from lkv.study import PATHS

INTRO = (
    "What the LookaheadKV paper (ICLR 2026, arXiv 2603.10899) claims, what its reviewers doubted, and what "
    "this project measured. The wording is ours. The rules below were written before any accuracy of the "
    "study was measured; the latencies of the H100 were known by then. A rule that changes later changes "
    "in sight, by a commit."
)


def write_claims(results: Path, latency: Path | None, out: Path) -> None:
    """Writes the document; the same results give the same bytes."""
    text = document(read_evidence(results, latency), command(results, latency, out))
    with atomic_write(out) as stream:
        stream.write(text)


def command(results: Path, latency: Path | None, out: Path) -> str:
    """The call that makes the document."""
    words = ["lkv claims --results", results.as_posix()]
    return " ".join(
        [*words, *(["--latency", latency.as_posix()] if latency else []), "--out", out.as_posix()]
    )


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
    commit = str(known.get("commit") or "unknown")[:10] + (
        " with local changes" if known.get("dirty") else ""
    )
    counts = Counter(judged(claim, evidence).verdict for claim in (*CLAIMS, *TARGETS))
    lines = [
        f"- Study `{evidence.study}`: {setting(known)}; commit {commit}.",
        f"- Models: {', '.join(known.get('models') or {}) or 'none but shapes with random weights'}.",
    ]
    lines += [
        wrapped(
            f"- Modules `{name}`: {facts.get('trained_on') or 'unknown prompts'}; "
            f"{facts.get('steps') or '?'} steps.",
            indent="  ",
        )
        for name, facts in (known.get("adapters") or {}).items()
    ]
    if "latency" in evidence.tables:
        devices = ", ".join(dict.fromkeys(evidence.tables["latency"]["device"]))
        lines.append(f"- Latency from `{evidence.latency_study}`: {devices}.")
    return [*lines, "- Verdicts: " + ", ".join(f"{v} {counts[v]}" for v in VERDICTS) + "."]


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
    """A claim's rule, and the command that makes the files it was judged by."""
    text = f"### {claim.id}\n\n{wrapped(f'{claim.text}. {claim.rule}')}"
    if judged(claim, evidence).verdict in (UNMEASURED, UNTESTABLE):
        return text
    study = evidence.latency_study if claim.files == ("latency",) else evidence.study
    paths = " ".join(PATHS[key].format(study=study) for key in claim.files)
    return f"{text}\n\n```sh\nsnakemake --cores 8 --configfile config/{study}.yaml -- {paths}\n```"


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
