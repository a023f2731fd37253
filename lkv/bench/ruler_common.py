"""What RULER's task families share: their contract, the benchmark's own wordings, the word lists."""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from lkv.errors import UserError

WONDERWORDS = "3.0.1"  # 2.2.0 has four more nouns: other words under every seed


@dataclass(frozen=True)
class Prompt:
    """The user's text, the first words of the answer, and the reference answers."""

    input: str
    answer_prefix: str
    outputs: list[str]


@dataclass(frozen=True)
class Generator:
    """`make(size, rng, index)`, where size counts units of haystack between `least` and `most`.

    A sample's prompt depends on its size, its own `rng` and its index alone.
    """

    make: Callable[[int, random.Random, int], Prompt]
    least: int
    most: int
    haystack: str


# Our name: file and name in lm_eval/tasks/ruler, first digits of the (mended) text's SHA-256.
WORDINGS = {
    "niah": ("niah_utils", "TEMPLATE", ""),
    "niah_prefix": ("prepare_niah", "gen_prefix", ""),
    "needle": ("prepare_niah", "NEEDLE", ""),
    "noise": ("prepare_niah", "haystack", ""),
    "vt": ("vt_utils", "template", ""),
    "vt_prefix": ("vt_utils", "answer_prefix", ""),
    "cwe": ("cwe_utils", "template", ""),
    "cwe_prefix": ("cwe_utils", "answer_prefix", ""),
    "fwe": ("fwe_utils", "template", ""),
    "fwe_prefix": ("fwe_utils", "answer_prefix", ""),
    "qa": ("qa_utils", "template", ""),
    "qa_prefix": ("qa_utils", "answer_prefix", ""),
    "document": ("qa_utils", "DOCUMENT_PROMPT", ""),
}


def wording(name: str) -> str:
    """One of RULER's texts, a format string, as the installed lm-eval has it and mended where it errs."""
    module, variable, digits = WORDINGS[name]
    text = _texts(module).get(variable, "")
    text = text.replace("assgined", "assigned")  # the older tree's typo; NVIDIA's newer tree has mended it
    if not hashlib.sha256(text.encode()).hexdigest().startswith(digits):
        raise UserError(
            f"lm-eval {version('lm-eval')} words RULER's {name!r} differently ({text[:40]!r}...), "
            "so scores would not compare; install lm-eval 0.4.13"
        )
    return text


def word_list(kind: str) -> list[str]:
    """wonderwords' `noun`, `adjective` or `verb` list, in its own order."""
    try:
        installed = version("wonderwords")
    except PackageNotFoundError:
        installed = "none"
    if installed != WONDERWORDS:
        raise UserError(
            f"RULER's words need wonderwords {WONDERWORDS}, found {installed}; another version gives other "
            f"data under the same seed; pip install wonderwords=={WONDERWORDS}"
        )
    return (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8").split("\n")


@cache
def _texts(module: str) -> dict[str, str]:
    """Name -> text assigned to that name, or to that dictionary key, first place in the file.

    lm-eval's file is parsed and not imported: an import costs seconds and starts NLTK's download.
    """
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise UserError("RULER's wordings come with lm-eval, which is not installed; pip install 'lkv[data]'")
    path = Path(package.submodule_search_locations[0]) / "tasks" / "ruler" / f"{module}.py"
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        for key, value in pairs:
            name = getattr(key, "id", getattr(key, "value", None))
            text = _string(value)
            if isinstance(name, str) and text is not None:
                found.setdefault(name, text)
    return found


def _string(node: ast.expr) -> str | None:
    """A literal's text; an f-string as a format string; of a conditional, the plural (last) one."""
    if isinstance(node, ast.IfExp):
        return _string(node.orelse)
    if isinstance(node, ast.JoinedStr):
        parts = (part if isinstance(part, ast.FormattedValue) else _string(part) for part in node.values)
        return "".join(f"{{{ast.unparse(p.value)}}}" if isinstance(p, ast.FormattedValue) else p or "" for p in parts)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
