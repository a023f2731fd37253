"""LongProc's HTML→TSV (arXiv 2501.05414): extract a table from a web page; row-level F1, order-free.

Data, prompt wording and pages come from the user's own copy of princeton-pli/LongProc (Apache-2.0). Neither
that code nor HELMET's cuts a prompt here, and both use the chat template (HELMET's longproc_addon).
"""

from __future__ import annotations

import csv
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.bench.sample import BenchmarkSample
from lkv.errors import UserError, one_of, unshown
from lkv.files.json_files import fingerprint
from lkv.files.reading import filled, parse, read_text, regular, require
from lkv.files.strict_yaml import parse_yaml
from lkv.model.chat_template import chat_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lkv.bench.protocol import Protocol


@dataclass(frozen=True)
class Task:
    """How many samples the official file has, and the tokens to generate (HELMET's html_to_tsv.yaml)."""

    samples: int
    tokens: int


TASKS = {
    "html_to_tsv_0.5k": Task(100, 1024),
    "html_to_tsv_2k": Task(189, 3072),
    "html_to_tsv_8k": Task(120, 10240),
}
METRIC = "row_f1"
FOLDER = "html_to_tsv"
PAGE = "{html_str}"
FIELDS = (
    "task_id", "website_id", "html_path", "task_topic", "task_description", "gt", "tsv_header",
    "filtering_instruction",
)  # fmt: skip
COPY = "give the data folder of a copy of princeton-pli/LongProc"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Copy:
    """What the user's copy holds of one task: the folder, the prompt's template, the samples to take."""

    folder: Path
    template: str
    items: list[dict[str, Any]]

    def prompt(self, item: Mapping[str, Any]) -> tuple[str, int]:
        """(the prompt, the character at which the page ends: what follows is the question)."""
        return _fill(self.template, item, _read(_page(self.folder, item)), self.folder)


