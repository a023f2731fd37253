"""Promises of lkv.bench.ruler.tasks: thirteen tasks to length, the official metric, frozen files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import re
import statistics
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unpack

from lkv.bench import score as score_record
from lkv.bench.protocol import PROTOCOLS, Protocol
from lkv.bench.ruler import niah as ruler_niah
from lkv.bench.ruler import wordings as ruler_common
from lkv.bench.ruler.kvpress_csv import rows
from lkv.bench.ruler.niah import DEPTHS, Needles, niah
from lkv.bench.ruler.ready_made import build_ready
from lkv.bench.ruler.tasks import TASKS, build, clean, string_match
from lkv.bench.ruler.wordings import WORDINGS, word_list, wording
from lkv.bench.ruler.words import fwe
from lkv.data.documents import OFFICIAL, documents, haystack
from lkv.data.frozen import freeze, load, sidecar
from lkv.errors import UserError
from lkv.model.chat_template import chat_ids, record_ids, record_parts

SHARED = Path(os.environ.get("LKV_SHARED", Path(__file__).resolve().parents[2] / "shared"))
OFFLINE = [task for task in TASKS if not task.startswith("qa")]
SAMPLES = 5


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE trained on Python's reference and RULER's words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=12000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    # The words as well: real vocabularies hold most of them, which sizes cwe and the needles' keys.
    words = [f" {word}" for kind in ("noun", "adjective", "verb") for word in word_list(kind)]
    bpe.train_from_iterator([topic.text for topic in documents("topics")] + 2 * words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    return fast


@pytest.fixture(scope="module")
def qa_files(tmp_path_factory) -> dict[str, Path]:
    """SQuAD and HotpotQA excerpts: the shared ones where present, else a made-up pair of the same form."""
    folder = tmp_path_factory.mktemp("sources")
    archive = SHARED / "data" / "ruler_sources.tar.xz"
    if archive.is_file():
        unpack(archive, folder)
        return {name: folder / "ruler_sources" / f"{name}.json" for name in ("squad", "hotpotqa")}
    places = [f"Town {i}" for i in range(60)]
    facts = {place: [f"{place} lies by river {i}.", " Its mill is old."] for i, place in enumerate(places)}
    questions = {place: f"Which river is {place} by?" for place in places}
    squad = [
        {
            "paragraphs": [
                {
                    "context": "".join(facts[place]),
                    "qas": [
                        {
                            "question": questions[place],
                            "is_impossible": False,
                            "answers": [{"text": f"river {places.index(place)}"}, {"text": "the river"}],
                        },
                        {"question": "Why?", "is_impossible": True, "answers": []},
                    ],
                }
                for place in places[start : start + 6]
            ]
        }
        for start in range(0, 60, 6)
    ]
    hotpotqa = [
        {
            "question": questions[place],
            "answer": f"river {i}",
            "supporting_facts": [[place, 0]],
            "context": [[other, facts[other]] for other in places[i : i + 10]],
        }
        for i, place in enumerate(places[:50])
    ]
    (folder / "squad.json").write_text(json.dumps({"data": squad}), encoding="utf-8")
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa), encoding="utf-8")
    return {name: folder / f"{name}.json" for name in ("squad", "hotpotqa")}


@pytest.fixture(scope="module")
def made(tokenizer, qa_files) -> dict[tuple[str, int], list[dict]]:
    """Every task at 1,024 and 2,048 tokens, in table order."""
    return {
        (task, length): list(build(task, length, SAMPLES, 42, tokenizer, **qa_files))
        for length in (1024, 2048)
        for task in TASKS
    }


def answers_in(text: str, outputs: list[str]) -> list[str]:
    return [output for output in outputs if output.lower() in text.lower()]


@pytest.mark.parametrize("length", [1024, 2048])
@pytest.mark.parametrize("task", TASKS)
class TestEveryTask:
    def test_every_sample_fits_its_length(self, task: str, length: int, made, tokenizer) -> None:
        for record in made[task, length]:
            tokens = len(chat_ids(tokenizer, record["input"], record["answer_prefix"]))
            assert record["prompt_tokens"] == tokens
            assert record["max_new_tokens"] == TASKS[task].tokens
            assert tokens + record["max_new_tokens"] <= length

    def test_room_is_used_up(self, task: str, length: int, made, qa_files) -> None:
        if task.startswith("qa") and qa_files[TASKS[task].haystack].stat().st_size < 100_000:
            pytest.skip("the made-up documents do not fill this length")
        used = [record["prompt_tokens"] + record["max_new_tokens"] for record in made[task, length]]
        # A unit of the qa tasks is a whole paragraph: coarse at these lengths.
        assert statistics.median(used) >= (0.7 if task.startswith("qa") else 0.9) * length

    def test_answers_are_in_the_prompt_and_as_many_as_asked(self, task: str, length: int, made) -> None:
        wanted = {"niah_multivalue": 4, "niah_multiquery": 4, "vt": 5, "cwe": 10, "fwe": 3}
        for record in made[task, length]:
            found = answers_in(record["input"], record["outputs"])
            if record["metric"] == "part":
                assert found or record["outputs"] in (["yes"], ["no"])
            else:
                assert found == record["outputs"]
                assert len(set(found)) == wanted.get(task, 1)

    def test_record_is_complete(self, task: str, length: int, made) -> None:
        source = {
            "noise": "noise",
            "needles": "needles",
            "words": "words",
            "coded": "coded",
            "essays": "pydoc",
        }
        for index, record in enumerate(made[task, length]):
            assert " ".join(record) == (
                "benchmark task length sample planned haystack protocol question_aware template input "
                "question_at answer_prefix outputs classes metric max_new_tokens stops min_new_tokens "
                "prompt_tokens"
            )
            assert (record["benchmark"], record["task"], record["length"]) == ("ruler", task, length)
            assert (record["sample"], record["planned"]) == (index, SAMPLES)
            assert (record["protocol"], record["question_aware"], record["template"]) == (
                "official",
                True,
                True,
            )
            assert (record["classes"], record["stops"], record["min_new_tokens"]) == ([], [], 0)
            expected = source.get(TASKS[task].haystack, rf"{TASKS[task].haystack}:[0-9a-f]{{8}}")
            assert re.fullmatch(expected, record["haystack"])
            assert record["metric"] == ("part" if task.startswith("qa") else "all")
            assert re.match(" [AT]", record["answer_prefix"])  # RULER's own begins with its blank


@pytest.mark.parametrize("task", TASKS)
def test_data_depend_on_neither_task_order_nor_sample_count(task: str, made, tokenizer, qa_files) -> None:
    # The fixture built all tasks before and after this one, and five samples.
    alone = list(build(task, 1024, 2, 42, tokenizer, **qa_files))
    assert alone == [{**record, "planned": 2} for record in made[task, 1024][:2]]


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_gives_other_data(task: str, made, tokenizer, qa_files) -> None:
    other = list(build(task, 1024, 2, 43, tokenizer, **qa_files))
    assert [r["input"] for r in other] != [r["input"] for r in made[task, 1024][:2]]


def test_samples_differ_from_each_other(made) -> None:
    for records in made.values():
        assert len({record["input"] for record in records}) == SAMPLES


def test_global_random_state_is_left_alone(tokenizer) -> None:
    random.seed(1)
    before, legacy = random.getstate(), np.random.get_state()[1].tolist()
    list(build("niah_multikey_2", 512, 2, 42, tokenizer))
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == legacy


# What is in the prompts, checked on the text.


def test_one_value_asked_once_is_worded_in_the_singular(made) -> None:
    record = made["niah_single_1", 1024][0]
    assert record["input"].startswith("A special magic number is hidden within the following text.")
    assert "quiz you about the number afterwards.\n" in record["input"]
    asked = re.search(
        r"\nWhat is the special magic number for (\S+) mentioned in the provided text\?$", record["input"]
    )
    assert asked
    assert (
        record["answer_prefix"]
        == f" The special magic number for {asked[1]} mentioned in the provided text is"
    )
    assert f"One of the special magic numbers for {asked[1]} is: {record['outputs'][0]}.\n" in record["input"]


def test_several_values_are_worded_in_the_plural(made) -> None:
    for record in made["niah_multivalue", 1024] + made["niah_multiquery", 1024]:
        assert record["input"].startswith("Some special magic numbers are hidden")
        assert "\nWhat are all the special magic numbers for " in record["input"]
        assert record["answer_prefix"].endswith(" mentioned in the provided text are")
    names = record["answer_prefix"].removeprefix(" The special magic numbers for ").split(" mentioned")[0]
    assert re.fullmatch(r"[^,]+, [^,]+, [^,]+, and [^,]+", names)


@pytest.mark.parametrize(
    ("task", "kind", "pattern", "needles"),
    [
        ("niah_single_2", "numbers", r"[1-9]\d{6}", 1),
        ("niah_single_3", "uuids", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", 1),
        ("niah_multikey_1", "numbers", r"[1-9]\d{6}", 4),
        ("niah_multivalue", "numbers", r"[1-9]\d{6}", 4),
        ("niah_multiquery", "numbers", r"[1-9]\d{6}", 4),
    ],
)
def test_essay_tasks_hide_the_official_needles(
    task: str, kind: str, pattern: str, needles: int, made
) -> None:
    for record in made[task, 2048]:
        found = re.findall(rf"One of the special magic {kind} for (\S+) is: ({pattern})\.", record["input"])
        assert len(found) == needles
        assert len({key for key, _ in found}) == (1 if task == "niah_multivalue" else needles)
        assert set(record["outputs"]) <= {value for _, value in found}


@pytest.mark.parametrize("task", ["niah_multikey_2", "niah_multikey_3"])
def test_needle_haystacks_hold_one_line_for_the_asked_key(task: str, made) -> None:
    for record in made[task, 2048]:
        found = re.findall(
            r"One of the special magic \w+ for (\S+) is: (\S+)\.$", record["input"], re.MULTILINE
        )
        keys = [key for key, _ in found]
        assert len(keys) == len(set(keys)) > 20
        asked = record["answer_prefix"].split(" for ")[1].split(" mentioned")[0]
        assert [dict(found)[asked]] == record["outputs"]


def test_no_key_comes_twice_even_when_words_run_short(monkeypatch) -> None:
    monkeypatch.setattr(
        ruler_niah, "word_list", lambda kind: ["red"] if kind == "adjective" else list("abcdefgh")
    )
    prompt = niah(Needles(), "needles", 512).make(7, random.Random(1), 0)
    assert sorted(re.findall(r"for red-(\w) is", prompt.input)) == list("abcdefgh")


def test_depths_are_rulers_forty_places() -> None:
    assert list(DEPTHS) == np.round(np.linspace(0, 100, num=40, endpoint=True)).astype(int).tolist()


def test_needles_are_spread_over_the_essay(made) -> None:
    records = made["niah_multikey_1", 2048]
    places = [
        m.start() / len(r["input"]) for r in records for m in re.finditer("One of the special", r["input"])
    ]
    assert min(places) < 0.3
    assert max(places) > 0.7


def test_the_chain_of_variables_leads_to_the_asked_value(made) -> None:
    for length in (1024, 2048):
        for record in made["vt", length]:
            example, asked = record["input"].split("\n\nMemorize", 1)
            for text, letters in ((example, 3), (asked, 5)):
                value = re.search(r"assigned the value (\d{5}) in the text above", text)[1]
                # In reading order every assignment refers to the one before it.
                steps = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text)
                chain = [value, *(name for name, _ in steps)]
                assert [source for _, source in steps] == chain[:-1]
                assert len(set(chain)) == 6
                assert all(re.fullmatch(f"[A-Z]{{{letters}}}", name) for name in chain[1:])
            assert chain[1:] == record["outputs"]
            assert example.rstrip().endswith(
                ":  " + " ".join(re.findall(r"[A-Z]{3}", example.split("they are:")[1]))
            )
            assert f"5 variables are assigned the value {value}, they are:" in record["answer_prefix"]


def test_the_worked_example_stays_under_500_tokens(tokenizer, made) -> None:
    for record in made["vt", 2048]:
        example = record["input"].split("\n\nMemorize", 1)[0] + "\n\n"
        assert 400 < len(tokenizer(example).input_ids) <= 500


@pytest.mark.parametrize(
    ("length", "often", "seldom", "shown"), [(2048, 6, 1, (3, 1)), (4096, 30, 3, (10, 3))]
)
def test_common_words_come_as_often_as_rulers(length: int, often: int, seldom: int, shown, tokenizer) -> None:
    for record in build("cwe", length, 2, 42, tokenizer):
        lists = re.findall(r"most often\.\n(.*)\nQuestion", record["input"])
        assert len(lists) == 2
        example, asked = (re.split(r" ?\d+\. ", listed)[1:] for listed in lists)
        counts = Counter(asked)
        assert sorted(word for word in counts if counts[word] == often) == sorted(record["outputs"])
        assert set(counts.values()) == {often, seldom}
        assert sorted(set(Counter(example).values()), reverse=True) == list(shown)
        assert len(set(example)) == (20 if length < 4096 else 40)


def test_frequent_words_are_ranks_two_to_four_without_a_tie() -> None:
    for length in (200, 1024, 4096):
        generator = fwe(length)
        for size in range(generator.least, generator.least + 60):
            prompt = generator.make(size, random.Random(f"{length}/{size}"), 0)
            text = prompt.input.split("coded words. ", 1)[1].split("\nQuestion")[0]
            ranks = Counter(text.split()).most_common()
            assert ranks[0][0] == "..."
            assert [word for word, _ in ranks[1:4]] == prompt.outputs
            assert ranks[3][1] > (ranks[4][1] if len(ranks) > 4 else 0)
            assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranks[1:])


def test_gold_paragraphs_stay_when_the_context_is_short(tokenizer, qa_files) -> None:
    data = json.loads(qa_files["hotpotqa"].read_text(encoding="utf-8"))
    for length in (1024, 4096):
        for record in build("qa_2", length, SAMPLES, 42, tokenizer, **qa_files):
            item = data[record["sample"]]
            assert item["question"] in record["input"]
            titles = {title for title, _ in item["supporting_facts"]}
            for title, sentences in item["context"]:
                assert title not in titles or f":\n{title}\n{''.join(sentences)}" in record["input"]


def test_squad_asks_the_files_answerable_questions_in_order(made, tokenizer, qa_files) -> None:
    data = json.loads(qa_files["squad"].read_text(encoding="utf-8"))["data"]
    asked = [q for a in data for p in a["paragraphs"] for q in p["qas"] if not q["is_impossible"]]
    records = list(build("qa_1", 2048, 30, 42, tokenizer, **qa_files))
    assert records[:SAMPLES] == [{**record, "planned": 30} for record in made["qa_1", 2048]]
    for record, item in zip(records, asked, strict=False):
        assert record["input"].endswith(f"\n\nQuestion: {item['question']}")
        assert record["outputs"] == [answer["text"] for answer in item["answers"]]
        numbers = [int(n) for n in re.findall(r"^Document (\d+):$", record["input"], re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 1


def test_essays_file_is_used_repeated_and_named(tokenizer, tmp_path) -> None:
    path = tmp_path / "Tales.txt"
    path.write_text("Once there was a fox. It ran home! Did it sleep? Nobody knows.", encoding="utf-8")
    (record,) = build("niah_single_2", 1024, 1, 42, tokenizer, haystack=str(path))
    assert record["haystack"] == haystack(str(path))[0]
    assert record["input"].count("Once there was a fox.") > 20


def test_wordings_are_the_older_trees_typo_mended() -> None:
    texts = {name: wording(name) for name in WORDINGS}
    assert all(texts.values())
    assert "assgined" not in "".join(texts.values())
    assert "assigned the value" in texts["vt_prefix"]


def test_other_wordings_are_refused(monkeypatch) -> None:
    monkeypatch.setitem(WORDINGS, "cwe", ("cwe_utils", "template", "0" * 12))
    with pytest.raises(UserError, match=r"words RULER's 'cwe' differently .*install lm-eval 0\.4\.13"):
        wording("cwe")


def test_other_word_lists_are_refused(monkeypatch, tokenizer) -> None:
    monkeypatch.setattr(ruler_common, "version", lambda name: "2.2.0")
    with pytest.raises(UserError, match=r"need wonderwords 3\.0\.1, found 2\.2\.0"):
        next(build("niah_single_1", 1024, 1, 42, tokenizer))


# Lengths.


def least_length(task: str, tokenizer, **options) -> int:
    with pytest.raises(UserError, match=rf"RULER's {task} does not fit 60 tokens") as error:
        build(task, 60, 3, 42, tokenizer, **options)
    return int(re.search(r"the smallest length found for 3 samples is (\d+); set that", str(error.value))[1])


@pytest.mark.parametrize("task", TASKS)
def test_too_little_room_names_the_length_that_works(task: str, tokenizer, qa_files) -> None:
    smallest = least_length(task, tokenizer, **qa_files)
    records = list(build(task, smallest, 3, 42, tokenizer, **qa_files))
    assert len(records) == 3
    for record in records:
        assert record["prompt_tokens"] + record["max_new_tokens"] <= smallest
        assert record["outputs"]
        if record["metric"] == "all":
            assert answers_in(record["input"], record["outputs"]) == record["outputs"]


def test_short_contexts_work_where_the_task_fits(tokenizer) -> None:
    for task in ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue"):
        for record in build(task, 256, 2, 42, tokenizer, max_new_tokens=32):
            assert 0.85 * 256 <= record["prompt_tokens"] + 32 <= 256


def test_fewer_new_tokens_leave_more_room_for_the_prompt(made, tokenizer) -> None:
    capped = list(build("niah_single_1", 1024, 2, 42, tokenizer, max_new_tokens=32))
    assert [record["max_new_tokens"] for record in capped] == [32, 32]
    assert capped[0]["prompt_tokens"] > made["niah_single_1", 1024][0]["prompt_tokens"] + 50
    (generous,) = build("fwe", 1024, 1, 42, tokenizer, max_new_tokens=500)
    assert generous["max_new_tokens"] == 50


# The metric.


@pytest.mark.parametrize(
    ("prediction", "outputs", "metric", "expected"),
    [
        ("it is 123 and 456.", ["123", "456", "789", "000"], "all", 50.0),
        ("ABC", ["abc"], "all", 100.0),
        ("abc", ["ABC", "xyz"], "part", 100.0),
        ("nothing", ["abc", "xyz"], "part", 0.0),
        ("", ["abc"], "all", 0.0),
        ("12\x0034", ["1234"], "all", 0.0),  # a control character becomes a newline ...
        ("12\x0034", ["12\n34"], "all", 100.0),
        ("\t\x01 12\x1f ", ["12"], "all", 100.0),
        ("300738\n7. 300738", ["3007387"], "all", 0.0),  # ... so that lines' digits are not glued
    ],
)
def test_metric_is_rulers(prediction: str, outputs: list[str], metric: str, expected: float) -> None:
    assert string_match(prediction, outputs, metric) == expected
    record = {"benchmark": "ruler", "outputs": outputs, "metric": metric}
    assert score_record(record, prediction) == expected


def test_kvpress_cleaning_deletes_control_characters() -> None:
    text = "300738\n7. 300738"
    assert clean(f" {text}\t", "kvpress") == "3007387. 300738"
    assert string_match(text, ["3007387"], "all", "kvpress") == 100.0
    with pytest.raises(UserError, match=r"unknown cleaning 'none'; known: ruler, kvpress"):
        clean(text, "none")


def test_cleaning_strips_before_and_after() -> None:
    assert clean(" \x02a\tb\x00 \n") == "a\nb"


def test_part_counts_any_reference_where_lm_eval_counts_the_share() -> None:
    # The file is loaded by itself: the package around it takes seconds and is not what is compared.
    folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(
        "common_utils", folder / "tasks" / "ruler" / "common_utils.py"
    )
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    references = ["Paris", "city of Paris"]
    assert theirs.string_match_part(["Paris"], [references]) == 0.5
    assert string_match("Paris", references, "part") == 100.0
    for prediction in ("Paris", "the city of paris", "Rome"):
        assert string_match(prediction, references, "all") == 100 * theirs.string_match_all(
            [prediction], [references]
        )


def test_metric_and_references_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown RULER metric 'any'; known: all, part"):
        string_match("a", ["a"], "any")
    with pytest.raises(UserError, match="no reference answers"):
        string_match("a", [], "all")


# Wording, against what others published.


def anonymous(task: str, question: str, prefix: str) -> str:
    """Question part and answer prefix, the sample's own values replaced by marks."""
    text = question + prefix
    if task.startswith("niah"):
        for name in re.split(", and |, ", re.search(r" for (.+) mentioned", prefix)[1]):
            text = text.replace(name, "<key>")
        return text
    if task == "vt":
        return re.sub(r"\b[1-9]\d{4}\b", "<value>", text)
    if task.startswith("qa"):
        instruction, _ = question.split("\n\nQuestion: ")
        return f"{instruction}\n\nQuestion: <question>{prefix}"
    return text


