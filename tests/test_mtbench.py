"""Promises of MT-Bench: two turns on an evicted cache, and a judge that is asked once for each rating."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import observed
from test_engine import hybrid
from torch import Tensor

from lkv import registry
from lkv.bench.mtbench import questions as mtbench
from lkv.bench.mtbench import requests
from lkv.bench.mtbench.judge import judge, to_samples, write_samples
from lkv.bench.mtbench.requests import Judge, rating
from lkv.cli.main import main
from lkv.errors import UserError
from lkv.eviction.extend import extend
from lkv.eviction.pipeline import observe
from lkv.eviction.prefill import prefill
from lkv.eviction.select import select
from lkv.files.json_files import read_jsonl, write_jsonl
from lkv.interface import Answering, Method
from lkv.lookahead.adapter import LookaheadKV
from lkv.measure.mtbench import answers
from lkv.model.attention import SDPA
from lkv.model.chat_template import chat_ids, chat_text, conversation_text
from lkv.model.load import Loaded, stop_ids
from lkv.model.random_weights import tiny_tokenizer
from lkv.results.columns import JUDGEMENT_COLUMNS, SAMPLE_COLUMNS
from lkv.results.csv_files import read_csv
from lkv.results.journal import Journal
from lkv.results.summarise import summarise

TOKENIZER = tiny_tokenizer()
NEW = 12
QUESTIONS = [
    {
        "question_id": 201,
        "category": "writing",
        "turns": [
            "Write two lines about the sea, one about a harbour at night, and one about gulls over the pier.",
            "Now say the same without any adjective, and begin each line with a verb.",
        ],
    },
    {
        "question_id": 202,
        "category": "math",
        "turns": ["A box holds 12 pens; four boxes are full. How many pens?", "And with one box less?"],
        "reference": ["48 pens.", "36 pens."],
    },
    {
        "question_id": 203,
        "category": "reasoning",
        "turns": ["Ann is older than Bob. Who is younger?", "Why is that so?"],
        "reference": ["Bob.", ""],
    },
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "question.jsonl", QUESTIONS)
    return tmp_path / "question.jsonl"


def loaded(model: Any) -> Loaded:
    return Loaded(model, TOKENIZER, "tiny", "0123", stop_ids(model, TOKENIZER))


def every_method(model: Any) -> list[Method]:
    adapter = LookaheadKV.create(model, tokens=8, seed=3)
    return [registry.get(name, adapter) for name in registry.METHODS if name != "speckv"]


def run(
    model: Any,
    questions: Path,
    methods: list[Method],
    budgets: list[int],
    to: Path,
    samples: int = 3,
    **given: Any,
) -> tuple[dict[tuple[int, str, int], dict[str, Any]], bytes]:
    """((question, method, budget) → journal cell, the answers' file)."""
    asked = mtbench.load_questions(questions, samples)
    settings = {"max_new_tokens": NEW, "study": "s", "seed": 5, **given}
    answers(loaded(model), asked, methods, budgets, journal_path=to / "j", out=to / "a.jsonl", **settings)
    cells = Journal(to / "j").cells.values()
    return {(c["question_id"], c["method"], c["budget"]): c for c in cells}, (to / "a.jsonl").read_bytes()


# Questions and templates


def test_questions_are_read_in_order_with_their_references(questions: Path, tmp_path: Path) -> None:
    first, second, third = mtbench.load_questions(questions)
    assert [q["question_id"] for q in (first, second, third)] == [201, 202, 203]
    assert [q["sample"] for q in (first, second, third)] == [0, 1, 2]
    assert first["turns"] == QUESTIONS[0]["turns"] and first["reference"] == [] and first["planned"] == 80
    assert second["reference"] == ["48 pens.", "36 pens."]
    assert [q["planned"] for q in mtbench.load_questions(questions, 2)] == [2, 2]
    gpt4 = [{"question_id": 202, "choices": [{"index": 0, "turns": ["12 x 4 = 48", "12 x 3 = 36"]}]}]
    write_jsonl(tmp_path / "gpt-4.jsonl", gpt4)
    known = mtbench.load_questions(questions, references=tmp_path / "gpt-4.jsonl")
    assert known[1]["reference"] == ["12 x 4 = 48", "12 x 3 = 36"] and known[2]["reference"] == ["Bob.", ""]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"question_id": 1, "category": "math"}, "line 2 lacks turns"),
        ({"question_id": 1, "category": "math", "turns": ["one"]}, "line 2: turns must be two"),
        ({"question_id": 1, "category": "math", "turns": ["one", " "]}, "line 2: turns must be two"),
        (
            {"question_id": 1, "category": "math", "turns": ["a", "b"], "reference": ["c"]},
            "line 2: reference",
        ),
        ({"question_id": 201, "category": "math", "turns": ["a", "b"]}, "line 2: question 201 occurs twice"),
    ],
)
def test_bad_questions_are_named_by_line(tmp_path: Path, line: dict[str, Any], why: str) -> None:
    write_jsonl(tmp_path / "q.jsonl", [QUESTIONS[0], line])
    with pytest.raises(UserError, match=why):
        mtbench.load_questions(tmp_path / "q.jsonl")


