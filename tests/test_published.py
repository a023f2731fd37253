"""Promises of lkv.bench.published: what others predicted gets the score that they published."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unpack

from lkv.bench.longbench import tasks as longbench
from lkv.bench.published import CHINESE, score_longbench, score_published, score_ruler
from lkv.bench.ruler import tasks as ruler
from lkv.bench.ruler.kvpress_csv import references
from lkv.errors import UserError

SHARED = Path(os.environ.get("LKV_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LONGBENCH = ("llama2-7b-chat", "llama2-7b-chat-quest-128", "llama3-8b", "llama3-8b-quest-256")
RULER = (
    "ruler__4096__Qwen--Qwen3-8B__no_press__0.00",
    "ruler__4096__Qwen--Qwen3-8B__filtering_stale_keydiff__0.75",
    "ruler__4096__meta-llama--Llama-3.1-8B-Instruct__centrality_ppr_knorm_d0.15__0.25",
    "ruler__4096__meta-llama--Llama-3.1-8B-Instruct__centrality_ppr_knorm_d0.15__0.875",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The published runs' folders by name."""
    archive = SHARED / "data" / "predictions.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no published predictions at {archive}; set LKV_SHARED to the folder that holds data/")
    folder = tmp_path_factory.mktemp("published")
    unpack(archive, folder)
    return {path.name: path for path in folder.glob("*/*/*/*") if path.is_dir()}


# Parity with what others published.


@pytest.mark.parametrize("run", LONGBENCH)
def test_longbench_scores_are_the_published_ones(run: str, runs) -> None:
    began = time.monotonic()
    scored, notices = score_longbench(runs[run])
    assert time.monotonic() - began < 30
    published = json.loads((runs[run] / "result.json").read_text(encoding="utf-8"))
    assert [row["task"] for row in scored] == list(longbench.TASKS)
    assert sum(row["n"] for row in scored) == 3750
    for row in scored:
        assert row["score"] == pytest.approx(published[row["task"]], abs=0.01)
    assert notices == ["left out: result.json"]


@pytest.mark.parametrize("run", RULER)
def test_ruler_scores_are_the_published_ones(run: str, runs) -> None:
    scored, notices = score_ruler(runs[run] / "predictions.csv")
    published = json.loads((runs[run] / "metrics.json").read_text(encoding="utf-8"))
    assert [(row["task"], row["n"]) for row in scored] == [(task, 500) for task in ruler.TASKS]
    for row in scored:
        assert row["score"] == pytest.approx(published[row["task"]]["string_match"], abs=0.01)
    assert notices == []


def test_rulers_own_cleaning_gives_51_of_the_52_published_scores(runs) -> None:
    others = {}
    for run in RULER:
        published = json.loads((runs[run] / "metrics.json").read_text(encoding="utf-8"))
        for row in score_ruler(runs[run], "ruler")[0]:
            if abs(row["score"] - published[row["task"]]["string_match"]) > 0.01:
                others[run, row["task"]] = row["score"], published[row["task"]]["string_match"]
    # Two lines' digits, glued together by deleting what parts them, are one hit too many of kvpress.
    assert others == {(RULER[3], "niah_multivalue"): (26.20, 26.25)}


def test_the_levenshtein_variant_gives_the_higher_scores_it_is_known_for(runs, tmp_path) -> None:
    for task in ("lcc", "repobench-p"):
        (tmp_path / f"{task}.jsonl").write_bytes((runs["llama2-7b-chat"] / f"{task}.jsonl").read_bytes())
    assert [row["score"] for row in score_longbench(tmp_path)[0]] == [54.57, 48.74]
    assert [row["score"] for row in score_longbench(tmp_path, "levenshtein")[0]] == [56.88, 51.61]


# LongBench folders.


def prediction(number: int, **fields: object) -> dict[str, object]:
    record = {"pred": f" The river {number}", "answers": [f"river {number}"], "all_classes": None}
    return {**record, "length": 1000 + number, **fields}


