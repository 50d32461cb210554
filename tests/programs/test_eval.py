"""eval.py as its users run it: checkpoints, data sets and questions side by side."""

import json
import math
import runpy

import pytest
import torch
from helpers.evaluated import BLOCK, runtime, tiny, write_bundle, write_questions
from helpers.programs import ROOT, assert_one_line_error, run_as_several, run_program
from helpers.tiny_data import CHARS

from bonsai.data.dataset import open_dataset
from bonsai.evaluation.choices import multiple_choice, read_questions
from bonsai.evaluation.loss import split_loss
from bonsai.models.table import describe_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.tokenizers import CharTokenizer
from bonsai.training import forecast


@pytest.fixture(scope="module")
def runs(workplace):
    """Two runs of character models in the workplace: eval-a, eval-b; their models."""
    models = {"eval-a": tiny(seed=1), "eval-b": tiny(seed=2)}
    for name, model in models.items():
        (workplace / name).mkdir()
        state = {
            "model": model.state_dict(),
            **describe_model(model, "gpt"),
            "iter_num": 12,
            "best_val_loss": torch.tensor(1.0),
            "config": {"dataset": "meta:0.7,more:0.3"},
            "tokenizer": {"type": "char", "chars": list(CHARS)},
        }
        save_checkpoint(workplace / name, state)
    write_questions(workplace / "questions.jsonl", 9)
    return models


def test_checkpoints_side_by_side_alone_and_with_two_processes(runs, workplace, tmp_path):
    options = ["--out_dir=eval-a,eval-b", "--dataset=meta,more", "--choices=questions.jsonl"]
    options += ["--device=cpu", "--batch_size=9"]
    done = run_program([*options, "--json=-"], workplace, program="eval.py")
    assert done.rc == 0 and not done.stderr, done
    results = json.loads(done.stdout.splitlines()[-1])
    assert "eval.py --out_dir=eval-a,eval-b" in results["command"]
    where = [(row["checkpoint"], row["dataset"]) for row in results["losses"]]
    assert where == [(f"{a}/ckpt.pt", b) for a in ("eval-a", "eval-b") for b in ("meta", "more")]
    for row in results["losses"]:
        model = runs[row["checkpoint"].split("/")[0]]
        split = open_dataset(str(workplace / "data" / row["dataset"])).split("val")
        loss, tokens = split_loss(model, split, runtime(), BLOCK, 9)
        assert row["loss"] == pytest.approx(loss, abs=1e-6)
        assert (row["tokens"], row["step"], row["block_size"]) == (tokens, 12, BLOCK)
        assert row["perplexity"] == pytest.approx(math.exp(loss))
        assert row["bits_per_byte"] == pytest.approx(loss / math.log(2))  # one byte each
        assert f"{loss:.4f} | {math.exp(loss):10,.2f} | {loss / math.log(2):13.4f} |" in done.stdout
    coder = CharTokenizer(CHARS)
    for row, model in zip(results["choices"], runs.values()):
        asked = read_questions(workplace / "questions.jsonl")
        want = multiple_choice(model, coder, asked, runtime(), 9)
        assert {k: row[k] for k in want} == pytest.approx(want)
        assert f"{want['accuracy']:.2%}" in done.stdout

    target = tmp_path / "two.json"
    two = run_as_several([*options, f"--json={target}"], workplace, "eval.py")
    assert two.rc == 0, two
    both = json.loads(target.read_text())
    for key in ("losses", "choices"):
        for one, other in zip(results[key], both[key]):
            assert one == pytest.approx(other, abs=1e-4)


def test_what_was_found_of_a_model_is_kept_where_another_cannot_be_loaded(runs, workplace):
    (workplace / "eval-broken").mkdir()
    (workplace / "eval-broken" / "ckpt.pt").write_bytes(b"no checkpoint")
    options = ["--out_dir=eval-a,eval-broken", "--dataset=meta", "--device=cpu", "--json=kept.json"]
    done = run_program(options, workplace, program="eval.py")
    assert_one_line_error(done, "eval-broken")
    kept = json.loads((workplace / "kept.json").read_text())
    assert [row["checkpoint"] for row in kept["losses"]] == ["eval-a/ckpt.pt"]
    assert kept["dtype"] == "float32" and kept["hardware"]


def test_a_mixture_has_a_row_of_its_own(runs, workplace):
    options = ["--init_from=eval-a/ckpt.pt", "--windows=3", "--block_size=8", "--json=-"]
    done = run_program([*options, "--device=cpu"], workplace, program="eval.py")
    assert done.rc == 0, done
    a, b, both = json.loads(done.stdout.splitlines()[-1])["losses"]
    assert both["dataset"] == "meta:0.7,more:0.3"  # what the run was trained on
    assert both["loss"] == pytest.approx(0.7 * a["loss"] + 0.3 * b["loss"])
    assert 16 < a["tokens"] <= 24 and both["tokens"] == a["tokens"] + b["tokens"]
    assert both["block_size"] == 8


def test_why_bits_per_byte_are_not_known(runs, workplace, monkeypatch, capsys):
    program = runpy.run_path(str(ROOT / "eval.py"), run_name="not main")
    monkeypatch.chdir(workplace)
    settings = dict(out_dir="eval-a", device="cpu", dtype="float32", windows=1)
    for data, words in (("meta", ""), ("bare", "data/bare does not say how many bytes of text")):
        program["main"](**settings, dataset=data, other_tokenizer=True)
        said = capsys.readouterr()
        assert words in said.err and ("n/a" in said.out) == bool(words)


