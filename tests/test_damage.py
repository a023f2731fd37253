"""Promises about damage: a flipped bit in any file that is read again is noticed, or changes no figure.

The journal's own are in test_journal.py.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from lkv import adapter_files
from lkv import sums as module_sums
from lkv.adapter_files import ADAPTER, CARD, CONFIG, LEARNED
from lkv.bench.mtbench import ANSWER, load_answers
from lkv.data import frozen
from lkv.data.shards import Stored
from lkv.errors import UserError
from lkv.lookahead import LookaheadKV
from lkv.models import Loaded, load, load_tokenizer, obtain
from lkv.records import (
    ABLATION_COLUMNS,
    ACCURACY_COLUMNS,
    HASH,
    JUDGEMENT_COLUMNS,
    SAMPLE_COLUMNS,
    read_csv,
    read_json,
    sha256_file,
    write_csv,
    write_hashed_json,
)
from lkv.summarise import write_summary
from lkv.sums import beside as sums
from lkv.sums import write_summed
from lkv.train import Arm, Schedule, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    obtain({"name": "m", "licence": "x", "source": {"kind": "random", "family": "llama"}}, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Loaded:
    return load(model_folder, CPU, "float32")


@pytest.fixture(scope="module")
def prompts(loaded: Loaded) -> list[dict[str, Any]]:
    draw = Random(3)
    return [
        {"id": i, "kind": "k", "length": 40, "ids": draw.choices(range(250), k=40), "response": [5, 6, 7]}
        for i in range(6)
    ]


@pytest.fixture
def adapter_folder(loaded: Loaded, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    LookaheadKV.create(loaded.model, tokens=4, seed=1).save_pretrained(folder, arm="main")
    return folder


def flipped(path: Path, draw: Random) -> bytes:
    """Flips one bit somewhere in a file; what it was before."""
    whole = path.read_bytes()
    place = draw.randrange(len(whole))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
    return whole


def noticed_or_equal(path: Path, read: Callable[[], Any], times: int) -> int:
    """Flips bits of `path`: each time `read` refuses, or gives what it gave; how often it refused."""
    truth, draw, refused = read(), Random(11), 0
    for _ in range(times):
        whole = flipped(path, draw)
        try:
            assert read() == truth
        except UserError:
            refused += 1
        finally:
            path.write_bytes(whole)
    assert read() == truth
    return refused


# Models


def test_a_flipped_bit_in_any_file_of_a_model_is_noticed(model_folder: Path) -> None:
    files = [path for path in sorted(model_folder.iterdir()) if not path.name.startswith(".")]
    assert {path.name for path in files} >= {"model.json", "config.json", "model.safetensors"}
    for path in files:

        def read() -> Any:
            weights = load(model_folder, CPU, "float32")
            return weights.name, weights.fingerprint, weights.tokenizer("a b").input_ids

        assert noticed_or_equal(path, read, 6) == 6, path.name


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_setting_changed_by_hand_is_not_run_under_the_old_fingerprint(
    file: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | {"rope_theta": 5.0}, indent=2))
    with pytest.raises(UserError, match=f"{file} is missing, damaged or was edited; make it again"):
        load(folder, CPU)


def test_a_changed_chat_template_is_noticed_where_the_tokenizer_alone_is_read(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    [template] = [path for path in folder.iterdir() if path.suffix == ".jinja"]
    template.write_text(template.read_text() + " ")
    with pytest.raises(UserError, match="was edited"):
        load_tokenizer(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "chat_template.json", "modeling_x.py"])
def test_a_file_that_transformers_would_read_too_is_refused(
    file: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    (folder / file).write_text("{}")
    with pytest.raises(UserError, match=f"{file} was not written by lkv model"):
        load(folder, CPU)
    (folder / file).unlink()
    (folder / "notes.md").write_text("mine")
    load(folder, CPU)


def test_a_named_chat_template_put_in_later_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    named = folder / "additional_chat_templates" / "default.jinja"  # it would go before the model's own
    named.parent.mkdir()
    named.write_text("{{ 'x' }}")
    for read in (load_tokenizer, partial(load, device=CPU)):
        with pytest.raises(UserError, match=r"default\.jinja was not written by lkv model"):
            read(folder)


def test_a_model_with_several_chat_templates_is_kept_whole_and_hashed(
    model_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_folder, source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ 'tools' }}")
    obtain({"name": "m", "licence": "x", "source": {"kind": "local", "path": str(source)}}, tmp_path / "m")
    [named] = (tmp_path / "m").rglob("tools.jinja")
    load(tmp_path / "m", CPU)
    named.write_text("{{ 'other' }}")
    with pytest.raises(UserError, match=r"tools\.jinja is missing, damaged or was edited"):
        load_tokenizer(tmp_path / "m")


def test_a_card_without_its_list_of_hashes_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    card = read_json(folder / "model.json")
    del card["sha256"]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"model\.json lacks sha256"):
        load(folder, CPU)


def test_a_model_of_an_earlier_lkv_is_made_again(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    card = read_json(folder / "model.json")
    del card["format"]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"made by an earlier lkv.*make it again with lkv model"):
        load(folder, CPU)


# Adapters


def test_a_flipped_bit_in_any_file_of_an_adapter_is_noticed(adapter_folder: Path) -> None:
    def read() -> Any:
        card, tokens, a, b = adapter_files.read(adapter_folder)
        return card, tokens.tolist(), {k: v.tolist() for k, v in [*a.items(), *b.items()]}

    assert noticed_or_equal(adapter_folder / ADAPTER, read, 20) == 20
    assert noticed_or_equal(adapter_folder / LEARNED, read, 20) == 20
    assert noticed_or_equal(adapter_folder / CARD, read, 60) >= 50
    noticed_or_equal(adapter_folder / CONFIG, read, 20)  # holds more than is read of it


def resealed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The card changed, and its hash with it: as somebody would write it who makes such files."""
    card = read_json(folder / CARD)
    change(card)
    write_hashed_json(folder / CARD, card)


