"""Promises of lkv.bench.longbench.tasks and lkv.bench.sources: official prompts from any source."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import unpack

from lkv.bench import sources
from lkv.bench.longbench import metrics as longbench_metrics
from lkv.bench.longbench import prompts as longbench_prompts
from lkv.bench.longbench.prompts import WORDINGS, fill, template
from lkv.bench.longbench.tasks import TASKS, build, score
from lkv.bench.protocol import PROTOCOLS, Protocol
from lkv.data.documents import documents
from lkv.data.frozen import freeze
from lkv.errors import UserError
from lkv.files.json_files import fingerprint
from lkv.model.chat_template import record_ids, record_parts

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("LKV_SHARED", Path(__file__).resolve().parents[2] / "shared"))
FIXTURES = Path(__file__).parent / "fixtures" / "longbench"
FOLDER = f"folder:{FIXTURES}"
OFFICIAL = PROTOCOLS["official"]
FIELDS = (
    "benchmark task length sample planned haystack protocol question_aware template input question_at "
    "answer_prefix outputs classes metric max_new_tokens stops min_new_tokens prompt_tokens"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE with a BOS of its own, as Llama's, and a chat template that writes it as well."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([topic.text for topic in documents("topics")], trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", bpe.token_to_id("<|begin|>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    return fast


def official(name: str):
    path = SHARED / "data" / "longbench_config" / name
    if not path.is_file():
        pytest.skip(f"no official config at {path}; set LKV_SHARED to the folder that holds data/")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A folder of 187 real records over the sixteen tasks."""
    archive = SHARED / "data" / "minilongbench.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no real records at {archive}; set LKV_SHARED to the folder that holds data/")
    folder = tmp_path_factory.mktemp("longbench")
    unpack(archive, folder)
    return folder / "minilongbench"


def raw(task: str, folder: Path = FIXTURES) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def written(folder: Path, task: str, *lines: object) -> str:
    """A source with one file: records as JSON, bytes as they are."""
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / f"{task}.jsonl").write_bytes(b"\n".join(texts) + b"\n")
    return f"folder:{folder}"


