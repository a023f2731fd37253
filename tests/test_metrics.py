"""Promises of lkv.bench.longbench.metrics: the metrics are upstream's, held against lm-eval and `rouge`."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tarfile
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from lkv.bench.longbench import tasks as longbench
from lkv.bench.longbench.metrics import (
    FIRST_LINE,
    METRICS,
    classification,
    code_sim,
    count,
    qa_f1,
    retrieval,
    rouge_l,
    score,
)
from lkv.errors import UserError

SHARED = Path(os.environ.get("LKV_SHARED", Path(__file__).resolve().parents[2] / "shared"))
ARCHIVE = SHARED / "data" / "predictions.tar.xz"


def predictions(run: str, *tasks: str) -> dict[str, list[dict]]:
    """The published predictions of some tasks of a LongBench run."""
    if not ARCHIVE.is_file():
        pytest.skip(f"no published predictions at {ARCHIVE}; set LKV_SHARED to the folder that holds data/")
    found = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            path = Path(member.name)
            if path.parent.name == run and path.stem in tasks and path.suffix == ".jsonl":
                found[path.stem] = [json.loads(line) for line in archive.extractfile(member)]
    assert set(found) == set(tasks)
    return found


@cache
def lm_eval_metrics() -> ModuleType:
    """lm-eval's LongBench metrics, loaded by themselves: the package around them takes seconds."""
    folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("theirs", folder / "tasks" / "longbench" / "metrics.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fuzzywuzzy advertises python-Levenshtein
        spec.loader.exec_module(module)
    return module


def test_metric_and_first_line_rule_of_each_task_are_the_benchmarks() -> None:
    assert list(METRICS) == list(longbench.TASKS)
    assert {task: row.metric for task, row in longbench.TASKS.items()} == METRICS
    assert [task for task in METRICS if longbench.TASKS[task].first_line] == list(FIRST_LINE)


# Each metric, worked by hand.


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("The cat, a dog!", "cat dog", 1.0),
        ("the", "a", 0.0),  # nothing is left of either
        ("", "cat", 0.0),
        ("cat cat dog", "cat bird", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        ("theatre", "the atre", 0.0),
        ("U.S.", "us", 1.0),
    ],
)
def test_qa_f1_is_over_bags_of_plain_words(prediction: str, answer: str, expected: float) -> None:
    assert qa_f1(prediction, answer) == pytest.approx(expected)


def test_rouge_l_is_over_distinct_words_of_sentences() -> None:
    # One sentence each; the subsequence is "the sat", of 3 and 4 distinct words.
    f = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert rouge_l("the dog sat", "the cat sat down") == pytest.approx(f, abs=1e-7)
    assert rouge_l("", "a cat") == rouge_l("...", "a cat") == 0.0
    assert rouge_l("a a a", "a") == pytest.approx(1.0, abs=1e-7)


CLASSES = ["entity", "legal entity", "city", "mountain"]


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("a legal entity", "legal entity", 1.0),  # `entity` is part of the gold name
        ("city or mountain", "city", 0.5),
        ("an entity", "legal entity", 0.0),
        ("Mountain", "mountain", 0.0),  # upper case counts
    ],
)
def test_classification_divides_by_the_names_found(prediction: str, answer: str, expected: float) -> None:
    assert classification(prediction, answer, CLASSES) == expected


def test_classification_keeps_upstreams_loop_that_edits_its_own_list() -> None:
    # Both `a` and `b` lie in the gold name; once `a` is removed, the walk passes over `b`.
    assert classification("abc", "abc", ["a", "b", "abc"]) == 1 / 2


def test_numbers_are_counted_among_all_numbers() -> None:
    assert count("There are 7 or 8, say 7.", "7") == pytest.approx(2 / 3)
    assert count("none", "7") == count("", "7") == count("07", "7") == 0.0
    assert retrieval("Paragraph 12, not 3", "Paragraph 12") == 0.5
    with pytest.raises(UserError, match="'the twelfth' names no paragraph; wanted: 'Paragraph 12'"):
        retrieval("12", "the twelfth")


def test_code_sim_takes_the_first_line_that_is_code() -> None:
    assert code_sim("\n\n```python\n# sum\nx = 1 // 2\nreturn a + b\nz", "return a + b") == 1.0
    assert code_sim("# only a comment", "return") == 0.0
    assert code_sim("", "") == 1.0


def test_code_sim_is_difflibs_and_levenshtein_is_named() -> None:
    # difflib's own documented pair: the order of the two matters there, and nowhere else.
    assert (code_sim("tide", "diet"), code_sim("diet", "tide")) == (0.25, 0.5)
    assert code_sim("tide", "diet", "levenshtein") == code_sim("diet", "tide", "levenshtein") == 0.5


def test_the_levenshtein_variant_is_twice_the_subsequence_over_both_lengths() -> None:
    rng = random.Random(3)
    for _ in range(300):
        one, other = ("".join(rng.choices("abc", k=rng.randrange(1, 15))) for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one, 1):
            for j, b in enumerate(other, 1):
                table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
        expected = round(100 * 2 * table[-1][-1] / (len(one) + len(other))) / 100
        assert code_sim(one, other, "levenshtein") == expected


def test_the_best_reference_counts() -> None:
    assert score("hotpotqa", "Paris", ["Rome", "Paris"]) == 100.0