def build(
    task: str,
    source_folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    context: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of one task, in the file's order; `samples` takes the first ones.

    `source_folder` is LongProc's repository, its `data` or its `data/html_to_tsv`. `max_new_tokens` caps the
    task's own number. `context` is the model's, in tokens: a longer prompt with its answer is refused. What
    the copy lacks is refused before the first record.
    """
    if task not in TASKS:
        raise one_of("LongProc task", task, TASKS)
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"LongProc's {name} is {value}; it must be 1 or more")
    copy = _open(task, Path(source_folder), samples)
    row = TASKS[task]
    tokens = min(row.tokens, max_new_tokens or row.tokens)
    templated = protocol.templated("longproc")

    def records() -> Iterator[dict[str, Any]]:
        for index, item in enumerate(copy.items):
            text, question_at = copy.prompt(item)
            length = len(chat_ids(tokenizer, text, template=templated))
            if context is not None and length + tokens > context:
                raise _too_long(f"{task}'s sample {index} ({item['task_id']})", length, tokens, context)
            yield BenchmarkSample(
                benchmark="longproc",
                task=task,
                length=0,
                sample=index,
                planned=samples or row.samples,
                haystack="",
                protocol=protocol.label("longproc", max_new_tokens),
                question_aware=protocol.question_aware,
                template=templated,
                input=text,
                question_at=question_at,
                answer_prefix="",
                outputs=[item["gt"]],
                classes=[],
                metric=METRIC,
                max_new_tokens=tokens,
                stops=[],
                min_new_tokens=0,
                prompt_tokens=length,
            ).as_record()

    return records()


def score(prediction: str, record: Mapping[str, Any]) -> float:
    """0 to 100 for one sample: F1 of the predicted rows against the reference's, in any order."""
    if record["metric"] != METRIC:
        raise one_of("LongProc metric", record["metric"], [METRIC])
    if not record["outputs"]:
        raise UserError("a LongProc sample has no reference table (outputs); build the data again")
    return max(100.0 * row_f1(fenced(prediction), reference) for reference in record["outputs"])


def fenced(prediction: str) -> str:
    """What stands between the first ```tsv and the last ```; what follows an unclosed one; or all of it."""
    if (block := re.search(r"```tsv(.*)```", prediction, re.DOTALL)) is not None:
        return block[1]
    return prediction.split("```tsv")[1] if "```tsv" in prediction else prediction


def row_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of the share of predicted rows that the reference has and of the reverse; 0 to 1.

    A row that occurs twice counts twice. 0 for a prediction that is no table, or has another number of
    columns; what the columns are called does not count.
    """
    predicted, wanted = rows(prediction), rows(reference)
    if not predicted or not wanted or len(predicted[0]) != len(wanted[0]):
        return 0.0
    precision = sum(row in set(wanted) for row in predicted) / len(predicted)
    recall = sum(row in set(predicted) for row in wanted) / len(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def rows(table: str) -> list[Row]:
    """A TSV's normalised rows, without its header; none where it cannot be read.

    The official reading: a last row of another width is dropped (it is what follows the table, or was cut
    off), any other becomes a row of N/A, and a header that repeats a name makes the table unreadable.
    """
    try:
        header, *body = csv.reader(table.strip().split("\n"), delimiter="\t")
    except csv.Error:
        return []
    if len(set(header)) < len(header):
        return []
    if body and len(body[-1]) != len(header):
        body.pop()
    return [tuple(map(normalise, row if len(row) == len(header) else ["N/A"] * len(header))) for row in body]


def normalise(cell: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and white space."""
    plain = cell.lower().translate(str.maketrans("", "", string.punctuation))
    return "".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _open(task: str, source: Path, samples: int | None) -> Copy:
    """Reads the copy's template and samples.

    A copy that lacks a sample's page is refused, and so is a template that asks for a field of no sample.
    """
    folder = _folder(source, task)
    template = _template(folder / "prompts.yaml")
    items = _items(folder / f"{task}.json")[:samples]
    for item in items:
        page = _page(folder, item)
        regular(page, f"{task} needs {page}, which is not there; {COPY}, pages included")
    _fill(template, {**dict.fromkeys(FIELDS, ""), "reference_output": ""}, "", folder)
    return Copy(folder, template, items)


def _too_long(sample: str, length: int, tokens: int, context: int) -> UserError:
    return UserError(
        f"{sample} has {length} tokens and its answer up to {tokens}, the model's context is {context}; "
        "use a model with a longer context, or fewer samples"
    )


def _folder(source: Path, task: str) -> Path:
    places = [source / "data" / FOLDER, source / FOLDER, source]
    for place in places:
        if (place / f"{task}.json").is_file():
            return place
    raise UserError(f"no {FOLDER}/{task}.json in {source}; {COPY}")


def _page(folder: Path, item: Mapping[str, Any]) -> Path:
    """html_path is written from the repository's root in LongProc's first release, from `folder` later."""
    if unshown(item["html_path"]):
        raise UserError(f"html_path {item['html_path']!r} in {folder} is no path; {COPY}")
    parts = Path(item["html_path"]).parts
    page = folder.joinpath(*parts[parts.index(FOLDER) + 1 if FOLDER in parts else 0 :])
    if not page.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"html_path {item['html_path']!r} leads out of {folder}; {COPY}")
    return page


def _read(path: Path) -> str:
    return read_text(path, f"no such file: {path}; {COPY}", "copy it again from princeton-pli/LongProc")


def _template(path: Path) -> str:
    try:
        prompts = parse_yaml(_read(path), str(path))
    except UserError as error:
        raise UserError(f"{error}; {COPY}") from None
    template = require(prompts, ["USER_PROMPT"], path, "LongProc")["USER_PROMPT"]
    if not isinstance(template, str) or template.count(PAGE) != 1:
        raise UserError(f"{path}: USER_PROMPT must be a text with {PAGE} in one place; {COPY}")
    return template


def _items(path: Path) -> list[dict[str, Any]]:
    items = parse(_read(path), f"{path} is not JSON ({{}}); {COPY}")
    if not isinstance(items, list) or not items:
        raise UserError(f"{path} is not a list of samples; {COPY}")
    known: set[str] = set()
    for number, item in enumerate(items):
        where = f"{path}, sample {number}"
        require(item, FIELDS, where, "LongProc")
        for name in ("html_path", "gt"):
            if not isinstance(item[name], str) or not item[name].strip():
                raise UserError(f"{where}: {name} must be a text that is not empty; {COPY}")
        if (content := fingerprint(item)) in known:
            raise UserError(f"{where}: {item['task_id']} occurs twice; {COPY}")
        known.add(content)
    return items


def _fill(template: str, item: Mapping[str, Any], page: str, folder: Path) -> tuple[str, int]:
    """(the prompt, the character at which the page ends: what follows is the question)."""
    fields = {**item, "reference_output": item.get("gt", "")}
    refused = f"{folder / 'prompts.yaml'}: USER_PROMPT cannot be filled ({{}}); {COPY}"
    before, after = (filled(part, fields, refused) for part in template.split(PAGE))
    return before + page + after, len(before) + len(page)
