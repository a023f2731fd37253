"""Whether the files and folders that a study's config names are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.study.arms import arms
from lkv.study.jobs import MTBENCH


def check_files(config: Mapping[str, Any], rules: Iterable[str], source: str = "config") -> None:
    """Refuses missing files and folders that a key names, of the keys that jobs of these rules read."""
    needed = set(rules)
    for rule, place, path in _named_files(config):
        if rule in needed and not (Path(path).exists() or glob(path)):
            raise UserError(f"{source}, {place}: no such file or folder: {path}; correct the path")


def _named_files(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(rule that reads it, config key, path) of the files and folders that a config names."""
    ruler, longproc, mtbench = (config.get(name) or {} for name in ("ruler", "longproc", MTBENCH))
    asked = {
        ("data_ruler", "ruler.ready"): ruler.get("ready"),
        ("data_given", "longbench.source"): (config.get("longbench") or {}).get("source"),
        ("data_given", "longproc.data"): longproc.get("data"),
        ("mtbench", "mtbench.questions"): mtbench.get("questions"),
        ("mtbench", "mtbench.references"): mtbench.get("references"),
        ("judge", "mtbench.judge.prompts"): (mtbench.get("judge") or {}).get("prompts"),
    }
    for name, arm in arms(config).items():
        for item in arm["sources"] or []:
            data = item["data"] if isinstance(item["data"], list) else [item["data"]]
            for number, one in enumerate(data):
                asked["data_train", f"sources of the arm {name}, {item['name']}, data[{number}]"] = one
    for (rule, place), given in asked.items():
        kind, _, rest = (given or "hub:").partition(":")
        path = rest if kind in ("folder", "zip", "file") else given or ""
        if kind != "hub":
            yield rule, place, os.path.expanduser(path)
