"""Promises of the prompt layer: every deviation is named, one BOS, and two halves make the whole."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lkv.bench.protocol import PROTOCOLS, protocol
from lkv.errors import UserError
from lkv.model.chat_template import chat_ids, chat_text, record_ids, record_parts, token_ids
from lkv.model.random_weights import tiny_tokenizer

RECORD = {
    "task": "made_up",
    "input": "Read this. A ship lay at anchor. What lay there?",
    "question_at": 32,
    "answer_prefix": "It was",
    "template": True,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.mark.parametrize(
    ("config", "benchmark", "label"),
    [
        ({"name": "official"}, "ruler", "official"),
        ({"name": "official", "max_prompt": 7500}, "ruler", "official"),
        ({"name": "official", "max_prompt": 7500}, "longbench", "official max_prompt=7500"),
        ({"name": "official"}, "longbench", "official max_prompt=none"),
        ({"name": "official", "question_aware": False}, "ruler", "official question_blind"),
        ({"name": "official", "template": "none"}, "ruler", "official template=none"),
        ({"name": "official", "template": "tasks"}, "ruler", "official"),
        ({"name": "kvcache_factory", "template": "all"}, "ruler", "kvcache_factory template=all"),
    ],
)
def test_a_label_names_every_switch_that_differs(config: dict[str, Any], benchmark: str, label: str) -> None:
    assert protocol(config).label(benchmark) == label
    assert protocol(config).label(benchmark, cap=32) == f"{label} new_tokens<=32"


def test_the_config_goes_before_the_models_length() -> None:
    assert protocol({"name": "official"}, max_prompt=7500).max_prompt == 7500
    assert protocol({"name": "official", "max_prompt": 3500}, max_prompt=7500).max_prompt == 3500


def test_templates_are_for_the_tasks_that_get_one_for_all_or_for_none() -> None:
    official, factory = PROTOCOLS["official"], PROTOCOLS["kvcache_factory"]
    assert [official.templated("longbench", wanted) for wanted in (True, False)] == [True, False]
    assert official.templated("ruler") and not factory.templated("ruler")
    everywhere = protocol({"name": "kvcache_factory", "template": "all"})
    assert everywhere.templated("ruler") and everywhere.templated("longbench", False)
    assert not protocol({"name": "official", "template": "none"}).templated("longbench", True)


def test_an_unknown_protocol_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'helm'.*official, kvcache_factory"):
        protocol({"name": "helm"})


def test_a_prompt_has_one_bos_with_and_without_a_template(tokenizer: PreTrainedTokenizerBase) -> None:
    bos = tokenizer.bos_token_id
    for template in (True, False):
        ids = chat_ids(tokenizer, "A ship lay at anchor.", "It", template)
        own = tokenizer("x").input_ids.count(bos)  # none where the tokenizer adds none
        written = chat_text(tokenizer, "A").count(str(tokenizer.bos_token))
        assert ids.count(bos) == (written if template else own)


@pytest.mark.parametrize("template", [True, False])
def test_context_and_question_together_are_the_whole_prompt(
    template: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    record = RECORD | {"template": template}
    context, question = record_parts(tokenizer, record)
    assert context + question == record_ids(tokenizer, record)  # bytes are tokens: no seam
    assert tokenizer.decode(question).startswith(" What lay there?")


def test_a_prompt_without_a_question_cannot_be_split(tokenizer: PreTrainedTokenizerBase) -> None:
    for change in ({"question_at": 0}, {"question_at": 48, "answer_prefix": "", "template": False}):
        with pytest.raises(UserError, match=r"made_up.*question_aware: true"):
            record_parts(tokenizer, RECORD | change)


def test_a_base_models_missing_template_says_how_to_go_on() -> None:
    base = tiny_tokenizer()
    base.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*protocol.template: none"):
        chat_ids(base, "text")
    assert chat_ids(base, "text", template=False)


def test_ids_are_whole_even_of_a_tokenizer_whose_file_cuts_and_pads() -> None:
    text = "one two three four five six"
    whole = tiny_tokenizer()(text, add_special_tokens=False).input_ids
    cutting = tiny_tokenizer()
    cutting.backend_tokenizer.enable_truncation(3)
    cutting.backend_tokenizer.enable_padding(length=20)
    assert len(whole) > 3
    assert token_ids(cutting, [text], special=False) == [whole]
