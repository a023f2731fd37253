"""The campaign's cases, further: single wrong values in files that are otherwise good, and wrong words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bad_files import command
from bad_input import HUGE, Case, also, content, fifo, folder, key, line, lines, removed

# A field of a frozen benchmark record or training prompt, and what it must not be.
RECORD = {
    "benchmark": (3, None, "", "rule"),
    "task": (3, ""),
    "length": ("x", -1, 1.5, HUGE, True),
    "sample": (-1, "a", None),
    "planned": (0, "2", HUGE),
    "haystack": (None, 1),
    "protocol": ({}, ""),
    "question_aware": (1, "yes", None),
    "template": ("none", 0),
    "input": (3, "", ["x"], None),
    "question_at": (-1, "x", 2.0),
    "answer_prefix": (None, 5),
    "outputs": ("x", [1], None),
    "classes": (None, [3]),
    "metric": (7, "al"),
    "max_new_tokens": (0, -3, "8", HUGE, 1.5),
    "stops": ("x", [None]),
    "min_new_tokens": ("x", -1),
}
PROMPT = {
    "id": ("x", -1, None),
    "kind": (5, ""),
    "length": ("x", 0, 63, -1),
    "ids": ("x", [1.5], [-1], ["a"], [HUGE], [999_999], [True] * 64, None, {}, [[1]], []),
    "response": ("x", [-1], [999_999], None, ["a"]),
}
QUESTION = {
    "question_id": (None, [], 1.5),
    "category": (3, None),
    "turns": ("x", ["one"], [1, 2], ["a", ""], None, ["a", "b", "c"]),
}
REFERENCE = {
    "choices": ("x", [], [{}], [{"turns": "x"}], [{"turns": [1, 2]}], [5], {}),
    "question_id": (None,),
}
ANSWER = {
    "turns": ("x", ["one"], [1, 2], None),
    "questions": (["a"], "x"),
    "reference": ("x", [1], None),
    "kept_mean": ("x", [1], ["a", "b"], []),
    "new_tokens": (5, ["x", 1]),
    "sample": (-1, "x"),
    "planned": (0, None),
    "budget": ("x", -1),
    "model": (None, ""),
    "protocol": (3,),
}
LONGBENCH = {
    "context": (5, None),
    "input": (["x"], None),
    "answers": ("x", [], [""], [1], None),
    "all_classes": ("x", 5),
    "dataset": ("trec", 5),
}
PREDICTION = {"pred": (5, None, ["x"]), "answers": ("x", [], [1], None), "all_classes": ("x", 5)}
READY = {
    "context": ("", 5, None),
    "question": ("", ["x"]),
    "answer": ("x", [], [""], [1], None),
    "task": ("qa_9", 5),
    "max_new_tokens": (0, -1, "x", 1.5, HUGE, "9" * 5000),
}
CHAT = {"messages": ("x", [5], [{"role": "user"}], [{"role": 1, "content": "x"}], None)}
LINES = {
    "ruler.jsonl": ("evaluate", RECORD),
    "train.jsonl": ("train", PROMPT),
    "questions.jsonl": ("mtbench", QUESTION),
    "references.jsonl": ("mtbench", REFERENCE),
    "answers.jsonl": ("judge", ANSWER),
    "longbench/qasper.jsonl": ("data longbench", LONGBENCH),
    "pred/qasper.jsonl": ("score longbench", PREDICTION),
    "ready/512.jsonl": ("data ready", READY),
    "chats.jsonl": ("data sources", CHAT),
}
FREE = [("longbench/qasper.jsonl", name) for name in ("all_classes", "dataset")]  # may be left out
# Values in JSON files, at a path of keys.
PAGES = "longproc/html_to_tsv/html_to_tsv_0.5k.json"
VALUES = [
    ("arms", "adapter/lookahead.json", ("tokens",), (0, -3, "32", None, HUGE, 1.5)),
    ("arms", "adapter/lookahead.json", ("base_model",), (None, [], "x", {}, {"name": 5})),
    ("arms", "adapter/lookahead.json", ("held_out_recall",), ("x", [])),
    ("arms", "adapter/lookahead.json", ("steps",), ("x", -1)),
    ("evaluate", "ruler.json", ("sha256",), (None, 5, "", [], "0" * 64)),
    ("train", "train.json", ("mixture",), (5, "log", [1])),
    ("train", "train.json", ("sources",), (5, "x", [1], {})),
    ("train", "train.json", ("answers",), (5, "x", [1])),
    ("table", "results/provenance.json", ("config",), (5, "x", [1], {"ablation": 5}, {"train": "x"})),
    ("table", "results/provenance.json", ("config", "ablation"), ({"beside": 5}, {"beside": [5]}, [1])),
    ("table", "results/provenance.json", ("adapters",), (5, [1], {"a": 5})),
    ("table", "results/provenance.json", ("device",), (5, ["x"], {})),
    ("data squad", "squad.json", ("data",), (5, "x", [5], [{}], [{"paragraphs": 5}])),
    ("data squad", "squad.json", ("data", 0, "paragraphs", 0, "context"), (5, None, [], "")),
    ("data squad", "squad.json", ("data", 0, "paragraphs", 0, "qas"), (5, "x", [5], [{}])),
    ("data squad", "squad.json", ("data", 0, "paragraphs", 0, "qas", 0, "question"), (5, None, "")),
    (
        "data squad",
        "squad.json",
        ("data", 0, "paragraphs", 0, "qas", 0, "answers"),
        (5, "x", [], [{}], [{"text": 5}]),
    ),
    ("data hotpot", "hotpot.json", (0,), (5, "x", [], {})),
    ("data hotpot", "hotpot.json", (0, "question"), (5, None)),
    ("data hotpot", "hotpot.json", (0, "answer"), (5, None, [])),
    (
        "data hotpot",
        "hotpot.json",
        (0, "context"),
        (5, "x", [], [5], [["Oak"]], [["Oak", [5]]], [[5, ["x"]]]),
    ),
    ("data hotpot", "hotpot.json", (0, "supporting_facts"), (5, [5], [["Oak"]])),
    ("data essays", "essays.json", ("text",), (5, None, "", [], " ")),
    ("data longproc", PAGES, (0,), (5, "x", [])),
    ("data longproc", PAGES, (0, "gt"), (5, "", None)),
    (
        "data longproc",
        PAGES,
        (0, "html_path"),
        (
            5,
            "",
            None,
            "../../../tiny.yaml",
            "/etc/passwd",
            "html_to_tsv/../../../tiny.yaml",
            "a\0b",
            "~nosuchuser/x",
            "html_to_tsv",
            "gone.html",
        ),
    ),
    ("generate", "model/model.json", ("name",), (5, "", None, [])),
    (
        "generate",
        "model/model.json",
        ("sha256",),
        (5, "x", [1], {"model.safetensors": 5}, {"gone": "0" * 64}),
    ),
    ("generate", "model/model.json", ("fingerprint",), (5, None)),
    ("data ruler", "model/model.json", ("max_prompt",), ("x", -5, 1.5)),
    ("data longbench", "model/model.json", ("context",), ("x", -5, 1.5)),
]
TEMPLATES = (
    "{html_str} {task_topic:>999999999}",
    "{html_str} {task_topic.__class__}",
    "{html_str} {0}",
    "{html_str} {",
    "{html_str} }",
    "{html_str} {nothing}",
    "{html_str} {task_topic!r}",
    "{html_str}{html_str}",
    "no page",
    "",
    "{html_str} {task_topic[0]}",
)


def line_cases() -> Iterator[Case]:
    for file, (verb, fields) in LINES.items():
        for name, values in fields.items():
            if (file, name) not in FREE:
                yield Case(f"{file} lacks {name}", command(verb), Path(file).name, {file: line(name, ...)})
            for value in values:
                what = f"{file} holds {str(value)[:40]!r} ({type(value).__name__}) as {name}"
                yield Case(what, command(verb), Path(file).name, {file: line(name, value)})


def value_cases() -> Iterator[Case]:
    for verb, file, places, values in VALUES:
        for value in values:
            says = file.partition("/")[0] if file.startswith(("model", "longproc")) else Path(file).name
            what = f"{verb}: {file} holds {str(value)[:40]!r} ({type(value).__name__}) at {places}"
            yield Case(what, command(verb), says, {file: key(*places, value=value)})
    prompts = "longproc/html_to_tsv/prompts.yaml"
    for text in TEMPLATES:
        change = {prompts: key("USER_PROMPT", value=text)}
        yield Case(f"LongProc's prompt is {text}", command("data longproc"), "prompts.yaml", change)
    for text in ("{question_1:>999999999}", "{", "{gone}", "{question_1.__class__}"):
        wording = {"wordings.jsonl": line("prompt_template", text)}
        yield Case(f"the judge's prompt is {text}", command("judge wordings"), "single-v1", wording)


def word_cases() -> Iterator[Case]:
    """Wrong words on the command line, where the files are good."""
    sources = '--sources {"name":"c","schema":"messages","data":%s,"count":%s}'
    words = {
        "evaluate": [
            ("--model prompt.txt", "model.json|prompt.txt"),
            ("--model nowhere", "model.json"),
            ("--data out", "out"),
            ("--data prompt.txt", "prompt"),
            ("--data train.jsonl", "train.jsonl"),
            ("--study \ud800", "study"),
            ("--out a\0b", "out"),
            ("--journal a\0b", "journal"),
            ("--adapter prompt.txt", "lookahead.json"),
            ("--adapter model", "lookahead.json"),
            ("--methods speckv", "draft"),
            ("--methods speckv --draft nowhere", "model.json"),
            ("--arms a", "a"),
            ("--arms a=adapter,kernel=²", "kernel"),
            ("--arms a=adapter,kernel=٣", "kernel"),
            ("--arms a=adapter,beside=-1", "beside"),
            ("--arms =", "lookahead.json"),
            ("--kernel 99999", "kernel"),
            ("--arms a=adapter,kernel=" + "9" * 5000, "kernel"),
            ("--budgets 5", "budget"),
            ("--device cpu:9", "device"),
            ("--dtype int8", "dtype"),
            ("--temperatures -1", "temperatures"),
        ],
        "data sources": [
            (sources % ('"file:~nosuchuser/x.jsonl"', 2), "~nosuchuser"),
            (sources % ('"file:out"', 2), "out"),
            (sources % ('"file:"', 2), "file:"),
            (sources % ('"ftp://x"', 2), "ftp"),
            (sources % ("5", 2), "data"),
            (sources % ('"file:chats.jsonl"', '"2"'), "count"),
            (sources % ('"file:chats.jsonl"', "1e3"), "count"),
            (sources % ('"file:chats.jsonl"', "0"), "count"),
            (sources % ('"file:chats.jsonl"', HUGE), "count"),
            (sources % ('["file:chats.jsonl",5]', 2), "data"),
            (sources % ("[]", 2), "data"),
            (sources % ('"file:prompt.txt"', 2), "prompt.txt"),
            (sources % ('"file:gone*"', 2), "gone"),
            ("--sources []", "source"),
            ("--sources " + "[" * 9000, "source"),
            ("--sources {}", "name"),
            ("--sources 5", "source"),
            ("--max-tokens 0", "max-tokens"),
            ('--sources {"name":5,"schema":"text","data":"x","count":1}', "name"),
            ('--sources {"name":"c","schema":"gone","data":"x","count":1}', "schema"),
            ('--sources {"name":"c","schema":"text","data":"file:chats.jsonl","count":1}', "content"),
        ],
        "data train": [
            ("--mixture log=nan", "log=nan"),
            ("--mixture log=inf", "log=inf"),
            ("--mixture log=-1", "log=-1"),
            ("--mixture log=1e308", "1e308"),
            ("--mixture =1", "mixture|kind"),
            ("--mixture log=²", "log"),
            ("--lengths 1", "length|short"),
            ("--lengths 9999999", "context"),
            ("--response-tokens 9999999", "context"),
        ],
        "data ruler": [
            ("--length 10", "length|tokens"),
            ("--max-new-tokens 0", "max-new"),
            ("--task gone", "task"),
            ("--model prompt.txt", "prompt.txt"),
            ("--protocol gone", "protocol"),
        ],
        "data essays": [
            ("--haystack ~nosuchuser/e", "nosuchuser"),
            ("--haystack out", "out"),
            ("--haystack e.json", "e.json"),
            ("--haystack essays.json#sha256=00", "essays.json"),
        ],
        "data ready": [
            ("--ready folder:~nosuchuser/x", "~nosuchuser"),
            ("--ready folder:", "ready"),
            ("--ready folder:prompt.txt", "prompt.txt"),
            ("--ready zip:x", "ready"),
            ("--ready hub:", "ready"),
            ("--length 513", "513"),
            ("--task qa_2", "qa_2"),
        ],
        "data longbench": [
            ("--source folder:~nosuchuser/x", "~nosuchuser"),
            ("--source zip:~nosuchuser/x", "~nosuchuser"),
            ("--source zip:prompt.txt", "prompt.txt"),
            ("--source zip:out", "out"),
            ("--source folder:", "source"),
            ("--source folder:prompt.txt", "prompt.txt"),
            ("--source http://[::1", "source"),
            ("--task gone", "task"),
            ("--task lcc", "lcc"),
            ("--max-prompt 1", "max.prompt|prompt"),
        ],
        "data longproc": [
            ("--data-folder prompt.txt", "prompt.txt"),
            ("--data-folder ~nosuchuser/x", "nosuchuser"),
            ("--task html_to_tsv_2k", "html_to_tsv_2k"),
        ],
        "train": [
            ("--steps 1000000000000", "steps"),
            ("--learning-rate 1e308", "rate"),
            ("--learning-rate nan", "rate"),
            ("--tokens 1000000", "tokens"),
            ("--held-out 99", "held|prompts"),
            ("--batch 99", "batch"),
        ],
        "mtbench": [("--max-new-tokens 1000000", "context"), ("--questions out", "out")],
        "score ruler": [("--benchmark longbench", "predictions.csv")],
        "plan": [("--config out", "out"), ("--config gone", "gone"), ("--config prompt.txt", "prompt.txt")],
        "latency": [
            ("--repeats 1 2 3", "repeats"),
            ("--shape tiny.yaml", "shape"),
        ],
        "arms": [("--cards out", "out"), ("--cards model/model.json", "model.json")],
        "share": [("--adapter model", "lookahead.json"), ("--out adapter", "adapter")],
        "gather": [("--parts out", "out"), ("--parts samples.csv", "samples.csv"), ("gone", "gone")],
        "summarise": [("--parts samples.csv samples.csv", "samples|more than once")],
        "provenance": [
            ("--models nowhere", "model.json"),
            ("--data out", "out"),
            ("--adapters model", "lookahead.json"),
            ("--config out", "out"),
        ],
        "table": [("--results prompt.txt", "prompt.txt"), ("--results out", "accuracy.csv")],
        "plot latency": [("--only-model gone", "gone"), ("--results out", "latency.csv")],
        "claims": [("--results prompt.txt", "prompt.txt"), ("--also gone", "gone")],
        "generate": [
            ("--prompt-file out", "out"),
            ("--prompt-file /dev/zero", "/dev/zero"),
            ("--prompt-file gone", "gone"),
            ("--max-new-tokens 9999999", "context"),
            ("--method speckv --draft prompt.txt", "prompt.txt"),
        ],
        "judge": [
            ("--url http://[::1", "url"),
            ("--url gone", "url"),
            ("--url http://a:99999/", "url"),
            ("--url http://", "url"),
            ("--temperature nan", "temperature"),
            ("--temperature -1", "temperature"),
            ("--key-variable NO_SUCH_KEY", "NO_SUCH_KEY"),
            ("--answers out", "out"),
            ("--prompts out", "out"),
        ],
        "model": [
            ("--spec out", "out"),
            ("--spec gone.yaml", "gone.yaml"),
            ("--spec study.yaml", "study.yaml"),
        ],
    }
    for verb, given in words.items():
        for text, says in given:
            yield Case(f"{verb} {text[:70]}", f"{command(verb)} {text}", says)


def file_cases() -> Iterator[Case]:
    """Prompts and other plain files."""
    long_text = content("Rain fell on the harbour. " * 40_000)
    for kind, change in {
        "in Latin-1": content("Größe".encode("latin-1")),
        "too long": long_text,
        "a folder": folder,
        "a pipe": fifo,
        "gone": removed,
        "binary": content(b"\xff\x00\xfe" * 50),
    }.items():
        yield Case(f"the prompt is {kind}", command("generate"), "prompt|context", {"prompt.txt": change})
    twice = [{"question_id": 1, "category": "x", "turns": ["a", "b"]}] * 2
    yield Case(
        "a question twice", command("mtbench"), "twice", {"questions.jsonl": lambda p: lines(p, twice)}
    )
    page = "longproc/html_to_tsv/page.html"
    for kind, change in {
        "a pipe": fifo,
        "gone": removed,
        "no UTF-8": content(b"\xff"),
        "a folder": folder,
    }.items():
        yield Case(f"LongProc's page is {kind}", command("data longproc"), "page.html", {page: change})
    prompts = "longproc/html_to_tsv/prompts.yaml"
    for kind, change in {
        "gone": removed,
        "no YAML": content("a: ["),
        "a list": content("[1]"),
        "empty": content(""),
    }.items():
        yield Case(
            f"LongProc's prompts are {kind}", command("data longproc"), "prompts.yaml", {prompts: change}
        )
    yield Case(
        "a folder of predictions without any",
        command("score longbench"),
        "pred",
        {"pred/qasper.jsonl": also(removed)},
    )
