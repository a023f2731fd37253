"""`python -m lkv.study.settings.generate`: writes what is made from the declared keys.

These are workflow/schemas/config.schema.yaml, for editors that check a config as it is written, and the table
of keys in config/README.md. Run it in the project's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import yaml

from lkv.study.settings.declare import Declared, declared
from lkv.study.settings.json_schema import allowed, study_schema
from lkv.study.settings.study import Study

SCHEMA, README = Path("workflow/schemas/config.schema.yaml"), Path("config/README.md")
BEGIN, END = "<!-- keys: python -m lkv.study.settings.generate -->", "<!-- end of keys -->"
HEAD = "# Made by `python -m lkv.study.settings.generate` from lkv/study/settings; change the keys there.\n"


def schema_text() -> str:
    return HEAD + yaml.dump(study_schema(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


def with_table(text: str) -> str:
    """The README with the table of today's keys."""
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def table() -> str:
    rows = ["| key | value | meaning | default |", "|---|---|---|---|"]
    rows += ["| " + " | ".join(cells) + " |" for cells in _rows(Study)]
    return "\n".join(rows) + "\n"


def _rows(section: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, kinds of value, meaning and default of every key; a section is followed by its keys."""
    for name, entry in declared(section).items():
        yield f"`{prefix}{name}`", _value(entry), entry.key.help.replace("|", r"\|"), _default(entry)
        for kind in entry.kinds:
            [inner] = getattr(kind, "__args__", [None])[:1]
            for part in (kind, inner):
                if dataclasses.is_dataclass(part):
                    brackets = "[]" if part is inner else ""
                    yield from _rows(part, f"{prefix}{name}{brackets}.")  # type: ignore[arg-type]


def _value(entry: Declared) -> str:
    if entry.choices:
        several = "a list of " if get_origin(entry.kinds[0]) is list else ""
        return several + ", ".join(f"`{word}`" for word in entry.choices)
    words = {str: "text", bool: "`true`, `false`", dict: "keys with values"}
    kind = entry.kinds[0]
    return allowed(entry.kinds, entry.key) or words[get_origin(kind) or kind]


def _default(entry: Declared) -> str:
    if entry.required:
        return "**required**"
    if entry.key.optional:
        return "left out"
    if entry.default is None:
        return f"`null`: {entry.key.null}"
    return f"`{yaml.safe_dump(entry.default, default_flow_style=True).splitlines()[0]}`"


class _Plain(yaml.SafeDumper):
    """No anchors: each part of the schema can be read by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main() -> None:
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
