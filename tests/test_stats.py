"""Intervals, tests and summaries against closed forms, scipy and sums done by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test

from lkv.errors import UserError
from lkv.results.columns import ACCURACY_COLUMNS, PAIRED_COLUMNS, SAMPLE_COLUMNS
from lkv.results.csv_files import write_csv
from lkv.results.statistics import bootstrap_mean, paired_difference
from lkv.results.summarise import summarise, write_summary

RNG_SEED = 7


def normal(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(RNG_SEED)
    return [rng.normal(50, 20, size) for size in sizes]


# ---- intervals ---------------------------------------------------------------------------------------------


def test_the_interval_is_the_normal_one_on_large_samples():
    tasks = normal(400, 900, 600)
    mean, low, high = bootstrap_mean(tasks, seed=1)
    error = np.sqrt(sum(task.var(ddof=1) / len(task) for task in tasks)) / len(tasks)
    assert mean == pytest.approx(np.mean([task.mean() for task in tasks]))
    assert low == pytest.approx(mean - 1.96 * error, abs=0.05 * error * 1.96)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.05 * error * 1.96)


def test_the_level_is_the_share_that_the_interval_covers():
    tasks = normal(500)
    _, low, high = bootstrap_mean(tasks, seed=1, level=0.6827)
    assert (high - low) / 2 == pytest.approx(tasks[0].std(ddof=1) / np.sqrt(500), rel=0.05)


def test_a_task_with_more_samples_does_not_weigh_more():
    mean, _, _ = bootstrap_mean([np.zeros(1000), np.full(10, 100.0)], seed=1)
    assert mean == 50


def test_samples_are_resampled_within_their_task():
    # Pooled resampling would spread: each task by itself has no spread at all.
    assert bootstrap_mean([np.zeros(5), np.full(5, 100.0)], seed=1) == pytest.approx((50, 50, 50))


def test_tasks_are_resampled_independently_of_each_other():
    # With one stream for both tasks the mirrored values would cancel in every resample.
    [values] = normal(30)
    _, low, high = bootstrap_mean([values, -values], seed=1)
    _, low_alone, high_alone = bootstrap_mean([values], seed=1)
    assert high - low == pytest.approx((high_alone - low_alone) / np.sqrt(2), rel=0.05)


def test_one_value_of_a_task_gives_a_mean_but_no_interval():
    mean, low, high = bootstrap_mean([np.array([10.0, 30.0]), np.array([80.0])], seed=1)
    assert mean == 50
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize("tasks", [[], [np.empty(0)], [np.array([1.0, 2.0]), np.empty(0)]])
def test_a_task_without_values_leaves_no_mean(tasks):
    assert np.isnan(bootstrap_mean(tasks, seed=1)).all()


def test_the_seed_alone_decides_the_interval():
    tasks = normal(20, 20)
    state = np.random.get_state()[1].copy()
    assert bootstrap_mean(tasks, seed=1) == bootstrap_mean(tasks, seed=1)
    assert bootstrap_mean(tasks, seed=1) != bootstrap_mean(tasks, seed=2)
    assert (np.random.get_state()[1] == state).all()


# ---- paired differences ------------------------------------------------------------------------------------


def test_pairs_narrow_the_interval():
    [b] = normal(100)
    a = b + 2 + np.random.default_rng(0).normal(0, 1, 100)
    diff, low, high, p = paired_difference([a], [b], seed=1)
    assert diff == pytest.approx((a - b).mean())
    assert high - low == pytest.approx(2 * 1.96 * (a - b).std(ddof=1) / 10, rel=0.1)
    assert p < 0.001
    _, low_a, high_a = bootstrap_mean([a], seed=1)
    assert high_a - low_a > 10 * (high - low)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # only all signs alike are as extreme
        ([3, 1, -1], 6 / 8),  # |±3 ±1 ±1| >= 3 in six of eight
        ([100], 1),
        ([100, 0, 0, 0, 100, 100], 2 / 8),
    ],
)
def test_p_is_exact_where_the_flips_can_be_counted(differences, p):
    assert paired_difference([np.array(differences, float)], [np.zeros(len(differences))], seed=1)[3] == p


@pytest.mark.parametrize("sizes", [(4, 7), (30, 50)])
def test_p_is_scipys_for_the_mean_of_the_task_means(sizes):
    rng = np.random.default_rng(3)
    a = [rng.normal(0.35, 1, size) for size in sizes]
    b = [np.zeros(size) for size in sizes]
    split = sizes[0]

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        d = x - y
        return (d[..., :split].mean(axis=axis) + d[..., split:].mean(axis=axis)) / 2

    truth = permutation_test(
        (np.concatenate(a), np.concatenate(b)), statistic, permutation_type="samples", vectorized=True,
        n_resamples=9999, rng=np.random.default_rng(5),
    )  # fmt: skip
    diff, _, _, p = paired_difference(a, b, seed=1)
    assert diff == pytest.approx(truth.statistic)
    exact = 2 ** sum(sizes) <= 9999
    assert p == pytest.approx(truth.pvalue, rel=1e-12 if exact else 0.15)


def test_differences_of_zero_need_no_flips():
    # 2,003 pairs, three of which differ: eight flips, two of them as extreme.
    a = np.zeros(2003)
    a[:3] = 1
    assert paired_difference([a], [np.zeros(2003)], seed=1)[3] == 0.25


def test_no_difference_at_all_is_no_evidence():
    [values] = normal(12)
    assert paired_difference([values], [values], seed=1) == (0, 0, 0, 1)


def test_p_is_uniform_under_the_null():
    rng = np.random.default_rng(11)
    ps = [paired_difference([rng.normal(size=30)], [np.zeros(30)], seed=1)[3] for _ in range(300)]
    assert np.mean(np.array(ps) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(ps) == pytest.approx(0.5, abs=0.06)


# ---- summaries ---------------------------------------------------------------------------------------------


def samples(*rows: tuple) -> pd.DataFrame:
    """Rows from (task, haystack, sample, method, budget, score[, status]); recall is score / 100."""
    records = []
    for task, haystack, sample, method, budget, score, *status in rows:
        fixed = {"study": "s", "model": "m", "benchmark": "ruler", "length": 1024, "protocol": "demo"}
        figures = {
            "score": score,
            "recall": score / 100,
            "recall_raw": score / 100,
            "kept_bytes": 10 * budget,
        }
        cell = {"task": task, "haystack": haystack, "sample": sample, "method": method, "budget": budget}
        cell["planned"] = 1
        end = {"kept_mean": budget, "prompt_tokens": 1000, "new_tokens": 8, "status": (*status, "ok")[0]}
        records.append(fixed | cell | figures | end)
    return pd.DataFrame(records, columns=list(SAMPLE_COLUMNS))


TEN = samples(
    ("a", "noise", 0, "snapkv", 64, 0.0),
    ("a", "noise", 0, "lookaheadkv", 64, 100.0),
    ("a", "noise", 0, "full", 0, 100.0),
    ("a", "noise", 1, "snapkv", 64, 90.0, "out of memory"),
    ("a", "noise", 1, "lookaheadkv", 64, 0.0),
    ("a", "noise", 1, "full", 0, 50.0),
    ("b", "pydoc", 0, "snapkv", 64, 20.0),
    ("b", "pydoc", 0, "lookaheadkv", 64, 50.0),
    ("b", "pydoc", 0, "full", 0, 50.0),
    ("b", "pydoc", 1, "lookaheadkv", 64, 50.0),
)


def test_ten_rows_give_the_summary_done_by_hand():
    accuracy, paired = summarise(TEN, seed=1)
    assert tuple(accuracy.columns) == ACCURACY_COLUMNS
    assert tuple(paired.columns) == PAIRED_COLUMNS
    order = list(zip(accuracy["haystack"], accuracy["task"], accuracy["method"], strict=True))
    rows = [("noise", "a"), ("pydoc", "b"), ("pydoc", "average")]
    assert order == [(*row, method) for row in rows for method in ("full", "snapkv", "lookaheadkv")]

    average = accuracy[accuracy["task"] == "average"].set_index("method")
    # Full: (75 + 50) / 2; LookaheadKV: (50 + 50) / 2; SnapKV: (0 + 20) / 2 with one sample lost.
    assert average["mean"].to_dict() == {"full": 62.5, "lookaheadkv": 50, "snapkv": 10}
    assert average["n"].to_dict() == {"full": 3, "lookaheadkv": 4, "snapkv": 2}
    assert average["n_planned"].to_dict() == {"full": 3, "lookaheadkv": 4, "snapkv": 3}
    assert average["retained"].to_dict() == {"full": 100, "lookaheadkv": 80, "snapkv": 16}
    assert average["recall"].to_dict() == pytest.approx({"full": 0.625, "lookaheadkv": 0.5, "snapkv": 0.1})
    assert average["kept_bytes"].to_dict() == {"full": 0, "lookaheadkv": 640, "snapkv": 640}
    # Pairs that both have: a0 (0 - 100) and b0 (20 - 50); of the four flips two are as extreme.
    assert average.loc["snapkv", "diff_vs_lookaheadkv"] == -65
    assert average.loc["snapkv", "p_vs_lookaheadkv"] == 0.5
    assert average.loc[["full", "lookaheadkv"], "diff_vs_lookaheadkv"].isna().all()


def test_paired_differences_are_lookaheadkv_minus_the_method():
    _, paired = summarise(TEN, seed=1)
    average = paired[(paired["task"] == "average") & (paired["metric"] == "score")].set_index("method")
    assert average["diff"].to_dict() == {"full": -12.5, "snapkv": 65}  # full: (-25 + 0) / 2
    assert average["n"].to_dict() == {"full": 3, "snapkv": 2}
    assert set(average["budget"]) == {64}
    assert set(paired["reference"]) == {"lookaheadkv"}


def test_both_files_tell_the_same_difference_with_opposite_signs():
    rng = np.random.default_rng(0)
    rows = [
        ("a", "noise", i, method, 64, float(rng.integers(0, 101)))
        for i in range(20)
        for method in ("snapkv", "lookaheadkv")
    ]
    accuracy, paired = summarise(samples(*rows), seed=1)
    ours = accuracy[(accuracy["task"] == "a") & (accuracy["method"] == "snapkv")].iloc[0]
    theirs = paired[(paired["task"] == "a") & (paired["metric"] == "score")].iloc[0]
    assert ours["diff_vs_lookaheadkv"] == -theirs["diff"]
    assert (ours["diff_ci_low"], ours["diff_ci_high"]) == (-theirs["ci_high"], -theirs["ci_low"])
    assert ours["p_vs_lookaheadkv"] == theirs["p"]


@pytest.mark.parametrize(
    ("haystacks", "averages"),
    [
        ({"a": "noise", "b": "pydoc"}, {"pydoc": 20}),
        ({"a": "noise", "b": "pydoc", "c": "essays:12ab"}, {"pydoc": 20, "essays:12ab": 25}),
        ({"a": "noise", "b": "words", "c": "coded", "d": "squad:0f"}, {"built-in": 35}),
        ({"a": "needles", "b": "hotpotqa:0f", "c": "pydoc"}, {"pydoc": 80 / 3}),
        ({"a": "", "b": ""}, {"": 20}),
    ],
)
def test_texts_never_mix_in_an_average(haystacks, averages):
    scores = {"a": 10.0, "b": 30.0, "c": 40.0, "d": 60.0}
    rows = [(task, stack, i, "full", 0, scores[task]) for task, stack in haystacks.items() for i in range(2)]
    accuracy, _ = summarise(samples(*rows), seed=1)
    found = accuracy[accuracy["task"] == "average"].set_index("haystack")["mean"]
    assert found.to_dict() == pytest.approx(averages)


def test_an_average_needs_all_tasks():
    rows = [("a", "noise", i, method, 64, 50.0) for i in range(2) for method in ("snapkv", "lookaheadkv")]
    rows += [("b", "noise", i, "lookaheadkv", 64, 50.0) for i in range(2)]
    accuracy, paired = summarise(samples(*rows), seed=1)
    average = accuracy[accuracy["task"] == "average"].set_index("method")
    assert np.isnan(average.loc["snapkv", "mean"])
    assert average.loc["snapkv", "n"] == 2
    assert average.loc["lookaheadkv", "mean"] == 50
    assert paired[paired["task"] == "average"]["diff"].isna().all()


def test_the_same_samples_give_the_same_bytes(tmp_path):
    rows = TEN.groupby(["task", "sample"])["score"].transform("size")
    for task in ("a", "b"):
        of_task = TEN["task"] == task
        whole = TEN[of_task & (rows == rows[of_task].max())]
        assert len(whole) > 2
        write_csv(tmp_path / f"{task}.csv", whole, SAMPLE_COLUMNS)
    written = []
    for _ in range(2):
        write_summary(
            [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "x.csv", tmp_path / "y.csv", seed=1
        )
        written.append([(tmp_path / name).read_bytes() for name in ("x.csv", "y.csv")])
    assert written[0] == written[1]
    assert written[0][0].decode().splitlines()[0] == ",".join(ACCURACY_COLUMNS)
    assert b"-0," not in written[0][0] + written[0][1]


def test_a_sample_given_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"method snapkv.*more than once; give each sample file once"):
        summarise(pd.concat([TEN, TEN.iloc[:1]]), seed=1)


def test_no_sample_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no sample files to summarise"):
        write_summary([], tmp_path / "x.csv", tmp_path / "y.csv", seed=1)
