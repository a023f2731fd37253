"""Draws follow softmax(logits / T) and depend on the row's seed and the token's place alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import observed
from scipy.stats import chisquare

from lkv import registry
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode
from lkv.eviction.prefill import prefill
from lkv.eviction.sampling import drawn, gumbel
from lkv.interface import Answering
from lkv.measure.accuracy import evaluate
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer
from lkv.results.csv_files import read_csv

DRAWS = 40_000
RECORD = {
    "benchmark": "ruler", "task": "vt", "length": 256, "sample": 0, "planned": 1, "haystack": "noise",
    "protocol": "p", "question_aware": True, "template": True, "input": "Rain fell on the harbour. " * 5,
    "question_at": 0, "answer_prefix": " It is", "outputs": ["x"], "classes": [], "metric": "all",
    "max_new_tokens": 12, "stops": [], "min_new_tokens": 0, "prompt_tokens": 140,
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.2, 0.8, 2.0])
@pytest.mark.parametrize("by", ["seed", "position"])
def test_draws_have_the_frequencies_of_the_softmax(temperature: float, by: str) -> None:
    logits = torch.tensor([0.0, 1.0, -0.5, 0.7, 0.2])
    counter, fixed = torch.arange(DRAWS), torch.full((DRAWS,), 7)
    places = (counter, fixed) if by == "seed" else (fixed, counter)
    tokens = drawn(logits.expand(DRAWS, -1), temperature, *places)
    expected = torch.softmax(logits.double() / temperature, 0) * DRAWS
    assert chisquare(torch.bincount(tokens, minlength=5).numpy(), expected.numpy()).pvalue > 1e-3


def test_noise_of_neighbours_is_uncorrelated() -> None:
    noise = gumbel(torch.arange(64), torch.arange(64) // 8, 4096)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    rows = torch.corrcoef(noise).fill_diagonal_(0)
    columns = torch.corrcoef(noise[:, :64].T).fill_diagonal_(0)
    assert rows.abs().max() < 6 / 4096**0.5 and columns.abs().max() < 6 / 64**0.5


def test_no_temperature_is_the_likeliest_token() -> None:
    logits = torch.randn(9, 50)
    rows = torch.arange(9)
    assert torch.equal(drawn(logits, 0, rows, rows), logits.argmax(-1))
    assert torch.equal(drawn(logits, 1e-4, rows, rows), logits.argmax(-1))


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(observed("llama"), tiny_tokenizer(), "tiny", "0", frozenset())


def test_a_decoded_answer_is_that_of_a_plain_loop_whatever_the_batch(loaded: Loaded) -> None:
    model, ids = loaded.model, torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    prefilled, _ = prefill(model, ids, answering=Answering(seed=11, temperature=3.0))
    [row] = compact(prefilled, None)
    whole, expected = ids, []
    with torch.no_grad():
        for _ in range(10):
            logits = model(whole).logits[:, -1]
            place = torch.tensor([whole.shape[1] - 1])
            token = drawn(logits, 3.0, torch.tensor([11]), place)
            expected.append(int(token))
            whole = torch.cat([whole, token[None]], 1)
    others = [replace(row, seed=seed) for seed in (1, 2)]
    assert decode(model, [row], 10).tokens == [expected]
    assert decode(model, [*others, row], 10).tokens[2] == expected
    assert decode(model, [replace(row, temperature=0.0)], 10).tokens != [expected]


def test_sampled_answers_name_their_temperature_and_come_again(loaded: Loaded, tmp_path: Path) -> None:
    methods = [registry.get("snapkv"), registry.get("oracle")]
    found = []
    for run in ("a", "b"):
        paths = tmp_path / f"{run}.jsonl", tmp_path / f"{run}.csv"
        evaluate(loaded, [RECORD], methods, [40, 64], "s", 3, *paths, temperatures=[2.0])
        found.append(paths[1].read_bytes())
    assert found[0] == found[1]
    rows = read_csv(tmp_path / "a.csv", ["method", "protocol", "new_tokens"])
    assert set(rows["protocol"]) == {"p temperature=2"}
    greedy = tmp_path / "g.jsonl", tmp_path / "g.csv"
    evaluate(loaded, [RECORD], methods, [40, 64], "s", 3, *greedy)
    both = tmp_path / "both.jsonl", tmp_path / "both.csv"
    evaluate(loaded, [RECORD], methods, [40, 64], "s", 3, *both, temperatures=[0, 2.0])
    assert both[1].read_text() == greedy[1].read_text() + found[0].decode().partition("\n")[2]
    texts = [(tmp_path / f"{run}.jsonl").read_text() for run in ("a", "g")]
    assert [text.count('"prediction"') for text in texts] == [5, 5] and texts[0] != texts[1]
