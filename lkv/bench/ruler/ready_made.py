"""RULER sets that others have made: kvpress's (simonjegou/ruler on the hub), and RULER's own files.

RULER's own (as KVCache-Factory bundles them) are JSONL of index, input, outputs and length, one file a task.
There `input` is the whole text; where the question and the answer's first words begin is read from RULER's
wordings, which end it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lkv.bench import sources
from lkv.bench.ruler import kvpress_csv as ruler_csv
from lkv.bench.ruler.niah import singular
from lkv.bench.ruler.tasks import SAMPLES, TASKS, record, terms
from lkv.bench.ruler.wordings import Prompt, wording
from lkv.errors import UserError, one_of
from lkv.files.json_files import fingerprint
from lkv.files.reading import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lkv.bench.protocol import Protocol


COLUMNS = ("context", "question", "answer_prefix", "answer", "task", "max_new_tokens")
SUFFIXES = (".jsonl", ".csv", ".csv.gz", ".parquet")
PLAIN = ("index", "input", "outputs", "length")
PLACES = ("{length}/{task}.jsonl", "{length}/data/{task}/validation.jsonl")  # KVCache-Factory's, RULER's own
FORMS = (
    "folder:PATH with LENGTH.jsonl, .csv or .parquet as kvpress has them or LENGTH/TASK.jsonl as RULER has "
    "them, or hub:OWNER/NAME such as hub:simonjegou/ruler"
)
Rows: TypeAlias = "Iterator[tuple[str, Mapping[str, Any]]]"


def build_ready(
    task: str,
    length: int,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    samples: int | None = None,
    max_new_tokens: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of one task at one length, the first `samples` (500) of the set, unchanged in text and order.

    `source` is one of FORMS. The set's lengths are those of the tokenizer it was made with, not of this one;
    `prompt_tokens` says how long a prompt really is. A missing source is refused before the first record.
    """
    agreed = terms(task, protocol, max_new_tokens)
    planned = SAMPLES if samples is None else samples
    if planned < 1:
        raise UserError(f"RULER's samples is {samples}; it must be 1 or more")
    name, rows, read = _open(source, length, task)

    def records() -> Iterator[dict[str, Any]]:
        seen: dict[str, str] = {}
        for place, row in rows:
            prompt, tokens = read(place, row)
            if row.get("task", task) != task:
                continue
            key = fingerprint(prompt.input, prompt.outputs)
            if key in seen:
                raise UserError(f"{place}: the same record as in {seen[key]}; keep one of them")
            sample, seen[key] = len(seen), place
            tokens = min(protocol.ruler_tokens or tokens or agreed.max_new_tokens, max_new_tokens or 1 << 30)
            own = replace(agreed, max_new_tokens=tokens)
            yield record(task, length, sample, planned, f"ready:{name}", own, prompt, tokenizer)
            if len(seen) == planned:
                return
        if not seen:
            raise UserError(
                f"{source} has no record of {task} at {length}; give a set that has, or drop the task"
            )

    return records()


def _open(
    source: str, length: int, task: str
) -> tuple[str, Rows, Callable[[str, Mapping[str, Any]], tuple[Prompt, int]]]:
    """(the set's name, its rows with their places, what reads a row)."""
    kind, _, where = source.partition(":")
    if kind == "hub" and where:
        return where, iter(sources.records(source, str(length))), _checked
    if kind != "folder" or not where:
        raise UserError(f"unknown source of ready-made RULER {source!r}; allowed: {FORMS}")
    folder = expanded(where)
    paths = [path for suffix in SUFFIXES if (path := folder / f"{length}{suffix}").is_file()]
    plain = [path for place in PLACES if (path := folder / place.format(length=length, task=task)).is_file()]
    if len(plain) == 1 and not paths:
        rows = sources.records(f"folder:{plain[0].parent}", plain[0].stem)
        return folder.name, iter(rows), partial(_plain, task)
    if len(paths) != 1:
        held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = f"it holds {', '.join(held[:9])}" if held else "it is empty or no folder"
        raise UserError(f"{folder} needs one file with RULER at {length}; {found}; give {FORMS}")
    [path] = paths
    if path.suffix == ".jsonl":
        return folder.name, iter(sources.records(source, str(length))), _checked
    if path.suffix == ".parquet":
        return folder.name, _parquet(path), _checked
    return folder.name, ruler_csv.rows(path, COLUMNS), _checked


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} needs the package pyarrow to read it; pip install 'lkv[data]'") from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}, after row {number}: not a parquet file ({error}); get it again") from None


def _checked(place: str, row: Mapping[str, Any]) -> tuple[Prompt, int]:
    """The row's texts and its tokens to generate."""
    if missing := [name for name in COLUMNS if row.get(name) is None]:
        raise UserError(f"{place}: the record lacks {', '.join(missing)}; wanted: {', '.join(COLUMNS)}")
    if str(row["task"]) not in TASKS:
        raise one_of(f"RULER task in {place}:", row["task"], TASKS)
    context, question, prefix = texts = [row[name] for name in COLUMNS[:3]]
    if not all(isinstance(text, str) for text in texts) or not context or not question:
        raise UserError(
            f"{place}: context, question and answer_prefix must be texts, the first two not empty"
        )
    answers = row["answer"]
    answers = ruler_csv.references(answers) if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a for a in answers):
        raise UserError(f"{place}: answer must be a list of texts, none of them empty")
    tokens = str(row["max_new_tokens"])
    if not re.fullmatch("0*[1-9][0-9]{0,6}", tokens):
        raise UserError(f"{place}: max_new_tokens is {tokens[:40]}; it must be 1 or more, 9,999,999 at most")
    return Prompt(context + question, len(context), prefix, answers), int(tokens)


def _plain(task: str, place: str, row: Mapping[str, Any]) -> tuple[Prompt, int]:
    """The texts of one of RULER's own records, and 0: it names no tokens to generate."""
    if missing := [name for name in PLAIN[1:3] if row.get(name) is None]:
        raise UserError(f"{place}: the record lacks {', '.join(missing)}; wanted: {', '.join(PLAIN)}")
    text, answers, prefix = row["input"], row["outputs"], row.get("answer_prefix")
    if not isinstance(text, str) or not text or not isinstance(prefix, str | None):
        raise UserError(f"{place}: input must be a text, not empty, and answer_prefix, if there, a text")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a for a in answers):
        raise UserError(f"{place}: outputs must be a list of texts, none of them empty")
    if prefix is None:
        text, prefix = _parted(text, task, "_prefix")
    context, question = _parted(text, task, "")
    return Prompt(text, len(context) if question else 0, prefix, answers), 0


def _parted(text: str, task: str, of: str) -> tuple[str, str]:
    """`text` up to RULER's question (`of` is "") or answer prefix ("_prefix"), and the rest: empty if it is
    not found."""
    worded = wording(task.partition("_")[0] + of)
    after = worded if of else worded.partition("{context}")[2].lstrip("\n")
    starts = [form.partition("{")[0] for form in (after, singular(after))]
    found = max(text.rfind(start) for start in starts)
    there = found > 0 and not (
        of and "\n" in text[found:].strip()
    )  # a prefix is what the last line ends with
    return (text[:found], text[found:]) if there else (text, "")