@pytest.mark.parametrize("run", ["Qwen3-8B__no_press__0.00", "centrality_ppr_knorm_d0.15__0.25"])
def test_questions_and_answer_prefixes_are_worded_as_published(run: str, made, tmp_path) -> None:
    """kvpress's data differ in two ways: the blank before the prefix ends the question, and vt's old typo."""
    path = SHARED / "data" / "predictions.tar.xz"
    if not path.is_file():
        pytest.skip(f"no published predictions at {path}; set LKV_SHARED to the folder that holds data/")
    with tarfile.open(path) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith(f"{run}/predictions.csv"))
        (tmp_path / "predictions.csv").write_bytes(archive.extractfile(name).read())
    columns = ("task", "question", "answer_prefix", "answer", "max_new_tokens")
    theirs: dict[str, set[str]] = {}
    for _, row in rows(tmp_path / "predictions.csv", columns):
        task, question, prefix = row["task"], row["question"], row["answer_prefix"]
        assert question.endswith(" ")
        assert prefix == prefix.strip() + (" " if task == "vt" else "")
        assert int(row["max_new_tokens"]) == TASKS[task].tokens
        theirs.setdefault(task, set()).add(anonymous(task, question[:-1], " " + prefix))
    assert set(theirs) == set(TASKS)
    for task in TASKS:
        ours = {
            anonymous(task, record["input"][record["question_at"] :], record["answer_prefix"])
            for record in made[task, 2048]
        }
        assert len(ours) == 1
        if task == "vt":
            ours = {text.replace("variables are assigned", "variables are assgined") for text in ours}
        assert theirs[task] == ours