def write(path: Path, records: list[dict]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_csv_is_printed_and_written_in_table_order(tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "lcc.jsonl", [prediction(i, answers=[f" The river {i}"]) for i in range(500)])
    write(folder / "qasper.jsonl", [prediction(i, answers=["a lake"]) for i in range(200)])
    text, notices = score_published("longbench", folder, tmp_path / "out" / "scores.csv")
    assert text == "task,n,score\nqasper,200,0.00\nlcc,500,100.00\n"
    assert (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8") == text
    assert notices == [
        "no predictions of " + ", ".join(t for t in longbench.TASKS if t not in ("qasper", "lcc"))
    ]


def test_fewer_predictions_than_the_task_has_are_scored_and_said(tmp_path) -> None:
    write(tmp_path / "qasper.jsonl", [prediction(i) for i in range(3)])
    scored, notices = score_longbench(tmp_path)
    assert scored == [{"task": "qasper", "n": 3, "score": 100.0}]
    assert notices[0] == "incomplete, fewer predictions than the task has: qasper 3 of 200"


def test_other_tasks_files_are_left_out_and_named(tmp_path) -> None:
    write(tmp_path / "qasper.jsonl", [prediction(0)])
    for task in (*CHINESE, "qasper_e"):
        (tmp_path / f"{task}.jsonl").write_text("not read\n", encoding="utf-8")
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    scored, notices = score_longbench(tmp_path)
    assert [row["task"] for row in scored] == ["qasper"]
    assert notices[0] == (
        "left out: dureader.jsonl, lsht.jsonl, multifieldqa_zh.jsonl, passage_retrieval_zh.jsonl, "
        "qasper_e.jsonl, result.json, vcsum.jsonl"
    )


def test_order_and_number_of_fields_do_not_matter(tmp_path) -> None:
    records = [dict(sorted(prediction(i, extra=1).items(), reverse=True)) for i in range(2)]
    del records[1]["length"]
    path = write(tmp_path / "qasper.jsonl", records)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert score_longbench(tmp_path)[0] == [{"task": "qasper", "n": 2, "score": 100.0}]


@pytest.mark.parametrize("text", ["", "nan", "None", "null", "123", "\r\n", "'", '"', "\udce9"])
def test_odd_predictions_stay_the_text_they_are(text: str, tmp_path) -> None:
    write(tmp_path / "qasper.jsonl", [prediction(0, pred=text, answers=["nan", "None", "null", "123"])])
    found = score_longbench(tmp_path)[0][0]["score"]
    assert found == (100.0 if text in ("nan", "None", "null", "123") else 0.0)


def test_twins_in_the_official_data_are_no_repetition(runs) -> None:
    # multifieldqa_en's records 38 and 123 are one record twice; greedy answers are the same as well.
    lines = (runs["llama3-8b"] / "multifieldqa_en.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[38] == lines[123]
    assert len(set(lines)) == 149


@pytest.mark.parametrize("again", [1, 40, 150])
def test_a_prediction_twice_is_refused(again: int, runs, tmp_path) -> None:
    lines = (runs["llama3-8b"] / "multifieldqa_en.jsonl").read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "multifieldqa_en.jsonl"
    path.write_text("\n".join(lines[:100] + lines[:again]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"line 101: the same record as in .*line 1; give each prediction once"
    ):
        score_published("longbench", folder, tmp_path / "scores.csv")
    path.write_text("\n".join(lines + lines[:again]), encoding="utf-8")
    with pytest.raises(UserError, match=r"more than LongBench's 150 predictions .* second run was appended"):
        score_published("longbench", folder, tmp_path / "scores.csv")
    path.write_text("\n".join([lines[38]] * 3), encoding="utf-8")
    with pytest.raises(UserError, match="line 3: the same record"):
        score_published("longbench", folder, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"pred": "x", ', r"qasper\.jsonl, line 2: not a JSON record in UTF-8"),
        (b"\n", "line 2: not a JSON record"),
        (b'["pred"]', "line 2: expected a JSON object, found list"),
        ('{"pred": "é"}'.encode("latin-1"), "line 2: not a JSON record in UTF-8"),
        ({"pred": ...}, "line 2 lacks pred; give a file made by LongBench's pred.py"),
        ({"answers": ...}, "line 2 lacks answers"),
        ({"all_classes": ...}, "line 2 lacks all_classes"),
        ({"pred": None}, "line 2: pred must be a text, found NoneType"),
        ({"pred": 7}, "line 2: pred must be a text, found int"),
        ({"answers": []}, "line 2: answers must be a list of texts and hold one that is not empty"),
        ({"answers": [""]}, "line 2: answers must be a list of texts and hold one that is not empty"),
        ({"answers": "river"}, "line 2: answers must be a list of texts"),
        ({"answers": [7]}, "line 2: answers must be a list of texts"),
        ({"all_classes": "city"}, "line 2: all_classes must be a list of texts or null"),
    ],
)
def test_a_bad_line_is_one_clear_error_and_no_scores(line: object, message: str, tmp_path) -> None:
    if isinstance(line, dict):
        record = {key: value for key, value in prediction(1, **line).items() if value is not ...}
        line = json.dumps(record).encode()
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "narrativeqa.jsonl", [prediction(0)])
    path = write(folder / "qasper.jsonl", [prediction(0)])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(UserError, match=message):
        score_published("longbench", folder, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_trec_needs_its_class_names(tmp_path) -> None:
    write(tmp_path / "trec.jsonl", [prediction(0)])
    with pytest.raises(UserError, match=r"trec\.jsonl, line 1: a trec record has no class names"):
        score_longbench(tmp_path)


def test_folders_without_predictions_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"gone is no folder; give the folder that holds LongBench's"):
        score_longbench(tmp_path / "gone")
    with pytest.raises(UserError, match=r"has no file of a LongBench task, such as qasper\.jsonl"):
        score_longbench(tmp_path)
    (tmp_path / "qasper.jsonl").touch()
    with pytest.raises(UserError, match=r"qasper\.jsonl has no predictions"):
        score_longbench(tmp_path)
    (tmp_path / "quasper.jsonl").touch()
    with pytest.raises(UserError, match=r"unknown LongBench task 'quasper' \(did you mean 'qasper'\?\)"):
        score_longbench(tmp_path)
    with pytest.raises(UserError, match="unknown benchmark 'longproc'; known: longbench, ruler"):
        score_published("longproc", tmp_path)
    with pytest.raises(UserError, match="unknown variant of code_sim 'fuzzy'"):
        score_longbench(tmp_path, "fuzzy")


# RULER CSVs.


def table(predictions: list[str], answers: list[list[str]], task: str = "niah_multivalue") -> pd.DataFrame:
    """The columns that kvpress writes."""
    return pd.DataFrame(
        {
            "answer": [np.array(some, dtype=object) for some in answers],
            "max_new_tokens": 128,
            "predicted_answer": predictions,
            "task": task,
            "answer_prefix": "The numbers are",
            "question": [f"Which numbers are in box {i}? " for i in range(len(predictions))],
        }
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("nan", "nan"), ("NaN", "NaN"), ("None", "None"), ("NULL", "NULL"), ("007", "007"), ("1e3", "1e3"),
        ("7\r\n8", "78"), ("7\r8", "78"), ("7\x008", "78"), ("'8', 7", "'8', 7"), ('a "7"', 'a "7"'),
        (" 7 ", "7"), ("N/A,", "N/A,"), ("-", "-"), ("#N/A", "#N/A"),
    ],
)  # fmt: skip
def test_predictions_stay_the_text_they_are(text: str, answer: str, tmp_path) -> None:
    table([text, ""], [[answer], [answer]]).to_csv(tmp_path / "predictions.csv", index=False)
    assert score_ruler(tmp_path)[0] == [{"task": "niah_multivalue", "n": 2, "score": 50.0}]


def test_answers_come_back_from_numpys_list_text() -> None:
    rng = random.Random(2)
    letters = ["a", "b", " ", "'", '"', "\\", "\n", "\t", "é", "[", "]", ",", "\x07", "\u2028"]
    for _ in range(500):
        answers = ["".join(rng.choices(letters, k=rng.randrange(30))) for _ in range(rng.randrange(1, 12))]
        assert references(str(np.array(answers, dtype=object))) == answers
        assert references(str(answers)) == answers
    for text in ("", "[]]", "[1 2]", "['a' b]", "['a", "nan", "'a'", "['\\x']"):
        assert references(text) is None
    assert references("[]") == []


@pytest.mark.parametrize("form", ["plain", "gzip", "crlf", "reordered", "bom"])
def test_every_form_of_the_same_csv_scores_the_same(form: str, tmp_path) -> None:
    texts = ["12 and\n34", "34", 'a "56", b', "78\x0090"]
    frame = table(texts, [["12", "34"], ["12", "34"], ["56", "it's"], ["7890", "1"]])
    path = tmp_path / "predictions.csv"
    if form == "reordered":
        frame = frame[sorted(frame.columns)]
    frame.to_csv(path, index=False, lineterminator="\r\n" if form == "crlf" else "\n")
    if form == "gzip":
        path = tmp_path / "predictions.csv.gz"
        path.write_bytes(gzip.compress((tmp_path / "predictions.csv").read_bytes()))
    elif form == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    scored, notices = score_ruler(path)
    assert scored == [{"task": "niah_multivalue", "n": 4, "score": 62.5}]
    assert notices[0] == "incomplete, fewer predictions than the task has: niah_multivalue 4 of 500"
    assert notices[1].startswith("no predictions of niah_single_1, ")


def test_the_task_of_each_row_decides_its_metric(tmp_path) -> None:
    answers = [["7", "8"]] * 2
    frame = pd.concat([table(["7", "9"], answers, "qa_1"), table(["7", "9"], answers, "vt")])
    frame.sample(frac=1, random_state=1).to_csv(tmp_path / "predictions.csv", index=False)
    text, _ = score_published("ruler", tmp_path, tmp_path / "scores.csv")
    assert text == "task,n,score\nvt,2,25.00\nqa_1,2,50.00\n"
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b"predicted_answer",
            b"prediction",
            r"needs one column each of predicted_answer; its columns: answer,",
        ),
        (b"max_new_tokens", b"task", r"needs one column each of task"),
        (b"['7']", b"[]", r"line 2: answer must be a list of texts, none empty; found '\[\]'"),
        (b"['7']", b"['']", r"line 2: answer must be a list of texts, none empty"),
        (b"['7']", b"7", r"line 2: answer must be a list of texts, none empty; found '7'"),
        (b"vt", b"vtt", r"unknown RULER task in .*line 2: 'vtt' \(did you mean 'vt'\?\)"),
        (b",vt,", b",", r"line 2: 5 cells, the header has 6"),
        (b"seven", b"s\xe9ven", r"not a CSV in UTF-8 \('utf-8' codec"),
        (b"seven", b'"seven', r"not a CSV in UTF-8 \(unexpected end of data\)"),
    ],
)
def test_a_bad_csv_is_one_clear_error_and_no_scores(old: bytes, new: bytes, message: str, tmp_path) -> None:
    path = tmp_path / "predictions.csv"
    table(["seven"], [["7"]], "vt").to_csv(path, index=False)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        score_published("ruler", path, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_rows_twice_and_files_without_rows_are_refused(tmp_path) -> None:
    path = tmp_path / "predictions.csv"
    frame = table(["7", "8"], [["7"], ["8"]])
    pd.concat([frame, frame]).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"line 4: the same record as in .*line 2; give each prediction once"):
        score_ruler(path)
    frame[:0].to_csv(path, index=False)
    with pytest.raises(UserError, match=r"predictions\.csv has no predictions; give a predictions\.csv as"):
        score_ruler(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"needs one column each of task, answer, .*its columns: none"):
        score_ruler(path)
    with pytest.raises(UserError, match=r"no such CSV file: .*gone\.csv; correct the path"):
        score_ruler(tmp_path / "gone.csv")
    frame.to_csv(path, index=False)
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(path.read_bytes())[:-12])
    with pytest.raises(UserError, match=r"broken\.csv\.gz, after line \d+: not a CSV in UTF-8 \(Compressed"):
        score_ruler(tmp_path / "broken.csv.gz")
    with pytest.raises(UserError, match="unknown cleaning 'none'; known: ruler, kvpress"):
        score_ruler(path, "none")