@pytest.mark.parametrize("task", METRICS)
def test_only_three_tasks_are_cut_to_their_first_line(task: str) -> None:
    classes = ["Paragraph 1", "x"]
    whole = score(task, "\n\nx\nParagraph 1", ["Paragraph 1"], classes)
    first = score(task, "x", ["Paragraph 1"], classes)
    if task in ("trec", "triviaqa", "samsum"):
        assert whole == first == 0.0
        assert score(task, "\n\nParagraph 1\nx", ["Paragraph 1"], classes) == pytest.approx(100.0, abs=1e-5)
    elif METRICS[task] in ("qa_f1", "rouge_l", "retrieval"):
        assert whole > first == 0.0


def test_blanks_before_the_first_line_stay() -> None:
    # Upstream strips newlines alone, so that a blank first line is an empty answer; lm-eval strips blanks.
    assert score("triviaqa", "\n \nParis", ["Paris"]) == 0.0


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown LongBench task 'qaspar' \(did you mean 'qasper'\?\)"):
        score("qaspar", "x", ["x"])
    with pytest.raises(UserError, match="a qasper record has no reference answers"):
        score("qasper", "x", [])
    with pytest.raises(UserError, match=r"a trec record has no class names \(all_classes\)"):
        score("trec", "x", ["x"])
    with pytest.raises(UserError, match="unknown variant of code_sim 'fuzzy'; known: difflib, levenshtein"):
        score("lcc", "x", ["x"], code="fuzzy")


# Against the libraries.


def rouges(prediction: str, answer: str) -> float:
    from rouge.rouge_score import rouge_l_summary_level

    sides = [
        [" ".join(part.split()) for part in text.split(".") if len(part) > 0] for text in (prediction, answer)
    ]
    try:
        return rouge_l_summary_level(*sides)["f"]
    except ValueError:
        return 0.0


def test_rouge_l_equals_rouge_on_made_up_texts() -> None:
    rng = random.Random(5)
    parts = ["a ", "b ", "c ", "d", ". ", ".", " ", "\n"]
    for _ in range(1500):
        one, other = ("".join(rng.choices(parts, k=rng.randrange(50))) for _ in range(2))
        assert rouge_l(one, other) == rouges(one, other)


def test_rouge_l_equals_rouge_on_published_outputs() -> None:
    for run in ("llama2-7b-chat", "llama3-8b-quest-256"):
        for task, records in predictions(run, "samsum", "qmsum", "gov_report").items():
            for record in records[: 3 if task == "gov_report" else 60]:
                for answer in record["answers"]:
                    assert rouge_l(record["pred"], answer) == rouges(record["pred"], answer)


def test_too_deep_for_rouge_is_0_as_under_upstreams_eval() -> None:
    # Called from as deep as LongBench's eval.py calls it: module, scorer, rouge_score.
    code = (
        "from rouge import Rouge\n"
        "def rouge_score(n):\n"
        "    try:\n"
        "        text = ' '.join(map(str, range(n)))\n"
        "        return Rouge().get_scores([text], ['0'], avg=True)['rouge-l']['f']\n"
        "    except RecursionError:\n"
        "        return 0.0\n"
        "def scorer(n):\n"
        "    return rouge_score(n)\n"
        "print(scorer(990), scorer(991))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    theirs = [float(number) for number in found.split()]
    assert [rouge_l(" ".join(map(str, range(n))), "0") for n in (990, 991)] == theirs
    assert theirs[0] > theirs[1] == 0.0


def test_lm_evals_pure_functions_agree_on_published_outputs() -> None:
    theirs = lm_eval_metrics()
    tasks = ("qasper", "musique", "trec", "passage_count", "passage_retrieval_en")
    compared = 0
    for task, records in predictions("llama2-7b-chat-quest-128", *tasks).items():
        for record in records:
            for answer in record["answers"]:
                text, classes = record["pred"], record["all_classes"]
                pairs = {
                    "qa_f1": (qa_f1(text, answer), theirs.qa_f1_score),
                    "count": (count(text, answer), theirs.count_score),
                    "classification": (
                        classification(text, answer, classes or []),
                        theirs.classification_score,
                    ),
                }
                if task == "passage_retrieval_en":
                    pairs["retrieval"] = (retrieval(text, answer), theirs.retrieval_score)
                ours, function = pairs[METRICS[task]]
                assert ours == pytest.approx(function(text, answer, all_classes=classes), abs=1e-12)
                compared += 1
    assert compared >= 950


def test_code_sim_scores_the_blank_line_that_lm_eval_skips() -> None:
    prediction, answer = "    \nreturn total", "return total"
    assert code_sim(prediction, answer) < 0.2
    assert lm_eval_metrics().code_sim_score(prediction, answer) == 1.0
    # With newlines alone before the code the two agree.
    assert (
        code_sim(f"\n\n{answer}", answer) == lm_eval_metrics().code_sim_score(f"\n\n{answer}", answer) == 1.0
    )


def test_samsum_keeps_the_first_line_that_lm_evals_stop_makes_empty() -> None:
    # lm-eval ends few-shot answers at the first newline in place of the cut: nothing is left of this one.
    prediction = "\nIda bakes bread"
    assert score("samsum", prediction, ["Ida bakes bread"]) == pytest.approx(100.0, abs=1e-5)
    stopped = prediction.split("\n")[0]
    assert lm_eval_metrics().get_rouge_score({"answers": ["Ida bakes bread"]}, [stopped]) == {
        "rouge_score": 0.0
    }
