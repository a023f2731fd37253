"""Trained modules to give away: in half the bytes, with a model card that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lkv.errors import UserError
from lkv.files.atomic import atomic_write
from lkv.files.reading import require
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.files import CARD

FACTS = {
    "trained_on": "text", "steps": "count", "schedule": "object", "lora": "name", "loss": "name",
    "held_out_kl_before": "number or null", "held_out_kl_after": "number or null",
    "held_out_recall": "number or null", "device": "text or null", "commit": "text or null",
    "model_fingerprint": "name", "data_sha256": "name",
}  # fmt: skip
SCHEDULE = {"batch": "some", "learning_rate": "number", "warmup_steps": "count", "held_out": "count"}
LINEARS = {"all": "all linears", "qk": "the linears of q and k"}

JUDGED = """\
KL {} before training, {} after. In each layer and KV head {:.1%} of the entries that an
  answer looks at most (128; of a short prompt a quarter) are among as many that the modules rank highest"""

MODEL_CARD = """\
---
base_model: {model}
library_name: peft
license: {licence}
tags: [lookaheadkv, kv-cache-eviction]
---
# LookaheadKV modules for {model}

{tokens} lookahead tokens{lora_words}:
{parameters:,} numbers in bfloat16. Behind a prompt they predict the attention that the answer will pay to it;
`lkv` keeps the cache entries that rank highest. The model itself stays as it is.

- **Data**: {trained_on}.
- **Schedule**: {steps:,} steps of {batch} prompts, Adam at {learning_rate:g}, warm-up of {warmup_steps}
  steps, cosine to zero; loss: {loss}.
- **On {held_out} held-out prompts of the same kinds**, before rounding to bfloat16:
  {judged}.
- **Made with**: commit {commit}, {device}.
- **Fit**: the weights with fingerprint {model_fingerprint}. Prompts: SHA-256 {data_sha256}.

```sh
lkv model --spec config/models/{model}.yaml --out models/{model}
lkv generate --model models/{model} --adapter {folder} \\
    --budget 128 --prompt-file prompt.txt
```

**Limits.** `lkv` refuses a model whose sizes or sampled weights are others. What the modules have learned
is the attention that answers pay to prompts of these kinds and lengths: on others they may rank worse, and
where the model does not find an answer, they cannot. `lookahead.json` has the hashes of the files.
"""


def share(folder: Path, out: Path, licence: str) -> None:
    """Writes the modules of `folder` into `out` in bfloat16, with their facts and a model card, README.md."""
    if folder.resolve() == out.resolve():
        raise UserError(f"{out} is where the modules are; give another folder as --out")
    adapter = LookaheadKV.from_pretrained(folder)
    facts = require(adapter.card, FACTS, folder / CARD, "lkv train")
    require(facts["schedule"], SCHEDULE, f"{folder / CARD}, schedule", "lkv train")
    adapter.to(torch.bfloat16).save_pretrained(out, **facts)
    with atomic_write(out / "README.md") as stream:
        stream.write(_model_card(adapter.card, out, licence))


def _model_card(card: Mapping[str, Any], folder: Path, licence: str) -> str:
    lora, judged = "", "nothing was measured"
    if linears := LINEARS.get(card["lora"]):
        lora = f", and a LoRA of rank {card['rank']} (α = {card['alpha']}) on {linears}, active on their rows"
    if (recall := card["held_out_recall"]) is not None:
        judged = JUDGED.format(card["held_out_kl_before"], card["held_out_kl_after"], recall)
    given = {**card, **card["schedule"], "lora_words": lora, "judged": judged}
    return MODEL_CARD.format(**given, model=card["base_model"]["name"], licence=licence, folder=folder)
