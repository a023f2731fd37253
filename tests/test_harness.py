"""Promises of the door to lm-eval: its tasks run under every method, from a cache as small as asked for."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lkv.errors import UserError
from lkv.eviction.generate import generate
from lkv.eviction.hooks import evicting
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.attention import observable
from lkv.model.fetch import obtain
from lkv.registry import METHODS, get

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lkv[data]')")
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from lkv.integrations.lm_eval import LKV, _end  # noqa: E402

ROOT = Path(__file__).parents[1]
LAYERS, BUDGET = 2, 64
PACKAGED = Path(lm_eval.__file__).parent / "tasks/longbench/hotpotqa.yaml"
STORIES = [
    ("The baker of Elm Street sells rye on Mondays. " * 4, "What is sold on Mondays?", ["rye"]),
    ("A grey cat sleeps on the mill. " * 9, "Where does the cat sleep?", ["on the mill", "the mill"]),
    ("Ann rowed to the island before noon. " * 6, "When did Ann row?", ["before noon"]),
]
HOTPOTQA = """
include: {packaged}
task: local_hotpotqa
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
"""
CHOICES = """
task: local_choices
output_type: multiple_choice
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: "{{{{context}}}} {{{{question}}}}"
doc_to_choice: ["the mill", "rye", "noon, I think", "nowhere"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
PERPLEXITY = """
task: local_perplexity
output_type: loglikelihood_rolling
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: ""
doc_to_target: "{{{{context}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, an untrained adapter for it, and tasks over three records of our own."""
    folder = tmp_path_factory.mktemp("harness")
    obtain(
        {"name": "tiny", "source": {"kind": "random", "family": "llama", "layers": LAYERS}}, folder / "tiny"
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    LookaheadKV.create(model, tokens=8).save_pretrained(folder / "adapter")
    records = [{"context": c, "question": q, "answers": a} for c, q, a in STORIES]
    data = folder / "stories.jsonl"
    data.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    tasks = folder / "tasks"
    tasks.mkdir()
    given = {"packaged": PACKAGED, "data": data, "cache": folder / "cache"}
    (tasks / "hotpotqa.yaml").write_text(HOTPOTQA.format(**given), encoding="utf-8")
    (tasks / "choices.yaml").write_text(CHOICES.format(**given), encoding="utf-8")
    (tasks / "perplexity.yaml").write_text(PERPLEXITY.format(**given), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tasks(place: Path) -> TaskManager:
    return TaskManager(include_path=place / "tasks", include_defaults=False)  # the default ones take 10 s


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def door(place: Path, method: str, budget: int | None = BUDGET, **settings: Any) -> LKV:
    adapter = str(place / "adapter") if method == "lookaheadkv" else None
    draft = str(place / "tiny") if method == "speckv" else None
    return LKV(str(place / "tiny"), method, budget, adapter, draft, device="cpu", **settings)


def run(
    model: HFLM,
    tasks: TaskManager,
    task: str = "local_hotpotqa",
    generation: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """lm-eval's evaluation without its report on the machine, which takes seconds."""
    loaded = tasks.load([task])
    loaded["tasks"][task].set_config("num_fewshot", 0)
    if generation:
        loaded["tasks"][task].set_config("generation_kwargs", generation, update=True)
    return lm_eval.evaluate(model, loaded, bootstrap_iters=0, **settings)


def answers(results: Any, task: str = "local_hotpotqa") -> list[str]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


def prompts(results: Any, task: str = "local_hotpotqa") -> list[str]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["arguments"][0][0] for sample in samples]


@pytest.mark.parametrize("method", ["snapkv", "lookaheadkv"])
def test_a_longbench_task_runs_from_a_cache_of_the_budget(
    place: Path, tasks: TaskManager, method: str
) -> None:
    given = {"pretrained": str(place / "tiny"), "method": method, "budget": BUDGET}
    if method == "lookaheadkv":
        given["adapter"] = str(place / "adapter")
    model = get_model("lkv").create_from_arg_obj(given, {"device": "cpu"})
    results = lm_eval.simple_evaluate(
        model=model, tasks=["local_hotpotqa"], task_manager=tasks, bootstrap_iters=0
    )
    assert model.kept == [[BUDGET] * LAYERS] * len(STORIES)
    told = results["config"]["lkv"]
    assert (told["method"], told["budget"], told["prompts"]) == (method, BUDGET, len(STORIES))
    assert told["kept"] == [BUDGET] * LAYERS
    assert 0 <= results["results"]["local_hotpotqa"]["qa_f1_score,none"] <= 1

    # The same answers as through the engine, which shares no decoding with the model's own generate().
    adapter = LookaheadKV.from_pretrained(place / "adapter", model.model)
    for text, answer in zip(prompts(results), answers(results), strict=True):
        ids = torch.tensor([model.tokenizer(text).input_ids])
        with observable(model.model):
            done = generate(model.model, ids, get(method, adapter), BUDGET, 32)
        assert model.tokenizer.decode(done.tokens, skip_special_tokens=True) == answer


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"lookaheadkv", "snapkv"}))
def test_every_other_method_keeps_the_budget_on_average(place: Path, tasks: TaskManager, method: str) -> None:
    model = door(place, method)
    run(model, tasks, limit=1)
    assert sum(model.kept[0]) == BUDGET * LAYERS  # PyramidKV shares it out unevenly