# Rows without a question: kvpress's query-aware runs.


def nameless(frame: pd.DataFrame) -> pd.DataFrame:
    """As kvpress writes it where the question was moved into the context, which is not written."""
    return frame.assign(question="")


def test_query_aware_rows_that_coincide_are_counted_and_said(tmp_path) -> None:
    answers = [["yes"], ["no"], ["yes"], ["Chief of Protocol"], ["yes"]]
    predictions = ["Yes", "Yes", "Yes", "Chief of Protocol", "No"]
    nameless(table(predictions, answers, "qa_2")).to_csv(tmp_path / "predictions.csv", index=False)
    scored, notices = score_ruler(tmp_path)
    assert scored == [{"task": "qa_2", "n": 5, "score": 60.0}]
    assert notices[0] == "rows equal to an earlier one, counted as they hold no question: qa_2 1"


@pytest.mark.parametrize("run", RULER[:2])
def test_published_scores_do_not_change_where_the_questions_are_not_written(run: str, runs, tmp_path) -> None:
    frame = pd.read_csv(runs[run] / "predictions.csv", keep_default_na=False, dtype=str)
    nameless(frame).to_csv(tmp_path / "predictions.csv", index=False)
    scored, notices = score_ruler(tmp_path)
    assert scored == score_ruler(runs[run])[0]
    assert len(notices) == 1 and "qa_2" in notices[0]


