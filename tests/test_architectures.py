"""Every method evicts from every supported architecture by every door, and all others are refused.

The truth is transformers' own eager attention. Its attention maps give what observers see, and with the
dropped entries masked in each KV head it gives the logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from torch import Tensor
from zoo import EVICTED, LEARNING

from lkv import registry
from lkv.cache.evictable import entries, gather, prompt_cache
from lkv.cache.rows import windows
from lkv.errors import UserError
from lkv.eviction.generate import generate
from lkv.eviction.hooks import evicting
from lkv.eviction.layerwise import prefill_layerwise
from lkv.eviction.pipeline import evict
from lkv.eviction.prefill import prefill
from lkv.eviction.select import Kept, select
from lkv.interface import Answering, Method, PromptRows, Ranking, StoredLayer
from lkv.lookahead.adapter import LookaheadKV
from lkv.measure.accuracy import evaluate
from lkv.model.attention import observable
from lkv.model.forward import logits
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer
from lkv.model.support import eviction_problem

PROMPT, BUDGET, NEW, STOP = 120, 48, 5, 257
TRAINING_FREE = [name for name in registry.METHODS if name != "lookaheadkv"]
# The reasons for which the issue of a model may be refused; anything else is a fault of ours.
ALLOWED = (
    "sliding window",
    "hold a state",
    "another head size",
    "caps the logits",
    "learned sinks",
    "not rotary",
    "hand what a pass",
)


class Truth:
    """A model, a prompt, and what transformers' eager attention says of them."""

    def __init__(self, name: str) -> None:
        self.model: Any = zoo.build(name, seed=3)
        generator = torch.Generator().manual_seed(5)
        self.ids = torch.randint(3, 250, (1, PROMPT), generator=generator)
        self.windows = windows(prompt_cache(self.model.config))
        self.layers = [i for i, window in enumerate(self.windows) if window is None]
        self.heads = self.model.config.num_attention_heads
        keys = self.model(self.ids, use_cache=True).past_key_values.layers[self.layers[0]].keys
        self.kv_heads = keys.shape[1]
        self.adapter: Any = None

    @cached_property
    def answer(self) -> list[int]:
        out = self.model.generate(
            self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=NEW, do_sample=False
        )
        tokens = out[0, PROMPT:].tolist()
        return tokens[: tokens.index(STOP)] if STOP in tokens else tokens

    @contextmanager
    def eager(self) -> Iterator[None]:
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def maps(self, tail: Tensor | None = None) -> list[Tensor]:
        """Attention [H, T, T] of the prompt, and of what follows it (ids or embeddings), a full layer."""
        embedded = self.model.get_input_embeddings()(self.ids)
        if tail is not None:
            after = tail if tail.is_floating_point() else self.model.get_input_embeddings()(tail)
            embedded = torch.cat([embedded, after], 1)
        with self.eager(), torch.no_grad():
            out = self.model(inputs_embeds=embedded, output_attentions=True, use_cache=False)
        return [out.attentions[i][0] for i in self.layers]

    @cached_property
    def answered(self) -> list[Tensor]:
        return self.maps(torch.tensor([self.answer or [int(self.model(self.ids).logits[0, -1].argmax())]]))

    def importance(self, method: Method) -> list[Tensor] | None:
        """What the method's observers see [1, H, N] a layer; None where that takes more than one pass."""
        if isinstance(method.observers, PromptRows):
            last = method.observers.last or PROMPT
            return [layer[None, :, PROMPT - last : PROMPT, :PROMPT].mean(2) for layer in self.answered]
        if isinstance(method.observers, Ranking):
            empty = torch.zeros(1, self.kv_heads, PROMPT, 1)  # these look at its length alone
            layers = [StoredLayer(i, empty, empty, self.heads, 0) for i in self.layers]
            return [method.observers.rank(layer) for layer in layers]
        if method.name == "oracle":
            return [layer[None, :, PROMPT:, :PROMPT].mean(2) for layer in self.answered]
        if method.name == "speckv":
            return [layer[None, :, PROMPT - 32 :, :PROMPT].amax(2) for layer in self.answered]
        if method.name == "lookaheadkv":
            with self.adapter.hooked(self.model):
                maps = self.maps(self.adapter.tokens[None])
            return [layer[None, :, PROMPT:, :PROMPT].mean(2) for layer in maps]
        return None

    def kept(self, method: Method) -> Kept:
        importance = self.importance(method)
        if importance is None:
            with observable(self.model):
                prefilled, _ = prefill(
                    self.model, self.ids, method.rows, answering=Answering(frozenset({STOP}), NEW)
                )
                [[row]] = evict(prefilled, method, [BUDGET])
                kept = [_matched(row.keys[i], entries(prefilled.cache, i)[0][0]) for i in self.layers]
            return Kept.of_layers(torch.stack(kept)[:, None], [BUDGET] * len(kept))
        chosen = select(importance, method.recipe, BUDGET, self.kv_heads)
        assert chosen is not None
        return chosen

    def masked(self, kept: Kept, tokens: list[int]) -> Tensor:
        """Logits [T, V] after the prompt and after each of `tokens`, the dropped entries masked."""
        ids = torch.cat([self.ids, torch.tensor([tokens], dtype=torch.long)], 1)
        total = ids.shape[1]
        place = torch.arange(total)
        causal = place[:, None] >= place

        def mask(layer: int) -> Any:
            visible = causal.repeat(self.heads, 1, 1)
            if (window := self.windows[layer]) is not None:
                visible &= place[:, None] - place < window
            else:
                for head in range(self.heads):
                    gone = torch.ones(PROMPT, dtype=torch.bool)
                    gone[kept[self.layers.index(layer)][0, head // (self.heads // self.kv_heads)]] = False
                    visible[head, PROMPT:, :PROMPT] &= ~gone
            floats = torch.zeros(1, self.heads, total, total).masked_fill(~visible, float("-inf"))
            return lambda _m, args, kwargs: (args, {**kwargs, "attention_mask": floats})

        attentions = [
            m for m in self.model.modules() if hasattr(m, "layer_idx") and "Attention" in type(m).__name__
        ]
        assert len(attentions) == len(self.windows)
        hooks = [m.register_forward_pre_hook(mask(m.layer_idx), with_kwargs=True) for m in attentions]
        try:
            with self.eager(), torch.no_grad():
                out: Tensor = self.model(ids, use_cache=False).logits[0, PROMPT - 1 :]
            return out
        finally:
            for hook in hooks:
                hook.remove()


def _matched(held: Tensor, whole: Tensor) -> Tensor:
    """Which of `whole` [K, N, D] each of `held` [K, C, D] is: int64 [K, C]."""
    return torch.cdist(held, whole).argmin(-1)


@cache
def truth_of(name: str) -> Truth:
    """Tiny, so that all are kept."""
    return Truth(name)


def close(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=2e-4, atol=1e-4)


def check_doors(truth: Truth, method: Method) -> None:
    """generate, evicting and layer-wise eviction keep the true entries and give the true logits."""
    model, ids = truth.model, truth.ids
    kept = truth.kept(method)
    with observable(model), torch.no_grad():
        whole = prefill(model, ids)[0].cache
        _, [row] = prefill_layerwise(model, ids, method, BUDGET, answering=Answering(frozenset({STOP}), NEW))
    for place, layer in enumerate(truth.layers):
        for mine, full in zip((row.keys[layer], row.values[layer]), entries(whole, layer), strict=True):
            close(mine, gather(full, kept[place])[0])
    done = generate(model, ids, method, BUDGET, NEW)
    assert done.kept == BUDGET
    with evicting(model, method, BUDGET, NEW):
        own = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    tokens = own.sequences[0, PROMPT:].tolist()
    for place, layer in enumerate(truth.layers):
        held = entries(own.past_key_values, layer)[0]
        assert held.shape[2] == kept.counts[place] + len(tokens) - 1
    close(torch.cat(own.logits), truth.masked(kept, tokens[:-1]))
    assert done.tokens == (tokens[: tokens.index(STOP)] if STOP in tokens else tokens)


@pytest.mark.parametrize("how", TRAINING_FREE)
@pytest.mark.parametrize("name", EVICTED)
def test_a_method_keeps_the_same_entries_by_every_door_and_equals_the_masked_full_cache(
    name: str, how: str
) -> None:
    check_doors(truth_of(name), registry.get(how, draft="self"))


@pytest.mark.parametrize("name", LEARNING)
def test_lookaheadkv_keeps_the_same_entries_by_every_door_and_equals_the_masked_full_cache(name: str) -> None:
    truth = truth_of(name)
    check_doors(truth, learned(truth).method())


def learned(truth: Truth) -> LookaheadKV:
    truth.adapter = LookaheadKV.create(truth.model, tokens=8, seed=3)
    generator = torch.Generator().manual_seed(7)
    for b in truth.adapter.lora_b:
        b.data.normal_(0.0, 0.05, generator=generator)
    made: LookaheadKV = truth.adapter.requires_grad_(False)
    return made


def loaded(truth: Truth) -> Loaded:
    return Loaded(truth.model, tiny_tokenizer(), "tiny", "0" * 16, frozenset({STOP}))


def text_of(ids: Tensor) -> str:
    return "".join(chr(32 + int(i) % 90) for i in ids[0])


@cache
def answer_to_text(name: str, how: str) -> list[int]:
    """What generate answers to `text_of` the model's prompt."""
    truth = truth_of(name)
    ids = torch.tensor([tiny_tokenizer()(text_of(truth.ids)).input_ids])
    answer: list[int] = generate(truth.model, ids, registry.get(how, draft="self"), BUDGET, NEW).tokens
    return answer


@pytest.mark.parametrize("name", EVICTED)
def test_evaluation_answers_as_generate_does(name: str, tmp_path: Path) -> None:
    truth = truth_of(name)
    record = {
        "benchmark": "ruler", "task": "t", "length": PROMPT, "sample": 0, "planned": 1, "haystack": "none",
        "protocol": "official", "question_aware": True, "template": False, "input": text_of(truth.ids),
        "question_at": None, "answer_prefix": "", "outputs": ["x"], "classes": None, "metric": "all",
        "max_new_tokens": NEW, "stops": [], "min_new_tokens": 0,
    }  # fmt: skip
    methods = [registry.get(how, draft="self") for how in TRAINING_FREE]
    if name in LEARNING:
        methods.append(learned(truth).method())
    model = loaded(truth)
    ids = torch.tensor([model.tokenizer(record["input"]).input_ids])
    assert ids.shape[1] == PROMPT
    with observable(truth.model):
        evaluate(model, [record], methods, [BUDGET], "s", 0, tmp_path / "j.jsonl", tmp_path / "o.csv")
    lines = map(json.loads, (tmp_path / "j.jsonl").read_text().splitlines())
    found = {line["method"]: line for line in lines if "tokens" in line}
    for method in methods:
        if method.name in TRAINING_FREE:
            expected = answer_to_text(name, method.name)
        else:
            expected = generate(truth.model, ids, method, BUDGET, NEW).tokens
        assert found[method.name]["tokens"] == expected
        assert found[method.name]["kept_mean"] == BUDGET


@pytest.mark.parametrize("name", EVICTED)
def test_lm_eval_answers_as_generate_does(name: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from lkv.integrations.lm_eval import LKV

    truth = truth_of(name)
    tokenizer = tiny_tokenizer()
    text = text_of(truth.ids)
    request = Instance("generate_until", {}, (text, {"until": ["never"], "max_gen_toks": NEW}), 0)
    for how in TRAINING_FREE[EVICTED.index(name) % 3 :: 3]:  # each on a third of the models
        draft = {"draft": "self"} if how == "speckv" else {}
        door = LKV(truth.model, how, BUDGET, tokenizer=tokenizer, backend="causal", **draft)
        [answer] = door.generate_until([request], disable_tqdm=True)
        assert door.kept == [_counts(how, truth)], how
        assert answer == tokenizer.decode(answer_to_text(name, how), skip_special_tokens=True), how


def _counts(how: str, truth: Truth) -> list[int]:
    from lkv.eviction.layer_budgets import layer_budgets

    return layer_budgets(registry.get(how, draft="self").recipe, BUDGET, len(truth.layers), PROMPT)


@pytest.mark.parametrize("name", EVICTED)
def test_what_tokens_are_drawn_from_is_the_models_own_softmax(name: str) -> None:
    model, ids = truth_of(name).model, truth_of(name).ids
    with torch.no_grad():
        own = model(ids).logits[0, -1]
        mine = logits(model, model.base_model(ids).last_hidden_state[0, -1])
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(zoo.KINDS) - set(EVICTED)))
def test_a_model_that_cannot_be_evicted_from_is_refused_by_every_door_with_its_reason(name: str) -> None:
    model = zoo.build(name)
    ids = torch.randint(3, 250, (1, 40), generator=torch.Generator().manual_seed(1))
    problem = eviction_problem(model)
    assert any(reason in problem for reason in ALLOWED), problem
    method = registry.get("snapkv")
    with pytest.raises(UserError, match="is not supported"):
        generate(model, ids, method, 32, 2)
    with pytest.raises(UserError, match="is not supported"), evicting(model, method, 32):
        pass
    with pytest.raises(UserError, match="is not supported"), observable(model):
        prefill_layerwise(model, ids, method, 32)


@pytest.mark.parametrize("name", sorted(set(EVICTED) - set(LEARNING)))
def test_lookaheadkv_is_refused_where_it_has_no_place(name: str) -> None:
    with pytest.raises(UserError, match="LookaheadKV cannot be made for"):
        LookaheadKV.create(zoo.build(name))


def test_enough_architectures_are_supported() -> None:
    named = {"Llama", "Mistral", "Qwen2", "Qwen3", "Phi-3", "Gemma 3", "Granite", "SmolLM3"}
    assert named <= set(EVICTED)
    assert len(zoo.KINDS) >= 25 and len(EVICTED) >= 17 and len(LEARNING) >= 10


def test_the_docs_table_is_what_the_code_says() -> None:
    """With the pinned transformers: others may hand a pass on where it does not, or the other way round."""
    root = Path(__file__).parents[1]
    if f"transformers=={transformers.__version__}\n" not in (root / "constraints.txt").read_text():
        pytest.skip(
            f"the table is made with the transformers of constraints.txt, here is {transformers.__version__}"
        )
    page = root / "docs" / "architectures.md"
    assert page.read_text(encoding="utf-8") == zoo.table(), "run python tests/zoo.py"
