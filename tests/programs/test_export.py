"""export.py as its users run it, and what the other programs make of the files."""

import importlib.util
import json
import os
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import tiny
from helpers.evaluated import runtime
from helpers.programs import TINY, assert_one_line_error, load, output_of, run_command, run_program
from helpers.tiny_data import CHARS

from bonsai.files.safetensors import read_safetensors
from bonsai.models.table import build_model, describe_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.serving.registry import load_served
from bonsai.system.errors import UserError

NANOGPT = os.environ.get("NANOGPT")


@pytest.fixture(scope="module")
def place(tmp_path_factory, workplace) -> Path:
    """The workplace's data, and runs: export-run, export-bytes."""
    model, state = tiny(vocab_size=len(CHARS) + 2, block_size=16)
    state |= {"model": model.state_dict(), "tokenizer": {"type": "char", "chars": list(CHARS)}}
    sizes = dict(n_layer=1, n_head=2, n_embd=16, local_layer=1, local_embd=8, local_head=2)
    bytes_ = build_model("megabyte", sizes | dict(block_size=16, vocab_size=257))
    for name, content in {
        "export-run": state,
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
    said = call("export.py", "--out_dir=export-run", "--to=safetensors", f"--out={one}")
    assert f"wrote {one}" in said and "M parameters" in said
    assert "GPT2LMHeadModel" in call("export.py", "--out_dir=export-run", f"--out={folder}")
    said = call("export.py", f"--init_from={one}", "--to=nanogpt", f"--out={nano}")
    assert "ckpt.pt, meta.pkl" in said and "data/meta/meta.pkl" in said
    text = sampled(call, "export-run/ckpt.pt")
    for source in (one, folder, nano / "ckpt.pt"):
        assert sampled(call, source) == text, source
    sources = f"--init_from=export-run/ckpt.pt,{one},{folder},{nano}"
    call("eval.py", sources, "--dataset=meta", "--device=cpu", f"--json={tmp_path / 'r.json'}")
    losses = [r["loss"] for r in json.loads((tmp_path / "r.json").read_text())["losses"]]
    assert losses[1:3] == pytest.approx([losses[0], losses[3]], abs=1e-6)
    assert losses[3] < losses[0]  # the padding of the vocabulary had a share
    for source in (one, folder):
        served = load_served("it", str(source), runtime(), max_batch=1)
        assert served.tokenizer.to_dict() == {"type": "char", "chars": list(CHARS)}
    weights = read_safetensors(folder / "model.safetensors")["transformer.wte.weight"]
    assert len(weights) == len(CHARS)


@pytest.mark.parametrize("to, name", [("safetensors", "a b.safetensors"), ("hf", "a b")])
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
def test_nothing_of_ours_is_needed_there(call, tmp_path):
    folder = tmp_path / "hf"
    call("export.py", "--out_dir=export-run", f"--out={folder}", "--weights_dtype=bfloat16")
    code = (
        "import sys, transformers as t\n"
        f"m = t.AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=False)\n"
        f"k = t.AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=False)\n"
        "i = k('the', return_tensors='pt')\n"
        "print(k.decode(m.generate(**i, max_new_tokens=4, do_sample=False)[0]))\n"
        "assert not any(name.startswith('bonsai') for name in sys.modules)\n"
    )
    done = run_command([sys.executable, "-c", code], tmp_path)
    assert done.rc == 0 and done.stdout.startswith("the"), done
    assert torch.bfloat16 in {
        w.dtype for w in read_safetensors(folder / "model.safetensors").values()
    }