def with_tensors(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    resealed(folder, lambda card: card["sha256"].update({name: sha256_file(folder / name)}))


def first(tensors: dict[str, Any], half: str) -> str:
    return next(key for key in tensors if f"lora_{half}" in key)


TENSORS: list[tuple[str, str, Callable[[dict[str, Any]], Any], str]] = [
    ("NaN", LEARNED, lambda t: t.update(tokens=t["tokens"] * math.nan), "no numbers"),
    ("infinity", ADAPTER, lambda t: t[first(t, "A")].fill_(math.inf), "no numbers"),
    ("integers", LEARNED, lambda t: t.update(tokens=t["tokens"].int()), "not floating point"),
    ("fewer tokens", LEARNED, lambda t: t.update(tokens=t["tokens"][:2].clone()), "holds 2 tokens"),
    ("no tokens", LEARNED, lambda t: t.update(other=t.pop("tokens")), "'tokens'"),
    ("one dimension", LEARNED, lambda t: t.update(tokens=t["tokens"][0].clone()), "'tokens'"),
    ("half a pair", ADAPTER, lambda t: t.pop(first(t, "B")), "one half of its LoRA pair"),
    ("a broadcastable shape", ADAPTER, lambda t: t.update({first(t, "A"): torch.zeros(1, 64)}), "shape"),
    ("another rank", ADAPTER, lambda t: t.update({first(t, "B"): torch.zeros(64, 3)}), "shape"),
    ("another name", ADAPTER, lambda t: t.update(x=torch.zeros(2, 2)), "not half of a LoRA pair"),
]
CARDS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("another alpha", lambda card: card.update(alpha=64), "do not agree on rank, alpha"),
    ("an unknown format", lambda card: card.update(format=9), "format 9 is not known"),
    ("no rank", lambda card: card.pop("rank"), "rank"),
    ("text for a number", lambda card: card.update(alpha="32"), "alpha"),
    ("more parameters", lambda card: card.update(parameters=5), "parameters"),
]


@pytest.mark.parametrize(
    ("name", "change", "words"), [row[1:] for row in TENSORS], ids=[r[0] for r in TENSORS]
)
def test_tensors_that_no_adapter_has_are_refused(
    name: str, change: Any, words: str, adapter_folder: Path
) -> None:
    with_tensors(adapter_folder, name, change)
    with pytest.raises(UserError, match=words):
        LookaheadKV.from_pretrained(adapter_folder)


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in CARDS], ids=[row[0] for row in CARDS])
def test_cards_that_contradict_their_files_are_refused(change: Any, words: str, adapter_folder: Path) -> None:
    resealed(adapter_folder, change)
    with pytest.raises(UserError, match=words):
        LookaheadKV.from_pretrained(adapter_folder)


def test_an_alpha_edited_in_the_card_is_noticed(adapter_folder: Path) -> None:
    text = (adapter_folder / CARD).read_text()
    (adapter_folder / CARD).write_text(text.replace('"alpha": 32', '"alpha": 33'))
    with pytest.raises(UserError, match=r"lookahead\.json is damaged or was edited"):
        LookaheadKV.from_pretrained(adapter_folder)


