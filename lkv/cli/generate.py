"""`lkv generate`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lkv.cli import flags, terminal
from lkv.cli.arguments import method_name, positive_number
from lkv.cli.command import Command
from lkv.cli.loading import check_comparison, load_model, named_methods, prompt_text

if TYPE_CHECKING:
    from lkv.model.load import Loaded

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


def generate_flags(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    parser.add_argument(
        "--method",
        default="lookaheadkv",
        type=method_name,
        metavar="METHOD",
        help="full or an eviction method",
    )
    parser.add_argument(
        "--budget",
        type=positive_number,
        required=True,
        metavar="N",
        help="entries kept per layer and KV head",
    )
    parser.add_argument(
        "--prompt-file", type=Path, required=True, metavar="FILE", help="text of the prompt, in UTF-8"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive_number,
        default=128,
        metavar="N",
        help="tokens of the answer at most",
    )
    flags.runs(parser)
    flags.adapts(parser)


COMMANDS = [
    Command(
        "generate",
        generate,
        generate_flags,
        "--model models/smollm2-135m-instruct --adapter adapters/smollm2-135m-instruct --budget 128 "
        "--prompt-file LICENSE",
    )
]
