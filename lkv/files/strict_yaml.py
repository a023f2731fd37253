"""YAML as everybody reads it: one strict loader for configs, model specs and other people's files.

YAML 1.1 (PyYAML, Snakemake) and YAML 1.2 disagree on `02000`, `1:30`, `no` and more, and both let a later key
win over an equal earlier one. What they read alike is read; the rest is refused, with its line and a way out.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from lkv.errors import UserError
from lkv.files.reading import regular, text_of

NODES = 100_000  # of a document with its aliases expanded
DEPTH = 50
DIGITS = 18  # of a whole number

# Plain scalars that YAML readers disagree on, or that no key of ours means: pattern, what it is, the way out.
DOUBTFUL = (
    (r"y|n|yes|no|on|off", "true or false to some readers", "write true or false, or put it in quotes"),
    (r"[-+]?0\d[\d_]*", "octal to some readers", "write it without leading zeros, or put it in quotes"),
    (r"[-+]?0[box][\da-fA-F_]+", "not a decimal number", "write it in decimals, or put it in quotes"),
    (r"[-+]?\d[\d.]*_[\d_.]*", "a number to some readers", "write it without '_', or put it in quotes"),
    (r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?", "base 60 to some readers", "put it in quotes"),
    (
        r"[-+]?(\d+e[-+]?\d+|(\d+\.\d*|\.\d+)e\d+)",
        "text to some readers, a number to others",
        "write it as 0.001 or 1.0e-3, or put it in quotes",
    ),
    (r"[-+]?\.(inf|nan)", "not a finite number", "write a finite number"),
    (r"\d{4}-\d\d?-\d\d?([Tt\s].*)?", "a date to some readers", "put it in quotes"),
    (r"=", "a key of its own to some readers", "put it in quotes"),
)


DOUBT = re.compile(f"(?:{'|'.join(pattern for pattern, *_ in DOUBTFUL)})\\Z", re.IGNORECASE)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what is text to PyYAML and something else to other readers."""


_Dumper.add_implicit_resolver("doubtful", DOUBT, None)


def dump_yaml(value: Any) -> str:
    """Text that read_yaml takes back as it was; keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, source: str = "") -> Any:
    """The content of a file; a UserError of one line that starts with `source` where it is not plain YAML."""
    source = source or str(path)
    content = regular(path, f"{source}: no such file; correct the path").read_bytes()
    text = text_of(content, f"{source}: not UTF-8 ({{}}); save it in UTF-8")
    if half := re.search(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", text):
        raise UserError(f"{source}: half a character, {half[0]}; write the whole one")
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Any:
    """As read_yaml, of a text."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise _refused(source, event, "a value nested too deep", f"allowed: {DEPTH} levels")
            if (tag := getattr(event, "tag", None)) is not None:
                raise _refused(source, event, f"the tag {tag!r}", "write the value without it")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, source, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not YAML ({' '.join(str(error).split())})") from None


def _check(node: yaml.Node, source: str, sizes: dict[int, int | None]) -> int:
    """How many nodes a node is once its aliases are expanded; refuses what readers disagree on."""
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise _refused(source, node, "a value that contains itself", "write it out")
        return known
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, source)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, source, sizes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node, source)
        size += sum(_check(part, source, sizes) for pair in node.value for part in pair)
    if size > NODES:
        raise _refused(source, node, f"more than {NODES:,} values, aliases expanded", "write fewer")
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode, source: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(source, key, "a key that is a list or a mapping", "write a name")
        _check_scalar(key, source)
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise _refused(source, key, f"the key {key.value!r}, which is no text", "put it in quotes")
        line = key.start_mark.line + 1
        if key.value in seen:
            what = f"the key {key.value!r} a second time (first on line {seen[key.value]})"
            raise _refused(source, key, what, "keep one of the two")
        seen[key.value] = line


def _check_scalar(node: yaml.ScalarNode, source: str) -> None:
    if node.style is not None:  # quoted, or a block: text to every reader
        return
    for pattern, meaning, way_out in DOUBTFUL:
        if re.fullmatch(pattern, node.value, re.IGNORECASE):
            raise _refused(source, node, f"{node.value} ({meaning})", way_out)
    if node.tag == "tag:yaml.org,2002:int" and len(node.value.lstrip("+-")) > DIGITS:
        what = f"a number of {len(node.value)} digits"
        raise _refused(source, node, what, f"allowed: {DIGITS} digits at most")
    if node.tag == "tag:yaml.org,2002:float" and not math.isfinite(float(node.value)):
        raise _refused(source, node, f"{node.value} (not finite)", "write a finite number")


def _refused(source: str, at: Any, what: str, way_out: str) -> UserError:
    return UserError(f"{source}, line {at.start_mark.line + 1}: {what} is not allowed here; {way_out}")