def test_files_that_are_no_questions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(UserError, match="has no questions"):
        mtbench.load_questions(tmp_path / "q.jsonl")
    with pytest.raises(UserError, match="samples is 0"):
        mtbench.load_questions(tmp_path / "q.jsonl", 0)
    write_jsonl(tmp_path / "q.jsonl", QUESTIONS)
    write_jsonl(tmp_path / "r.jsonl", [{"question_id": 202, "choices": []}])
    with pytest.raises(UserError, match=r"r\.jsonl, line 1: choices"):
        mtbench.load_questions(tmp_path / "q.jsonl", references=tmp_path / "r.jsonl")


HEAD = "{% for m in messages %}<|{{ m['role'] }}|>"
OPEN = "{% if add_generation_prompt %}<|assistant|>"
TEMPLATES = {
    "plain": (HEAD + "{{ m['content'] }}<|end|>{% endfor %}" + OPEN + "{% endif %}", ""),
    "trims contents": (HEAD + "{{ m['content'] | trim }}<|end|>{% endfor %}" + OPEN + "{% endif %}", ""),
    "opens answers with empty thoughts": (
        HEAD + "{{ m['content'] }}<|end|>{% endfor %}" + OPEN + "<t></t>\n{% endif %}",
        "<t></t>\n",
    ),
}


@pytest.mark.parametrize(("template", "opening"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_second_turn_goes_on_where_the_first_answer_ended(template: str, opening: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    after = mtbench.continuation(tokenizer, ["Who?", "Why?"])
    assert after == "<|end|><|user|>Why?<|end|><|assistant|>" + opening
    said = [("user", "Who?"), ("assistant", "Bob."), ("user", "Why?")]
    whole = conversation_text(tokenizer, [{"role": role, "content": text} for role, text in said])
    # the template's own conversation, but for what it writes only when an answer begins
    assert (chat_text(tokenizer, "Who?") + "Bob." + after).replace(opening + "Bob.", "Bob.") == whole


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages[-1:] %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>",
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}",
    ],
    ids=["forgets the history", "writes the beginning anew"],
)
def test_a_template_that_rewrites_the_first_turn_is_refused(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"writes the first turn anew|loses text"):
        mtbench.continuation(tokenizer, ["Who?", "Why?"])


# Two turns under eviction


def asked_ids(question: dict[str, Any]) -> tuple[list[int], list[int]]:
    after = mtbench.continuation(TOKENIZER, question["turns"])
    return chat_ids(TOKENIZER, question["turns"][0]), TOKENIZER(after, add_special_tokens=False).input_ids


