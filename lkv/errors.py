"""What a user can cause: one clear line, exit code 2, no traceback. And a process that lost the others."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """Says what was given, what is allowed and the way out."""


def one_of(what: str, given: object, allowed: Iterable[object], way_out: str = "") -> UserError:
    """A UserError for a value outside a closed list, with near misses first."""
    from difflib import get_close_matches

    names = [str(name) for name in allowed]
    near = get_close_matches(str(given), names, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    tail = f"; {way_out}" if way_out else ""
    return UserError(f"unknown {what} {given!r}{guess}; known: {', '.join(names)}{tail}")


# What torch, its allocator, the loader of libraries and Python say of it, in errors of many kinds.
NO_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "failed to map segment", "Cannot allocate memory")


def out_of_memory(error: BaseException) -> str:
    """What to say where memory was not enough, for this error or one that it came from; nothing elsewhere."""
    if type(error).__name__ == "OutOfMemoryError":
        return "CUDA ran out of memory; use a shorter length, a smaller batch or model, or --device cpu"
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return "memory ran out; use a shorter length, a smaller batch or model, or a larger machine"
    before = error.__cause__ or error.__context__
    return out_of_memory(before) if before is not None else ""


LONGEST = 2000  # characters of a line; what is beyond them is not read
UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, halves of characters, ends of lines


def unshown(text: str) -> bool:
    """Whether a text holds what no terminal shows and no file of ours should."""
    return not text.isprintable() and any(unicodedata.category(c) in UNSHOWN for c in text)


def plain(message: object) -> str:
    """A message as one line of text: what is not shown, which names and texts of others may hold, is written
    as escapes."""
    text = str(message)
    if unshown(text):
        text = "".join(c.encode("unicode_escape").decode() if unshown(c) else c for c in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class Lost(Exception):
    """Another process of the same work is gone; what ended it is for that one to say."""