@pytest.mark.parametrize("task", TASKS)
def test_the_question_part_begins_right_after_the_context(task: str, made) -> None:
    for record in made[task, 2048]:
        context, question = record["input"][: record["question_at"]], record["input"][record["question_at"] :]
        assert context.endswith("\n")
        assert re.match("(Question: |What |Answer the question based on)", question)
        assert record["input"].endswith(question)
        if not task.startswith("qa"):  # yes and no are in no text
            assert answers_in(context, record["outputs"]) == record["outputs"]
        assert len(question) < 450


# Protocols.


def test_kvcache_factory_has_no_template_its_own_tokens_and_one_metric(tokenizer, made) -> None:
    for task in ("niah_single_1", "vt"):
        for record in build(task, 1024, 2, 42, tokenizer, protocol=PROTOCOLS["kvcache_factory"]):
            assert (record["protocol"], record["template"]) == ("kvcache_factory", False)
            assert (record["max_new_tokens"], record["metric"]) == (64, "all")
            raw = tokenizer(record["input"] + record["answer_prefix"]).input_ids
            assert record_ids(tokenizer, record) == raw
            assert 0.9 * 1024 < record["prompt_tokens"] + 64 == len(raw) + 64 <= 1024
    assert re.search(r"in the text above\. Answer: ", record["input"] + record["answer_prefix"])
    for task in ("qa_1", "qa_2"):
        with pytest.raises(UserError, match=rf"the protocol kvcache_factory has no {task}.*official"):
            build(task, 1024, 1, 42, tokenizer, protocol=PROTOCOLS["kvcache_factory"])


