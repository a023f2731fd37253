"""Checks configs against their JSON schemas, with errors of one line."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lkv.errors import UserError, one_of
from lkv.files.names import WORD, checked
from lkv.files.strict_yaml import read_yaml
from lkv.results.paths import SHIPPED, SPEC

SCHEMAS = SHIPPED / "workflow/schemas"

MOST = 10**18  # every number of a config is smaller
# In texts: what no line shows, what begins markup in report.html, and Snakemake's wildcards.
UNFIT = "[<{}\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"


def read_plainly(files: Iterable[str | Path]) -> None:
    """Refuses YAML that Snakemake's own reader accepts and others do not; see lkv.files.strict_yaml."""
    for file in files:
        if Path(file).suffix != ".json":
            read_yaml(Path(file), os.path.relpath(file))


def model_spec(name: str, root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The checked content of config/models/NAME.yaml."""
    checked(f"{source}, models:", name, WORD, "letters, digits, '.', '_', '+', '-', no other at the front")
    path = Path(SPEC.format(model=name))
    if not (found := at(path, root)).is_file():
        known = known_models(root)
        raise one_of(f"model in {source}, models:", name, known, f"a new one is a file {path}")
    return read_spec(found, str(path))


def known_models(root: Path = Path()) -> list[str]:
    """The names of all files config/models/NAME.yaml."""
    folder = Path(SPEC).parent
    return sorted({spec.stem for base in (root, SHIPPED) for spec in (base / folder).glob("*.yaml")})


def spec_file(name: str) -> str:
    """The path of a model's file: in the working directory, or as shipped."""
    return str(at(SPEC.format(model=name)))


def at(path: str | Path, root: Path = Path()) -> Path:
    """The file at `path` under `root` (the working directory), or else the one shipped with the project."""
    own, shipped = root / path, SHIPPED / path
    return shipped if shipped.exists() and not own.exists() else own


def read_spec(path: Path, source: str = "") -> dict[str, Any]:
    """The checked content of a model's file, named as the file; errors start with `source`."""
    source = source or str(path)
    if not path.is_file():
        raise UserError(f"no such model spec: {path}; one is a file like config/models/NAME.yaml")
    spec = check(read_yaml(path, source), SCHEMAS / "model.schema.yaml", source)
    if spec["name"] != path.stem:
        allowed = f"allowed: {path.stem}"
        raise UserError(f"{source}, name: {spec['name']!r} differs from the file's name; {allowed}")
    return spec


@cache
def _schema(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def check(value: Any, schema: Path | Mapping[str, Any], source: str) -> dict[str, Any]:
    """`value` with defaults. Raises UserError: the first wrong key, its value, what is allowed."""
    schema = _schema(schema) if isinstance(schema, Path) else schema
    filled = _with_defaults(value, schema)
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend
    except ModuleNotFoundError:  # a machine that only runs commands: the workflow has checked the file
        _check_texts(filled, source)
        return dict(filled)
    # In one place an unknown key comes before a missing one (the schemas' order): often it is that, misspelt.
    errors = sorted(
        extend(Draft202012Validator, type_checker=_types(Draft202012Validator))(schema).iter_errors(filled),
        key=lambda error: [str(part) for part in error.absolute_path],
    )
    if errors:
        raise _explained(errors[0], source)
    _check_texts(filled, source)
    return dict(filled)


def _types(validator: Any) -> Any:
    """JSON Schema's types, except that 3.0 is no integer and numbers are finite and below 10^18."""
    number = validator.TYPE_CHECKER.is_type

    def integer(_: Any, value: Any) -> bool:
        return isinstance(value, int) and number(value, "integer") and abs(value) < MOST

    def finite(_: Any, value: Any) -> bool:
        return number(value, "number") and -MOST < value < MOST

    return validator.TYPE_CHECKER.redefine_many({"integer": integer, "number": finite})


def _check_texts(value: Any, source: str, place: str = "") -> None:
    """Refuses keys and texts with control characters, lone surrogates, '<' or braces, or a leading '-'.

    Texts become words of command lines, names of files and parts of pages.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_texts(str(key), source, place)
            _check_texts(part, source, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for at, part in enumerate(value):
            _check_texts(part, source, f"{place}[{at}]")
    elif isinstance(value, str) and (found := re.search(f"^-|{UNFIT}", value)):
        where = f"{source}, {place}" if place else source
        given, what = json.dumps(value), json.dumps(found[0])
        if what == '"-"':
            raise UserError(f"{where}: {given} would be read as an option; a path may begin with ./")
        way_out = "leave it out" if found[0] in "<{}" else "write it on one line"
        raise UserError(f"{where}: {given} is not allowed, as it holds {what}; {way_out}")


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """Schema defaults for absent keys, objects within objects too; keys in the schema's order."""
    if not isinstance(value, Mapping) or "properties" not in schema:
        return copy.deepcopy(value)
    filled = {}
    for key, part in schema["properties"].items():
        if key in value or "default" in part:
            filled[key] = _with_defaults(value.get(key, part.get("default")), part)
    return filled | {key: value[key] for key in value if key not in filled}


def _explained(error: Any, source: str) -> UserError:
    """One line from a jsonschema error."""
    place = f"{source}, {_dotted(error.absolute_path)}" if error.absolute_path else source
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]
            return one_of(f"key in {place}:", next(key for key in error.instance if key not in known), known)
        case "required":
            key = next(key for key in error.validator_value if key not in error.instance)
            meaning = error.schema.get("properties", {}).get(key, {}).get("description", "")
            return UserError(f"{place}: the key {key!r} is missing; it holds: {meaning}")
        case "enum":
            return one_of(f"value in {place}:", error.instance, error.validator_value)
    given = json.dumps(error.instance, ensure_ascii=False, default=str)
    return UserError(
        f"{place}: {given} is not allowed; allowed: {error.schema.get('description', error.message)}"
    )


def _dotted(keys: Sequence[str | int]) -> str:
    """train.lengths[0] for the path train, lengths, 0."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")