@pytest.mark.parametrize("again", [5, 9, 20])
def test_a_file_that_goes_on_with_its_own_beginning_is_refused_without_questions_too(
    again: int, tmp_path
) -> None:
    frame = nameless(table([f"{i}" for i in range(20)], [[f"{i}"] for i in range(20)]))
    path = tmp_path / "predictions.csv"
    pd.concat([frame, frame[:again]]).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"line 22: from here on the rows are those from .*line 2 on; give"):
        score_ruler(path)
    pd.concat([frame, frame[:4]]).to_csv(path, index=False)
    assert score_ruler(path)[0][0]["n"] == 24


# Predictions of other harnesses, as their runners write them; the scores are computed by hand.


def test_rulers_own_predictions_are_scored_with_its_own_cleaning(tmp_path) -> None:
    """A folder of TASK.jsonl, long runs in parts; a control character is a newline there."""
    lines = [
        {
            "index": 0,
            "pred": " 17 and\x0042",
            "input": "…",
            "outputs": ["17", "42"],
            "others": {},
            "length": 9,
        },
        {"index": 1, "pred": "1\x007", "input": "…", "outputs": ["17", "42"], "others": {}, "length": 9},
    ]
    write(tmp_path / "niah_multivalue.jsonl", lines)
    write(
        tmp_path / "qa_1-0.jsonl", [{"index": 0, "pred": "in paris", "outputs": ["Paris", "city of Paris"]}]
    )
    write(tmp_path / "qa_1-1.jsonl", [{"index": 1, "pred": "", "output": "Rome"}])
    (tmp_path / "summary.csv").touch()
    scored, notices = score_ruler(tmp_path)
    assert scored == [
        {"task": "niah_multivalue", "n": 2, "score": 50.0},
        {"task": "qa_1", "n": 2, "score": 50.0},
    ]
    assert notices[0] == "left out: summary.csv"
    assert score_ruler(tmp_path, "kvpress")[0][0]["score"] == 75.0  # 1 and 7 glued together
    write(tmp_path / "vt.jsonl", [lines[0], {**lines[1], "index": 0}])
    with pytest.raises(UserError, match=r"vt\.jsonl, line 2: index 0 again, as in .*line 1; give each"):
        score_ruler(tmp_path)
    write(tmp_path / "vt.jsonl", [{"index": 0, "pred": "x", "outputs": "x"}])
    with pytest.raises(UserError, match="line 1: outputs must be a list of texts and hold one"):
        score_ruler(tmp_path)