def test_the_published_adapters_carry_a_hash_of_their_cards() -> None:
    cards = sorted(Path(__file__).parents[1].glob("adapters/*/lookahead.json"))
    assert cards
    for card in cards:
        assert HASH in json.loads(card.read_text())
        adapter_files.read(card.parent)


def test_adapters_that_were_never_saved_are_told_apart(loaded: Loaded) -> None:
    one, two, same = (LookaheadKV.create(loaded.model, tokens=4, seed=seed) for seed in (1, 2, 1))
    assert one.method().made_of == same.method().made_of != two.method().made_of


# Training


def run(loaded: Loaded, prompts: list[dict[str, Any]], out: Path, steps: int, rate: float = 1e-3) -> Any:
    schedule = Schedule(steps, 2, rate, 0, 2, 5)
    return train(
        loaded, prompts, schedule, Arm(tokens=4), out, out / "t.csv", {}, checkpoint_every=2
    ).state_dict()


def test_training_that_diverges_stops_with_step_and_rate_and_stores_nothing(
    loaded: Loaded, prompts: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"training diverged: at step \d+ .* learning rate below 1e\+30"):
        run(loaded, prompts, tmp_path, 12, rate=1e30)
    assert not (tmp_path / CARD).exists() and not (tmp_path / "checkpoint.pt").exists()


def test_a_flipped_bit_in_a_checkpoint_is_noticed(
    loaded: Loaded, prompts: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lkv import train as module

    real = module._save

    def save_and_stop(*given: Any) -> None:
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, prompts, tmp_path, 4)
    checkpoint = tmp_path / "checkpoint.pt"
    whole, draw = checkpoint.read_bytes(), Random(4)
    for _ in range(40):
        flipped(checkpoint, draw)
        with pytest.raises(UserError, match="is damaged, or of an earlier lkv; delete it to start anew"):
            run(loaded, prompts, tmp_path, 4)
        checkpoint.write_bytes(whole)
    resumed = run(loaded, prompts, tmp_path, 4)
    assert all(bool(tensor.isfinite().all()) for tensor in resumed.values())


# Result CSVs


def samples(number: int = 3) -> list[dict[str, Any]]:
    head = {
        "study": "s", "model": "m", "benchmark": "ruler", "task": "t", "length": 64, "planned": number,
        "protocol": "official", "haystack": "noise", "recall": 0.5, "recall_raw": 0.25, "kept_mean": 8,
        "kept_bytes": 100, "prompt_tokens": 60, "new_tokens": 4, "status": "ok",
    }  # fmt: skip
    cells = [("full", 0), ("snapkv", 8), ("lookaheadkv", 8)]
    return [
        head | {"sample": i, "method": method, "budget": budget, "score": 10.0 * i + budget}
        for i in range(number)
        for method, budget in cells
    ]


@pytest.fixture
def sample_file(tmp_path: Path) -> Path:
    path = tmp_path / "t@64.csv"
    write_csv(path, samples(), SAMPLE_COLUMNS)
    return path


def test_a_flipped_bit_in_a_result_is_noticed(sample_file: Path) -> None:
    read = lambda: read_csv(sample_file, SAMPLE_COLUMNS).to_csv()  # noqa: E731
    assert noticed_or_equal(sample_file, read, 150) == 150
    assert sums(sample_file).read_text() == f"{sha256_file(sample_file)}  t@64.csv\n"


def test_an_edited_result_is_taken_where_its_sum_is_deleted(sample_file: Path) -> None:
    sample_file.write_text(sample_file.read_text().replace(",10,", ",11,"))
    with pytest.raises(UserError, match=r"delete \.t@64\.csv\.sha256 to take the file as it is"):
        read_csv(sample_file, SAMPLE_COLUMNS)
    sums(sample_file).unlink()
    assert 11 in set(read_csv(sample_file, SAMPLE_COLUMNS)["score"])


def test_a_sum_without_content_agrees_with_nothing(sample_file: Path) -> None:
    sums(sample_file).write_text("")
    with pytest.raises(UserError, match="is damaged or was edited"):
        read_csv(sample_file, SAMPLE_COLUMNS)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("kept", range(1, 4))