def cut_as_upstream(tokenizer, prompt: str, most: int) -> str:
    """LongBench's truncation, written from its description."""
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    if len(ids) <= most:
        return prompt
    first, last = ids[: most // 2], ids[len(ids) - most // 2 :]
    return tokenizer.decode(first, skip_special_tokens=True) + tokenizer.decode(
        last, skip_special_tokens=True
    )


# Prompts.


@pytest.mark.parametrize("task", TASKS)
def test_templates_are_the_official_ones(task: str) -> None:
    assert template(task) == official("dataset2prompt.json")[task]


def test_templates_are_checked_without_the_official_file() -> None:
    assert list(WORDINGS) == list(TASKS)
    for task in TASKS:
        assert re.findall(r"{\w*}", template(task)) in (["{context}", "{input}"], ["{context}"])
    for task in ("triviaqa", "samsum"):
        assert template(task).endswith("\n\n{context}\n\n{input}")
    for task in ("passage_count", "passage_retrieval_en"):
        assert template(task).endswith(" answer is: ")
    for task in ("lcc", "repobench-p"):
        assert template(task).endswith("Next line of code:\n")


def test_other_wordings_are_refused(monkeypatch, tokenizer) -> None:
    monkeypatch.setattr(longbench_prompts, "_packaged", lambda task: "Read this: {{context}} {{question}}")
    template.cache_clear()
    with pytest.raises(
        UserError, match=r"words LongBench's 'qasper' differently \('Read this.*install lm-eval 0\.4\.13"
    ):
        build("qasper", FOLDER, tokenizer, OFFICIAL)
    template.cache_clear()


def test_generation_lengths_are_the_official_ones() -> None:
    lengths = official("dataset2maxlen.json")
    assert {task: row.tokens for task, row in TASKS.items()} == {task: lengths[task] for task in TASKS}


def test_tasks_are_the_sixteen_english_ones() -> None:
    assert " ".join(TASKS) == (
        "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique gov_report qmsum multi_news trec "
        "triviaqa samsum passage_count passage_retrieval_en lcc repobench-p"
    )
    assert sum(row.samples for row in TASKS.values()) == 3750
    assert {task: row.metric for task, row in TASKS.items()} == longbench_metrics.METRICS
    assert [task for task, row in TASKS.items() if row.first_line] == list(longbench_metrics.FIRST_LINE)
    plain = [task for task, row in TASKS.items() if not row.template]
    assert plain == ["trec", "triviaqa", "samsum", "lcc", "repobench-p"]


@pytest.mark.parametrize("task", TASKS)
class TestEveryTask:
    def test_record_is_complete(self, task: str, tokenizer) -> None:
        row, source = TASKS[task], raw(task)
        records = list(build(task, FOLDER, tokenizer, OFFICIAL))
        assert len(records) == len(source)
        for index, (record, item) in enumerate(zip(records, source, strict=True)):
            assert " ".join(record) == FIELDS
            assert (record["benchmark"], record["task"], record["length"]) == ("longbench", task, 0)
            assert (record["sample"], record["planned"]) == (index, row.samples)
            assert (record["haystack"], record["answer_prefix"]) == ("", "")
            assert (record["protocol"], record["question_aware"]) == ("official max_prompt=none", True)
            assert (record["outputs"], record["classes"]) == (item["answers"], item["all_classes"] or [])
            assert (record["metric"], record["max_new_tokens"]) == (row.metric, row.tokens)
            assert record["template"] is row.template

    def test_prompt_is_the_template_filled(self, task: str, tokenizer) -> None:
        for record, item in zip(build(task, FOLDER, tokenizer, OFFICIAL), raw(task), strict=True):
            assert record["input"] == template(task).format(**item)
            before, after = record["input"][: record["question_at"]], record["input"][record["question_at"] :]
            assert before.endswith(item["context"])
            assert after == template(task).split("{context}")[1].replace("{input}", item["input"])

    def test_real_records_give_the_official_prompts(self, task: str, tokenizer, real) -> None:
        wording = official("dataset2prompt.json")[task]
        records = build(task, f"folder:{real}", tokenizer, OFFICIAL)
        for record, item in zip(records, raw(task, real), strict=True):
            assert record["input"] == wording.format(**item)
            assert record["outputs"] == item["answers"]

    def test_real_records_are_cut_as_upstream_does(self, task: str, tokenizer, real) -> None:
        protocol, source = Protocol("official", max_prompt=400), f"folder:{real}"
        for record, item in zip(build(task, source, tokenizer, protocol, 2), raw(task, real), strict=False):
            whole = template(task).format(**item)
            assert record["input"] == cut_as_upstream(tokenizer, whole, 400) != whole
            assert record["prompt_tokens"] == len(record_ids(tokenizer, record))
            end = fill(task, "", item["input"])[1]
            whole_end = (
                len(tokenizer.encode(end)) < 195
            )  # triviaqa's question has a passage, which may be cut
            assert record["question_at"] == (len(record["input"]) - len(end) if whole_end else 0)
            assert record["input"].endswith(end) is whole_end

    @pytest.mark.parametrize("most", [80, 81, 151])
    @pytest.mark.parametrize("chat", ["tasks", "all", "none"])
    def test_the_middle_is_cut_as_upstream_does(self, task: str, most: int, chat, tokenizer) -> None:
        protocol = Protocol("official", max_prompt=most, template=chat)
        cuts = 0
        for record, item in zip(build(task, FOLDER, tokenizer, protocol), raw(task), strict=True):
            whole = template(task).format(**item)
            assert record["input"] == cut_as_upstream(tokenizer, whole, most)
            assert record["prompt_tokens"] == len(record_ids(tokenizer, record))
            cuts += record["input"] != whole
        assert cuts or most == 151

    def test_tokens_are_those_of_the_whole_prompt(self, task: str, tokenizer) -> None:
        for chat in ("tasks", "all", "none"):
            for record in build(task, FOLDER, tokenizer, Protocol("official", template=chat)):
                assert record["prompt_tokens"] == len(record_ids(tokenizer, record))

    def test_a_sample_can_be_scored(self, task: str, tokenizer) -> None:
        record = next(build(task, FOLDER, tokenizer, OFFICIAL))
        assert score(record["outputs"][0], record) == pytest.approx(100.0)
        assert score("", record) == 0.0


def test_there_are_187_real_records(real) -> None:
    assert sum(len(raw(task, real)) for task in TASKS) == 187


def test_braces_in_the_texts_stay(tokenizer, tmp_path) -> None:
    item = {"context": "{input} {0} }{ {context}", "input": "a {context} {b}", "answers": ["{x}"]}
    (record,) = build("qasper", written(tmp_path, "qasper", item), tokenizer, OFFICIAL)
    assert "Article: {input} {0} }{ {context}\n\n" in record["input"]
    assert record["input"].endswith("Question: a {context} {b}\n\nAnswer:")


def test_the_benchmark_keeps_the_chat_template_from_five_tasks(tokenizer) -> None:
    def templated(protocol: Protocol) -> set[str]:
        return {task for task in TASKS if next(build(task, FOLDER, tokenizer, protocol))["template"]}

    plain = {"trec", "triviaqa", "samsum", "lcc", "repobench-p"}
    for name in PROTOCOLS:
        assert templated(Protocol(name)) == set(TASKS) - plain
        assert templated(Protocol(name, template="all")) == set(TASKS)
        assert templated(Protocol(name, template="none")) == set()


def test_samsum_stops_at_a_newline_but_not_first(tokenizer) -> None:
    rules = {}
    for task in TASKS:
        record = next(build(task, FOLDER, tokenizer, OFFICIAL))
        rules[task] = (record["stops"], record["min_new_tokens"])
    assert rules.pop("samsum") == (["\n"], 1)
    assert set(map(str, rules.values())) == {"([], 0)"}


def test_kvcache_factory_differs_in_its_first_token_only(tokenizer) -> None:
    # Its run_longbench.py bars an empty answer for every task; prompts are the benchmark's.
    for task in TASKS:
        theirs, ours = (
            list(build(task, FOLDER, tokenizer, Protocol(name, max_prompt=80)))
            for name in ("kvcache_factory", "official")
        )
        for their, our in zip(theirs, ours, strict=True):
            assert (their["protocol"], their["min_new_tokens"]) == ("kvcache_factory max_prompt=80", 1)
            same = {"protocol": our["protocol"], "min_new_tokens": our["min_new_tokens"]}
            assert {**their, **same} == our


def test_the_switches_of_a_run_are_in_its_records(tokenizer) -> None:
    protocol = Protocol("official", template="none", question_aware=False, max_prompt=100)
    record = next(build("qmsum", FOLDER, tokenizer, protocol, max_new_tokens=50))
    assert (
        record["protocol"] == "official max_prompt=100 template=none question_blind new_tokens<=50"
    )  # fmt: skip
    assert (record["question_aware"], record["max_new_tokens"]) == (False, 50)
    generous = next(build("qmsum", FOLDER, tokenizer, OFFICIAL, max_new_tokens=5000))
    assert (generous["protocol"], generous["max_new_tokens"]) == ("official max_prompt=none", 512)


def test_the_question_is_found_in_a_cut_prompt_unless_it_was_cut(tokenizer) -> None:
    (item, *_), (wide, *_), (narrow, *_) = (
        raw("multi_news"),
        list(build("multi_news", FOLDER, tokenizer, Protocol("official", max_prompt=80))),
        list(build("multi_news", FOLDER, tokenizer, Protocol("official", max_prompt=12))),
    )
    end = template("multi_news").split("{context}")[1]
    assert wide["input"] != template("multi_news").format(**item)
    assert wide["input"][wide["question_at"] :] == end
    context, question = record_parts(tokenizer, wide)
    assert tokenizer.decode(context, skip_special_tokens=True).endswith(
        wide["input"][20 : wide["question_at"]]
    )
    assert tokenizer.decode(question).startswith(end)
    assert narrow["question_at"] == 0
    with pytest.raises(UserError, match="multi_news names no place where its question begins"):
        record_parts(tokenizer, narrow)


def test_the_first_samples_are_taken_and_fewer_are_known_to_be_fewer(tokenizer) -> None:
    every = list(build("narrativeqa", FOLDER, tokenizer, OFFICIAL))
    assert [record["planned"] for record in every] == [200] * 3
    two = list(build("narrativeqa", FOLDER, tokenizer, OFFICIAL, samples=2))
    assert [record["planned"] for record in two] == [2, 2]
    assert [record["input"] for record in two] == [record["input"] for record in every[:2]]
    many = list(build("narrativeqa", FOLDER, tokenizer, OFFICIAL, samples=500))
    assert [record["planned"] for record in many] == [200] * 3


def test_more_records_than_the_benchmark_has_are_left_out(tokenizer, tmp_path) -> None:
    items = [{"context": f"text {i}", "input": "why?", "answers": ["so"]} for i in range(160)]
    records = list(
        build("multifieldqa_en", written(tmp_path, "multifieldqa_en", *items), tokenizer, OFFICIAL)
    )
    assert len(records) == 150
    assert [record["sample"] for record in records] == list(range(150))
    assert "text 149\n" in records[-1]["input"]


def test_nothing_is_read_beyond_the_samples_asked_for(tokenizer, tmp_path) -> None:
    source = written(tmp_path, "qasper", *raw("qasper")[:2], b"{ not read")
    assert len(list(build("qasper", source, tokenizer, OFFICIAL, samples=2))) == 2
    with pytest.raises(UserError, match="line 3: not a JSON record"):
        list(build("qasper", source, tokenizer, OFFICIAL, samples=3))


def test_a_prompt_too_long_for_the_model_names_what_fits(tokenizer, tmp_path) -> None:
    options = {"context": 150, "max_new_tokens": 40}
    with pytest.raises(
        UserError,
        match=r"narrativeqa\.jsonl, line 1: a prompt of \d+ tokens and 40 to generate exceed .* of 150",
    ) as error:
        list(build("narrativeqa", FOLDER, tokenizer, OFFICIAL, **options))
    most = int(re.search(r"set max_prompt to at most (\d+)$", str(error.value))[1])
    assert 80 <= most <= 110  # 150 less 40, less the template and what the seam may add
    records = list(build("narrativeqa", FOLDER, tokenizer, Protocol("official", max_prompt=most), **options))
    assert all(record["prompt_tokens"] + 40 <= 150 for record in records)
    with pytest.raises(UserError, match=r"512 to generate exceed .* of 150; cap the new tokens, or take a"):
        list(build("gov_report", FOLDER, tokenizer, OFFICIAL, context=150))


def test_the_hub_mirrors_form_gives_the_same_records(tokenizer, tmp_path) -> None:
    for task in ("trec", "narrativeqa", "lcc"):
        items = raw(task)
        for item, text in zip(items, (str, json.dumps, list), strict=False):
            item["question"] = item.pop("input")
            item["answers"] = text(item["answers"])
            item["all_classes"] = item["all_classes"] and text(item["all_classes"])
        made = list(build(task, written(tmp_path, task, *items), tokenizer, OFFICIAL))
        assert made == list(build(task, FOLDER, tokenizer, OFFICIAL))


# Sources.


def test_a_zip_gives_what_its_folder_gives(tokenizer, tmp_path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for task in TASKS:
            archive.write(FIXTURES / f"{task}.jsonl", f"data/{task}.jsonl")
        archive.writestr("data/qasper_e.jsonl", "{}")
    for task in TASKS:
        assert list(build(task, f"zip:{path}", tokenizer, OFFICIAL)) == list(
            build(task, FOLDER, tokenizer, OFFICIAL)
        )
    assert list(tmp_path.iterdir()) == [path]
    places = [place for place, _ in sources.records(f"zip:{path}", "qasper")]
    assert places == [f"{path}, data/qasper.jsonl, line {number}" for number in (1, 2, 3)]


def zipped(folder: Path, *members: tuple[str, bytes]) -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_zip_that_cannot_be_used_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no such zip file: .*gone\.zip; correct the path, or set another"):
        sources.records(f"zip:{tmp_path / 'gone.zip'}", "qasper")
    (tmp_path / "text.zip").write_text("no zip", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.zip is not a zip file"):
        sources.records(f"zip:{tmp_path / 'text.zip'}", "qasper")
    with pytest.raises(UserError, match=r"data\.zip holds no qasper\.jsonl; it must hold one qasper\.jsonl"):
        sources.records(f"zip:{zipped(tmp_path, ('data/trec.jsonl', b'{}'))}", "qasper")
    two = zipped(tmp_path, ("a/qasper.jsonl", b"{}"), ("b/qasper.jsonl", b"{}"))
    with pytest.raises(UserError, match=r"holds a/qasper\.jsonl and b/qasper\.jsonl; it must hold one"):
        sources.records(f"zip:{two}", "qasper")
    path = zipped(tmp_path, ("data/qasper.jsonl", b'{"context": "damage comes to this line"}\n'))
    path.write_bytes(path.read_bytes().replace(b"damage", b"DAMAGE", 1))
    with pytest.raises(UserError, match=r"data/qasper\.jsonl: cannot be unpacked \(Bad CRC-32"):
        list(sources.records(f"zip:{path}", "qasper"))
    path = zipped(tmp_path, ("data/qasper.jsonl", b"{}\n[1]\n"))
    with pytest.raises(UserError, match=r"data/qasper\.jsonl, line 2: expected a JSON object, found list"):
        list(sources.records(f"zip:{path}", "qasper"))


@pytest.mark.parametrize("source", ["", "data", "folder:", "zip:", "hub:", "hub:name", "hub:a/b/c", "ftp:x"])
def test_other_sources_are_refused(source: str, tokenizer) -> None:
    with pytest.raises(
        UserError, match=rf"unknown data source '{source}'; allowed: folder:PATH, zip:PATH, hub"
    ):
        build("qasper", source, tokenizer, OFFICIAL)


def from_hub(folder: Path, source: str, **environment: str) -> tuple[str, float]:
    """What a process of its own prints that reads a source, and the seconds it took after importing."""
    script = (
        "import sys, time, datasets\n"
        "from lkv.bench import sources\n"
        "from lkv.errors import UserError\n"
        "start = time.monotonic()\n"
        "try: print(*sources.records(sys.argv[1], 'qasper'), sep='\\n')\n"
        "except UserError as error: print(error)\n"
        "print(time.monotonic() - start)\n"
    )
    hub = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    done = subprocess.run(
        [sys.executable, "-c", script, source],
        env={**hub, "HF_HOME": str(folder / "hub"), "PYTHONPATH": str(ROOT), **environment},
        cwd=folder, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    text, _, seconds = done.stdout.strip().rpartition("\n")
    return text, float(seconds)


@pytest.mark.parametrize("hub", ["switched off", "refused", "silent"])
def test_a_hub_out_of_reach_is_said_at_once(hub: str, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        port = server.getsockname()[1] if hub == "silent" else 9
        environment = {"HF_HUB_OFFLINE": "1"} if hub == "switched off" else {}
        text, seconds = from_hub(
            tmp_path, "hub:Owner/Name", HF_ENDPOINT=f"http://127.0.0.1:{port}", **environment
        )
    assert re.fullmatch(
        r"cannot read qasper of Owner/Name from the hub \(\w+: .+\); download the data and set folder:PATH "
        r"or zip:PATH",
        text,
    )
    assert seconds < 12  # `datasets` alone retries for twice as long


@contextmanager
def little_hub(tasks: dict[str, bytes]):
    """A server that answers as the hub does for one data set; yields its address and the paths asked for."""
    commit, asked = "c0ffee" + "0" * 34, []
    readme = "---\nconfigs:\n" + "".join(
        f"- config_name: {task}\n  data_files:\n  - split: test\n    path: {task}/test.parquet\n"
        for task in tasks
    )
    files = {
        "README.md": f"{readme}---\n".encode(),
        **{f"{task}/test.parquet": data for task, data in tasks.items()},
    }

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *ignored) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            body = None
            if found := re.fullmatch(r"/datasets/Owner/Name/resolve/[^/]+/(.+)", path):
                body = files.get(found[1])
            elif "/tree/" in path:
                entries = [
                    {"type": "file", "oid": "1" * 40, "size": len(data), "path": name}
                    for name, data in files.items()
                    if name.startswith(path.rpartition("/")[2])
                ]
                body = json.dumps(entries).encode()
            elif path.startswith("/api/datasets/Owner/Name"):
                body = json.dumps({"id": "Owner/Name", "sha": commit, "siblings": [], "tags": []}).encode()
            asked_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            self.send_response(404 if body is None else 206 if asked_range else 200)
            body = body or b""
            etag = fingerprint(body.hex())
            if asked_range:
                first, last = int(asked_range[1]), int(asked_range[2])
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
                body = body[first : last + 1]
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", commit, asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_hub_is_read_one_task_at_one_commit_and_offline_from_the_cache(tmp_path) -> None:
    import pyarrow
    from pyarrow import parquet

    def packed(rows: list[dict]) -> bytes:
        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        return stream.getvalue()

    rows = [{"question": item["input"], "answers": item["answers"]} for item in raw("qasper")]
    expected = [str((f"Owner/Name, qasper, row {number}", row)) for number, row in enumerate(rows, 1)]
    with little_hub({"qasper": packed(rows), "trec": packed([{"question": "?"}])}) as (
        address,
        commit,
        asked,
    ):
        text, _ = from_hub(tmp_path, "hub:Owner/Name@main", HF_ENDPOINT=address)
        assert text.splitlines() == expected
        assert "/api/datasets/Owner/Name/revision/main" in asked
        read = {path for path in asked if path.endswith(".parquet")}
        assert read == {f"/datasets/Owner/Name/resolve/{commit}/qasper/test.parquet"}
        # What a user does on a login node, for jobs on nodes without a network.
        subprocess.run(
            [sys.executable, "-c", "import datasets; datasets.load_dataset('Owner/Name', 'qasper')"],
            env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": address},
            cwd=tmp_path, capture_output=True, check=True, timeout=120,
        )  # fmt: skip
    text, _ = from_hub(tmp_path, "hub:Owner/Name", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert text.splitlines() == expected


# Bad input.

GOOD = {"context": "text", "input": "why?", "answers": ["so"], "all_classes": ["so", "not"], "_id": "1"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"context": "te', "line 2: not a JSON record in UTF-8"),
        (b'{"context": "\xe9"}', "line 2: not a JSON record in UTF-8 .*0xe9"),
        (b"", "line 2: not a JSON record in UTF-8"),
        (b"[" * 99999, "line 2: not a JSON record in UTF-8"),
        (["text"], "line 2: expected a JSON object, found list"),
        ({"context": "text", "answers": ["so"]}, "line 2: the record lacks input; give LongBench's own trec"),
        ({"input": "why?"}, "line 2: the record lacks context, answers"),
        ({**GOOD, "context": None}, "line 2: the record lacks context"),
        ({**GOOD, "context": 3}, "line 2: context and input must be texts"),
        ({**GOOD, "input": ["why?"]}, "line 2: context and input must be texts"),
        ({**GOOD, "answers": []}, "line 2: answers must be a list of texts, none of them empty"),
        ({**GOOD, "answers": [""]}, "line 2: answers must be a list of texts, none of them empty"),
        ({**GOOD, "answers": ["so", " \n"]}, "line 2: answers must be a list of texts, none of them empty"),
        ({**GOOD, "answers": [7]}, "line 2: answers must be a list of texts"),
        ({**GOOD, "answers": "so"}, "line 2: answers must be a list of texts"),
        ({**GOOD, "answers": "[1, 2"}, "line 2: answers must be a list of texts"),
        ({**GOOD, "all_classes": None}, "line 2: all_classes must be a list of texts; trec is"),
        ({**GOOD, "all_classes": "so"}, "line 2: all_classes must be a list of texts"),
        ({**GOOD, "dataset": "qasper"}, "line 2: the record is of 'qasper', not of 'trec'; is the file"),
        ({**GOOD, "context": "\ud800"}, r"line 2: .*half a character"),
        (GOOD, r"line 2: the same record as .*trec\.jsonl, line 1 \(1\); keep one of them"),
    ],
)  # fmt: skip
def test_a_bad_record_is_named_by_its_line(line, message: str, tokenizer, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    source = written(tmp_path / "in", "trec", GOOD, line)
    with pytest.raises(UserError, match=rf"^\S*trec\.jsonl, {message}") as error:
        freeze(tmp_path / "out" / "trec.jsonl", build("trec", source, tokenizer, OFFICIAL))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_records_without_an_id_are_told_apart_by_their_texts(tokenizer, tmp_path) -> None:
    bare = {name: GOOD[name] for name in ("context", "input", "answers")}
    source = written(tmp_path, "qasper", bare, {**bare, "input": "how?"})
    assert len(list(build("qasper", source, tokenizer, OFFICIAL))) == 2
    source = written(tmp_path, "qasper", bare, {**bare, "answers": ["other"]})
    with pytest.raises(UserError, match=r"line 2: the same record as .*line 1"):
        list(build("qasper", source, tokenizer, OFFICIAL))


def test_bad_requests_are_refused_before_the_first_record(tokenizer, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"unknown LongBench task 'qaspar' \(did you mean 'qasper'\?\); known: n"
    ):
        build("qaspar", FOLDER, tokenizer, OFFICIAL)
    with pytest.raises(UserError, match=r"LongBench's samples is 0; it must be 1 or more"):
        build("qasper", FOLDER, tokenizer, OFFICIAL, samples=0)
    with pytest.raises(UserError, match=r"LongBench's max_new_tokens is -1; it must be 1 or more"):
        build("qasper", FOLDER, tokenizer, OFFICIAL, max_new_tokens=-1)
    with pytest.raises(UserError, match=r"LongBench's max_prompt is 1; it must be 2 or more"):
        build("qasper", FOLDER, tokenizer, Protocol("official", max_prompt=1))
    with pytest.raises(
        UserError, match=r"\S+ has no qasper\.jsonl; put the file there, or set another source"
    ):
        build("qasper", f"folder:{tmp_path}", tokenizer, OFFICIAL)
    with pytest.raises(
        UserError, match=r"gone is no folder; put the file there, or set another source: folder:"
    ):
        build("qasper", f"folder:{tmp_path / 'gone'}", tokenizer, OFFICIAL)


def test_an_empty_file_is_no_benchmark(tokenizer, tmp_path) -> None:
    (tmp_path / "qasper.jsonl").touch()
    with pytest.raises(
        UserError, match=r"folder:\S+ has no record of qasper; give LongBench's qasper\.jsonl"
    ):
        list(build("qasper", f"folder:{tmp_path}", tokenizer, OFFICIAL))


def test_texts_are_filled_in_at_their_places() -> None:
    prompt, end = fill("qmsum", "the talk", "What?")
    assert prompt.endswith(f"\n\nTranscript:\nthe talk{end}")
    assert end.startswith("\n\nNow, answer the query") and end.endswith("\n\nQuery: What?\nAnswer:")