def test_question_blind_prompts_fit_in_their_two_parts(tokenizer) -> None:
    for record in build("vt", 1024, 3, 42, tokenizer, protocol=Protocol("official", question_aware=False)):
        assert (record["protocol"], record["question_aware"]) == ("official question_blind", False)
        context, question = record_parts(tokenizer, record)
        assert record["prompt_tokens"] == len(context) + len(question) <= 1024 - 30


def test_a_cap_is_in_the_label_of_every_task_of_the_study(tokenizer) -> None:
    for task, tokens in (("niah_single_1", 40), ("vt", 30)):
        (record,) = build(task, 1024, 1, 42, tokenizer, max_new_tokens=40)
        assert (record["protocol"], record["max_new_tokens"]) == ("official new_tokens<=40", tokens)
    (record,) = build("vt", 1024, 1, 42, tokenizer, max_new_tokens=128)
    assert record["protocol"] == "official"


# Sources.


def test_official_texts_are_named_so_and_a_wrong_pin_is_refused(monkeypatch, tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"text": "A tale. Another one."}', encoding="utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert haystack(f"{path}#sha256={digest}") == (f"mine:{digest[:8]}", "A tale. Another one.")
    with pytest.raises(UserError, match=rf"mine\.json has SHA-256 {digest}, not {'0' * 64}; get the right"):
        haystack(f"{path}#sha256={'0' * 64}")
    monkeypatch.setitem(OFFICIAL, digest, "essays")
    assert haystack(str(path))[0] == "essays:official"


