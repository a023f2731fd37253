"""LookaheadKV: 32 learned tokens after the prompt look, through a LoRA that is active on their rows alone.

ŝ_j = (1/n) Σ_i softmax_j(q_i · k_j) with q, k from W x + [row is a lookahead row] · (α/r) B A x
(LookaheadKV, ICLR 2026, eq. 2-3; r = 8, α = 32, n = 32). The prompt's own rows never see the adapter, so its
keys, values and first-token logits are those of the frozen model. After scoring, the tokens are discarded.

On disk a folder: PEFT's `adapter_config.json` and `adapter_model.safetensors`, the tokens in
`lookahead_tokens.safetensors`, and `lookahead.json` (sizes, base model, provenance, hashes), written last.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from lkv import kernels
from lkv.errors import UserError
from lkv.files.atomic import atomic_write
from lkv.files.json_files import write_hashed_json
from lkv.files.sums import sha256_file
from lkv.interface import Method, PromptRows, Recipe, Tail
from lkv.lookahead import files as adapter_files
from lkv.lookahead import probe
from lkv.lookahead.files import ADAPTER, CARD, LEARNED, PEFT_PREFIX
from lkv.results.recognise import require_own_adapter

if TYPE_CHECKING:
    from lkv.eviction.generate import Generation
from lkv.lookahead.arm import ALPHA, RANK, TOKENS
from lkv.lookahead.base_model import adapted_linears, describe, embedding_table, probed
from lkv.lookahead.method import METHOD


class LookaheadKV(nn.Module):
    """The learned tokens [n, hidden] and LoRA pairs A [r, in], B [out, r] of one base model, in float32."""

    def __init__(
        self, shapes: dict[str, tuple[int, int]], tokens: int, hidden: int, rank: int, alpha: int
    ) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.tokens = nn.Parameter(torch.zeros(tokens, hidden))
        self.paths = list(shapes)
        self.lora_a = nn.ParameterList(nn.Parameter(torch.zeros(rank, n_in)) for n_in, _ in shapes.values())
        self.lora_b = nn.ParameterList(nn.Parameter(torch.zeros(n_out, rank)) for _, n_out in shapes.values())
        self.card: dict[str, Any] = {}
        self._places = {path: i for i, path in enumerate(self.paths)}
        self._stacks: dict[tuple[Any, ...], Tensor] = {}
        self._fitted: dict[tuple[torch.device, torch.dtype], LookaheadKV] = {}

    @classmethod
    def create(
        cls,
        model: PreTrainedModel,
        tokens: int = TOKENS,
        rank: int = RANK,
        alpha: int = ALPHA,
        seed: int = 0,
        lora: str = "all",
    ) -> LookaheadKV:
        """A fresh adapter: tokens normal with the embeddings' deviation, A as PEFT starts it, B zero.

        `lora` is one of ADAPTED.
        """
        linears = adapted_linears(model, lora)
        table = embedding_table(model)
        shapes = {path: (linear.in_features, linear.out_features) for path, linear in linears.items()}
        adapter = cls(shapes, tokens, table.shape[1], rank, alpha)
        if table.device.type == "meta":  # shape-only model: nothing to draw from
            return adapter
        generator = torch.Generator().manual_seed(seed)
        deviation = float(table.float().std())
        adapter.tokens.data.normal_(0.0, deviation, generator=generator)
        for a in adapter.lora_a:
            bound = a.shape[1] ** -0.5  # kaiming_uniform with a = √5, PEFT's default
            a.data.uniform_(-bound, bound, generator=generator)
        adapter.card = {"base_model": describe(model)}
        return adapter.to(model.device)

    @property
    def n(self) -> int:
        return self.tokens.shape[0]

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def add(
        self, model: PreTrainedModel, layer: int, names: Sequence[str], inputs: Tensor, outs: list[Tensor]
    ) -> list[Tensor]:
        """Each adapted linear's LoRA added to its last n rows; linears that share inputs share a product."""
        prefix = f"{model.base_model_prefix}.layers.{layer}."
        at = [self._places.get(prefix + name) for name in names]
        adapted = [i for i in at if i is not None]
        if not adapted:
            return outs
        n, scale = self.n, self.alpha / self.rank
        rows, stacked = inputs[..., -n:, :], self._stacked(adapted)
        into = [out[..., -n:, :] for place, out in zip(at, outs, strict=True) if place is not None]
        bs = [self.lora_b[place] for place in adapted]
        if kernels.usable(rows) and not torch.is_grad_enabled() and stacked.dtype == rows.dtype:
            from lkv.kernels.linear import add_lora

            add_lora(rows, stacked, bs, into, scale)
            return outs
        lows = (rows.to(stacked.dtype) @ stacked.T).split(self.rank, -1)
        if not torch.is_grad_enabled() and stacked.dtype == rows.dtype:
            for out, low, b in zip(into, lows, bs, strict=True):
                out.baddbmm_(low, b.T.expand(len(out), -1, -1), alpha=scale)
            return outs
        deltas = [(low @ b.T * scale).to(rows.dtype) for low, b in zip(lows, bs, strict=True)]
        if not torch.is_grad_enabled():
            for out, delta in zip(into, deltas, strict=True):
                out += delta
            return outs
        parts = iter(deltas)
        return [
            out if place is None else torch.cat([out[..., :-n, :], out[..., -n:, :] + next(parts)], -2)
            for place, out in zip(at, outs, strict=True)
        ]

    def _stacked(self, places: Sequence[int]) -> Tensor:
        """A of several linears below each other; kept when the adapter is frozen and so never changes."""
        if len(places) == 1:
            return self.lora_a[places[0]]
        first = self.lora_a[places[0]]
        if first.requires_grad:
            return torch.cat([self.lora_a[i] for i in places])
        key = (*places, first.device, first.dtype)
        if key not in self._stacks:
            self._stacks[key] = torch.cat([self.lora_a[i] for i in places])
        return self._stacks[key]

    @contextmanager
    def hooked(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, each adapted linear of the model adds its LoRA to the last n rows of what it is given."""
        hooks = [
            model.get_submodule(path).register_forward_hook(self._hook(a, b))
            for path, a, b in zip(self.paths, self.lora_a, self.lora_b, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        n, scale = self.n, self.alpha / self.rank

        def add(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            rows = inputs[0][..., -n:, :]
            delta = ((rows.to(a.dtype) @ a.T) @ b.T * scale).to(out.dtype)
            if out.shape[-2] == n:
                return out + delta
            if torch.is_grad_enabled():
                return torch.cat([out[..., :-n, :], out[..., -n:, :] + delta], -2)
            out[..., -n:, :] += delta  # serving: a copy of the whole prompt's activations would cost more
            return out

        return add

    def tail(self, batch: int = 1) -> Tail:
        """The observers: the learned tokens after each of `batch` prompts, the LoRA active on them."""
        return Tail(self.tokens.expand(batch, -1, -1), adapter=self)

    @property
    def identity(self) -> str:
        """What tells adapters apart: the hashes of its files, or of its tensors while it has none."""
        scale = f" {self.alpha}/{self.rank}"
        if saved := "".join(self.card.get("sha256", {}).values()):
            return saved + scale
        digest = hashlib.sha256(repr(self.paths).encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest() + scale

    def method(
        self, recipe: Recipe | None = None, extra_rows: PromptRows | None = None, name: str = METHOD.name
    ) -> Method:
        """LookaheadKV as a method; for ablations with another recipe, and prompt rows that observe too."""
        return replace(
            METHOD,
            name=name,
            recipe=recipe or METHOD.recipe,
            observers=lambda prompt, budgets: [self.tail(prompt.ids.shape[0])] * len(budgets),
            extra_rows=extra_rows,
            identity=self.identity,
            tail_before_prefill=lambda model, ids, answering: self.tail(ids.shape[0]),
            needs=None,
            build=None,
        )

    def generate(
        self, model: PreTrainedModel, input_ids: Tensor, budget: int, max_new_tokens: int = 128
    ) -> Generation:
        """Greedy answer from a cache of `budget` entries a layer and KV head; input_ids int64 [1, N]."""
        from lkv.eviction.generate import generate

        return generate(model, input_ids, self.fit(model).method(), budget, max_new_tokens)

    def evicting(self, model: PreTrainedModel, budget: int) -> AbstractContextManager[None]:
        """Inside, the model's own `generate()` keeps `budget` entries of each prompt."""
        from lkv.eviction.hooks import evicting

        return evicting(model, self.fit(model).method(), budget)

    def save_pretrained(self, folder: str | Path, **provenance: Any) -> None:
        """Writes the folder; `provenance` (training data, steps, KL …) goes into lookahead.json."""
        from peft import LoraConfig

        folder = Path(folder)
        require_own_adapter(folder)
        folder.mkdir(parents=True, exist_ok=True)
        base = self.card["base_model"]
        pairs = {}
        for path, a, b in zip(self.paths, self.lora_a, self.lora_b, strict=True):
            pairs[f"{PEFT_PREFIX}{path}.lora_A.weight"] = a.detach().cpu().contiguous()
            pairs[f"{PEFT_PREFIX}{path}.lora_B.weight"] = b.detach().cpu().contiguous()
        # The tokens first: they show whose folder it is.
        for name, tensors in ((LEARNED, {"tokens": self.tokens.detach().cpu()}), (ADAPTER, pairs)):
            with atomic_write(folder / name, "wb") as stream:
                stream.write(save(tensors, metadata={"format": "pt"}))
        if self.paths:  # learned tokens alone are nothing that PEFT could read
            config = LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                target_modules=self.paths,
                task_type="CAUSAL_LM",
                base_model_name_or_path=base["name"],
                inference_mode=True,
            ).to_dict()
            config["target_modules"] = sorted(self.paths)  # PEFT holds a set: without order or equal bytes
            with atomic_write(folder / "adapter_config.json") as stream:
                json.dump(config, stream, indent=2, sort_keys=True, default=str)
        self.card = {
            "format": adapter_files.FORMAT,
            "base_model": base,
            "tokens": self.n,
            "rank": self.rank,
            "alpha": self.alpha,
            "parameters": self.parameter_count(),
            **provenance,
            "sha256": {name: sha256_file(folder / name) for name in (ADAPTER, LEARNED)},
        }
        write_hashed_json(folder / CARD, self.card)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: PreTrainedModel | None = None) -> LookaheadKV:
        """Reads an adapter folder and checks its hashes; with `model`, also that it was made for it."""
        card, tokens, a, b = adapter_files.read(folder)
        shapes = {path: (a[path].shape[1], b[path].shape[0]) for path in a}
        adapter = cls(shapes, tokens.shape[0], tokens.shape[1], card["rank"], card["alpha"])
        adapter.tokens.data.copy_(tokens)
        for i, path in enumerate(a):
            adapter.lora_a[i].data.copy_(a[path])
            adapter.lora_b[i].data.copy_(b[path])
        adapter.card = card
        adapter.requires_grad_(False)
        return adapter if model is None else adapter.fit(model)

    def fit(self, model: PreTrainedModel) -> LookaheadKV:
        """This adapter, or a copy of it, on the model's device and in its precision; refuses another's model.

        Serving computes in the model's precision; training keeps the adapter in float32.
        """
        self.check_fits(model)
        if self.tokens.device == model.device and self.tokens.dtype == model.dtype:
            return self
        if self.tokens.requires_grad:
            return copy.deepcopy(self).to(device=model.device, dtype=model.dtype)
        key = (model.device, model.dtype)  # the same copy each time: passes are captured by adapter
        if key not in self._fitted:
            self._fitted[key] = copy.deepcopy(self, {id(self._fitted): {}}).to(*key)
        return self._fitted[key]

    def check_fits(self, model: PreTrainedModel) -> None:
        """Raises UserError unless the adapter was trained for this very model."""
        made_for, here = self.card["base_model"], describe(model)
        sizes = [key for key in here if key not in ("name", "probe") and made_for.get(key) != here[key]]
        if sizes or not probe.same(made_for["probe"], *probed(model)):
            why = (
                ", ".join(f"{key} {made_for.get(key)} against {here[key]}" for key in sizes)
                or "other weights"
            )
            raise UserError(
                f"this adapter was made for {made_for['name']}, the model here is {here['name']} ({why}); "
                "load that model, or train an adapter for this one with lkv train"
            )
