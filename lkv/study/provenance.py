"""provenance.json: the code, data, models and device that a study's results come from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lkv.distributed.gpu_lease import pick
from lkv.files.json_files import read_json, write_hashed_json
from lkv.files.reading import require
from lkv.files.strict_yaml import read_yaml
from lkv.files.sums import sha256_file
from lkv.model.attention import BACKEND_NAMES, best_backend
from lkv.model.device import describe
from lkv.model.dtype import DTYPES, choose_dtype
from lkv.results.paths import CARD
from lkv.study.arms import main_arm

PACKAGES = (
    "torch", "transformers", "tokenizers", "peft", "accelerate", "flash-attn", "lm-eval", "wonderwords",
    "numpy", "scipy", "pandas", "snakemake",
)  # fmt: skip
FROM_CARD = (
    "trained_on", "steps", "samples", "kl_first", "kl_last", "held_out_kl_before", "held_out_kl_after",
    "held_out_recall", "tokens", "lora", "loss", "parameters", "schedule", "commit", "device", "data_sha256",
    "sha256",
)  # fmt: skip


def write_provenance(
    config: Path,
    models: Sequence[Path],
    data: Sequence[Path],
    adapters: Sequence[Path],
    out: Path,
    device_name: str = "auto",
    dtype_name: str = "auto",
) -> None:
    """Writes versions, hashes, device and training facts; `config` is the YAML with defaults filled in."""
    study = require(read_yaml(config), (), config, "the workflow")
    device = pick(device_name)
    dtype = choose_dtype(dtype_name, device)
    processor, driver = describe(device)
    cards = {name: read_json(folder / CARD) for name, folder in named(study, adapters).items()}
    write_hashed_json(
        out,
        {
            "study": study.get("study"),
            "commit": commit(),
            "dirty": dirty(),
            "config": study,
            "config_sha256": sha256_file(config),
            "packages": package_versions(),
            "device": processor,
            "driver": driver,
            "backend": BACKEND_NAMES[best_backend(device, dtype)],
            "dtype": next(name for name, value in DTYPES.items() if value == dtype),
            "models": {
                folder.name: {
                    key: read_json(folder / "model.json").get(key)
                    for key in (
                        "fingerprint",
                        "licence",
                        "source",
                        "parameters",
                        "layers",
                        "full_layers",
                        "sha256",
                    )
                }
                for folder in models
            },
            "data": {str(path): sha256_file(path) for path in data},
            "adapters": {name: {key: card.get(key) for key in FROM_CARD} for name, card in cards.items()},
            "seeds": {"study": study.get("seed")},
            "start": _stamp(config.stat().st_mtime),  # written first of all
            "end": _stamp(datetime.now(UTC).timestamp()),
        },
    )


def named(study: Mapping[str, Any], adapters: Sequence[Path]) -> dict[str, Path]:
    """model/arm → folder of modules; given modules count as their model's main arm."""
    given = {name: Path(folder) for name, folder in (study.get("adapters") or {}).items()}
    own = [folder for folder in adapters if folder not in given.values()]
    return {f"{name}/{main_arm(study)}": folder for name, folder in given.items() if folder in adapters} | {
        f"{folder.parent.name}/{folder.name}": folder for folder in own
    }


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of Python, on which offline documents depend, and of installed packages."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {"python": platform.python_version()} | found


def commit() -> str | None:
    """The commit of this code: LKV_COMMIT, for copies without history, or else git's."""
    return os.environ.get("LKV_COMMIT") or _git("rev-parse", "HEAD")


def dirty() -> bool | None:
    """True if the code differs from that commit; None if that is unknown."""
    if os.environ.get("LKV_COMMIT"):
        return None
    changes = _git("status", "--porcelain")
    return None if changes is None else bool(changes)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else None
