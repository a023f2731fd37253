"""LongBench's prompts: the benchmark's own wordings, and the cut of what is too long for a model.

The wordings are the installed lm-eval's, which lack some blanks and newlines. These are put back, so that
each template is, byte for byte, the one in the benchmark's dataset2prompt.json.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from lkv.errors import UserError
from lkv.model.chat_template import chat_text, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


END = 256  # characters at a text's ends that its tokens' borders with a chat template can depend on


class Wording(NamedTuple):
    """First digits of the official template's SHA-256, and what lm-eval's lacks of it in two places."""

    digits: str
    before_input: str = ""
    at_end: str = ""


WORDINGS = {
    "narrativeqa": Wording("aada7ed24b06abac"),
    "qasper": Wording("0fbdd123fe7f83d6"),
    "multifieldqa_en": Wording("20b4666a2de8a1f7"),
    "hotpotqa": Wording("9ec4ae308865bd0c"),
    "2wikimqa": Wording("9ec4ae308865bd0c"),
    "musique": Wording("9ec4ae308865bd0c"),
    "gov_report": Wording("91c25d585b189ced"),
    "qmsum": Wording("dca23b678fe0183b"),
    "multi_news": Wording("2af3f28c40b902e6"),
    "trec": Wording("0eff8bebdba99d91"),
    "triviaqa": Wording("00a802e6377e72fc", before_input="\n"),
    "samsum": Wording("a68d884234907eef", before_input="\n"),
    "passage_count": Wording("986550b6c61009c6", at_end=" "),
    "passage_retrieval_en": Wording("39b96b7fa52bdd2a", at_end=" "),
    "lcc": Wording("6a1f24cf0bb83cd9", at_end="\n"),
    "repobench-p": Wording("ee9ec182ea5ffeb7", at_end="\n"),
}


@cache
def template(task: str) -> str:
    """The official prompt of a task, a format string of {context} and, in most tasks, {input}."""
    wording = WORDINGS[task]
    text = _packaged(task).replace("{{context}}", "{context}")
    text = text.replace("{{question}}", f"{wording.before_input}{{input}}") + wording.at_end
    if not hashlib.sha256(text.encode()).hexdigest().startswith(wording.digits):
        raise UserError(
            f"lm-eval {version('lm-eval')} words LongBench's {task!r} differently ({text[:40]!r}...), "
            "so scores would not compare; install lm-eval 0.4.13"
        )
    return text


def fill(task: str, context: str, question: str) -> tuple[str, str]:
    """(prompt, its end): the filled template, and the part of it that follows the context.

    Braces in the texts stay as they are: a template has its fields once each, the context first.
    """
    head, tail = template(task).split("{context}")
    tail = tail.replace("{input}", question)
    return head + context + tail, tail


def fit(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], most: int | None, templated: bool
) -> list[tuple[str, int]]:
    """(text, tokens) of each: what is over `most` tokens without its middle, and the whole prompt's tokens.

    The cut is that of LongBench's pred.py: counted with special tokens, int(most / 2) ids of each end are
    decoded without them and put together with nothing between. The chat template comes after it, so that a
    prompt has some more tokens than `most`.
    """
    ids = token_ids(tokenizer, texts)
    fitted = list(zip(texts, map(len, ids), strict=True))
    if templated:
        # What the template adds depends on a text's ends alone: long texts are not tokenised twice.
        ends = [text if len(text) <= 2 * END else text[:END] + text[-END:] for text in texts]
        added = zip(prompt_ids(tokenizer, ends, True), token_ids(tokenizer, ends), strict=True)
        fitted = [
            (text, tokens + len(whole) - len(bare))
            for (text, tokens), (whole, bare) in zip(fitted, added, strict=True)
        ]
    if most is not None and (long := [at for at, row in enumerate(ids) if len(row) > most]):
        cut = [
            _decoded(tokenizer, ids[at][: most // 2]) + _decoded(tokenizer, ids[at][-(most // 2) :])
            for at in long
        ]
        for at, text, row in zip(long, cut, prompt_ids(tokenizer, cut, templated), strict=True):
            fitted[at] = text, len(row)
    return fitted


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], templated: bool) -> list[list[int]]:
    """The ids of whole prompts, as lkv.model.chat_template.chat_ids gives them for one."""
    if templated:
        texts = [chat_text(tokenizer, text) for text in texts]
    return token_ids(tokenizer, texts, special=not templated)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


class _Loader(yaml.SafeLoader):
    """Passes over lm-eval's own tags (!function)."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _packaged(task: str) -> str:
    """A task's prompt as the installed lm-eval has it, a Jinja template; "" if it has none.

    The file is read without importing lm-eval, which takes seconds.
    """
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "LongBench's wordings come with lm-eval, which is not installed; pip install 'lkv[data]'"
        )
    path = Path(package.submodule_search_locations[0]) / "tasks" / "longbench" / f"{task}.yaml"
    config = yaml.load(path.read_text(encoding="utf-8"), _Loader) if path.is_file() else {}
    return str(config.get("doc_to_text", ""))
