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
    """The user's text, where in it the question begins, the answer's first words, the reference answers."""

    input: str
    question_at: int
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
    "niah": ("niah_utils", "TEMPLATE", "b373c00e238d"),
    "niah_prefix": ("prepare_niah", "gen_prefix", "994f3a46e763"),
    "needle": ("prepare_niah", "NEEDLE", "8b1728a93842"),
    "noise": ("prepare_niah", "haystack", "c2fcf70de608"),
    "vt": ("vt_utils", "template", "fcfaf2eab2bc"),
    "vt_prefix": ("vt_utils", "answer_prefix", "4a4e9010ec41"),
    "cwe": ("cwe_utils", "template", "45fff5d17627"),
    "cwe_prefix": ("cwe_utils", "answer_prefix", "8ee526599bbc"),
    "fwe": ("fwe_utils", "template", "a0c7b873cf50"),
    "fwe_prefix": ("fwe_utils", "answer_prefix", "9a72271c5762"),
    "qa": ("qa_utils", "template", "18a659c9723f"),
    "qa_prefix": ("qa_utils", "answer_prefix", "255204f061d7"),
    "document": ("qa_utils", "DOCUMENT_PROMPT", "ce8bd2851618"),
}


def wording(name: str) -> str:
    """One of RULER's texts, a format string, as the installed lm-eval has it and mended where it errs."""
    module, variable, digits = WORDINGS[name]
    text = _texts(module).get(variable, "")
    text = text.replace("assgined", "assigned")  # the older tree's typo; NVIDIA's newer tree has mended it
    if name.endswith("_prefix"):
        text = f" {text.lstrip()}"  # in RULER each begins with the blank that parts it from the question
    if not hashlib.sha256(text.encode()).hexdigest().startswith(digits):
        raise UserError(
            f"lm-eval {version('lm-eval')} words RULER's {name!r} differently ({text[:40]!r}...), "
            "so scores would not compare; install lm-eval 0.4.13"
        )
    return text


def filled(template: str, context: str, **values: object) -> tuple[str, int]:
    """`template` with its values, and the character of it at which the question after the context begins."""
    before, _, after = template.partition("{context}")
    question = after.lstrip("\n").format(**values)
    text = before.format(**values) + context + after.format(**values)
    return text, len(text) - len(question)


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
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return [word.rstrip() for word in text.splitlines()]


@cache
def _texts(module: str) -> dict[str, str]:
    """Name -> text assigned to that name, or to that dictionary key, first place in the file.

    lm-eval's file is parsed and not imported: an import costs seconds and starts NLTK's download.
    """
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise UserError("RULER's wordings come with lm-eval, which is not installed; pip install 'lkv[data]'")
    path = Path(package.submodule_search_locations[0]) / "tasks" / "ruler" / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    found: dict[str, str] = {}
    for node in ast.walk(tree):
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
        return "".join(_string(part) or "" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
