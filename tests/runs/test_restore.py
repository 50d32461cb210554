"""bonsai/runs/restore.py: damage is found and named, and nothing in a file is executed."""

import errno
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import one_line, state
from helpers.programs import (
    ROOT,
    Payload,
    assert_one_line_error,
    differences,
    environment,
    run_program,
    train,
)

from bonsai.engine.text import find_tokenizer
from bonsai.models.loading import load_model
from bonsai.models.table import describe_model
from bonsai.runs import checkpoint, restore
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.names import previous
from bonsai.runs.restore import crop_moments, load_checkpoint, run_checkpoint, steps_done
from bonsai.system.errors import UserError
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.training.optimizers import load_optimizer_state
from model import CLASSIC_KEYS, GPT, GPTConfig

needs_resource = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="limits the address space, which needs Linux"
)


def test_a_flipped_byte_is_found_wherever_it_matters(tmp_path):
    """Flips all over the file: each is named as damage, or changes nothing that is read."""
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "ckpt.pt"
    whole, expected = path.read_bytes(), load_checkpoint(path)
    middle = len(whole) // 2
    places = np.linspace(0, len(whole) - 1, 120).astype(int).tolist()
    found = 0
    for place in [middle, *places]:
        content = bytearray(whole)
        content[place] ^= 0x10
        path.write_bytes(content)
        try:
            assert differences(load_checkpoint(path), expected) == []
        except UserError as e:
            found += 1
            assert str(path) in str(e), e
        assert place != middle or found, "a byte in the middle of the weights"
    assert found > 60
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert "damaged" in one_line(e) and f"before it is {previous(path)}" in one_line(e)
    # what is advised overwrites nothing, and leads to the one before
    aside = tmp_path / "ckpt.pt.bad"
    assert one_line(e).endswith(f"mv {path} {aside}")
    aside.write_text("another one")
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert one_line(e).endswith(f"mv {path} {aside}1")
    path.rename(f"{aside}1")
    assert run_checkpoint(tmp_path) == previous(path)


@pytest.mark.parametrize("keep", [0, 1, 3, 100, 2000, -4000, -1])
def test_a_file_cut_short_is_damaged(tmp_path, keep):
    save_checkpoint(tmp_path, state(1))
    path = tmp_path / "ckpt.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert "damaged" in one_line(e) and str(path) in one_line(e) and "prev" not in one_line(e)


@pytest.mark.parametrize("content", ["text", "tensor", "list", "weights alone", "pickle"])
def test_what_is_not_a_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "ckpt.pt"
    if content == "text":
        path.write_text("to be, or not to be\n" * 100)
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"model": 1}))
    else:
        objects = {"tensor": torch.zeros(3), "list": [1], "weights alone": state()["model"]}
        torch.save(objects[content], path)
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert str(path) in one_line(e)
    assert "execute" not in one_line(e)  # it is no attack, only the wrong file


def test_steps_of_a_file_without_reading_its_tensors(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(7))
    monkeypatch.setattr(torch, "empty", None)
    assert steps_done(tmp_path / "ckpt.pt") == 7
    monkeypatch.undo()
    for content in ([1], {"iter_num": "x"}, {**state(), "iter_num": "x"}):
        torch.save(content, tmp_path / "ckpt.pt")
        with pytest.raises(UserError):
            steps_done(tmp_path / "ckpt.pt")


