"""export.py as its users run it, and what the other programs make of the files."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import tiny
from helpers.evaluated import runtime
from helpers.programs import (
    ROOT,
    TINY,
    assert_one_line_error,
    load,
    output_of,
    run_command,
    run_program,
)
from helpers.tiny_data import CHARS

from bonsai.files.safetensors import read_safetensors
from bonsai.models.table import build_model, describe_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.serving.registry import load_served
from bonsai.system.errors import UserError

NANOGPT = os.environ.get("NANOGPT")


@pytest.fixture(scope="module")
def place(tmp_path_factory, workplace) -> Path:
    """The workplace's data, and runs: export-run, export-fast, export-bytes."""
    model, state = tiny(vocab_size=len(CHARS) + 2, block_size=16)
    state |= {"model": model.state_dict(), "tokenizer": {"type": "char", "chars": list(CHARS)}}
    sizes = dict(n_layer=1, n_head=2, n_embd=16, local_layer=1, local_embd=8, local_head=2)
    bytes_ = build_model("megabyte", sizes | dict(block_size=16, vocab_size=257))
    other = dict(value_embeddings=True, position="rope", vocab_size=260, block_size=24)
    fast = build_model("gpt", vars(model.config) | other)
    torch.manual_seed(1)
    for p in fast.parameters():  # so that its texts depend on the context
        p.data.add_(0.4 * torch.randn_like(p))
    for name, content in {
        "export-run": state,
        "export-fast": state
        | describe_model(fast, "gpt")
        | {"model": fast.state_dict(), "tokenizer": {"type": "byte"}},
        "export-bytes": state
        | describe_model(bytes_, "megabyte")
        | {"model": bytes_.state_dict(), "tokenizer": {"type": "byte"}},
    }.items():
        (workplace / name).mkdir()
        save_checkpoint(workplace / name, content)
    return workplace


@pytest.fixture
def call(place, monkeypatch, capsys):
    """A program in this process; its output."""
    return partial(output_of, place, monkeypatch, capsys)


def sampled(call, source) -> str:
    options = ["--temperature=0", "--num_samples=1", "--max_new_tokens=8", "--device=cpu"]
    return call("sample.py", f"--init_from={source}", "--start=the", *options)


def test_every_program_takes_what_is_written(call, place, tmp_path):
    one, folder, nano = tmp_path / "m.safetensors", tmp_path / "hf", tmp_path / "nano"
    with_code = tmp_path / "with-code"
    said = call("export.py", "--out_dir=export-run", "--to=safetensors", f"--out={one}")
    assert f"wrote {one}" in said and "M parameters" in said
    assert "GPT2LMHeadModel" in call("export.py", "--out_dir=export-run", f"--out={folder}")
    said = call("export.py", f"--init_from={one}", "--to=nanogpt", f"--out={nano}")
    assert "ckpt.pt, meta.pkl" in said and "data/meta/meta.pkl" in said
    said = call("export.py", "--out_dir=export-run", "--to=hf_code", f"--out={with_code}")
    assert "BonsaiForCausalLM with trust_remote_code=True" in said
    text = sampled(call, "export-run/ckpt.pt")
    for source in (one, folder, nano / "ckpt.pt", with_code):
        assert sampled(call, source) == text, source
    sources = f"--init_from=export-run/ckpt.pt,{one},{folder},{nano},{with_code}"
    call("eval.py", sources, "--dataset=meta", "--device=cpu", f"--json={tmp_path / 'r.json'}")
    losses = [r["loss"] for r in json.loads((tmp_path / "r.json").read_text())["losses"]]
    assert losses[1:3] == pytest.approx([losses[0], losses[3]], abs=1e-6)
    assert losses[4] == losses[0]
    assert losses[3] < losses[0]  # the padding of the vocabulary had a share
    for source in (one, folder):
        served = load_served("it", str(source), runtime(), max_batch=1)
        assert served.tokenizer.to_dict() == {"type": "char", "chars": list(CHARS)}
    weights = read_safetensors(folder / "model.safetensors")["transformer.wte.weight"]
    assert len(weights) == len(CHARS)


