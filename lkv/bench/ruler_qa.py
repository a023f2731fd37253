"""RULER's question answering: gold paragraphs among distractors, from local SQuAD and HotpotQA files."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lkv.bench.ruler_common import Generator, Prompt, filled, wording
from lkv.data import documents
from lkv.errors import UserError
from lkv.reading import parse, shown

# Source, as the option is called: what its file has to be.
LAYOUTS = {
    "squad": "SQuAD 2.0 JSON, such as dev-v2.0.json",
    "hotpotqa": "HotpotQA JSON, such as hotpot_dev_distractor_v1.json",
}


@dataclass(frozen=True)
class Question:
    """`gold` paragraphs hold the answer; `own` are the nearest distractors; both index the documents."""

    text: str
    answers: list[str]
    gold: list[int]
    own: list[int]


def qa(source: str, path: str | Path | None) -> Generator:
    """Sample i asks the file's i-th answerable question; unit: a document.

    A question's own distractors (its article in SQuAD, its ten paragraphs in HotpotQA) come before others;
    where not all fit, gold paragraphs go first, so that short contexts keep the answer.
    """
    template, prefix, shape = wording("qa"), wording("qa_prefix"), wording("document")
    questions, texts, name = _read(source, path)

    def make(size: int, rng: random.Random, index: int) -> Prompt:
        if index >= len(questions):
            raise UserError(
                f"{path} has {len(questions)} answerable questions, sample {index + 1} was asked for; "
                f"set samples to {len(questions)} or fewer, or give a larger file"
            )
        question = questions[index]
        wanted = max(size, len(question.gold))
        # Draws do not depend on the size: a smaller prompt is a larger one with documents taken away.
        chosen = dict.fromkeys(question.gold + rng.sample(question.own, len(question.own)))
        while len(chosen) < wanted:
            chosen.setdefault(rng.randrange(len(texts)))
        order = list(chosen)[:wanted]
        rng.shuffle(order)
        context = "\n\n".join(shape.format(i=i, document=texts[at]) for i, at in enumerate(order, 1))
        return Prompt(*filled(template, context, query=question.text), prefix, question.answers)

    return Generator(make, 1, len(texts), name)


def _read(source: str, path: str | Path | None) -> tuple[list[Question], list[str], str]:
    """Questions, the documents they index, and the name for the haystack column."""
    if path is None:
        raise UserError(
            f"this RULER task needs a local {LAYOUTS[source]}; no file was given; "
            f"set {source} to its path, or leave the task out"
        )
    content, name = documents.read_source(source, str(path))
    data = parse(content, f"{path} is not a {LAYOUTS[source]} ({{}}); get it again")
    try:
        questions, texts = _squad(data) if source == "squad" else _hotpotqa(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a {LAYOUTS[source]} ({type(error).__name__}: {error})") from None
    if not questions:
        raise UserError(f"{path} has no answerable question; wanted: a {LAYOUTS[source]}")
    return questions, texts, name


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{shown(value)} where a text should be")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{shown(values)} where a list of texts should be")
    return [_text(value) for value in values]


def _joined(sentences: Any) -> str:
    """A paragraph of HotpotQA; some of its sentences are empty."""
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError(f"{shown(sentences)} where a list of sentences should be")
    return _text("".join(sentences))


def _squad(data: dict[str, Any]) -> tuple[list[Question], list[str]]:
    articles = [[_text(part["context"]) for part in article["paragraphs"]] for article in data["data"]]
    texts = sorted({text for article in articles for text in article})
    at = {text: place for place, text in enumerate(texts)}
    questions = [
        Question(
            _text(item["question"]),
            _texts([answer["text"] for answer in item["answers"]]),
            [at[part["context"]]],
            [at[text] for text in article if text != part["context"]],
        )
        for article, parts in zip(articles, data["data"], strict=True)
        for part in parts["paragraphs"]
        for item in part["qas"]
        if not item.get("is_impossible", False)
    ]
    return questions, texts


def _hotpotqa(data: list[dict[str, Any]]) -> tuple[list[Question], list[str]]:
    ten = [
        {_text(title): f"{title}\n{_joined(sentences)}" for title, sentences in item["context"]}
        for item in data
    ]
    texts = sorted({text for paragraphs in ten for text in paragraphs.values()})
    at = {text: place for place, text in enumerate(texts)}
    questions = []
    for item, paragraphs in zip(data, ten, strict=True):
        # Without supporting facts all ten count as gold, as in RULER itself.
        facts = {title for title, _ in item.get("supporting_facts", [])} or set(paragraphs)
        gold = [at[text] for title, text in paragraphs.items() if title in facts]
        own = [at[text] for title, text in paragraphs.items() if title not in facts]
        if not gold:
            raise ValueError("a question without a paragraph that holds its answer")
        questions.append(Question(_text(item["question"]), [_text(item["answer"])], gold, own))
    return questions, texts
