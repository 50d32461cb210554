"""Tasks of lm-evaluation-harness: scores as by brute force, texts as the engine's; the accuracy of
our own multiple choice."""

import json
import random

import pytest
import torch
from helpers.errors import one_line
from helpers.evaluated import phrase, runtime
from helpers.server_in_process import running
from helpers.tiny_model import tiny
from torch.nn import functional as F

pytest.importorskip("lm_eval")
import datasets
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate

from bonsai.engine import Engine, SamplingParams, generate
from bonsai.engine.lm_eval_harness import (
    Chat,
    HarnessModel,
    before_stop,
    find_tasks,
    named_in,
    run_tasks,
)
from bonsai.evaluation.choices import multiple_choice, read_questions
from bonsai.serving.app import Server, create_app
from bonsai.serving.registry import Served
from bonsai.system.errors import UserError
from bonsai.tokenizers import ByteTokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate

BLOCK, VOCAB = 48, 257
CHATS = {
    "plain": TEMPLATES["plain"],
    "own": ChatTemplate({"user": ("U: ", "\n"), "assistant": ("A:", "\n"), "system": ("", ".")}),
}


@pytest.fixture(scope="module")
def model():
    return tiny(3, block_size=BLOCK, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def harness(model):
    return HarnessModel(model, ByteTokenizer(), runtime(), batch_size=3)


def asked(kind: str, *args) -> Instance:
    return Instance(kind, {}, args, 0)


@torch.no_grad()
def one_by_one(model, ids: list[int], begin: int) -> tuple[float, bool]:
    """log p of ids[begin:], token by token, and whether each is the likeliest."""
    total, greedy = 0.0, True
    for end in range(begin, len(ids)):
        logp = F.log_softmax(model(torch.tensor([ids[:end][-BLOCK:]]))[0][0, -1].double(), dim=-1)
        total += logp[ids[end]].item()
        greedy &= int(logp.argmax()) == ids[end]
    return total, greedy


def test_likelihoods_are_those_of_brute_force(model, harness):
    """Contexts of all lengths, one empty; and a continuation that is the greedy one."""
    rng, coder = random.Random(0), ByteTokenizer()
    pairs = [(phrase(rng, n), " " + phrase(rng, 2)) for n in (1, 2, 3, 4)] + [("", "roots")]
    params = SamplingParams(5, temperature=0, vocab_limit=256)
    greedy = [row[0] for row in generate(model, coder.encode("a tree"), params)]
    got = harness.loglikelihood([asked("loglikelihood", *pair) for pair in pairs])
    for (context, continuation), (score, is_greedy) in zip(pairs, got):
        before = coder.encode(context) or [coder.eot]
        ids = before + coder.encode(continuation)
        want = one_by_one(model, ids, len(before))
        assert score == pytest.approx(want[0], abs=1e-3) and is_greedy == want[1]
    likely, unlikely = harness._loglikelihood_tokens(
        [(None, coder.encode("a tree"), ids) for ids in (greedy, greedy[:-1] + [0])]
    )
    assert likely[1] and not unlikely[1] and likely[0] > unlikely[0]


def test_texts_that_a_vocabulary_drops(model):
    """A context without a token is one that is empty; an answer without any is certain."""

    class Drops(ByteTokenizer):
        def encode(self, text: str, **options) -> list[int]:
            return super().encode(text.strip(), **options)

    harness = HarnessModel(model, Drops(), runtime(), batch_size=3)
    pairs = [("  ", "roots"), ("", "roots"), ("a tree", " "), ("a tree", "")]
    got = harness.loglikelihood([asked("loglikelihood", *pair) for pair in pairs])
    assert got[0] == got[1] and got[2:] == [(0.0, True)] * 2
    want = one_by_one(model, [Drops().eot, *b"roots"], 1)
    assert got[0][0] == pytest.approx(want[0], abs=1e-3)


def test_texts_longer_than_the_context_are_scored_in_windows(model, harness):
    """Each token once: with what is before it in its window."""
    coder, text = ByteTokenizer(), phrase(random.Random(1), 30)
    ids = [coder.eot, *coder.encode(text)]
    assert len(ids) > 2 * BLOCK
    # windows of BLOCK targets from the start; the last one reaches back for a full context
    starts = [*range(0, len(ids) - 1, BLOCK)]
    want = 0.0
    for begin in starts:
        end = min(begin + BLOCK, len(ids) - 1)
        first = min(begin, end - BLOCK) if end == len(ids) - 1 else begin
        want += one_by_one(model, ids[max(0, first) : end + 1], begin - max(0, first) + 1)[0]
    (got,) = harness.loglikelihood_rolling([asked("loglikelihood_rolling", text)])
    assert got == pytest.approx(want, abs=1e-2)


def test_whole_texts_are_no_messages(model, harness):
    """Their numbers are the same with --as_chat, also of those that spell a special token."""
    chat = Chat(CHATS["own"], (256,))
    chats = HarnessModel(model, ByteTokenizer(), runtime(), 3, chat)
    texts = [asked("loglikelihood_rolling", text) for text in ("a tree", "a<|endoftext|>b")]
    assert chats.loglikelihood_rolling(texts) == harness.loglikelihood_rolling(texts)


def test_texts_are_the_engines_up_to_a_stop(model, harness):
    """More requests than rows; stops that come at once, late, and never; a prompt too long."""
    coder, rng = ByteTokenizer(), random.Random(2)
    prompts = [phrase(rng, n) for n in (1, 2, 3, 2, 1, 20)]
    params = SamplingParams(12, temperature=0, vocab_limit=256, stop_tokens=(coder.eot,))
    whole = []
    for prompt in prompts:
        ids = coder.encode(prompt)[-(BLOCK - 12) :]
        rows = generate(model, ids, params)
        whole.append(coder.decode([t for (t,) in rows if t is not None]))
    for stops in ([], [text[3:5] for text in whole if len(text) > 5], [whole[0][:1]]):
        options = {"until": stops, "max_gen_toks": 12, "do_sample": False}
        got = harness.generate_until([asked("generate_until", p, options) for p in prompts])
        assert got == [before_stop(text, stops)[0] for text in whole]


def test_a_text_is_not_decoded_anew_for_each_token(harness, monkeypatch):
    decoded, decode = [], ByteTokenizer.decode
    monkeypatch.setattr(
        ByteTokenizer, "decode", lambda coder, ids: decoded.append(len(ids)) or decode(coder, ids)
    )
    options = {"until": ["\0never"], "max_gen_toks": 40, "do_sample": False}
    harness.generate_until([asked("generate_until", "a", options)])
    *ends, whole = decoded
    assert whole > 30 and max(ends) == len("\0never") + 1


def test_a_question_that_is_asked_again_gets_another_sample(harness):
    """A task's `repeats` come as equal requests; pass@k of copies would be pass@1."""
    hot = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = [asked("generate_until", p, hot) for p in ("a", "b", "a", "a")]
    texts = harness.generate_until(requests)
    assert len({texts[0], *texts[2:]}) == 3
    assert harness.generate_until(requests[1:2]) == texts[1:2]  # alone as beside others


def test_options_of_a_generation(harness):
    params, stops = harness.sampling({"until": "\n", "max_gen_toks": 1000, "temperature": 0.0})
    assert (params.temperature, params.max_new_tokens, stops) == (0.0, BLOCK, ["\n"])
    hot = {"until": ["", "x"], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    params, stops = harness.sampling(hot)
    assert (params.temperature, params.top_p, params.top_k, stops) == (0.7, 0.9, 5, ["x"])


def test_answers_of_a_chat_end_where_its_template_ends_them(model):
    ends = (256, 65)
    for name, stops in (("plain", ["x"]), ("own", ["x", "\n"])):
        asked = HarnessModel(model, ByteTokenizer(), runtime(), 3, Chat(CHATS[name], ends))
        params, found = asked.sampling({"until": ["x"]})
        assert (params.stop_tokens, found) == (ends, stops)
        history = [{"role": "user", "content": "hi"}]
        assert asked.tok_encode(asked.apply_chat_template(history)) == CHATS[name].encode(
            ByteTokenizer(), [("user", "hi")]
        )


# ---- whole tasks ----

TASK = """task: rings
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: endings
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """200 of them, in HellaSwag's format, and a task that asks them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rng, file = random.Random(3), tmp_path / "rings.jsonl"
    lines = [
        {"ctx": phrase(rng, 3), "endings": [phrase(rng, 2) for _ in range(4)], "label": k % 4}
        for k in range(200)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "rings.yaml").write_text(TASK.format(file=file))
    return file


def test_a_task_has_the_accuracy_of_our_own_multiple_choice(model, harness, questions):
    coder, folder = ByteTokenizer(), str(questions.parent)
    own = multiple_choice(model, coder, read_questions(questions), runtime(), 16)
    results = run_tasks(model, coder, runtime(), ["rings"], folder, batch_size=16)
    assert results["rings"]["acc,none"] == own["accuracy"]
    assert 0 < own["accuracy"] < 1
    few = run_tasks(model, coder, runtime(), ["rings"], folder, limit=10)
    assert (10 * few["rings"]["acc,none"]) % 1 == pytest.approx(0)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("shots", [0, 1])
def test_questions_of_a_chat_are_messages(model, questions, name, shots):
    """Each answer follows the template's strings; solved questions are earlier turns."""
    coder, folder, template = ByteTokenizer(), str(questions.parent), CHATS[name]
    chat = Chat(template, (coder.eot,))
    text = (questions.parent / "rings.yaml").read_text()
    shown = f"{{validation: {questions}, test: {questions}}}"
    text = text.replace(f"{{validation: {questions}}}", shown)
    text += "fewshot_split: test\nfewshot_config: {sampler: first_n}\n"
    (questions.parent / "rings.yaml").write_text(text)
    got = run_tasks(model, coder, runtime(), ["rings"], folder, 9, 12, shots, chat)["rings"]
    rows, right = [json.loads(line) for line in questions.read_text().splitlines()], 0
    solved = [("user", rows[0]["ctx"]), ("assistant", rows[0]["endings"][0])]
    for row in rows[:12]:
        prompt = template.text([*(solved if shots else []), ("user", row["ctx"])])
        prompt, blank = prompt.rstrip(), prompt[len(prompt.rstrip()) :]
        scores = []
        for ending in row["endings"]:  # the harness counts the blank before it, too
            ids = coder.encode(prompt + blank + ending, allow_special=True)
            begin = len(coder.encode(prompt, allow_special=True))
            scores.append(one_by_one(model, ids, begin)[0])
        right += scores.index(max(scores)) == row["label"]
    assert got["acc,none"] == pytest.approx(right / 12)


def test_the_server_gives_the_harness_the_same_accuracy(model, questions):
    """Asked over HTTP, as by `lm_eval --model local-completions`."""
    pytest.importorskip("tenacity")
    coder, folder = ByteTokenizer(), str(questions.parent)
    want = run_tasks(model, coder, runtime(), ["rings"], folder, limit=60)["rings"]["acc,none"]
    served = Served("m", model, coder, Engine(model, max_batch=4), 0)
    server = Server({"m": served})
    with running(create_app(server), server.worker) as process:
        results = simple_evaluate(
            "local-completions",
            model_args={
                "model": "m",
                "base_url": f"http://127.0.0.1:{process.port}/v1/completions",
                "tokenizer_backend": "remote",
                "max_length": BLOCK,
                "num_concurrent": 2,
            },
            tasks=["rings"],
            task_manager=find_tasks(["rings"], folder),
            limit=60,
            bootstrap_iters=0,
        )
    assert results["results"]["rings"]["acc,none"] == want


def test_tasks_of_a_folder_and_the_harness_s(model, questions):
    """Those that stand beside one that is asked for are read, of groups and unknown ones all."""
    folder = str(questions.parent)
    assert find_tasks(["rings"], folder).all_tasks == ["rings"]
    some = {*find_tasks(["rings", "hellaswag", "piqa"], folder).all_tasks}
    assert {"rings", "hellaswag", "piqa"} <= some and len(some) < 100
    assert named_in({"arc_easy", "arc_challenge"}) == named_in({"arc_easy"})
    everything = find_tasks(["ai2_arc"], folder)
    assert {"rings", "ai2_arc", "hellaswag"} <= {*everything.all_tasks}


def test_data_in_the_cache_of_the_hub_are_found_without_it(model, questions, monkeypatch):
    """A task of the hub's data, which an earlier run has loaded."""
    cache = questions.parent / "cache"
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    text = (questions.parent / "rings.yaml").read_text()
    options = f"dataset_kwargs: {{data_files: {{validation: {questions}}}}}\n"
    assert options in text
    text = text.replace(options, "").replace("dataset_path: json", "dataset_path: some/rings")
    (questions.parent / "rings.yaml").write_text(text)
    coder, folder = ByteTokenizer(), str(questions.parent)
    with pytest.raises(UserError, match=r"^the data of rings cannot be had: .*some/rings"):
        run_tasks(model, coder, runtime(), ["rings"], folder, limit=10)
    datasets.load_dataset("json", data_files={"validation": str(questions)}, cache_dir=str(cache))
    (made,) = (cache / "json").glob("*/0.0.0/*/dataset_info.json")
    place = cache / "some___rings" / "default" / "0.0.0" / made.parent.name
    place.parent.mkdir(parents=True)
    made.parent.rename(place)
    (place / "json-validation.arrow").rename(place / "rings-validation.arrow")
    info = json.loads((place / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "rings"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    results = run_tasks(model, coder, runtime(), ["rings"], folder, limit=10)
    assert 0 <= results["rings"]["acc,none"] <= 1


def test_data_that_cannot_be_had_are_one_line(model, tmp_path, monkeypatch):
    coder = ByteTokenizer()
    with pytest.raises(UserError, match=r"^lm_eval has no task rigns and none in /.*: lm_eval ls"):
        run_tasks(model, coder, runtime(), ["rigns"], str(tmp_path))
    (tmp_path / "rings.yaml").write_text(TASK.format(file=tmp_path / "missing.jsonl"))
    for offline, said in ((True, "HF_HOME.*--tasks_dir$"), (False, "missing.jsonl'?$")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError, match=rf"^the data of rings cannot be had: .*{said}"):
            run_tasks(model, coder, runtime(), ["rings"], str(tmp_path))


METRIC = "metric: accu, aggregation: mean, higher_is_better: true"
WRONG = {  # what stands in the YAML, what instead, and what is said
    "no YAML": ("output_type", "[", "rings.yaml is not YAML in line 5: "),
    "a number for a name": ("task: rings", "task: 5", "rings.yaml: task=5 is no name"),
    "no data set": ("dataset_path: json\n", "", "rings.yaml: the task rings has no dataset_path"),
    "a list": ("dataset_path: json", "dataset_path: [1]", "the task rings has dataset_path=[1]"),
    "another kind": ("multiple_choice", "choices", "Got invalid output_type 'choices'"),
    "a field that is none": ("task: rings", "task: rings\nfoo: 1", "argument 'foo'"),
    "a column that is none": ("{ctx}", "{text}", "UndefinedError: 'text' is undefined"),
    "a split that is none": ("split: validation", "split: val", "KeyError: 'val'"),
    "a metric that is none": ("metric: acc", METRIC, "rings has no metric that lm_eval"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_task_that_is_wrongly_described_is_one_line(model, questions, monkeypatch, case):
    monkeypatch.setattr(
        "datasets.config.HF_HUB_OFFLINE", True
    )  # else it looks for the metric there
    path, (old, new, said) = questions.parent / "rings.yaml", WRONG[case]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as e:
        run_tasks(model, ByteTokenizer(), runtime(), ["rings"], str(path.parent), limit=2)
    assert said in one_line(e)


def test_an_error_of_ours_is_not_said_to_be_the_tasks(model, questions, monkeypatch):
    monkeypatch.setattr("bonsai.engine.lm_eval_harness.ending_scores", None)
    with pytest.raises(TypeError, match="not callable"):
        run_tasks(model, ByteTokenizer(), runtime(), ["rings"], str(questions.parent), limit=2)


@pytest.mark.parametrize("options", [
    {"until": 5}, {"until": [5]}, {"until": {"a": 1}}, {"max_gen_toks": "many"}, {"top_p": "x"},
    {"max_gen_toks": 1.5}, {"max_gen_toks": None}, {"max_gen_toks": True}, {"max_gen_toks": -1},
    {"max_new_tokens": "8"}, {"do_sample": True, "top_k": "all"}, {"top_p": None},
], ids=str)  # fmt: skip
def test_generation_kwargs_of_another_kind_are_named(harness, options):
    name = [*options][-1].replace("new_tokens", "gen_toks")
    with pytest.raises(UserError, match=f"generation_kwargs of a task: {name}=") as e:
        harness.generate_until([asked("generate_until", "a tree", options)])
    assert one_line(e)
