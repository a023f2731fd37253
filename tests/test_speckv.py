"""Promises of SpecKV and of drafts: who looks, who writes, and in whose tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import observed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from baselines import speckv
from lkv import registry
from lkv.errors import UserError
from lkv.eviction import draft as module
from lkv.eviction.answer import full_cache_answers
from lkv.eviction.draft import translated
from lkv.eviction.pipeline import SeenPrompt, evict, observe
from lkv.eviction.prefill import prefill
from lkv.eviction.select import select
from lkv.interface import Answering
from lkv.model.chat_template import chat_ids
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer
from lkv.model.tokenizer import load_tokenizer

PLACES = [Path(__file__).parents[1] / "models", Path("/tmp/m")]
SMOLLM2 = next((path for path in (p / "smollm2-135m-instruct" for p in PLACES) if path.is_dir()), None)
BUDGETS = [32, 40, 64]
USER = "The keeper of the north gate is called Ana.\nWho keeps the north gate?  "


def other_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens in another order than the tiny tokenizer's, a BOS, and another chat template."""
    vocabulary = ["<s>", "</s>", "[TURN]", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["[TURN]"]})
    fast.chat_template = (
        "<s>{% for m in messages %}[TURN]{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[TURN]assistant: {% endif %}"
    )
    return fast


def loaded(
    seed: int = 7,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stop: Sequence[int] = (),
    family: str = "llama",
) -> Loaded:
    tokenizer = tokenizer or tiny_tokenizer()
    return Loaded(observed(family, seed), tokenizer, "drafter", f"{seed:016x}", frozenset(stop))


def greedy(model: PreTrainedModel, ids: Tensor, tokens: int) -> list[int]:
    """transformers' own loop, on a copy that attends eagerly and knows no stop token."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    plain.generation_config.eos_token_id = None
    out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def by_hand(model: PreTrainedModel, ids: Tensor, drafted: list[int], budget: int) -> list[list[list[int]]]:
    """SpecKV's kept entries per layer and KV head, from the attentions of one eager pass over both."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    n, kept = ids.shape[1], []
    both = torch.cat([ids, torch.tensor([drafted])], 1)
    with torch.no_grad():
        attentions = plain(both, output_attentions=True).attentions
    for layer in attentions:
        heads = []
        for k in range(2):
            rows = layer[0, 4 * k : 4 * k + 4, n - 32 :, : n - 32]  # eight query heads, two KV heads
            scores = F.max_pool1d(rows.amax((0, 1))[None], 7, 1, 3)[0]
            best = sorted(range(n - 32), key=lambda j: (-float(scores[j]), j))[: budget - 32]
            heads.append(sorted(best) + list(range(n - 32, n)))
        kept.append(heads)
    return kept


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_is_kept_is_what_one_eager_pass_over_prompt_and_draft_says(
    model: PreTrainedModel, prompt: Tensor, family: str
) -> None:
    drafter = loaded(family=family)
    method = speckv.method(drafter, tiny_tokenizer())
    prefilled, _ = prefill(model, prompt, method.rows, answering=Answering(frozenset({257})))
    drafted = greedy(drafter.model, prompt, 32)
    for budget, seen in zip(BUDGETS, observe(prefilled, method, BUDGETS), strict=True):
        kept = select(seen, method.recipe, budget, prefilled.kv_heads)
        assert kept is not None
        assert [layer[0].tolist() for layer in kept] == by_hand(model, prompt, drafted, budget)


def test_the_model_drafts_for_itself_with_its_own_answer(model: PreTrainedModel, prompt: Tensor) -> None:
    method = registry.get("speckv", draft="self")
    prefilled, _ = prefill(model, prompt, method.rows, answering=Answering(max_tokens=48))
    [tail] = observers(method, prefilled)
    answer = greedy(model, prompt, 48)
    assert full_cache_answers(prefilled) == [answer]
    assert tail.tokens.tolist() == [answer[:32]]
    [seen] = observe(prefilled, method, [40])
    kept = select(seen, method.recipe, 40, prefilled.kv_heads)
    assert kept is not None
    assert [layer[0].tolist() for layer in kept] == by_hand(model, prompt, answer[:32], 40)


def observers(method, prefilled):
    return method.observers(SeenPrompt(prefilled, method), [40])


