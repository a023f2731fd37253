"""What a user can cause: one clear line, exit code 2, no traceback. And a process that lost the others."""

from __future__ import annotations

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


class Lost(Exception):
    """Another process of the same work is gone; what ended it is for that one to say."""