def test_wherever_a_stop_comes_while_a_result_is_replaced_it_has_its_sum_and_damage_has_none(
    kept: int, damaged: bool, sample_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops before the write `kept` of: both sums, the file, its sum."""
    real, calls = module_sums.atomic_write, iter(range(1, 9))

    def write_or_stop(*given: Any) -> Any:
        if next(calls) == kept:
            raise KeyboardInterrupt
        return real(*given)

    if damaged:
        flipped(sample_file, Random(2))
    monkeypatch.setattr(module_sums, "atomic_write", write_or_stop)
    with suppress(KeyboardInterrupt):  # of a damaged file no sum is kept, which is one write less
        write_csv(sample_file, samples(4), SAMPLE_COLUMNS)
    if not damaged:
        assert len(read_csv(sample_file, SAMPLE_COLUMNS)) in (9, 12)
    elif kept < 3:
        with pytest.raises(UserError, match="is damaged or was edited"):
            read_csv(sample_file, SAMPLE_COLUMNS)
    else:
        assert len(read_csv(sample_file, SAMPLE_COLUMNS)) == 12


def test_half_a_samples_file_is_not_summarised(sample_file: Path, tmp_path: Path) -> None:
    lines = sample_file.read_text().splitlines(keepends=True)
    sums(sample_file).unlink()
    for kept in (2, 3, 5, 6, 8):
        sample_file.write_text("".join(lines[: 1 + kept]))
        if kept in (3, 6):
            continue
        if kept == 2:  # nothing tells that a third row of the one sample is missing
            continue
        with pytest.raises(UserError, match=r"the file is not whole: run lkv evaluate again"):
            write_summary([sample_file], tmp_path / "a.csv", tmp_path / "p.csv", seed=1)


def set_score(text: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(b",20,0.5,", f",{text},0.5,".encode(), 1)


BROKEN: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda content: b"", "is empty"),
    ("binary", lambda content: b"\x00\x01" + content, "binary"),
    ("another encoding", lambda content: content.replace(b"noise", "nöise".encode("latin-1")), "UTF-8"),
    ("an open quote", lambda content: content.replace(b"noise", b'"noise'), "is not a CSV|cells"),
    ("an extra cell", lambda content: content.replace(b",ok\n", b",ok,1\n", 1), "row 2: 20 cells"),
    ("a missing cell", lambda content: content.replace(b",ok\n", b"\n", 1), "row 2: 18 cells"),
    ("a column twice", lambda content: content.replace(b"recall_raw", b"recall", 1), "a column twice"),
    ("text for a score", set_score("good"), "score is 'good', not a number from 0 to 100"),
    ("infinity", set_score("inf"), "score is 'inf'"),
    ("NaN", set_score("nan"), "score is 'nan'"),
    ("a score of 999", set_score("999"), "score is '999'"),
    ("a score of -50", set_score("-50"), "score is '-50'"),
]


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_csv_is_refused_with_file_and_row(
    change: Any, words: str, packed: bool, sample_file: Path
) -> None:
    content = change(sample_file.read_bytes())
    sums(sample_file).unlink()
    sample_file.unlink()
    if packed:
        sample_file.with_name("t@64.csv.gz").write_bytes(gzip.compress(content))
    else:
        sample_file.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_csv(sample_file, SAMPLE_COLUMNS)
    assert "t@64.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_torn_packed_csv_is_refused(sample_file: Path) -> None:
    packed = sample_file.with_name("t@64.csv.gz")
    packed.write_bytes(gzip.compress(sample_file.read_bytes())[:-9])
    sample_file.unlink()
    with pytest.raises(UserError, match="is not a whole gzip file"):
        read_csv(sample_file, SAMPLE_COLUMNS)


PUBLISHED = sorted(Path(__file__).parents[1].glob("results/*/SHA256SUMS"))


@pytest.mark.parametrize("sums_list", PUBLISHED, ids=lambda path: path.parent.name)
def test_every_file_of_a_published_study_is_listed_with_its_hash(sums_list: Path) -> None:
    folder = sums_list.parent
    listed = {name: digest for digest, name in map(str.split, sums_list.read_text().splitlines())}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == {name: sha256_file(folder / name) for name in there - {"SHA256SUMS"}}


def test_every_published_study_has_a_list() -> None:
    results = PUBLISHED[0].parents[1]
    tracked = subprocess.run(["git", "ls-files", "."], cwd=results, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, which tells published studies from a user's own")
    folders = {results / line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert {path.parent for path in PUBLISHED} == folders


def test_a_flipped_bit_in_a_published_file_is_noticed_until_its_line_is_taken_out(tmp_path: Path) -> None:
    [study] = [path.parent for path in PUBLISHED if path.parent.name == "arms-cpu"]
    shutil.copytree(study, tmp_path / "s")
    packed = next((tmp_path / "s" / "ablation").rglob("*.csv.gz"))
    for path, read in (
        (tmp_path / "s" / "ablation.csv", lambda p: read_csv(p, ABLATION_COLUMNS).to_csv()),
        (packed, lambda p: read_csv(p.with_suffix(""), SAMPLE_COLUMNS).to_csv()),
        (tmp_path / "s" / "provenance.json", read_json),
    ):
        assert noticed_or_equal(path, partial(read, path), 20) == 20, path.name
    path, sums_list = tmp_path / "s" / "ablation.csv", tmp_path / "s" / "SHA256SUMS"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(UserError, match=r"ablation\.csv is damaged .* take its line out of .*SHA256SUMS"):
        read_csv(path, ABLATION_COLUMNS)
    lines = sums_list.read_text().splitlines(keepends=True)
    sums_list.write_text("".join(line for line in lines if not line.endswith("  ablation.csv\n")))
    read_csv(path, ABLATION_COLUMNS)


def test_a_file_that_is_made_again_in_a_published_folder_has_a_hash_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a.csv\n{'0' * 64}  p.json\n")
    write_csv(path, samples(), SAMPLE_COLUMNS)
    assert len(read_csv(path, SAMPLE_COLUMNS)) == 9
    write_hashed_json(tmp_path / "p.json", {"a": 1})
    assert read_json(tmp_path / "p.json") == {"a": 1}


def test_a_question_may_be_named_by_any_text(tmp_path: Path) -> None:
    row = {**dict.fromkeys(JUDGEMENT_COLUMNS), "method": "full", "budget": 0, "rating": 7}
    rows = [row | {"question": name} for name in ("007", "math-3", "nan")]
    write_csv(tmp_path / "j.csv", rows, JUDGEMENT_COLUMNS)
    assert read_csv(tmp_path / "j.csv", JUDGEMENT_COLUMNS)["question"].tolist() == ["007", "math-3", "nan"]


@pytest.mark.parametrize("name", ["007", "nan", "NA", "1e5", "true", "None", "-1", "=1+1", "inf", "0x10"])
def test_names_stay_text_through_every_table(name: str, tmp_path: Path) -> None:
    rows = [row | {"model": name, "study": name, "task": name} for row in samples()]
    write_csv(tmp_path / "s.csv", rows, SAMPLE_COLUMNS)
    assert set(read_csv(tmp_path / "s.csv", SAMPLE_COLUMNS)["model"]) == {name}
    write_summary([tmp_path / "s.csv"], tmp_path / "a.csv", tmp_path / "p.csv", seed=1)
    accuracy = read_csv(tmp_path / "a.csv", ACCURACY_COLUMNS)
    assert set(accuracy["model"]) == set(accuracy["study"]) == {name}
    assert set(accuracy["task"]) == {name, "average"}


def test_missing_cells_stay_missing(tmp_path: Path) -> None:
    given = {"method": "full", "length": 64, "budget": 0, "mean": 1.5}
    rows = pd.DataFrame([{**dict.fromkeys(ABLATION_COLUMNS), **given}])
    write_csv(tmp_path / "a.csv", rows, ABLATION_COLUMNS)
    frame = read_csv(tmp_path / "a.csv", ABLATION_COLUMNS)
    assert frame[list(given)].to_dict("records") == [given]
    assert frame.drop(columns=list(given)).isna().all().all()


# Answers to judge


def test_a_flipped_bit_in_answers_that_are_to_be_judged_is_noticed(tmp_path: Path) -> None:
    kinds = {
        "two texts": ["a", "b"],
        "two numbers": [1, 2],
        "texts": [],
        "label": 81,
        "count": 0,
        "some": 1,
    }
    line = {name: kinds.get(kind, "x") for name, kind in ANSWER.items()}
    path = tmp_path / "mtbench.jsonl"
    write_summed(path, json.dumps(line) + "\n")
    assert load_answers(path) == [line]
    assert noticed_or_equal(path, partial(load_answers, path), 40) == 40


# Frozen data


def test_a_flipped_bit_in_frozen_data_or_its_facts_is_noticed(
    prompts: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "d.jsonl"
    frozen.freeze(path, prompts, seed=3, mixture={"table": 1.0})
    written = ("sha256", "records", "seed", "mixture")

    def read() -> Any:
        facts = frozen.facts_of(path)
        return list(frozen.load(path)), [facts.get(key) for key in written], list(Stored(path))

    assert noticed_or_equal(path, read, 40) == 40
    assert noticed_or_equal(frozen.sidecar(path), read, 60) >= 50