def test_drafts_by_different_models_differ_and_so_do_their_journal_keys(prompt: Tensor) -> None:
    model, tokenizer = observed("llama"), tiny_tokenizer()
    methods = [speckv.method()] + [speckv.method(loaded(seed), tokenizer) for seed in (7, 8)]
    methods += [speckv.method(loaded(7), tokenizer, tokens=16), speckv.method(tokens=16)]
    prefilled, _ = prefill(model, prompt, methods[0].rows)
    tails = [observers(method, prefilled)[0].tokens.tolist()[0] for method in methods]
    assert [len(tail) for tail in tails] == [32, 32, 32, 16, 16]
    assert len({tuple(tail) for tail in tails}) == len({str(method.made_of) for method in methods}) == 5
    assert tails[3] == tails[1][:16]
    assert {method.name for method in methods} == {"speckv"}
    again = speckv.method(loaded(7), tokenizer)
    half = loaded(7)
    half.model.bfloat16()
    assert again.identity == methods[1].identity != speckv.method(half, tokenizer).identity


def test_a_draft_is_looked_at_once_for_all_budgets(prompt: Tensor) -> None:
    method = speckv.method(loaded(), tiny_tokenizer())
    prefilled, _ = prefill(observed("llama"), prompt, method.rows)
    first, *rest = observe(prefilled, method, BUDGETS)
    assert all(seen is first for seen in rest)


def test_a_draft_ends_at_its_own_models_stop_token(prompt: Tensor) -> None:
    drafter, model = loaded(), observed("llama")
    whole = greedy(drafter.model, prompt, 32)
    at = next(i for i in range(3, 32) if whole[i] not in whole[:i])
    method = speckv.method(replace(drafter, stop=frozenset({whole[at]})), tiny_tokenizer())
    prefilled, _ = prefill(model, prompt, method.rows, answering=Answering(frozenset({257})))
    [tail] = observers(method, prefilled)
    assert tail.tokens.tolist() == [whole[:at]]
    # Latency is measured without stop tokens: every draft has its full length.
    prefilled, _ = prefill(model, prompt, method.rows)
    assert observers(method, prefilled)[0].tokens.tolist() == [whole]


def test_an_empty_draft_is_the_targets_own_first_token(prompt: Tensor) -> None:
    drafter, model = loaded(), observed("llama")
    silent = replace(drafter, stop=frozenset(greedy(drafter.model, prompt, 1)))
    method = speckv.method(silent, tiny_tokenizer())
    prefilled, _ = prefill(model, prompt, method.rows, answering=Answering(frozenset({257})))
    [tail] = observers(method, prefilled)
    assert tail.tokens.tolist() == [greedy(model, prompt, 1)]


def test_a_draft_is_no_longer_than_the_answer_may_get(prompt: Tensor) -> None:
    for method in (speckv.method(), speckv.method(loaded(), tiny_tokenizer())):
        prefilled, _ = prefill(observed("llama"), prompt, method.rows, answering=Answering(max_tokens=5))
        assert observers(method, prefilled)[0].tokens.shape == (1, 5)


def test_a_batch_of_prompts_is_drafted_as_each_alone(model: PreTrainedModel) -> None:
    ids = torch.randint(0, 256, (2, 90), generator=torch.Generator().manual_seed(3))
    drafter = loaded()
    short = greedy(drafter.model, ids[:1], 32)
    stop = next(token for i, token in enumerate(short) if i > 3 and token not in short[:i])
    method = speckv.method(replace(drafter, stop=frozenset({stop})), tiny_tokenizer())
    answering = Answering(frozenset({257}))
    both, _ = prefill(model, ids, method.rows, answering=answering)
    [seen] = observe(both, method, [40])
    for b in range(2):
        alone, _ = prefill(model, ids[b : b + 1], method.rows, answering=answering)
        [truth] = observe(alone, method, [40])
        for mine, theirs in zip(seen, truth, strict=True):
            torch.testing.assert_close(mine[b : b + 1], theirs, rtol=1e-4, atol=1e-6)


# Another tokenizer


def test_a_prompt_is_translated_into_the_drafts_tokens_and_template() -> None:
    mine, theirs = tiny_tokenizer(), other_tokenizer()
    ids = chat_ids(mine, USER, "Answer:")
    assert translated(ids, mine, theirs) == chat_ids(theirs, USER, "Answer:")
    assert translated(chat_ids(theirs, USER, "Answer:"), theirs, mine) == ids
    assert theirs.decode(translated(ids, mine, theirs)) == (
        f"<s>[TURN]user: {USER}</s>[TURN]assistant: Answer:"
    )