def test_a_missing_file_and_a_newer_one(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path / "ckpt.pt")
    torch.save({**state(), "format": checkpoint.FORMAT + 1}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="newer version"):
        load_checkpoint(tmp_path / "ckpt.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "folder.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_payload_is_refused_and_not_executed(tmp_path, form):
    path, marker = tmp_path / "ckpt.pt", tmp_path / "executed"
    content = {**state(), "config": Payload(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["config"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError) as e:
        load_checkpoint(path)
    assert str(path) in one_line(e)
    if form == "zip":  # the others are not read at all
        assert "refused" in one_line(e)
    assert not marker.exists()
    if form != "pickle":
        torch.load(path, weights_only=False)
        assert marker.exists()  # the payload is a real one


def test_the_prefix_of_compiled_models_goes(tmp_path):
    content = state()
    content["model"] = {"_orig_mod.w": content["model"]["w"]}
    torch.save(content, tmp_path / "ckpt.pt")
    assert list(load_checkpoint(tmp_path / "ckpt.pt")["model"]) == ["w"]


def test_which_checkpoint_of_a_run(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        run_checkpoint(tmp_path)
    save_checkpoint(tmp_path, state(5), ("last.pt",))
    assert run_checkpoint(tmp_path).name == "last.pt"
    save_checkpoint(tmp_path, state(3), ("ckpt.pt",))
    assert run_checkpoint(tmp_path).name == "ckpt.pt"  # to sample from: the better one
    assert run_checkpoint(tmp_path, newest=True).name == "last.pt"  # to go on: more steps
    save_checkpoint(tmp_path, state(7), ("ckpt.pt",))
    assert run_checkpoint(tmp_path, newest=True).name == "ckpt.pt"
    for name in ("ckpt.pt", "last.pt"):
        (tmp_path / name).unlink()
    assert run_checkpoint(tmp_path).name == "ckpt.prev.pt"


def test_crop_moments():
    """Of a parameter that became shorter; the others, and the step counters, stay."""
    short, same = torch.zeros(4, 6), torch.zeros(5)
    moments = torch.arange(48.0).view(8, 6)
    found = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments * 2},
            1: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)},
        }
    }
    crop_moments(found, [short, same, torch.zeros(2)])  # the last one has no state yet
    assert torch.equal(found["state"][0]["exp_avg"], moments[:4])
    assert torch.equal(found["state"][0]["exp_avg_sq"], moments[:4] * 2)
    assert found["state"][0]["step"] == 3 and found["state"][1]["exp_avg"].shape == (5,)


def test_a_folder_without_a_run_names_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(restore, "ROOT", tmp_path / "repository")
    with pytest.raises(UserError, match="no checkpoint in out: set --out_dir to a run's folder"):
        run_checkpoint("out")
    for i, name in enumerate(["out-a/ckpt.pt", "my runs/last.pt", "out/one/ckpt.pt"]):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i))
    said = "there are runs in out/one, my runs, out-a; choose one"
    with pytest.raises(UserError, match=f"no checkpoint in out: {said}"):
        run_checkpoint("out")
    for i in range(9):
        (tmp_path / "repository" / f"r{i}").mkdir(parents=True)
        (tmp_path / "repository" / f"r{i}" / "last.pt").touch()
    with pytest.raises(UserError, match=r"r\d, .* and 6 more; choose"):
        run_checkpoint("nowhere")


# ---- other people's names for the same weights ----


def tiny(**fields) -> tuple[GPT, dict]:
    """A model, and its checkpoint as train.py writes it."""
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=30)
    model = GPT(GPTConfig(**{**sizes, **fields}))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    idx = torch.arange(16).view(2, 8)
    model(idx, idx)[1].backward()
    optimizer.step()
    return model, {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {},
        **describe_model(model, "gpt"),
        "iter_num": 3,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "meta", "learning_rate": 1e-3, "compile": False},
        "tokenizer": {"type": "char", "chars": list("abcdefghijklmnopqrstuvwxyz ,.\n")},
        "chat_template": None,
        "data": {"meta/train": "0" * 64},
        "progress": {"evaluated": 3, "bad_evals": 0, "seconds": 1.5, "best_val_loss": 2.5},
        "wandb_id": None,
        "versions": {"torch": "2"},
        "format": 1,
    }


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]
)
@pytest.mark.parametrize("old", [False, True])
def test_names_by_which_a_model_was_wrapped(tmp_path, prefix, old):
    """By torch.compile, DistributedDataParallel or both; torch 1.x kept the mask as attn.bias."""
    model, state = tiny()
    state = {
        k: state[k] for k in ("optimizer", "model_args", "iter_num", "best_val_loss", "config")
    }
    weights = dict(model.state_dict())
    if old:
        mask = torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8)
        weights |= {f"transformer.h.{i}.attn.bias": mask for i in range(2)}
    state["model"] = {prefix + k: v for k, v in weights.items()}
    torch.save(state, tmp_path / "ckpt.pt")
    drawn = torch.get_rng_state()
    loaded = load_model("resume", tmp_path)
    assert torch.equal(torch.get_rng_state(), drawn)  # no weights that would be overwritten
    assert differences(loaded.model.state_dict(), model.state_dict()) == []
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert differences(loaded.checkpoint["optimizer"], state["optimizer"]) == []