@pytest.fixture(scope="module")
def bundle(workplace):
    return write_bundle(workplace / "bundle", 8)


LONG = {
    "a data set": (dict(dataset="meta", windows=4), "eval-a/ckpt.pt on meta: 1 of 2 batches"),
    "questions": (dict(choices="questions.jsonl"), "on questions.jsonl: 1 of 20 batches"),
    "a task of CORE": (dict(core="bundle"), "eval-a/ckpt.pt on ab (1 of 1): 1 of 8 batches"),
}


@pytest.mark.parametrize("case", LONG)
def test_a_long_evaluation_says_how_far_it_is(runs, workplace, bundle, monkeypatch, capsys, case):
    """Each kind, with any time taken for a long one."""
    program = runpy.run_path(str(ROOT / "eval.py"), run_name="not main")
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(forecast, "FIRST_SECONDS", -1)
    monkeypatch.setattr(forecast, "LINE_SECONDS", -1)
    settings, line = LONG[case]
    program["main"](out_dir="eval-a", device="cpu", dtype="float32", batch_size=2, **settings)
    said = capsys.readouterr().err
    assert f"{line}, about " in said and said.splitlines()[0].endswith(" left")


def test_core_has_a_row_for_each_task_and_their_mean(runs, workplace, bundle):
    options = ["--out_dir=eval-a", "--core=bundle", "--json=-", "--device=cpu"]
    done = run_program(options, workplace, program="eval.py")
    assert done.rc == 0, done
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["losses"] == [] and "| CORE" in done.stdout
    task, mean = results["core"]
    assert task["accuracy"] == 0.5 and mean["centered"] == pytest.approx(1 / 3)


def test_tasks_of_the_harness(runs, workplace):
    """A table of their metrics beside no loss, as no data set was named."""
    pytest.importorskip("lm_eval")
    lines = [{"ctx": "ab", "endings": ["ba", "ca"], "label": k % 2} for k in range(8)]
    folder = workplace / "tasks"
    folder.mkdir()
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ab.yaml").write_text(
        "task: ab\ndataset_path: json\noutput_type: multiple_choice\nvalidation_split: validation\n"
        f"dataset_kwargs: {{data_files: {{validation: {folder / 'q.jsonl'}}}}}\n"
        'doc_to_text: "{{ctx}}"\ndoc_to_choice: endings\ndoc_to_target: label\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    options = ["--out_dir=eval-a", "--tasks=ab", "--tasks_dir=tasks", "--json=-", "--device=cpu"]
    env = {"HF_DATASETS_CACHE": str(workplace / "cache"), "HF_DATASETS_OFFLINE": "1"}
    done = run_program(options, workplace, program="eval.py", env=env)
    assert done.rc == 0, done
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["losses"] == [] and results["choices"] == []
    (row,) = results["tasks"]
    assert (row["task"], row["metric"], row["value"]) == ("ab", "acc", 0.5)  # one answer is right
    assert row["error"] > 0 and "| ab" in done.stdout
    done = run_program([*options, "--as_chat"], workplace, program="eval.py", env=env)
    assert_one_line_error(done, "eval-a/ckpt.pt has no chat template for --as_chat")
    state = torch.load(workplace / "eval-a" / "ckpt.pt", weights_only=True)
    roles = {"user": ["a ", " b "], "assistant": ["c ", "\n"]}
    save_checkpoint(workplace / "eval-chat", state | {"chat_template": {"roles": roles}})
    options[0] = "--out_dir=eval-chat"
    done = run_program([*options, "--as_chat"], workplace, program="eval.py", env=env)
    assert done.rc == 0 and json.loads(done.stdout.splitlines()[-1])["tasks"], done


def test_tasks_without_a_network_are_one_line(runs, workplace):
    """Its library would try again for half a minute, and say so."""
    pytest.importorskip("lm_eval")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    options = ["--out_dir=eval-a", "--tasks=hellaswag", "--limit=2", "--device=cpu"]
    env |= {"HF_HOME": str(workplace / "hf")}
    done = run_program(options, workplace, program="eval.py", env=env)
    assert_one_line_error(done, "the data of hellaswag cannot be had", "HF_HOME")


ERRORS = {
    "another tokenizer": (["--dataset=bare"], "(char, 30 characters)", "(gpt2)"),
    "too long": (["--dataset=meta", "--block_size=17"], "block_size=17", "16 tokens"),
    "questions": (["--choices=data/meta/meta.json"], "meta.json:1 has no 'ctx'"),
    "a folder of tasks alone": (["--tasks_dir=data"], "name some by --tasks"),
    "few shots of no task": (["--num_fewshot=2", "--core=data"], "--num_fewshot is of --tasks"),
    "a chat without tasks": (["--as_chat", "--core=data"], "--as_chat is of --tasks alone"),
    "a limit of a data set": (["--limit=2"], "--limit is of --tasks and --core"),
    "no folder of tasks": (["--tasks=rings", "--tasks_dir=no-such"], "tasks_dir=no-such is no"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_end_in_one_line(runs, workplace, case):
    options, *hints = ERRORS[case]
    options = ["--out_dir=eval-a", "--device=cpu", *options]
    assert_one_line_error(run_program(options, workplace, program="eval.py"), *hints)
