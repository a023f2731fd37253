"""The one prompt layer: text to token ids, through the tokenizer's own chat template or raw.

One BOS, always: the template writes its own, and a raw prompt gets the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Templates may write today's date: another prompt every day. They ask for it by a variable or by a function.
TODAY = datetime(2024, 7, 26)
DATE_STRING = "26 Jul 2024"
DIRECTIVES = {f"%{letter}": TODAY.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSUwWyY"}
DIRECTIVES |= {"%-d": "26", "%-m": "7", "%e": "26", "%F": "2024-07-26", "%T": "00:00:00", "%%": "%"}


class Unrendered(UserError):
    """A chat template cannot write these turns, or not all of their text."""


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, user: str, answer_prefix: str = "", template: bool = True
) -> list[int]:
    """Token ids of one user turn, the assistant header, and `answer_prefix` as the answer's first words.

    Without `template` the text stands alone. Thinking is off where the template knows it (Qwen3): with 32 to
    128 new tokens a thinking model would not reach its answer.
    """
    text = chat_text(tokenizer, user) if template else user
    return list(tokenizer(text + answer_prefix, add_special_tokens=not template).input_ids)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = True) -> list[list[int]]:
    """Ids of each text, as the tokenizer itself gives them, all at once and so spread over the cores; without
    the layers around it, which take longer than the work where texts are short."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=special, verbose=False).input_ids
        return rows
    backend.no_truncation()
    backend.no_padding()
    # It leaves out what nobody reads: each token's place.
    return [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=special)]


def record_ids(tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]) -> list[int]:
    """The whole prompt of a benchmark's record."""
    return chat_ids(tokenizer, record["input"], record["answer_prefix"], record["template"])


def record_parts(
    tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """(context, question): the ids up to where the question begins, and the rest of the prompt.

    The two are tokenised apart, because the context is read before its question is known.
    """
    if not record["question_at"]:
        raise UserError(
            f"{record['task']} names no place where its question begins, so that it cannot be run "
            "question-blind; set protocol.question_aware: true"
        )
    context, question = record["input"][: record["question_at"]], record["input"][record["question_at"] :]
    before, after = around(tokenizer) if record["template"] else ("", "")
    head = tokenizer(before + context, add_special_tokens=not record["template"]).input_ids
    rest = tokenizer(question + after + record["answer_prefix"], add_special_tokens=False).input_ids
    if not rest:
        raise UserError(f"{record['task']} has nothing after its context; set protocol.question_aware: true")
    return list(head), list(rest)


def record_offsets(
    tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]
) -> list[tuple[int, int]] | None:
    """Where in the record's `input` each token of what is evicted lies: characters [start, end).

    (-1, -1) for a token of the template or the answer prefix. None where the tokenizer does not tell (a slow
    one). What holds a part of both counts as the input's.
    """
    if not tokenizer.is_fast:
        return None
    content, before = record["input"], ""
    if record["template"]:
        before, _ = around(tokenizer)
    if not record["question_aware"]:
        content = content[: record["question_at"]]
        text = before + content
    elif record["template"]:
        content, text = content.strip(), chat_text(tokenizer, content)  # some templates strip it
    else:
        text = content
    if record["question_aware"]:
        text += record["answer_prefix"]
    first = text.index(content, len(before))
    last, shift = first + len(content), first - record["input"].index(content)
    encoded = tokenizer(text, add_special_tokens=not record["template"], return_offsets_mapping=True)
    spans = [(max(start, first), min(end, last)) for start, end in encoded["offset_mapping"]]
    return [(start - shift, end - shift) if start < end else (-1, -1) for start, end in spans]


def chat_text(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """One user turn and the assistant header as the tokenizer's own template writes them."""
    return conversation_text(tokenizer, [{"role": "user", "content": user}])


def conversation_text(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """Turns ({role, content}) and the assistant header as the tokenizer's own template writes them.

    The date is always TODAY. Templates that read content as a list of parts get one. Raises Unrendered where
    the template refuses the turns, or the text of one does not arrive in the prompt whole.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruct model, set "
            "chat_template where it comes from, or set protocol.template: none in the study's config"
        )
    in_parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    content: Any
    for content in (turns, in_parts):
        try:
            text = tokenizer.apply_chat_template(
                content,
                chat_template=_dated(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string=DATE_STRING,
            )
        except (TypeError, TemplateError) as error:
            problem = f"cannot be rendered ({(str(error).splitlines() or [type(error).__name__])[0]})"
            continue
        assert isinstance(text, str)
        as_python = content is in_parts and "{'type'" in text  # a list that was written as it is
        if not as_python and all(turn["content"].strip() in text for turn in turns):
            return text
        problem = "loses text of the conversation"
    raise Unrendered(
        f"the chat template of {tokenizer.name_or_path!r} {problem}; correct it in the tokenizer's folder, "
        "or set chat_template: none in the model's file"
    )


def _dated(template: str) -> str:
    """The template with a `strftime_now` that writes TODAY, where transformers' own asks the clock.

    transformers hands no function to a template, so this one is a macro before it.
    """
    if "strftime_now" not in template:
        return template
    written = "".join(f"|replace('{directive}', '{text}')" for directive, text in DIRECTIVES.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n{template}"


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template writes before and after a user turn; nothing without one."""
    if not tokenizer.chat_template:
        return "", ""
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    before, _, after = chat_text(tokenizer, mark).partition(mark)
    return before, after