def test_a_raw_prompt_stays_raw_with_the_drafts_own_bos() -> None:
    mine, theirs = tiny_tokenizer(), other_tokenizer()
    raw = theirs(USER).input_ids
    assert raw[0] == 0
    assert translated(chat_ids(mine, USER, "Answer:", template=False), mine, theirs) == (
        theirs(USER + "Answer:").input_ids
    )
    assert translated(raw, theirs, mine) == mine(USER).input_ids


def test_a_context_without_its_question_is_translated_as_far_as_it_goes() -> None:
    mine, theirs = tiny_tokenizer(), other_tokenizer()
    context = mine("<|user|>" + USER, add_special_tokens=False).input_ids
    assert theirs.decode(translated(context, mine, theirs)) == f"<s>[TURN]user: {USER}"


def test_a_draft_model_without_a_template_reads_the_text_alone() -> None:
    mine, theirs = tiny_tokenizer(), other_tokenizer()
    theirs.chat_template = None
    assert translated(chat_ids(mine, USER, "Answer:"), mine, theirs) == theirs(USER + "Answer:").input_ids


@pytest.mark.skipif(SMOLLM2 is None, reason="no models/smollm2-135m-instruct: lkv model brings it")
def test_a_real_tokenizers_prompt_is_translated_both_ways() -> None:
    assert SMOLLM2 is not None
    real, tiny = load_tokenizer(SMOLLM2), tiny_tokenizer()
    assert translated(chat_ids(real, USER), real, tiny) == chat_ids(tiny, USER)
    assert translated(chat_ids(tiny, USER, "A:"), tiny, real) == chat_ids(real, USER, "A:")


def test_what_a_foreign_draft_model_writes_is_tokenised_for_the_target(model: PreTrainedModel) -> None:
    mine, theirs = tiny_tokenizer(), other_tokenizer()
    drafter = loaded(tokenizer=theirs, stop=[1])
    ids = torch.tensor([chat_ids(mine, USER * 3)])
    method = speckv.method(drafter, mine)
    prefilled, _ = prefill(model, ids, method.rows, answering=Answering(frozenset({257})))
    asked = torch.tensor([chat_ids(theirs, USER * 3)])
    wrote = greedy(drafter.model, asked, 32)
    if 1 in wrote:
        wrote = wrote[: wrote.index(1)]
    text = theirs.decode(wrote, skip_special_tokens=True).rstrip("\ufffd")
    drafted = mine(text).input_ids[:32]
    assert len(drafted) > 0
    [tail] = observers(method, prefilled)
    assert tail.tokens.tolist() == [drafted]
    assert drafted != wrote[: len(drafted)]
    [seen] = observe(prefilled, method, [40])
    kept = select(seen, method.recipe, 40, prefilled.kv_heads)
    assert kept is not None
    assert [layer[0].tolist() for layer in kept] == by_hand(model, ids, drafted, 40)


def test_a_character_that_the_draft_cut_in_two_is_left_out(
    monkeypatch: pytest.MonkeyPatch, prompt: Tensor
) -> None:
    theirs = other_tokenizer()
    wrote = theirs("né", add_special_tokens=False).input_ids
    monkeypatch.setattr(module, "answers", lambda *_: [wrote[:-1]])
    prefilled, _ = prefill(observed("llama"), prompt, [speckv.WINDOW])
    [tail] = observers(speckv.method(loaded(tokenizer=theirs), tiny_tokenizer()), prefilled)
    assert tiny_tokenizer().decode(tail.tokens[0].tolist()) == "n"


# Errors


def test_a_budget_below_the_window_is_refused(prompt: Tensor) -> None:
    method = speckv.method()
    prefilled, _ = prefill(observed("llama"), prompt, method.rows)
    assert method.smallest_budget == 32
    with pytest.raises(UserError, match=r"budget 31 is too small for speckv, .*; give 32 or more"):
        evict(prefilled, method, [31])


def test_without_a_draft_model_the_way_out_is_named() -> None:
    with pytest.raises(UserError, match=r"speckv needs a model .*--draft DIR .*--draft self"):
        registry.get("speckv")


def test_a_prompt_beyond_the_draft_models_context_is_refused_in_its_name(prompt: Tensor) -> None:
    drafter = loaded()
    drafter.model.config.max_position_embeddings = 181  # 150 and 32 are one too many
    method = speckv.method(drafter, tiny_tokenizer())
    prefilled, _ = prefill(observed("llama"), prompt, method.rows)
    with pytest.raises(UserError, match=r"drafter cannot draft: the prompt has 150 tokens .* context is 181"):
        evict(prefilled, method, [40])