def factory(folder: Path, task: str, method: str, records: list[dict]) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    write(folder / task / f"{method}.json", [{"prompt": "…", "input": "…", **record} for record in records])


def test_kvcache_factorys_predictions_are_scored_by_method(tmp_path) -> None:
    """results/MODEL_C/TASK/METHOD.json, one line a record; metrics.json beside it is its own eval.py's."""
    one = prediction(0, context="…", dataset="qasper", language="en", _id="a")
    factory(tmp_path, "qasper", "SnapKV", [one, {**one, "_id": "b", "pred": "a lake"}])
    factory(tmp_path, "qasper", "PyramidKV", [one])
    factory(
        tmp_path, "trec", "SnapKV", [{**one, "all_classes": ["river 0", "lake"], "pred": "river 0\nQuestion"}]
    )
    (tmp_path / "qasper/metrics.json").write_text("{}", encoding="utf-8")
    scored, notices = score_longbench(tmp_path, method="SnapKV")
    assert scored == [{"task": "qasper", "n": 2, "score": 50.0}, {"task": "trec", "n": 1, "score": 100.0}]
    assert notices[0].startswith("incomplete")
    with pytest.raises(UserError, match="has predictions of PyramidKV, SnapKV; give one as --method"):
        score_longbench(tmp_path)
    with pytest.raises(UserError, match=r"'SnapVK' \(did you mean 'SnapKV'\?\); known: PyramidKV, SnapKV"):
        score_longbench(tmp_path, method="SnapVK")