def test_the_shared_essays_are_the_official_ones_and_the_excerpts_are_not(qa_files, tokenizer) -> None:
    essays = qa_files["squad"].parent / "PaulGrahamEssays.json"
    if not essays.is_file():
        pytest.skip(f"no essays in {SHARED}; set LKV_SHARED to the folder that holds data/")
    (record,) = build("niah_single_2", 4096, 1, 42, tokenizer, haystack=str(essays))
    assert record["haystack"] == "essays:official"
    (record,) = build("qa_1", 4096, 1, 42, tokenizer, **qa_files)
    assert re.fullmatch("squad:[0-9a-f]{8}", record["haystack"])


def test_hub_sources_fail_at_once_without_a_network(monkeypatch, tokenizer) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    for source, options in (
        ("hub:nobody/essays", {"task": "niah_single_2", "haystack": "hub:nobody/essays"}),
        ("hub:nobody/hotpotqa@main", {"task": "qa_2", "hotpotqa": "hub:nobody/hotpotqa@main"}),
    ):
        owner = source.removeprefix("hub:").partition("@")[0]
        with pytest.raises(
            UserError, match=rf"from the hub's {owner} \(ConnectionError: no route\); download"
        ):
            build(length=1024, samples=1, seed=42, tokenizer=tokenizer, **options)


