"""lkv generate"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lkv.cli import terminal

if TYPE_CHECKING:
    from lkv.model.load import Loaded
from lkv.cli.loading import check_comparison, load_model, named_methods, prompt_text

Arguments = argparse.Namespace


def generate(args: Arguments) -> None:
    """answer a prompt from an evicted cache"""
    import torch

    from lkv.eviction.generate import generate
    from lkv.model.chat_template import chat_ids

    args.methods, args.budgets = [args.method], [args.budget]
    check_comparison(args)
    text = prompt_text(args.prompt_file)
    loaded = load_model(args)
    _check_head(loaded, text, args.max_new_tokens)
    ids = torch.tensor([chat_ids(loaded.tokenizer, text)])
    [method] = named_methods(args, loaded)
    done = generate(loaded.model, ids, method, args.budget, args.max_new_tokens)
    print(loaded.tokenizer.decode(done.tokens, skip_special_tokens=True), flush=True)
    terminal.say(
        f"\n{args.method}: kept {done.kept:.0f} of {done.prompt_tokens} tokens a layer and KV head; "
        f"cache {done.cache_bytes / 2**20:.1f} MiB of {done.full_cache_bytes / 2**20:.1f} MiB; "
        f"TTFT {done.ttft_s:.3f} s; {done.tokens_per_s:.1f} tokens/s; "
        f"{loaded.backend}, {loaded.dtype}, {loaded.model.device}"
    )


def _check_head(loaded: Loaded, text: str, new: int) -> None:
    """Refuses a text whose first part is too long already: a whole library would take gigabytes."""
    from lkv.lookahead.responses import check_fits
    from lkv.model.chat_template import token_ids

    head = text[: 32 * (loaded.context or len(text))]  # characters; few texts have so many a token
    if len(head) < len(text):
        check_fits(loaded, len(token_ids(loaded.tokenizer, [head])[0]), new)