def test_a_head_that_is_no_longer_tied_is_refused(tmp_path):
    """Not overwritten by the embedding without a word."""
    model, state = tiny()
    state["model"] = {**model.state_dict(), "lm_head.weight": torch.ones(30, 16)}
    torch.save(state, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"lm_head\.weight should be the same"):
        load_model("resume", tmp_path)


def test_without_the_optimizer(tmp_path):
    """Two thirds of the memory, which only a resume needs; its bytes are checked all the same."""
    _, state = tiny()
    torch.save(state, tmp_path / "ckpt.pt")
    assert "optimizer" not in load_model("best", tmp_path).checkpoint
    assert "optimizer" in load_model("resume", tmp_path).checkpoint
    content = (tmp_path / "ckpt.pt").read_bytes()
    moment = state["optimizer"]["state"][0]["exp_avg"].numpy().tobytes()[:40]
    place = content.index(moment)
    (tmp_path / "ckpt.pt").write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
    with pytest.raises(UserError, match="wrong checksum"):
        load_model("best", tmp_path)


# ---- values of the wrong kind in a good container ----

WRONG = ["word", ["a", "list"], float("nan"), None, 1e12, 10**12, -1, -0.5, 2**2000, True, {}, ()]
FIELDS = [
    *("model", "optimizer", "model_args", "model_name", "model_config", "iter_num", "format"),
    *("best_val_loss", "config", "tokenizer", "chat_template", "progress", "scaler", "wandb_id"),
    "data",
    *(f"model_config.{f.name}" for f in dataclass_fields(GPTConfig)),
    *(f"model_args.{name}" for name in CLASSIC_KEYS),
    *("progress.evaluated", "progress.bad_evals", "progress.seconds", "progress.best_val_loss"),
    *("optimizer.state", "optimizer.param_groups", "optimizer.state.0", "optimizer.state.0.step"),
    *("optimizer.state.0.exp_avg", "optimizer.param_groups.0", "optimizer.param_groups.0.params"),
    *("model.lm_head.weight", "model.transformer.h.1.ln_1.weight", "config.dataset"),
    *("tokenizer.type", "tokenizer.chars"),
]  # fmt: skip


def replaced(value, path: list[str], new):
    """A copy of nested dicts and lists in which what stands at `path` is `new`."""
    if not path:
        return new
    key = path[0] if isinstance(value, dict) and path[0] in value else None
    if key is None and isinstance(value, dict | list) and path[0].isdecimal():
        key = int(path[0])
    if key is None:  # a name with dots in it
        key, path = ".".join(path), path[-1:]
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[key] = replaced(value.get(key) if isinstance(value, dict) else value[key], path[1:], new)
    return copy


def resume_as_train_does(folder: Path) -> None:
    """What is made of a checkpoint before the first step."""
    loaded = load_model("resume", folder)
    find_tokenizer(loaded)
    if loaded.checkpoint.get("chat_template") is not None:
        ChatTemplate.from_dict(loaded.checkpoint["chat_template"])
    optimizer = loaded.model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    crop_moments(
        loaded.checkpoint["optimizer"], [p for g in optimizer.param_groups for p in g["params"]]
    )
    load_optimizer_state(optimizer, loaded.checkpoint["optimizer"])
    idx = torch.zeros(1, min(4, loaded.model.config.block_size), dtype=torch.int64)
    loaded.model(idx, idx)[1].backward()
    optimizer.step()
    float(loaded.checkpoint["best_val_loss"]) + loaded.checkpoint["iter_num"]
    json.dumps(loaded.config, default=str)


@pytest.mark.parametrize("field", FIELDS)
def test_a_value_of_the_wrong_kind_is_one_line(tmp_path, field):
    """Or does no harm: the model takes a step and stays of the size that it was."""
    _, state = tiny()
    found = 0
    for wrong in WRONG:
        changed = replaced(state, field.split("."), wrong)
        if field.startswith("model_args"):  # as nanoGPT's, which has no model_config
            changed.pop("model_config")
        torch.save(changed, tmp_path / "ckpt.pt")
        try:
            resume_as_train_does(tmp_path)
        except UserError as e:
            found += 1
            assert "\n" not in str(e) and len(str(e)) < 500, e
    assert found or field == "config.dataset", "nothing of this was refused"