@pytest.mark.parametrize(
    "to, name",
    [
        ("safetensors", "a b.safetensors"),
        ("hf", "a b"),
        ("hf_code", "a b"),
    ],
)
def test_the_command_that_is_printed_is_one_for_the_shell(call, tmp_path, to, name):
    said = call("export.py", "--out_dir=export-run", f"--to={to}", f"--out={tmp_path / name}")
    assert f"--init_from={tmp_path / name}" in shlex.split(said)


def test_training_goes_on_from_one_file(place, tmp_path):
    one, out = tmp_path / "m.safetensors", tmp_path / "out"
    arguments = ["--out_dir=export-run", "--to=safetensors", f"--out={one}"]
    assert run_program(arguments, place, program="export.py").rc == 0
    sizes = [word for word in TINY if not word.startswith(("--n_", "--block"))]
    options = [*sizes, "--dataset=meta", f"--init_from={one}", f"--out_dir={out}", "--max_iters=1"]
    done = run_program([*options, "--eval_interval=1"], place)
    assert done.rc == 0, done
    assert load(out / "ckpt.pt")["model_config"]["n_embd"] == 16


@pytest.mark.skipif(not NANOGPT, reason="set NANOGPT to a checkout of nanoGPT")
def test_nanogpts_own_program_samples_from_it(call, tmp_path):
    out = tmp_path / "out"
    call("export.py", "--out_dir=export-run", "--to=nanogpt", f"--out={out}")
    (tmp_path / "data" / "meta").mkdir(parents=True)
    (out / "meta.pkl").rename(tmp_path / "data" / "meta" / "meta.pkl")
    for name in ("sample.py", "model.py", "configurator.py"):
        shutil.copy(Path(NANOGPT) / name, tmp_path)
    options = [f"--out_dir={out}", "--device=cpu", "--num_samples=1", "--max_new_tokens=9"]
    done = run_command([sys.executable, "sample.py", *options, "--dtype=float32"], tmp_path)
    assert done.rc == 0 and "Loading meta from" in done.stdout, done


@pytest.mark.parametrize("arguments, hint", [
    (["--out_dir=nowhere", "--out=x"], "no checkpoint in nowhere"),
    (["--out_dir=export-run"], "--out=FOLDER"),
    (["--out_dir=export-run", "--to=safetensors"], r"--out=FILE\.safetensors"),
    (["--out_dir=export-run", "--to=safetensors", "--out=x.bin"], "ends in .safetensors"),
    (["--out_dir=export-run", "--to=gguf", "--out=x"], "ends in .gguf"),
    (["--out_dir=export-run", "--weights_dtype=q8_0", "--out=x"], "q8_0 is for --to=gguf, not for"),
    (["--out_dir=export-run", "--to=gguf", "--out=x.gguf"], "a char tokenizer has no place"),
    (["--out_dir=export-bytes", "--to=gguf", "--out=x.gguf"], "is a megabyte"),
    (["--out_dir=export-run", "--out=data"], "data is there already"),
    (["--out_dir=export-run", "--to=nanogpt", "--out=export-run/ckpt.pt"], "there already"),
    (["--out_dir=export-bytes", "--out=x"], "is a megabyte"),
    (["--out_dir=export-bytes", "--to=nanogpt", "--out=x"], "is a megabyte"),
    (["--out_dir=export-bytes", "--to=hf_code", "--out=x"], "is a megabyte"),
    (["--out_dir=export-fast", "--out=x"], "value_embeddings=True; --to=hf_code takes it"),
], ids=str)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(call, place, arguments, hint):
    before = sorted(place.iterdir())
    with pytest.raises(UserError, match=hint) as e:
        call("export.py", *arguments)
    assert "\n" not in str(e.value) and sorted(place.iterdir()) == before