def test_full_is_plain_hflm(place: Path, tasks: TaskManager) -> None:
    plain = HFLM(str(place / "tiny"), device="cpu", batch_size=2)
    ours = door(place, "full", None, batch_size=2)
    assert answers(run(ours, tasks)) == answers(run(plain, tasks))
    assert answers(run(ours, tasks)) != answers(run(door(place, "snapkv"), tasks))


def test_a_prompt_within_the_budget_loses_nothing(place: Path, tasks: TaskManager) -> None:
    model = door(place, "snapkv", 2000)
    results = run(model, tasks)
    assert answers(results) == answers(run(door(place, "full"), tasks))
    lengths = sorted((len(model.tokenizer(text).input_ids) for text in prompts(results)), reverse=True)
    assert model.kept == [[length] * LAYERS for length in lengths]  # lm-eval runs the longest first


def test_answers_end_before_a_stop_string(place: Path, tasks: TaskManager) -> None:
    free = answers(run(door(place, "snapkv"), tasks))
    stop = free[0][2:4]
    stopped = answers(run(door(place, "snapkv"), tasks, generation={"until": [stop]}))
    assert stopped == [answer.split(stop)[0] for answer in free]


def test_the_left_of_a_prompt_beyond_max_length_is_cut_as_by_hflm(place: Path, tasks: TaskManager) -> None:
    model = door(place, "snapkv", 2000, max_length=132)
    assert answers(run(model, tasks)) == answers(
        run(HFLM(str(place / "tiny"), device="cpu", max_length=132), tasks)
    )
    assert model.kept == [[100] * LAYERS] * len(STORIES)


def test_the_chat_template_is_the_tokenizers(place: Path, tasks: TaskManager) -> None:
    model = door(place, "snapkv")
    results = run(model, tasks, apply_chat_template=True)
    for text in prompts(results):
        assert text.startswith("<|user|>")
        assert text.endswith("<|end|><|assistant|>")
    assert model.kept == [[BUDGET] * LAYERS] * len(STORIES)
    assert answers(results) != answers(run(model, tasks))


def test_sampling_follows_the_seed(place: Path, tasks: TaskManager) -> None:
    sampled = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        random = {"do_sample": True, "temperature": 2.0}
        sampled.append(answers(run(door(place, "snapkv"), tasks, generation=random, limit=1)))
    assert sampled[0] == sampled[1] != sampled[2]


def test_choices_are_scored_on_what_is_kept(place: Path, tasks: TaskManager) -> None:
    model = door(place, "snapkv")
    found = run(model, tasks, "local_choices")["samples"]["local_choices"]
    assert model.kept == [[BUDGET] * LAYERS] * len(STORIES)  # four choices share one eviction
    whole = run(door(place, "snapkv", 2000), tasks, "local_choices")["samples"]["local_choices"]
    truth = run(HFLM(str(place / "tiny"), device="cpu"), tasks, "local_choices")["samples"]["local_choices"]
    for cut, kept, true in zip(found, whole, truth, strict=True):
        scores = [[score for [[score, _]] in sample["resps"]] for sample in (cut, kept, true)]
        assert scores[1] == pytest.approx(scores[2], abs=1e-3)
        assert scores[0] != pytest.approx(scores[2], abs=1e-1)


