"""LongBench's six metrics as its own metrics.py and eval.py compute them: 0 to 1 for one reference.

Own lines in place of lm-eval's: importing those takes two seconds and a warning, and they strip predictions
and skip blank lines of code. Own lines in place of `rouge`, too, whose table of all word pairs takes half a
minute for one task of summaries; tests/test_metrics.py holds both against the libraries.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import partial
from itertools import accumulate

from lkv.errors import UserError, one_of

METRICS = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "lcc": "code_sim",
    "repobench-p": "code_sim",
}
FIRST_LINE = ("trec", "triviaqa", "samsum")  # few-shot prompts: a model goes on with the next example
CODE_VARIANTS = ("difflib", "levenshtein")

# Steps back through its table that `rouge` can take under LongBench's eval.py before Python's limit of 1000.
ROUGE_STEPS = 990

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(
    task: str, prediction: str, answers: Sequence[str], classes: Sequence[str] = (), code: str = "difflib"
) -> float:
    """0 to 100 for one answer of `task`: its best reference, after the first-line rule where that holds.

    `classes` are trec's class names; `code` is the variant of code_sim, `difflib` in all published scores.
    """
    return 100.0 * share(task, prediction, answers, classes, code)


def share(
    task: str, prediction: str, answers: Sequence[str], classes: Sequence[str] = (), code: str = "difflib"
) -> float:
    """`score` from 0 to 1, as upstream adds it up."""
    if task not in METRICS:
        raise one_of("LongBench task", task, METRICS)
    if code not in CODE_VARIANTS:
        raise one_of("variant of code_sim", code, CODE_VARIANTS)
    if not answers:
        raise UserError(f"a {task} record has no reference answers; give the benchmark's own records")
    metric = METRICS[task]
    if metric == "classification" and not classes:
        raise UserError(f"a {task} record has no class names (all_classes); give the benchmark's own records")
    if task in FIRST_LINE:
        prediction = first_line(prediction)
    metrics: dict[str, Callable[[str], float]] = {
        "qa_f1": partial(qa_f1, prediction),
        "rouge_l": partial(rouge_l, prediction),
        "classification": partial(classification, prediction, classes=classes),
        "retrieval": partial(retrieval, prediction),
        "count": partial(count, prediction),
        "code_sim": partial(code_sim, prediction, variant=code),
    }
    return max(map(metrics[metric], answers))


def first_line(prediction: str) -> str:
    """The first line after leading newlines; blanks stay."""
    return prediction.lstrip("\n").split("\n")[0]


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of the two bags of words: lower case, without punctuation and articles."""
    ours, theirs = _words(prediction), _words(answer)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, answer: str) -> float:
    """F of `rouge` 1.0.1's summary-level ROUGE-L; 0 where that raises (an empty side, deep recursion).

    A sentence is what lies between full stops. For each pair of sentences the distinct words of one longest
    common subsequence are collected; precision and recall are their share of each side's distinct words.
    """
    ours, theirs = _sentences(prediction), _sentences(answer)
    if not ours or not theirs:
        return 0.0
    common: set[str] = set()
    for reference in theirs:
        for sentence in ours:
            words = _common_words(reference, sentence)
            if words is None:
                return 0.0
            common |= words
    precision = len(common) / len({word for sentence in ours for word in sentence})
    recall = len(common) / len({word for sentence in theirs for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1/n if `answer` is among the n class names found in the text.

    A name inside the gold one, such as `entity` in `legal entity`, does not count against it; upstream
    removes from the list it walks, so that the name after a removed one stays, and so does this.
    """
    found = [name for name in classes if name in prediction]
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1.0 / len(found) if answer in found else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """Share of the text's numbers that are the gold paragraph's, `answer` being `Paragraph 12`."""
    gold = re.search(r"Paragraph (\d+)", answer)
    if not gold:
        raise UserError(f"the reference answer {answer!r} names no paragraph; wanted: 'Paragraph 12'")
    return count(prediction, gold[1])


def count(prediction: str, answer: str) -> float:
    """Share of the text's numbers that equal `answer`."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def code_sim(prediction: str, answer: str, variant: str = "difflib") -> float:
    """Similarity, in whole per cent, of `answer` and the first line without a backtick, `#` or `//`.

    `difflib` is what all published scores were checked to use. `levenshtein`, which fuzzywuzzy switches to
    where python-Levenshtein is installed, gives 1 to 3 points more.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not re.search("`|#|//", line)), "")
    ratio = SequenceMatcher(None, line, answer).ratio() if variant == "difflib" else _indel(line, answer)
    return round(100 * ratio) / 100


def _words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def _sentences(text: str) -> list[list[str]]:
    # A blank sentence is one empty word, as in `rouge`.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(reference: list[str], sentence: list[str]) -> set[str] | None:
    """The words of the longest common subsequence that `rouge` finds; None if that recurses too deep.

    Words of `sentence` that `reference` lacks are left out of the table: their columns repeat the one before.
    """
    shared = set(reference) & set(sentence)
    columns = [word for word in sentence if word in shared]
    column = list(accumulate((word in shared for word in sentence), initial=0))
    rows = [[0] * (len(columns) + 1)]
    for word in reference:
        above = rows[-1]
        if word not in shared:
            rows.append(above)
            continue
        row, left = [0], 0
        for at, other in enumerate(columns):
            if other == word:
                left = above[at] + 1
            elif above[at + 1] > left:
                left = above[at + 1]
            row.append(left)
        rows.append(row)
    words: set[str] = set()
    i, j, steps = len(reference), len(sentence), 0
    while i and j:
        if reference[i - 1] == sentence[j - 1]:
            i, j = i - 1, j - 1
            words.add(reference[i])
        elif rows[i - 1][column[j]] > rows[i][column[j - 1]]:
            i -= 1
        else:
            j -= 1
        steps += 1
    return words if steps <= ROUGE_STEPS else None


def _indel(one: str, other: str) -> float:
    """Levenshtein.ratio: 2 x longest common subsequence / both lengths, the former by bits (Hyyro 2004)."""
    places: dict[str, int] = {}
    for at, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << at
    whole = (1 << len(one)) - 1
    row = whole
    for letter in other:
        matched = row & places.get(letter, 0)
        row = ((row + matched) | (row - matched)) & whole
    both = len(one) + len(other)
    return 2 * (len(one) - row.bit_count()) / both if both else 1.0