def test_a_program_of_its_own(place):
    done = run_program(["--out_dir=export-run", "--out=data"], place, program="export.py")
    assert_one_line_error(done, "data is there already", status=(1,))
    done = run_program(["--to=onnx"], place, program="export.py")
    assert_one_line_error(done, "onnx", "hf", "gguf", "safetensors", "nanogpt", status=(2,))


def test_nothing_of_a_folder_is_executed(call, place, tmp_path):
    """Code beside the weights, and a config.json that names it."""
    folder, mark = tmp_path / "hf", tmp_path / "mark"
    call("export.py", "--out_dir=export-run", f"--out={folder}")
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="auto_map"):
        call("export.py", f"--init_from={folder}", "--out=x")
    assert not mark.exists() and not (place / "x").exists()


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
@pytest.mark.parametrize("to", ["hf", "hf_code"])
def test_nothing_of_ours_is_needed_there(call, tmp_path, to):
    folder, run = tmp_path / "folder", ["--out_dir=export-run", f"--to={to}"]
    call("export.py", *run, f"--out={folder}", "--weights_dtype=bfloat16")
    code = (
        "import importlib.util as util, transformers as t\n"
        "assert not util.find_spec('bonsai') and not util.find_spec('model')\n"
        f"given = dict(trust_remote_code={to == 'hf_code'})\n"
        f"m = t.AutoModelForCausalLM.from_pretrained({str(folder)!r}, **given)\n"
        f"k = t.AutoTokenizer.from_pretrained({str(folder)!r}, **given)\n"
        "i = k('the', return_tensors='pt')\n"
        "print(k.decode(m.generate(**i, max_new_tokens=4, do_sample=False)[0]))\n"
        f"p = t.pipeline('text-generation', {str(folder)!r}, **given)\n"
        "print(p('the', max_new_tokens=4, do_sample=False)[0]['generated_text'])\n"
    )
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run_command([sys.executable, "-I", "-c", code], tmp_path, env)
    assert done.rc == 0 and done.stdout.startswith("the"), done
    said = re.sub(r"Loading weights: [^\r\n]*", "", done.stderr).strip()
    assert not said, said  # neither a warning nor a question
    if to == "hf_code":  # from the Hub, where it looks first for all that model.py imports
        revision = "0" * 40
        model = tmp_path / "home" / "hub" / "models--me--mine"
        shutil.copytree(folder, model / "snapshots" / revision)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(revision)
        env |= {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "others")}
        code = code.replace(repr(str(folder)), "'me/mine'")
        again = run_command([sys.executable, "-I", "-c", code], tmp_path, env)
        assert again.rc == 0 and again.stdout == done.stdout, again
    assert torch.bfloat16 in {
        w.dtype for w in read_safetensors(folder / "model.safetensors").values()
    }


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
def test_an_edit_that_no_cache_of_keys_and_values_knows(place, tmp_path):
    """Each token mixes with the one before: generate then computes whole contexts, as ours does."""
    block = "        x = x + self.attn(self.ln_1(x), rotation, cache, values)\n"
    text = (ROOT / "model.py").read_text(encoding="utf-8")
    shift = f"        x = x + F.pad(x, (0, 0, 1, -1))\n{block}"
    (tmp_path / "model.py").write_text(text.replace(block, shift), encoding="utf-8")
    folder, checkpoint = tmp_path / "folder", place / "export-fast" / "ckpt.pt"
    (tmp_path / "edited.py").write_text(
        "import runpy, sys\nroot, *sys.argv = sys.argv[1:]\nsys.path.insert(1, root)\n"
        "runpy.run_path(f'{root}/{sys.argv[0]}', run_name='__main__')\n"
    )

    def run(*words: str) -> str:
        command = [sys.executable, "edited.py", str(ROOT), *words, f"--init_from={checkpoint}"]
        done = run_command(command, tmp_path)
        assert done.rc == 0, done
        return done.stdout

    said = run("export.py", "--to=hf_code", f"--out={folder}")
    assert "use_cache=false" in said
    options = ["--temperature=0", "--num_samples=1", "--max_new_tokens=12", "--device=cpu"]
    ours = run("sample.py", "--start=the", "--kv_cache=False", *options)
    code = (
        "import sys, transformers as t\n"
        "m, k = (a.from_pretrained(sys.argv[1], trust_remote_code=True) for a in\n"
        "        (t.AutoModelForCausalLM, t.AutoTokenizer))\n"
        "i = k('the', return_tensors='pt')\n"
        "print(k.decode(m.generate(**i, max_new_tokens=12, do_sample=False)[0]))\n"
        "print(k.decode(m.generate(**i, max_new_tokens=12, do_sample=False, use_cache=True)[0]))\n"
    )
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run_command([sys.executable, "-I", "-c", code, str(folder)], tmp_path, env)
    without, with_cache = done.stdout.splitlines()
    assert without in ours and with_cache not in ours


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="no accelerate")
def test_the_harness_counts_as_eval_does(call, place, tmp_path):
    """lm_eval's own model of transformers (it needs accelerate) on the folder of a model that has
    no class there: choices of several lengths, whole texts, and what is written."""
    pytest.importorskip("lm_eval")
    folder, tasks = tmp_path / "folder", tmp_path / "tasks"
    call("export.py", "--out_dir=export-fast", "--to=hf_code", f"--out={folder}")
    tasks.mkdir()
    endings = [["the", "a cat.", "is"], ["dog", "it is so", "and"]]
    text = "The quick brown fox jumps over the lazy dog, and then he rests."
    lines = [
        {"ctx": "abcdefghi "[k:], "endings": endings[k % 2], "label": k % 3, "text": text[k:]}
        for k in range(1, 9)
    ]
    (tasks / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = "dataset_path: json\nvalidation_split: validation\n"
    head += f"dataset_kwargs: {{data_files: {{validation: {tasks / 'q.jsonl'}}}}}\n"
    kinds = {
        "choices": "output_type: multiple_choice\ndoc_to_text: '{{ctx}}'\ndoc_to_choice: endings\n"
        "doc_to_target: label\nmetric_list: [{metric: acc_norm}, {metric: brier_score}]\n",
        "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n",
        "written": "output_type: generate_until\ndoc_to_text: '{{ctx}}'\n"
        "doc_to_target: '{{text}}'\n"
        "generation_kwargs: {until: ['t'], max_gen_toks: 6, do_sample: false}\n"
        "metric_list: [{metric: chrf}]\n",
    }
    for name, text in kinds.items():
        (tasks / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}")
    env = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"}
    env["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    options = ["--model=hf", f"--model_args=pretrained={folder},trust_remote_code=True"]
    options += ["--device=cpu", "--batch_size=3", f"--tasks={','.join(kinds)}"]
    options += [f"--include_path={tasks}", f"--output_path={tmp_path / 'theirs.json'}"]
    done = run_command([sys.executable, "-m", "lm_eval", *options], tmp_path, env)
    assert done.rc == 0, done
    (path,) = tmp_path.glob("theirs*.json")
    theirs = json.loads(path.read_text())["results"]
    options = [f"--init_from={place / 'export-fast' / 'ckpt.pt'}", f"--tasks={','.join(kinds)}"]
    options += [f"--tasks_dir={tasks}", "--json=-", "--device=cpu"]
    done = run_program(options, place, program="eval.py", env=env)
    rows = json.loads(done.stdout.splitlines()[-1])["tasks"]
    assert len(rows) == 4
    for row in rows:
        given = theirs[row["task"]][f"{row['metric']},none"]
        assert given == pytest.approx(row["value"], rel=1e-5), row