def refuse(*args, **options):
    raise ConnectionError("no route")


@pytest.mark.parametrize("task", ["niah_single_2", "cwe"])
def test_the_longest_length_is_filled(task: str, tokenizer) -> None:
    (record,) = build(task, 131072, 1, 42, tokenizer)
    assert 0.98 * 131072 < record["prompt_tokens"] + record["max_new_tokens"] <= 131072
    assert answers_in(record["input"], record["outputs"]) == record["outputs"]


# Ready-made sets.

READY = [
    {
        "context": f"Here is a text about lamp {i}.\n",
        "question": f"Which lamp, it's number {i}? ",
        "answer_prefix": "The lamp is",
        "answer": [f"lamp {i}", 'it\'s "that" one'],
        "task": task,
        "max_new_tokens": 128 if task == "niah_single_1" else 32,
    }
    for i, task in enumerate(["niah_single_1", "qa_1", "niah_single_1", "qa_1", "niah_single_1"])
]


def ready_set(folder: Path, form: str, sets: list[dict] = READY) -> str:
    """`sets` at 4096 in one of the forms a folder may hold; the source's name."""
    frame = pd.DataFrame(sets)
    if form == "parquet":
        frame.to_parquet(folder / "4096.parquet")
    elif form == "jsonl":
        text = "".join(json.dumps(record) + "\n" for record in sets)
        (folder / "4096.jsonl").write_text(text, encoding="utf-8")
    else:
        frame["answer"] = [str(np.array(answer, dtype=object)) for answer in frame["answer"]]
        frame.to_csv(folder / f"4096.{form}", index=False)
    return f"folder:{folder}"