def test_what_a_resume_needs_fits_the_model_and_is_there(tmp_path):
    _, state = tiny()
    moment = state["optimizer"]["state"][0]["exp_avg"]
    for field, wrong in {
        "optimizer.param_groups": state["optimizer"]["param_groups"][:1],
        "optimizer.param_groups.0.params": [0],
        "optimizer.state.0.exp_avg": moment[:-1],
        "optimizer.state.0.exp_avg_sq": moment[None],
        "optimizer.state.0": {"exp_avg": moment},
        "optimizer.state": {99: state["optimizer"]["state"][0]},
        "config": {"dataset": ["meta"]},
        "config.learning_rate": [moment],
        "model_config.rope_base": -1.0,
        "model_config.new_field": 1,
    }.items():
        torch.save(replaced(state, field.split("."), wrong), tmp_path / "ckpt.pt")
        with pytest.raises(UserError) as e:
            resume_as_train_does(tmp_path)
        assert "\n" not in str(e.value), field


SHAPE = ["--n_embd=16", "--block_size=8", "--vocab_size=30", "--dropout=0.0"]  # of tiny()


def test_a_run_needs_more_than_weights_to_go_on(workplace, tmp_path):
    _, state = tiny()
    (tmp_path / "out").mkdir()
    for missing in ("optimizer", "iter_num", "best_val_loss"):
        torch.save({k: v for k, v in state.items() if k != missing}, tmp_path / "out" / "ckpt.pt")
        assert load_model("best", tmp_path / "out").model.config.n_layer == 2  # to sample from
    result = train(workplace, tmp_path / "out", "--init_from=resume", *SHAPE)
    assert_one_line_error(result, "has no best_val_loss")


def test_settings_of_a_run_that_goes_on_are_in_their_ranges(workplace, tmp_path):
    """They come from the file: they are checked as those of a command are."""
    _, state = tiny()
    (tmp_path / "out").mkdir()
    state["config"] = {"dataset": "meta", "batch_size": 0}
    torch.save(state, tmp_path / "out" / "ckpt.pt")
    options = ["--init_from=resume", f"--out_dir={tmp_path / 'out'}", "--device=cpu"]
    assert_one_line_error(run_program(options, workplace), "batch_size=0", "at least 1")


def test_no_model_larger_than_its_weights_is_built(tmp_path, monkeypatch):
    """Sizes are compared before there is any memory for them."""
    monkeypatch.setattr("bonsai.models.table.build_model", None)  # would be called for the real one
    _, state = tiny(position="rope")
    for field, value in {
        "n_layer": 2**31, "n_embd": 2**20, "vocab_size": 2**31, "block_size": 2**30,
        "n_head": 2**30, "head_size": 2**30, "n_kv_head": 2**30,
    }.items():  # fmt: skip
        torch.save(replaced(state, ["model_config", field], value), tmp_path / "ckpt.pt")
        with pytest.raises(UserError, match="does not fit the model"):
            load_model("resume", tmp_path)


# ---- containers that take all memory, or all time ----