def test_a_continuations_score_is_the_probability_that_decoding_gives_it(place: Path) -> None:
    model = door(place, "snapkv")
    ids = model.tok_encode(STORIES[1][0])
    with evicting(model.model, get("snapkv"), BUDGET):
        out = model.model.generate(
            torch.tensor([ids]),
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    answer = out.sequences[0, len(ids) :].tolist()
    steps = torch.cat(out.logits).log_softmax(-1)
    other = [*answer[:-1], answer[-1] ^ 1]
    for continuation, greedy in ((answer, True), (other, False)):
        [found] = model._loglikelihood_tokens([(None, ids, continuation)], disable_tqdm=True)
        expected = sum(float(step[token]) for step, token in zip(steps, continuation, strict=True))
        assert found == (pytest.approx(expected, abs=1e-3), greedy)


@pytest.mark.parametrize(
    ("method", "budget", "settings", "why"),
    [
        ("snapkv", None, {}, "needs a budget"),
        ("snapkv", 64, {"batch_size": 4}, "one prompt at a time"),
        ("snapkv", 64, {"batch_size": "auto"}, "one prompt at a time"),
        ("snapkv", 64, {"parallelize": True}, "does not go with parallelize"),
        ("snapkv", 8, {}, "too small for snapkv"),
        ("snapKV", 64, {}, "did you mean 'snapkv'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    place: Path, method: str, budget: int | None, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why) as error:
        door(place, method, budget, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("method=snapkv,budget=64", "no model is given; add pretrained=FOLDER"),
        ("pretrained={0}/tiny", "unknown method ''; known: full, random"),
        ("pretrained={0}/tiny,method=nope,budget=64", "unknown method 'nope'"),
        ("pretrained={0}/tiny,method=snapkv", "needs a budget, got None"),
        ("pretrained={0}/tiny,method=snapkv,budget=many", "needs a budget, got 'many'"),
        ("pretrained={0}/tiny,method=snapkv,budget=True", "needs a budget, got True"),
        ("pretrained={0}/gone,method=snapkv,budget=16", "budget: budget 16 is too small for snapkv"),
        ("pretrained={0}/gone,method=lookaheadkv,budget=64,adapter={0}/no", "no such file: {0}/no/lookahead"),
        ("pretrained={0}/gone,method=speckv,budget=64", "speckv needs a model that drafts"),
        ("pretrained={0}/gone,method=speckv,budget=64,draft={0}/no", "no such file: {0}/no/model.json"),
        ("pretrained={0}/gone,method=snapkv,budget=64", "lm-eval cannot load {0}/gone: "),
        ("pretrained={0}/tiny,method=snapkv,budget=64,nonsense=1", "lm-eval cannot load {0}/tiny: "),
        ("pretrained={0}/tiny,method=full,dtype=float7", "lm-eval cannot load {0}/tiny: "),
    ],
)
def test_bad_model_args_are_refused_in_one_line(
    place: Path, arguments: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    with pytest.raises(UserError) as error:
        LKV.create_from_arg_string(arguments.format(place), {"device": "cpu"})
    assert why.format(place) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refusal_in_lm_evals_own_command_is_one_line_and_exit_code_2(place: Path, tmp_path: Path) -> None:
    arguments = f"pretrained={place / 'tiny'},method=snapkv,budget=16"
    command = [
        sys.executable,
        "-m",
        "lkv.integrations.lm_eval_plugin",
        "--model",
        "lkv",
        "--model_args",
        arguments,
    ]
    given = ["--tasks", "local_hotpotqa", "--device", "cpu", "--include_path", str(place / "tasks")]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *given], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("lkv: error: ")]
    assert said == [
        "lkv: error: budget: budget 16 is too small for snapkv, which needs 32; give 32 or more, or leave "
        "snapkv out"
    ]


def test_errors_of_others_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    _end(lambda *error: seen.append(error), KeyError, KeyError("x"), None)
    assert seen[0][0] is KeyError
    with pytest.raises(SystemExit) as end:
        _end(seen.append, UserError, UserError("no"), None)
    assert end.value.code == 2
    assert capsys.readouterr().err == "lkv: error: no\n"


def test_lookaheadkv_without_its_adapter_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match="adapter"):
        LKV(str(place / "tiny"), "lookaheadkv", BUDGET, device="cpu")


def test_requests_that_eviction_gives_no_meaning_are_refused(place: Path, tasks: TaskManager) -> None:
    with pytest.raises(UserError, match="no prompt to evict from"):
        run(door(place, "snapkv"), tasks, "local_perplexity")
    with pytest.raises(UserError, match="num_beams"):
        run(door(place, "snapkv"), tasks, generation={"num_beams": 2})
    assert run(door(place, "full"), tasks, "local_perplexity")["results"]


def test_the_entry_points_of_pyproject_lead_to_the_model() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert EntryPoint("lkv", declared["lm_eval.models"]["lkv"], "lm_eval.models").load() is LKV
    EntryPoint("lkv", declared["torch.backends"]["lkv"], "torch.backends").load()()
    assert get_model("lkv") is LKV


def test_importing_torch_does_not_bring_lm_eval_along() -> None:
    code = "import sys; from lkv.integrations import lm_eval_plugin; lm_eval_plugin.register(); "
    code += "print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_command_of_the_documents_works(place: Path, tmp_path: Path) -> None:
    installed = [point.group for made in distributions(name="lkv") for point in made.entry_points]
    if "torch.backends" not in installed:
        pytest.skip("this installation of lkv is from before its entry points: pip install -e . again")
    document = (ROOT / "docs/lm-eval.md").read_text(encoding="utf-8").replace("\\\n", " ")
    [written] = re.findall(r"^lm_eval .*", document, re.MULTILINE)
    ours = {
        "models/NAME": place / "tiny",
        "adapter=DIR": f"adapter={place / 'adapter'}",
        "longbench_qasper,niah_single_1": "local_hotpotqa",
        "results/lm-eval": "out",
    }
    for theirs, mine in ours.items():
        assert theirs in written
        written = written.replace(theirs, str(mine))
    local = ["--device", "cpu", "--include_path", str(place / "tasks")]
    command = [sys.executable, "-m", *shlex.split(written), *local]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["config"]["lkv"]["method"] == "lookaheadkv"
    assert results["config"]["lkv"]["kept"] == [128] * LAYERS
    assert results["config"]["lkv"]["prompts"] == len(STORIES)
    assert "qa_f1_score,none" in results["results"]["local_hotpotqa"]
    assert "local_hotpotqa" in done.stdout