def masked(model: Any, sequence: list[int], hidden: list[Tensor]) -> Tensor:
    """Logits [T, V] of transformers' eager attention over a sequence; hidden: bool [K, T, T] a layer."""
    total, heads = len(sequence), model.config.num_attention_heads
    causal = torch.ones(total, total, dtype=torch.bool).tril()

    def hide(layer: int) -> Any:
        gone = hidden[layer].repeat_interleave(heads // hidden[layer].shape[0], 0)
        mask = torch.zeros(1, heads, total, total).masked_fill(~causal | gone, float("-inf"))
        return lambda _m, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    hooks = [
        layer.self_attn.register_forward_pre_hook(hide(i), with_kwargs=True)
        for i, layer in enumerate(model.model.layers)
    ]
    model.set_attn_implementation("eager")
    try:
        return model(torch.tensor([sequence]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(SDPA)
        for hook in hooks:
            hook.remove()


def dropped(kept: list[Tensor], places: list[Tensor], rows: int, total: int) -> list[Tensor]:
    """bool [K, T, T] a layer: rows from `rows` on cannot see earlier places that were not kept."""
    hidden = []
    for index, place in zip(kept, places, strict=True):
        heads = index.shape[1]
        gone = torch.zeros(heads, total, total, dtype=torch.bool)
        for head in range(heads):
            before = torch.ones(rows, dtype=torch.bool)
            before[place[head][index[0, head]]] = False
            gone[head, rows:, :rows] = before
        hidden.append(gone)
    return hidden


@torch.no_grad()
def test_what_either_turn_dropped_stays_dropped(model: Any, questions: Path, tmp_path: Path) -> None:
    """Both answers are those of a full cache in which the dropped entries are masked: in each layer and KV
    head, turn one's from the first answer on, turn two's from the second."""
    budget = 40
    methods, stop = every_method(model), stop_ids(model, TOKENIZER)
    cells, _ = run(model, questions, methods, [budget], tmp_path, samples=1)
    first, rest = asked_ids(QUESTIONS[0])
    n, revived = len(first), False
    for method in methods:
        cell = cells[201, method.name, budget]
        one, two = cell["tokens"]
        prefilled, _ = prefill(model, torch.tensor([first]), method.rows, answering=Answering(stop, NEW, 5))
        kept = select(observe(prefilled, method, [budget])[0], method.recipe, budget, 2)
        assert kept is not None
        whole = extend(prefilled, kept, torch.tensor([one + rest]), method.rows)
        again = select(observe(whole, method, [budget])[0], method.recipe, budget, 2)
        assert again is not None
        m = whole.length
        assert (m, cell["prompt_tokens"]) == (n + len(one) + len(rest), [n, m])
        sequence = first + one + rest + two
        places = [torch.cat([k[0], torch.arange(n, m).expand(2, -1)], 1) for k in kept]
        everything = [torch.arange(n).expand(2, -1)] * len(kept)
        earlier = dropped(kept, everything, n, len(sequence))
        later = dropped(again, places, m, len(sequence))
        truth = (
            masked(model, sequence, [a | b for a, b in zip(earlier, later, strict=True)]).argmax(-1).tolist()
        )
        assert truth[n - 1 : n - 1 + len(one)] == one, method.name
        assert truth[m - 1 : m - 1 + len(two)] == two, method.name
        assert two != cells[201, "full", 0]["tokens"][1], "nothing of consequence was dropped"
        without = masked(model, sequence, [b & ~a for a, b in zip(earlier, later, strict=True)])
        revived |= without.argmax(-1).tolist()[m - 1 : m - 1 + len(two)] != two
    assert revived, "with turn one's entries back the answers were the same: the test would prove nothing"


def test_after_each_turn_the_stored_length_is_the_budget(model: Any, questions: Path, tmp_path: Path) -> None:
    methods, n = every_method(model), len(asked_ids(QUESTIONS[0])[0])
    cells, _ = run(model, questions, methods, [40, 150], tmp_path, samples=1)
    for method in methods:
        for budget, kept in ((40, [40, 40]), (150, [n, 150])):  # the first prompt alone fits 150
            cell = cells[201, method.name, budget]
            assert cell["kept_mean"] == kept, method.name
            # keys and values, float32, 3 layers, 2 heads of 16
            assert cell["kept_bytes"] == [2 * 4 * 3 * 2 * 16 * entries for entries in kept]
    full = cells[201, "full", 0]
    assert full["kept_mean"] == full["prompt_tokens"] and full["prompt_tokens"][1] > 150 > n


def generated(model: Any, ids: list[int]) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, len(ids) :].tolist()
    return [token for token in out if token != 257]


@pytest.mark.parametrize("family", ["llama", "qwen3", "hybrid"])
def test_a_budget_that_holds_everything_gives_the_models_own_two_turns(
    questions: Path, tmp_path: Path, family: str
) -> None:
    model: Any = hybrid() if family == "hybrid" else observed(family)
    model.set_attn_implementation("eager")
    first, rest = asked_ids(QUESTIONS[0])
    one = generated(model, first)
    truth = [one, generated(model, first + one + rest)]
    model.set_attn_implementation(SDPA)
    cells, _ = run(model, questions, every_method(model), [1000], tmp_path, samples=1)
    assert len(cells) == 1 + len(every_method(model))
    for cell in cells.values():
        assert cell["tokens"] == truth, cell["method"]


def test_the_answers_file_is_stable_and_complete(questions: Path, tmp_path: Path) -> None:
    model = observed("llama")
    methods = [registry.get("snapkv"), registry.get("streamingllm")]
    cells, written = run(model, questions, methods, [40, 50], tmp_path)
    lines = mtbench.load_answers(tmp_path / "a.jsonl")
    assert [(a["question_id"], a["method"], a["budget"]) for a in lines] == list(cells)
    assert len(lines) == 3 * 5
    for line in lines:
        cell = cells[line["question_id"], line["method"], line["budget"]]
        question = next(q for q in QUESTIONS if q["question_id"] == line["question_id"])
        assert line["turns"] == [TOKENIZER.decode(t, skip_special_tokens=True) for t in cell["tokens"]]
        assert line["questions"] == question["turns"] and line["reference"] == question.get("reference", [])
        assert (line["study"], line["model"], line["planned"]) == ("s", "tiny", 3)
        assert line["protocol"] == f"official new_tokens<={NEW} greedy"
        assert line["new_tokens"] == [len(tokens) for tokens in cell["tokens"]]
    assert mtbench.label(1024) == "official greedy"
    assert run(model, questions, methods, [40, 50], tmp_path)[1] == written


def test_a_killed_run_goes_on_at_its_question(questions: Path, tmp_path: Path) -> None:
    model = observed("llama")
    methods = [registry.get("snapkv"), registry.get("random"), registry.get("oracle")]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    _, expected = run(model, questions, methods, [40], whole, samples=2)
    journal = (whole / "j").read_bytes()
    lines = journal.splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 4
    (cut / "j").write_bytes(b"".join(lines[:7]) + lines[7][:40])  # one question whole, one torn
    prompts: list[int] = []
    embed = model.get_input_embeddings()
    hook = embed.register_forward_pre_hook(lambda _m, args: prompts.append(args[0].shape[1]))
    _, resumed = run(model, questions, methods, [40], cut, samples=2)
    hook.remove()
    assert resumed == expected and (cut / "j").read_bytes() == journal
    assert len(asked_ids(QUESTIONS[0])[0]) not in prompts, "the finished question was asked again"
    assert len(asked_ids(QUESTIONS[1])[0]) in prompts


def test_a_new_budget_costs_its_own_cells_alone(questions: Path, tmp_path: Path) -> None:
    model = observed("llama")
    methods = [registry.get("snapkv"), registry.get("oracle")]
    before, _ = run(model, questions, methods, [40], tmp_path, samples=1)
    after, _ = run(model, questions, methods, [40, 60], tmp_path, samples=1)
    assert len(after) == len(before) + 2
    assert all(after[cell] == found for cell, found in before.items())
    again, _ = run(model, questions, methods, [40], tmp_path, samples=1, version=2)
    assert again[201, "snapkv", 40]["key"] != before[201, "snapkv", 40]["key"]


def test_what_cannot_fit_or_be_kept_is_refused_before_anything_runs(questions: Path, tmp_path: Path) -> None:
    model = observed("llama")
    with pytest.raises(UserError, match=r"question 201 may need .* context is 2048; lower max_new_tokens"):
        run(model, questions, [], [], tmp_path, max_new_tokens=1000)
    with pytest.raises(UserError, match="budget 16 is too small for snapkv"):
        run(model, questions, [registry.get("snapkv")], [16], tmp_path)
    assert not (tmp_path / "j").exists()


# The judge

Reply = tuple[int, dict[str, str], Any]
SOON = {"retry-after-ms": "5"}


class Endpoint:
    """A chat-completions endpoint of our own: remembers what was asked and answers as it is told."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked.append(body)
                    outer.keys.add(self.headers["Authorization"])
                    number = len(outer.asked)
                status, headers, content = reply(number, body)
                sent = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    headers = {"Content-Type": "application/json", "Content-Length": str(len(sent))} | headers
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                except BrokenPipeError:
                    pass  # the client was killed

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]


def said(text: str) -> Reply:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return 200, {}, {"id": "1", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice]}


@pytest.fixture
def endpoint() -> Iterator[Callable[[Callable[[int, dict[str, Any]], Reply]], Endpoint]]:
    made: list[Endpoint] = []

    def make(reply: Callable[[int, dict[str, Any]], Reply]) -> Endpoint:
        made.append(Endpoint(reply))
        return made[-1]

    yield make
    for one in made:
        one.close()


def answer(
    question: dict[str, Any], method: str = "snapkv", budget: int = 64, **changes: Any
) -> dict[str, Any]:
    name = question["question_id"]
    return {
        "study": "s",
        "model": "tiny",
        "protocol": "official greedy",
        "method": method,
        "budget": budget,
        "question_id": name,
        "category": question["category"],
        "sample": name - 201,
        "planned": 3,
        "questions": question["turns"],
        "reference": question.get("reference", []),
        "turns": [f" {method} {budget} says one of {name}\n", f"{method} {budget} says two of {name} {{x}}"],
        "kept_mean": [60.0, 64.0],
        "kept_bytes": [600, 640],
        "prompt_tokens": [60, 160],
        "new_tokens": [20, 30],
        **changes,
    }


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    lines = [answer(q, *cell) for q in QUESTIONS for cell in (("full", 0), ("snapkv", 64))]
    write_jsonl(tmp_path / "answers.jsonl", lines)
    return tmp_path / "answers.jsonl"


def by(one: Endpoint | str, **changes: Any) -> Judge:
    url = one if isinstance(one, str) else one.url
    return Judge(url, "grader-9", **{"key_variable": "none", "retries": 3, "timeout_s": 20.0, **changes})


def judged(folder: Path, by: Judge, **given: Any) -> tuple[Any, str]:
    notice = judge(folder / "answers.jsonl", by, folder / "judge.jsonl", folder / "judgements.csv", **given)
    return read_csv(folder / "judgements.csv", JUDGEMENT_COLUMNS), notice


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("[[7.5]] and later [[2]]", 7.5),
        ("see [3] ... Rating: [[8]]", 8.0),
        ("Rating: [6]", 6.0),
        ("<think>maybe [[2]]</think>It is fine: [[9]]", 9.0),
        ("I would say 7", None),
        ("[[rating]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("", None),
    ],
)
def test_a_rating_is_the_first_number_in_brackets_from_one_to_ten(reply: str, expected: float | None) -> None:
    assert rating(reply) == expected


def test_rows_hold_rating_judge_and_temperature(endpoint: Any, answered: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_KEY", " secret ")
    server = endpoint(
        lambda n, body: said("Fine: [[8]]" if "says two" in body["messages"][-1]["content"] else "[[3]]")
    )
    rows, notice = judged(answered.parent, by(server, key_variable="MY_KEY", temperature=0.3))
    assert notice == "" and len(rows) == 12 and server.keys == {"Bearer secret"}
    assert list(rows.columns) == list(JUDGEMENT_COLUMNS)
    assert set(rows["rating"][rows["turn"] == 1]) == {3} and set(rows["rating"][rows["turn"] == 2]) == {8}
    for column, value in {"judge": "grader-9", "temperature": 0.3, "prompt": "lkv-1", "status": "ok"}.items():
        assert set(rows[column]) == {value}
    assert list(zip(rows["question"], rows["method"], rows["budget"], rows["turn"], strict=True)) == [
        (str(q["question_id"]), *cell, turn)
        for q in QUESTIONS
        for cell in (("full", 0), ("snapkv", 64))
        for turn in (1, 2)
    ]
    assert {(body["model"], body["temperature"]) for body in server.asked} == {("grader-9", 0.3)}


def test_the_judge_sees_the_turn_its_context_and_the_reference(endpoint: Any, answered: Path) -> None:
    server = endpoint(lambda n, body: said("[[5]]"))
    judged(answered.parent, by(server), at_once=1)
    asked = dict(
        zip([(q, m, t) for q in (201, 202, 203) for m in "fs" for t in (1, 2)], server.questions, strict=True)
    )
    first, second = asked[202, "s", 1], asked[202, "s", 2]
    assert "How many pens?" in first and "snapkv 64 says one of 202\n" in first and "48 pens." in first
    assert "one box less" not in first and "36 pens." not in first and "says two" not in first
    for part in (
        "How many pens?",
        "says one of 202",
        "one box less",
        "says two of 202 {x}",
        "48 pens.",
        "36 pens.",
    ):
        assert part in second
    assert "COMPARISON 1\nBob." in asked[203, "f", 1]
    for unreferenced in (asked[203, "f", 2], asked[201, "f", 1]):  # one of two is missing; none for writing
        assert "COMPARISON" not in unreferenced


def test_fastchats_wording_is_read_from_its_file_and_named(endpoint: Any, answered: Path) -> None:
    plain, ref = "Q {question} A {answer}", " R {ref_answer_1}"
    both = "{question_1}|{answer_1}|{question_2}|{answer_2}"
    lines = [
        {"name": "pair-v2", "system_prompt": "", "prompt_template": "{unused}"},
        {"name": "single-v1", "system_prompt": "S1", "prompt_template": plain},
        {"name": "single-math-v1", "system_prompt": "S2", "prompt_template": plain + ref},
        {"name": "single-v1-multi-turn", "system_prompt": "S3", "prompt_template": both},
        {
            "name": "single-math-v1-multi-turn",
            "system_prompt": "S4",
            "prompt_template": both + ref + "{ref_answer_2}",
        },
    ]
    write_jsonl(answered.parent / "prompts.jsonl", lines)
    server = endpoint(lambda n, body: said("[[5]]"))
    rows, _ = judged(answered.parent, by(server), prompts=answered.parent / "prompts.jsonl", at_once=1)
    names = ["single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"]
    assert list(rows["prompt"]) == names[:2] * 2 + names[2:] * 2 + [names[2], names[1]] * 2
    assert server.questions[0] == f"Q {QUESTIONS[0]['turns'][0]} A full 0 says one of 201"
    assert server.questions[5].endswith(
        "|And with one box less?|full 0 says two of 202 {x} R 48 pens.36 pens."
    )
    assert server.asked[5]["messages"][0] == {"role": "system", "content": "S4"}
    samples = to_samples(rows.to_dict("records"), mtbench.load_answers(answered))
    assert {row["protocol"] for row in samples} == {
        "official greedy judge=grader-9 temperature=0 prompt=fastchat"
    }
    write_jsonl(answered.parent / "prompts.jsonl", lines[:2])
    with pytest.raises(UserError, match="lacks the prompts single-v1-multi-turn, single-math-v1"):
        judged(answered.parent, by(server), prompts=answered.parent / "prompts.jsonl")


def test_a_busy_judge_is_asked_again(endpoint: Any, answered: Path) -> None:
    def busy(number: int, body: dict[str, Any]) -> Reply:
        return {1: (503, SOON, {}), 2: (429, SOON, {}), 3: (500, SOON, {})}.get(number, said("[[4]]"))

    server = endpoint(busy)
    rows, _ = judged(answered.parent, by(server), at_once=1)
    assert set(rows["status"]) == {"ok"} and len(server.asked) == 3 + 12


def test_a_reply_without_a_rating_is_unparsed_and_not_zero(endpoint: Any, answered: Path) -> None:
    def mumbles(number: int, body: dict[str, Any]) -> Reply:
        return said("well" if "snapkv 64 says two of 201" in body["messages"][-1]["content"] else "[[4]]")

    server = endpoint(mumbles)
    rows, notice = judged(answered.parent, by(server))
    [unparsed] = rows[rows["status"] != "ok"].to_dict("records")
    assert (unparsed["question"], unparsed["turn"], unparsed["status"]) == ("201", 2, "unparsed")
    assert unparsed["rating"] != unparsed["rating"], "empty in the file"
    assert notice == "1 of 12 ratings unparsed; they have no score"
    assert len(server.asked) == 11 + requests.TRIES
    judged(answered.parent, by(server))
    assert len(server.asked) == 11 + requests.TRIES
    write_samples(answered.parent / "judgements.csv", answered, answered.parent / "samples.csv")
    samples = read_csv(answered.parent / "samples.csv", SAMPLE_COLUMNS)
    [row] = samples[samples["status"] != "ok"].to_dict("records")
    assert (row["sample"], row["method"], row["status"]) == (0, "snapkv", "unparsed")
    assert row["score"] != row["score"]


@pytest.mark.parametrize(
    ("reply", "said_of"),
    [((400, {}, {"error": {"message": "no"}}), "4 of 4 ratings failed"), (None, "4 of 4 ratings unparsed")],
)
def test_a_judge_without_a_single_rating_ends_in_one_line_and_exit_code_2(
    reply: Any, said_of: str, endpoint: Any, answered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = answered.parent
    write_jsonl(answered, list(read_jsonl(answered))[:2])
    server = endpoint(lambda number, body: reply or said("well"))
    files = [word for name in ("journal", "judgements", "out") for word in (f"--{name}", str(folder / name))]
    given = ["--answers", str(answered), "--url", server.url, "--model", "grader-9", "--key-variable", "none"]
    assert main(["judge", *given, *files]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lkv: ")]
    assert line.startswith(f"lkv: error: the judge gave no rating at all: {said_of}; ")
    assert not (folder / "judgements").exists() and not (folder / "out").exists()


def test_a_failed_row_alone_is_asked_again_by_the_next_run(endpoint: Any, answered: Path) -> None:
    broken = True

    def refuses(number: int, body: dict[str, Any]) -> Reply:
        bad = broken and "full 0 says two of 203" in body["messages"][-1]["content"]
        return (400, {}, {"error": {"message": "too long"}}) if bad else said("[[4]]")

    server = endpoint(refuses)
    rows, notice = judged(answered.parent, by(server))
    assert list(rows["status"]).count("failed") == 1
    assert notice == "1 of 12 ratings failed; run again to ask for them"
    assert "too long" in (answered.parent / "judge.jsonl").read_text()
    asked, broken = len(server.asked), False
    rows, notice = judged(answered.parent, by(server))
    assert set(rows["status"]) == {"ok"} and notice == "" and len(server.asked) == asked + 1


def test_nothing_is_asked_twice_after_a_kill_in_the_middle(endpoint: Any, answered: Path) -> None:
    held = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> Reply:
        if number == 5 and not held.is_set():
            held.wait(30)  # the client is killed while it waits for this one
        return said(f"[[{1 + number % 9}]]")

    server = endpoint(slow)
    folder = answered.parent
    code = (
        "import sys; from lkv.bench.mtbench.judge import Judge, judge; f = sys.argv[2]; "
        "by = Judge(sys.argv[1], 'grader-9', key_variable='none'); "
        "judge(f + '/answers.jsonl', by, f + '/judge.jsonl', f + '/judgements.csv', at_once=1)"
    )
    root = Path(__file__).parents[1]
    client = subprocess.Popen([sys.executable, "-c", code, server.url, str(folder)], cwd=root)
    deadline = time.monotonic() + 60
    kept_lines = 0
    while kept_lines != 5 or len(server.questions) != 5:  # the fifth is asked, and unanswered
        journal = folder / "judge.jsonl"
        kept_lines = journal.read_text().count("\n") if journal.exists() else 0
        assert time.monotonic() < deadline and client.poll() is None
        time.sleep(0.02)
    client.kill()
    client.wait()
    held.set()
    assert not (folder / "judgements.csv").exists()
    finished = server.questions[:4]
    rows, _ = judged(folder, by(server))
    assert set(rows["status"]) == {"ok"}
    assert sorted(server.questions[5:]) == sorted(set(server.questions) - set(finished))
    kept = [json.loads(line)["rating"] for line in (folder / "judge.jsonl").read_text().splitlines()[1:5]]
    assert kept == [2, 3, 4, 5] and list(rows["rating"][:4]) == kept


def test_another_judge_or_temperature_asks_anew(endpoint: Any, answered: Path) -> None:
    server = endpoint(lambda n, body: said("[[4]]"))
    judged(answered.parent, by(server))
    judged(answered.parent, by(server))
    assert len(server.asked) == 12
    judged(answered.parent, by(server, temperature=0.5))
    assert len(server.asked) == 24
    rows, _ = judged(answered.parent, Judge(server.url, "grader-10", key_variable="none"))
    assert len(server.asked) == 36 and set(rows["judge"]) == {"grader-10"}


def test_equal_answers_are_judged_once(endpoint: Any, tmp_path: Path) -> None:
    same = {"turns": ["Bob.", "Since Ann is older."]}
    lines = [answer(QUESTIONS[2], "snapkv", budget, **same) for budget in (64, 128, 256)]
    write_jsonl(tmp_path / "answers.jsonl", lines)
    server = endpoint(lambda n, body: said(f"[[{n}]]"))
    rows, _ = judged(tmp_path, by(server), at_once=1)
    assert len(server.asked) == 2 and list(rows["rating"]) == [1, 2] * 3


def test_an_endpoint_that_cannot_be_used_is_one_line_and_loses_nothing(endpoint: Any, answered: Path) -> None:
    before = answered.read_bytes()
    gone = endpoint(lambda n, body: said("[[4]]"))
    gone.close()
    down = endpoint(lambda n, body: (500, SOON, {"error": {"message": "no GPU"}}))
    locked = endpoint(lambda n, body: (401, {}, {"error": {"message": "bad key"}}))
    page = endpoint(lambda n, body: (200, {"Content-Type": "text/html"}, b"<html>hello</html>"))
    cases = [
        (by(gone, retries=0), f"cannot reach the judge at {gone.url}"),
        (by(down, retries=0), f"judge at {down.url} failed 8 times in a row .*no GPU"),
        (by(locked), "refuses 'grader-9' .*401.*bad key"),
        (by(page), "failed 8 times in a row .*no chat completion"),
        (by(""), "the judge's url is ''; give the base URL"),
        (by(gone, key_variable="NO_SUCH_KEY"), "environment variable NO_SUCH_KEY"),
    ]
    for who, why in cases:
        with pytest.raises(UserError, match=why) as error:
            judged(answered.parent, who)
        assert "\n" not in str(error.value)
        assert not (answered.parent / "judgements.csv").exists()
    assert answered.read_bytes() == before


def test_what_was_rated_before_the_endpoint_broke_is_kept(endpoint: Any, answered: Path) -> None:
    server = endpoint(lambda n, body: said("[[4]]") if n <= 5 or n > 6 else (403, {}, {}))
    with pytest.raises(UserError, match="refuses"):
        judged(answered.parent, by(server), at_once=1)
    rows, _ = judged(answered.parent, by(server), at_once=1)
    assert set(rows["status"]) == {"ok"} and len(server.asked) == 12 + 1


def test_scores_are_ten_times_the_mean_of_both_turns(endpoint: Any, answered: Path) -> None:
    marks = iter([4, 5, 9, 9, 5, 4, 8, 8, 5, 5.2, 7, 7])  # per question: full one, full two, snapkv one, two
    server = endpoint(lambda n, body: said(f"[[{next(marks)}]]"))
    judged(answered.parent, by(server), at_once=1)
    write_samples(answered.parent / "judgements.csv", answered, answered.parent / "samples.csv")
    samples = read_csv(answered.parent / "samples.csv", SAMPLE_COLUMNS)
    full = samples[samples["method"] == "full"]
    assert list(full["score"]) == [45, 45, 51] and list(full["sample"]) == [0, 1, 2]
    first = full.iloc[0]
    assert (first["kept_mean"], first["kept_bytes"], first["prompt_tokens"], first["new_tokens"]) == (
        64,
        640,
        160,
        50,
    )
    assert first["protocol"] == "official greedy judge=grader-9 temperature=0 prompt=lkv-1"
    accuracy, _ = summarise(samples, seed=0)
    task = accuracy[accuracy["task"] == "mtbench"].set_index("method")
    assert task.loc["full", "mean"] == pytest.approx(47.0)  # the paper writes 4.70
    assert task.loc["snapkv", "mean"] == pytest.approx(80.0) and list(task["n"]) == [3, 3]


def test_judgements_must_fit_the_answers(answered: Path) -> None:
    answers_ = mtbench.load_answers(answered)
    row = {c: answers_[0][c] for c in ("study", "model", "method", "budget")} | {
        "question": 201,
        "status": "ok",
    }
    row |= {"rating": 5, "judge": "j", "temperature": 0, "prompt": "lkv-1"}
    with pytest.raises(UserError, match="question 201 of tiny, full at budget 0 is not among the judgements"):
        to_samples([row | {"turn": 1}], answers_)
    with pytest.raises(UserError, match="occurs twice"):
        to_samples([row | {"turn": 1}, row | {"turn": 1}], answers_)
    write_jsonl(answered, [*read_jsonl(answered), answers_[0]])
    with pytest.raises(UserError, match=r"line 7: the answer of .* occurs twice"):
        mtbench.load_answers(answered)