def rezipped(content: dict[str, bytes], path: Path, compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(f"ckpt/{name}", data)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()}


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def bombs(path: Path) -> dict[str, Callable[[], None]]:
    """Name -> what writes the file. All of them are smaller than 10 MB."""
    torch.save(state(1), path)
    good = members(path)
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
    )
    tensor += b"0X\x03\0\0\0cpuM\xb8\x0btQK\0%b%b\x89ccollections\nOrderedDict\n)RtR"
    number = b"\x8a\x08" + (2**60).to_bytes(8, "little")
    deep = 100_000

    def program(body: bytes) -> Callable[[], None]:
        return lambda: rezipped({**good, "data.pkl": pickled(body)}, path)

    def overlapping() -> None:
        """Thousands of entries of the directory for the same bytes."""
        rezipped({"data.pkl": good["data.pkl"], "data/0": bytes(2**20)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            info = archive.infolist()[1]
            for i in range(5000):
                copy = zipfile.ZipInfo(f"ckpt/data/{i + 1}")
                copy.header_offset, copy.CRC = info.header_offset, info.CRC
                copy.file_size = copy.compress_size = info.file_size
                archive.filelist.append(copy)
            archive._didModify = True

    doubled = b"](K\1e" + b"q\0" + b"".join(
        b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)
    )  # fmt: skip
    return {
        "compressed": lambda: rezipped(
            {**good, "data/0": bytes(2**28)}, path, zipfile.ZIP_DEFLATED
        ),
        "overlapping": overlapping,
        "deep lists": program(b"]" * deep + b"a" * (deep - 1)),
        "deep tuples": program(b")" + b"\x85" * deep),
        "deep tuple as a key": program(b"})" + b"\x85" * deep + b"K\1s"),
        "deep dicts": program(b"}X\1\0\0\0a" * deep + b"}" + b"s" * deep),
        "doubled 60 times": program(doubled),
        "holds itself": program(b"]q\0h\0a"),
        "bytearray": program(b"c__builtin__\nbytearray\n" + number + b"\x85R"),
        "large memo": program(b"]r\xff\xff\xff\xff"),
        "many values": program(b"(" + b"]" * 1_000_000 + b"l"),
        "many instructions": program(b"]" + b"q\0" * 500_000),
        "many pops": program(b"]" + b"K\1a" * 200_000),
        "long string": program(b"X\xff\xff\xff\x7fabc"),
        "tensor of 2**60": program(tensor % (number + b"\x85", b"K\1\x85")),
        "tensor of stride 0": program(tensor % (number + b"\x85", b"K\0\x85")),
        "tensor beyond its end": program(tensor % (b"K\2\x85", number + b"\x85")),
        "torch.Tensor": program(b"ctorch\nTensor\n" + number + b"\x85R"),
    }


@needs_resource
def test_small_files_take_neither_memory_nor_time(tmp_path):
    """In a child whose address space is 600 MB larger than torch needs, each in seconds.

    The bounds on numbers are lowered tenfold for it, and so are the files that go beyond them.
    """
    files = {}
    for name, write in bombs(tmp_path / "ckpt.pt").items():
        write()
        files[name] = (tmp_path / "ckpt.pt").rename(tmp_path / f"{name.replace(' ', '-')}.pt")
        assert files[name].stat().st_size < 17e6, name
    code = f"""
import resource, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from bonsai.files import torchfile
from bonsai.system.errors import UserError
from bonsai.runs.restore import load_checkpoint
from pathlib import Path
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20,) * 2)
torchfile.MOST //= 10
for path in sys.argv[1:]:
    begin = time.perf_counter()
    try:
        load_checkpoint(Path(path))
        raise SystemExit(path + " was read")
    except UserError as e:
        assert chr(10) not in str(e) and path in str(e), e
        took = time.perf_counter() - begin
        print(f"{{took:.1f}} s", e)
"""
    command = [sys.executable, "-c", code, *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "memory does not suffice" not in done.stdout, done.stdout


@needs_resource
def test_a_good_checkpoint_loads_within_a_gigabyte(tmp_path):
    _, state = tiny(n_embd=256, n_layer=4, vocab_size=1000)
    torch.save(state, tmp_path / "ckpt.pt")
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from bonsai.models.loading import load_model
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
model = load_model("resume", sys.argv[1]).model
print(sum(p.numel() for p in model.parameters()))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 3_000_000, done.stderr[-2000:]


# ---- what is wrong is said as what it is ----


def refuse_to_open(number: int):
    def fail(path, *args, **options):
        raise OSError(number, os.strerror(number), str(path))

    return fail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO])
def test_what_the_system_says_is_not_called_damage(tmp_path, monkeypatch, number):
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    monkeypatch.setattr("builtins.open", refuse_to_open(number))
    with pytest.raises(UserError) as e:
        load_checkpoint(tmp_path / "ckpt.pt")
    monkeypatch.undo()
    text = one_line(e)
    assert os.strerror(number) in text and "damaged" not in text and "mv" not in text


def test_a_folder_that_must_not_be_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "stat", refuse_to_open(errno.EACCES))
    for read in (load_checkpoint, lambda path: run_checkpoint(path.parent)):
        with pytest.raises(UserError, match="Permission denied"):
            read(tmp_path / "ckpt.pt")


def test_short_memory_is_not_called_damage(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))

    def fail(*args, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(UserError) as e:
        load_checkpoint(tmp_path / "ckpt.pt")
    assert "memory does not suffice" in one_line(e) and "damaged" not in one_line(e)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_and_a_folder_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ckpt.pt")
    (tmp_path / "last.pt").mkdir()
    for name, kind in {"ckpt.pt": "a pipe", "last.pt": "a folder"}.items():
        for read in (load_checkpoint, steps_done, lambda path: load_model(str(path), "")):
            if name == "last.pt" and read not in (load_checkpoint, steps_done):
                continue
            with pytest.raises(UserError, match=kind):
                read(tmp_path / name)
