"""LAQ (Lookahead Q-Cache): a draft looks, decoded by the model itself on a SnapKV-evicted cache.

The draft is greedy, 32 tokens, on SnapKV's cache of the same budget; its queries then attend to the *full*
prompt keys: s_j = Σ_{i in draft} softmax_j(q_i · k_j), max-pool 7, top-C (Wang et al. 2025). The LookaheadKV
paper caps drafts at 32 tokens (p. 25); LAQ's own code writes 8.

LAQ forces no window; `laqpp` adds the last 8 prompt tokens as observers and keeps them. Deviation: the mask
in LAQ's code hides late prompt keys from early draft queries; here every draft query sees the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from baselines import snapkv
from lkv.eviction.decode import decode
from lkv.eviction.pipeline import evict
from lkv.eviction.prefilled import Prefilled
from lkv.files.json_files import fingerprint
from lkv.interface import Method, PromptRows, Recipe, Recorded

DRAFT_TOKENS = 32
LAST_32, LAST_8 = PromptRows(last=32), PromptRows(last=8)


def observers(
    prefilled: Prefilled, budgets: Sequence[int], beside: PromptRows | None = None
) -> list[Recorded]:
    evicted = evict(prefilled, snapkv.METHOD, budgets)
    rows = [row for of_budget in evicted for row in of_budget]
    draft = decode(prefilled.model, rows, DRAFT_TOKENS, prefilled.stop, record=True)
    written = torch.tensor([max(1, len(tokens)) for tokens in draft.tokens])
    valid = (torch.arange(draft.queries[0].shape[2]) < written[:, None]).to(prefilled.ids.device)
    batch = len(prefilled.first)
    spans = [slice(i * batch, (i + 1) * batch) for i in range(len(budgets))]
    return [
        Recorded([q[span] for q in draft.queries], draft.scalings, valid[span], beside=beside)
        for span in spans
    ]


METHOD = Method(
    "laq",
    Recipe(),
    observers,
    reads=(LAST_32,),
    identity=fingerprint(asdict(snapkv.METHOD.recipe), snapkv.METHOD.version, DRAFT_TOKENS),
    least_budget=snapkv.METHOD.smallest_budget,  # of the cache that the draft is decoded on
)
PLUS_PLUS = replace(
    METHOD,
    name="laqpp",
    recipe=Recipe(window=8),
    observers=partial(observers, beside=LAST_8),
    reads=(LAST_32, LAST_8),
)