@pytest.mark.parametrize("form", ["jsonl", "csv", "csv.gz", "parquet"])
def test_ready_made_sets_are_taken_as_they_are(form: str, tmp_path, tokenizer) -> None:
    source = ready_set(tmp_path, form)
    official = PROTOCOLS["official"]
    records = list(build_ready("niah_single_1", 4096, source, tokenizer, official))
    own = [record for record in READY if record["task"] == "niah_single_1"]
    assert [r["input"] for r in records] == [o["context"] + o["question"] for o in own]
    assert [r["input"][r["question_at"] :] for r in records] == [o["question"] for o in own]
    assert [(r["answer_prefix"], r["outputs"]) for r in records] == [
        (o["answer_prefix"], o["answer"]) for o in own
    ]
    for index, record in enumerate(records):
        assert (record["sample"], record["planned"], record["length"]) == (index, 500, 4096)
        assert record["haystack"] == f"ready:{tmp_path.name}"
        assert (record["max_new_tokens"], record["metric"]) == (128, "all")
        assert record["prompt_tokens"] == len(record_ids(tokenizer, record))
    (capped,) = build_ready("qa_1", 4096, source, tokenizer, official, samples=1, max_new_tokens=8)
    assert (capped["max_new_tokens"], capped["planned"], capped["metric"]) == (8, 1, "part")
    (record,) = build("vt", 1024, 1, 42, tokenizer)
    assert list(capped) == list(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": []}, "line 3: answer must be a list of texts, none of them empty"),
        ({"answer": "lamp"}, "line 3: answer must be a list of texts"),
        ({"context": None}, "line 3: the record lacks context; wanted: context, question"),
        ({"task": "niah_single_9"}, r"unknown RULER task in .*line 3: 'niah_single_9'"),
        ({"max_new_tokens": "many"}, "line 3: max_new_tokens is many; it must be 1 or more"),
        (READY[0], "line 3: the same record as in .*line 1; keep one of them"),
    ],
)
def test_bad_ready_made_records_are_named_by_line(change: dict, message: str, tmp_path, tokenizer) -> None:
    source = ready_set(tmp_path, "jsonl", [*READY[:2], {**READY[2], **change}, *READY[3:]])
    with pytest.raises(UserError, match=message):
        list(build_ready("niah_single_1", 4096, source, tokenizer, PROTOCOLS["official"]))


