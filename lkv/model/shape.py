"""A model's sizes, as theory and plan count with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shape_of(model: PreTrainedModel) -> Shape:
    """A model's sizes, as theory and plan count with them."""
    config = model.config.get_text_config()
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


NUMBER = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Shape:
    """A Llama- or Qwen3-like model's sizes, as `shape` in config/models/NAME.yaml has them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    family: str = "llama"

    @property
    def block_parameters(self) -> int:
        """Of all blocks' linears: what each token is multiplied with."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """With embeddings and output head, without norms."""
        return self.block_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def entry_bytes(self) -> int:
        """One token's keys and values over all layers."""
        return 2 * NUMBER * self.layers * self.kv_heads * self.head_dim