def test_kvcache_factorys_ruler_is_scored_a_length_at_a_time(tmp_path) -> None:
    records = [{"answers": ["7", "8"], "pred": "7", "length": 9, "input": f"{i}"} for i in range(2)]
    factory(tmp_path / "4096", "vt", "H2O", records)
    assert score_ruler(tmp_path / "4096")[0] == [{"task": "vt", "n": 2, "score": 50.0}]
    with pytest.raises(UserError, match=r"holds several lengths; give one of them: .*4096"):
        score_ruler(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"--method H2O: .* has no TASK/METHOD\.json; leave --method out"):
        score_ruler(tmp_path / "none", method="H2O")


def test_kvpresss_longbench_csv_is_scored_as_kvpress_does(tmp_path) -> None:
    """Its scorer strips blanks before the first line of few-shot tasks, the official one newlines alone."""
    rows = [
        {"task": "trec", "predicted_answer": " \n City\nType:", "answers": ["City"]},
        {"task": "qasper", "predicted_answer": "a river", "answers": ["The river", "a lake"]},
    ]
    frame = pd.DataFrame(rows).assign(all_classes="['City' 'Country']", length=9, question=["a", "b"])
    frame["answers"] = [str(np.array(answers, dtype=object)) for answers in frame["answers"]]
    frame.to_csv(tmp_path / "predictions.csv", index=False)
    scores = {row["task"]: row["score"] for row in score_longbench(tmp_path)[0]}
    assert scores == {"qasper": 100.0, "trec": 100.0}
    official = {row["task"]: row["score"] for row in score_longbench(tmp_path, cleaning="ruler")[0]}
    assert official == {"qasper": 100.0, "trec": 0.0}