def test_ready_made_sets_of_another_length_or_form_are_refused(tmp_path, tokenizer) -> None:
    source, official = ready_set(tmp_path, "jsonl"), PROTOCOLS["official"]
    for given, length, message in (
        (source, 8192, r"needs one file with RULER at 8192; it holds 4096\.jsonl; give folder:PATH"),
        (f"folder:{tmp_path}/gone", 4096, "it is empty or no folder"),
        (str(tmp_path), 4096, "unknown source of ready-made RULER '/.*'; allowed: folder:PATH"),
    ):
        with pytest.raises(UserError, match=message):
            build_ready("niah_single_1", length, given, tokenizer, official)
    with pytest.raises(UserError, match="has no record of vt at 4096"):
        list(build_ready("vt", 4096, source, tokenizer, official))
    (tmp_path / "4096.jsonl").write_text('{"context": \n', encoding="utf-8")
    with pytest.raises(UserError, match=r"4096\.jsonl, line 1: not a JSON record in UTF-8"):
        list(build_ready("vt", 4096, source, tokenizer, official))
    (tmp_path / "4096.csv").write_text("task\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"it holds 4096\.csv, 4096\.jsonl"):
        build_ready("vt", 4096, source, tokenizer, official)


@pytest.mark.parametrize("layout", ["{length}/{task}.jsonl", "{length}/data/{task}/validation.jsonl"])
@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe"])
def test_rulers_own_files_come_back_as_they_were_generated(
    task: str, layout: str, tmp_path, tokenizer
) -> None:
    """Their text ends with the question and the answer's first words, which the generator knows apart."""
    made = list(build(task, 1024, 2, 42, tokenizer))
    own = [
        {"index": i, "input": r["input"] + r["answer_prefix"], "outputs": r["outputs"], "length": 1000}
        for i, r in enumerate(made)
    ]
    path = tmp_path / layout.format(length=1024, task=task)
    path.parent.mkdir(parents=True)
    for newer in (False, True):
        lines = [
            {**line, "input": r["input"], "answer_prefix": r["answer_prefix"]} if newer else line
            for line, r in zip(own, made, strict=True)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        ready = build_ready(task, 1024, f"folder:{tmp_path}", tokenizer, PROTOCOLS["official"])
        expected = [r | {"planned": 500, "haystack": f"ready:{tmp_path.name}"} for r in made]
        assert list(ready) == expected


def test_rulers_own_records_without_their_texts_are_named(tmp_path, tokenizer) -> None:
    (tmp_path / "4096").mkdir()
    for line, message in (
        (
            {"index": 0, "outputs": ["x"]},
            "line 1: the record lacks input; wanted: index, input, outputs, length",
        ),
        ({"input": "x", "outputs": []}, "line 1: outputs must be a list of texts, none of them empty"),
        ({"input": 7, "outputs": ["x"]}, "line 1: input must be a text, not empty"),
    ):
        (tmp_path / "4096/vt.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=message):
            list(build_ready("vt", 4096, f"folder:{tmp_path}", tokenizer, PROTOCOLS["official"]))


# Frozen files.


def test_same_seed_gives_the_same_bytes(tokenizer, tmp_path) -> None:
    paths = [tmp_path / "a" / "vt@1024.jsonl", tmp_path / "b" / "vt@1024.jsonl"]
    for path in paths:
        freeze(path, build("vt", 1024, 3, 42, tokenizer), seed=42)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sidecar(paths[0]).read_bytes() == sidecar(paths[1]).read_bytes()


def test_frozen_data_come_back_with_their_origin(tokenizer, tmp_path) -> None:
    path = tmp_path / "niah_single_2@1024.jsonl"
    records = list(build("niah_single_2", 1024, 2, 7, tokenizer))
    freeze(path, iter(records), seed=7, task="niah_single_2", length=1024, tokenizer="toy")
    assert list(load(path)) == records
    facts = json.loads((tmp_path / "niah_single_2@1024.json").read_text(encoding="utf-8"))
    assert set(facts) == {"sha256", "records", "seed", "task", "length", "tokenizer", "lkv_hash"}
    assert (facts["records"], facts["seed"], facts["task"]) == (2, 7, "niah_single_2")
    assert (facts["length"], facts["tokenizer"]) == (1024, "toy")


def test_damage_is_detected_with_both_sums(tokenizer, tmp_path) -> None:
    path = tmp_path / "fwe@512.jsonl"
    freeze(path, build("fwe", 512, 1, 42, tokenizer), seed=42)
    wanted = json.loads(sidecar(path).read_text(encoding="utf-8"))["sha256"]
    path.write_text(path.read_text(encoding="utf-8").replace("coded", "cooed", 1), encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"fwe@512\.jsonl is damaged .*[0-9a-f]{{64}}.*fwe@512\.json says {wanted}"
    ):
        load(path)
    sidecar(path).unlink()
    with pytest.raises(UserError, match=r"no such file: .*fwe@512\.json"):
        load(path)
    with pytest.raises(UserError, match=r"no such data file: .*absent\.jsonl"):
        load(tmp_path / "absent.jsonl")


def test_nothing_is_left_when_building_fails(tokenizer, tmp_path) -> None:
    def broken():
        yield from build("vt", 1024, 1, 42, tokenizer)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        freeze(tmp_path / "vt@1024.jsonl", broken(), seed=42)
    assert not list(tmp_path.iterdir())


# Bad input.


def test_bad_requests_are_refused_before_the_first_record(tokenizer, qa_files, tmp_path) -> None:
    with pytest.raises(UserError, match=r"unknown RULER task 'niah_single_4' \(did you mean 'niah_single_"):
        build("niah_single_4", 1024, 1, 42, tokenizer)
    for name, options in (
        ("length", {"length": 0}),
        ("samples", {"samples": 0}),
        ("max_new_tokens", {"max_new_tokens": 0}),
    ):
        with pytest.raises(UserError, match=f"RULER's {name} is 0; it must be 1 or more"):
            build(
                **{"task": "vt", "length": 1024, "samples": 1, "seed": 42, "tokenizer": tokenizer, **options}
            )
    with pytest.raises(UserError, match=r"needs a local SQuAD 2\.0 JSON.*no file was given; set squad"):
        build("qa_1", 1024, 1, 42, tokenizer)
    with pytest.raises(UserError, match=r"no such hotpotqa file: gone\.json; set hotpotqa"):
        build("qa_2", 1024, 1, 42, tokenizer, hotpotqa="gone.json")
    with pytest.raises(UserError, match=r"no such essays file: gone\.txt; set haystack to 'pydoc'"):
        build("niah_single_2", 1024, 1, 42, tokenizer, haystack="gone.txt")
    with pytest.raises(
        UserError, match=r"answerable questions, sample \d+ was asked for; set samples to \d+ or fewer"
    ):
        build("qa_2", 2048, 5000, 42, tokenizer, **qa_files)
    for content in ("{", "[1]", '{"data": [{"paragraphs": 3}]}', '"text"'):
        (tmp_path / "odd.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"odd\.json is not a SQuAD 2\.0 JSON"):
            build("qa_1", 1024, 1, 42, tokenizer, squad=tmp_path / "odd.json")
        with pytest.raises(UserError, match=r"odd\.json is not a HotpotQA JSON"):
            build("qa_2", 1024, 1, 42, tokenizer, hotpotqa=tmp_path / "odd.json")
    (tmp_path / "empty.json").write_text('{"data": []}', encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.json has no answerable question"):
        build("qa_1", 1024, 1, 42, tokenizer, squad=tmp_path / "empty.json")
