"""The schemas of data sets that the mixture reads: from a record to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from lkv.data.tables import Record, Records
from lkv.errors import UserError
from lkv.model.chat_template import Unrendered, chat_ids, conversation_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Turns = list[dict[str, str]]
T = TypeVar("T")


class Malformed(ValueError):
    """A record that is not of its schema."""


class Unusable(Exception):
    """A record of which no prompt can be made; says why, for the tally."""


@dataclass(frozen=True)
class Example:
    """A question, ready for its answer to be written behind it; no answer where the set keeps it back."""

    question: str
    answer: str | None


@dataclass(frozen=True)
class Drawn:
    """A prompt, with the texts that it is made of: the first is what makes it a duplicate of another."""

    texts: tuple[str, ...]
    ids: Callable[[], list[int]]


# How a prompt is drawn from a record: (tokenizer, records, index, shots, the record's own random numbers).
Draw = Callable[["PreTrainedTokenizerBase", Records, int, int, Random], Drawn]


@dataclass(frozen=True)
class Schema:
    """The fields that are read of a record, and what is made of it."""

    fields: tuple[str, ...]
    draw: Draw
    few_shot: bool = False


def _read(read: Callable[[Record], T], records: Records, index: int) -> T:
    place, record = records[index]
    try:
        return read(record)
    except Malformed as error:
        raise UserError(f"{place}: {error}; correct the record, or the source's schema") from None


def conversation(read: Callable[[Record], Turns]) -> Draw:
    """The turns up to and with the last user turn, then the assistant's header, as the template writes it."""

    def draw(
        tokenizer: PreTrainedTokenizerBase, records: Records, index: int, shots: int, rng: Random
    ) -> Drawn:
        turns = _read(read, records, index)
        while turns and turns[-1]["role"] != "user":
            turns = turns[:-1]
        return _templated(tokenizer, turns)

    return draw


def raw_text(read: Callable[[Record], str]) -> Draw:
    """The text's tokens, without a template, up to a random one; at least two, and never all of them."""

    def draw(
        tokenizer: PreTrainedTokenizerBase, records: Records, index: int, shots: int, rng: Random
    ) -> Drawn:
        text = _read(read, records, index)

        def ids() -> list[int]:
            whole = chat_ids(tokenizer, text, template=False)
            if len(whole) < 3:
                raise Unusable("too_short")
            return whole[: rng.randrange(2, len(whole))]

        return Drawn((text,), ids)

    return draw


def few_shot(read: Callable[[Record], Example]) -> Draw:
    """One user turn: `shots` solved examples, drawn from the other records of the set, and the question."""

    def draw(
        tokenizer: PreTrainedTokenizerBase, records: Records, index: int, shots: int, rng: Random
    ) -> Drawn:
        asked = _read(read, records, index).question
        solved, tried = dict[str, str](), {index}
        while len(solved) < shots:
            if len(tried) == len(records):
                raise Unusable("too_few_examples")
            other = rng.randrange(len(records))
            if other not in tried:
                tried.add(other)
                example = _read(read, records, other)
                if example.answer and example.question != asked:
                    solved[example.question] = example.answer
        examples = [f"{question} {answer}" for question, answer in solved.items()]
        templated = _templated(tokenizer, [{"role": "user", "content": "\n\n".join([*examples, asked])}])
        return Drawn((asked, *examples), templated.ids)

    return draw


def _templated(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> Drawn:
    if not turns or not turns[-1]["content"].strip():
        raise Unusable("no_user_turn")
    try:
        text = conversation_text(tokenizer, turns)
    except Unrendered:  # some templates know no system turn, or want user and assistant in turn
        raise Unusable("refused_by_template") from None
    return Drawn((text,), lambda: list(tokenizer(text, add_special_tokens=False).input_ids))


def _field(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if not isinstance(value, kind):
        found = f"is a {type(value).__name__}" if key in record else "is missing"
        raise Malformed(f"the field {key!r} {found}, expected a {kind.__name__}")
    return value


def _texts(record: Mapping[str, Any], key: str) -> list[str]:
    values = _field(record, key, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise Malformed(f"the field {key!r} is not a list of str")
    return values


def messages(record: Record) -> Turns:
    """Tulu-3: messages [{role, content}]."""
    turns = _field(record, "messages", list)
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "content")):
            raise Malformed("the field 'messages' is not a list of {role, content} in text")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def chatqa2(record: Record) -> Turns:
    """ChatQA2: `question` holds document and question in long_sft, `sub-paragraphs` the document elsewhere.

    The set writes its own "User: " before the question and "Assistant:" behind it; both go, whatever is
    between them stays.
    """
    question = (
        _field(record, "question", str).strip().removeprefix("User:").removesuffix("Assistant:").strip()
    )
    document = _field(record, "sub-paragraphs", str).strip() if record.get("sub-paragraphs") else ""
    return [{"role": "user", "content": f"{document}\n\n{question}" if document else question}]


def text(record: Record) -> str:
    """The Stack: content."""
    return _field(record, "content", str)


def metamath(record: Record) -> Example:
    """MetaMathQA: query, response."""
    query, response = _field(record, "query", str), _field(record, "response", str)
    return Example(f"Problem: {query.strip()}\nSolution:", response.strip())


def arc(record: Record) -> Example:
    """ARC: question, choices {text, label}, answerKey (a label)."""
    choices = _field(record, "choices", dict)
    options = dict(zip(_texts(choices, "label"), _texts(choices, "text"), strict=False))
    if len(options) != len(choices["label"]) or len(options) != len(choices["text"]):
        raise Malformed("the field 'choices' has not one text for each label")
    key = _field(record, "answerKey", str).strip()
    if key and key not in options:
        raise Malformed(f"the field 'answerKey' is {key!r}, no label of its choices")
    listed = "\n".join(f"({label}) {option}" for label, option in options.items())
    question = _field(record, "question", str).strip()
    return Example(f"Question: {question}\n{listed}\nAnswer:", f"({key}) {options[key]}" if key else None)


def hellaswag(record: Record) -> Example:
    """HellaSwag: ctx, endings, label (an ending's number as text; empty in the test split)."""
    endings, label = _texts(record, "endings"), str(record.get("label", ""))
    if label and label not in map(str, range(len(endings))):
        raise Malformed(f"the field 'label' is {label!r}, no number of one of {len(endings)} endings")
    listed = "\n".join(f"({number}) {ending}" for number, ending in enumerate(endings))
    context = _field(record, "ctx", str).strip()
    return Example(
        f"Beginning: {context}\n{listed}\nBest ending:", f"({label}) {endings[int(label)]}" if label else None
    )


SCHEMAS = {
    "chatqa2": Schema(("question", "sub-paragraphs"), conversation(chatqa2)),
    "messages": Schema(("messages",), conversation(messages)),
    "text": Schema(("content",), raw_text(text)),
    "metamath": Schema(("query", "response"), few_shot(metamath), few_shot=True),
    "arc": Schema(("question", "choices", "answerKey"), few_shot(arc), few_shot=True),
    "hellaswag": Schema(("ctx", "endings", "label"), few_shot(hellaswag), few_shot=True),
}
