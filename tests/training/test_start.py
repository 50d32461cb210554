"""bonsai/training/start.py: what a run begins from, called from Python as in a notebook."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.programs import GOLDEN, load, losses, metrics, program_module
from helpers.tiny_data import make_dataset, write_meta
from helpers.tiny_model import tiny
from helpers.train_in_process import MODELS, SMALL

from bonsai.models.export import export_hugging_face, portable
from bonsai.models.loading import Loaded, load_model
from bonsai.runs.portable import write_portable
from bonsai.system.errors import UserError
from bonsai.tokenizers import from_dict
from bonsai.training import optimizers as optim
from bonsai.training import report, trackers

# ---- from Python ----


def test_a_second_call_inherits_nothing(train, tmp_path, capsys):
    """As in a notebook: the same call gives the same run, whatever was called in between."""
    assert train(tmp_path / "a", SMALL, max_iters=3) == 0
    assert train(tmp_path / "b", SMALL, MODELS["megabyte"], max_iters=1, seed=5) == 0
    assert train(tmp_path / "c", SMALL, max_iters=3) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "c") != losses(tmp_path / "b")
    assert "iter 2: loss" in capsys.readouterr().out
    with pytest.raises(UserError, match="nosuch"):  # an error is an exception, not the end
        train(tmp_path / "d", SMALL, dataset="nosuch")


# ---- runs that go on ----


def test_the_config_json_of_a_run_makes_it_again(train, tmp_path):
    assert train(tmp_path / "a", SMALL, max_iters=3, dropout=0.2) == 0
    assert train(tmp_path / "a", init_from="resume", max_iters=5) == 0
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    settings.pop("out_dir")
    assert train(tmp_path / "b", settings) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.parametrize("again, id", [("wandb", "its"), ("", "its"), ("tensorboard", None)])
def test_a_trackers_name_of_a_run_is_for_that_tracker(train, tmp_path, monkeypatch, again, id):
    told = []
    monkeypatch.setattr(trackers, "installed", lambda name: True)
    monkeypatch.setattr(
        report.Report, "start_tracker", lambda self, start, id: told.append(id) or "its"
    )
    assert train(tmp_path, SMALL, wandb_log=True, max_iters=1) == 0
    settings = dict(tracker=again, wandb_log=False, init_from="resume", max_iters=2)
    assert train(tmp_path, **settings) == 0
    assert told == [None, id]


def test_a_tracker_that_is_not_there_moves_no_run(train, tmp_path, monkeypatch):
    assert train(tmp_path, SMALL, max_iters=1) == 0
    monkeypatch.setattr(trackers, "installed", lambda name: False)
    with pytest.raises(UserError, match="tracker=wandb needs wandb: pip install wandb"):
        train(tmp_path, SMALL, max_iters=1, tracker="wandb")
    assert (tmp_path / "last.pt").is_file() and not (tmp_path / "earlier").exists()


# ---- the learning rate's length ----


def test_lr_decay_iters_follows_max_iters_unless_given(train, tmp_path, capsys):
    settings = {k: v for k, v in SMALL.items() if k != "lr_decay_iters"}
    assert train(tmp_path / "a", settings, max_iters=6) == 0
    rates = [row["lr"] for row in metrics(tmp_path / "a") if "loss" in row]
    assert rates[2] > rates[-1] > settings["min_lr"]  # it falls to the end, and is not there before
    capsys.readouterr()
    assert train(tmp_path / "b", settings, max_iters=6, lr_decay_iters=3) == 0
    said = capsys.readouterr().out
    assert "from step 3 (lr_decay_iters) to 6 (max_iters) the learning rate is min_lr" in said
    assert train(tmp_path / "a", init_from="resume", max_iters=8) == 0  # it did: it still does
    assert load(tmp_path / "a" / "last.pt")["config"]["lr_decay_iters"] == 8


def test_a_run_in_pieces_is_the_run_in_one_when_the_length_of_the_decay_was_given(train, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert train(whole, SMALL, max_iters=6, lr_decay_iters=6) == 0
    assert train(pieces, SMALL, max_iters=2, lr_decay_iters=6) == 0
    for steps in (4, 6):
        assert train(pieces, init_from="resume", max_iters=steps) == 0
    assert losses(pieces) == losses(whole)


def test_tokens_are_counted_through_a_change_of_the_batch(train, tmp_path):
    """Those of the steps before were of the batch that they had."""
    out, width = tmp_path / "run", SMALL["block_size"]
    rows = SMALL["batch_size"] * SMALL["gradient_accumulation_steps"]
    assert train(out, SMALL, max_iters=2) == 0
    assert train(out, init_from="resume", max_iters=4, batch_size=1) == 0
    assert train(out, init_from="resume", max_iters=6, block_size=width // 2) == 0
    tokens = {row["iter"]: row["tokens"] for row in metrics(out) if "tokens" in row}
    first, second = 2 * rows * width, 2 * SMALL["gradient_accumulation_steps"] * width
    assert tokens == {0: 0, 2: first, 4: first + second, 6: first + second + second // 2}


# ---- the data of a run ----


def test_another_tokenizer_is_refused_unless_insisted_on(train, finished, workplace, tmp_path):
    folder = make_dataset(tmp_path / "data" / "greek")
    meta = json.loads((folder / "meta.json").read_text())
    meta["tokenizer"]["chars"] = list("αβγδεζηθικλμνξοπρστυφχψωάέήίόύ")
    (folder / "meta.json").write_text(json.dumps(meta))
    new = dict(init_from=str(finished), dataset=str(folder), max_iters=1, batch_size=2)
    with pytest.raises(UserError, match=r"another tokenizer \(char, 30 characters\)"):
        train(tmp_path / "out", new)
    with pytest.raises(UserError, match="another tokenizer"):  # no meta file: GPT-2's is assumed
        train(tmp_path / "out", new, dataset="bare")
    assert train(tmp_path / "out", new, other_tokenizer=True) == 0
    assert load(tmp_path / "out" / "last.pt")["tokenizer"] == meta["tokenizer"]


def test_weights_without_a_tokenizer_are_trained_and_evaluated_with_a_word(
    train, workplace, tmp_path, capsys
):
    """A folder of Hugging Face's whose tokenizer is missing or cannot be used."""
    folder, few = str(GOLDEN / "hf_gpt2_tiny"), dict(max_iters=1, eval_iters=1, batch_size=2)
    word = f"nothing says whether the data's tokens are the model's: {folder} has no tokenizer"
    few |= dict(gradient_accumulation_steps=1)
    assert train(tmp_path / "run", few, init_from=folder, warmup_iters=0) == 0
    assert word in capsys.readouterr().out
    program = program_module("eval.py")
    program.main(init_from=folder, dataset="meta", windows=1, device="cpu")
    assert word in capsys.readouterr().err
    program.main(init_from=str(tmp_path / "run" / "ckpt.pt"), windows=1, device="cpu")
    assert "nothing says" not in capsys.readouterr().err  # the data's is in the checkpoint


CHATS = [{"roles": {"user": [q, "\n"], "assistant": ["A", "\n"]}, "start": ""} for q in "QU"]


@pytest.mark.parametrize(("models", "datas", "kept", "said"), [
    (None, CHATS[0], CHATS[0], False),
    (CHATS[0], None, CHATS[0], False),
    (CHATS[0], CHATS[0], CHATS[0], False),
    (CHATS[0], CHATS[1], CHATS[1], True),
])  # fmt: skip
@pytest.mark.parametrize("source", ["checkpoint", "folder"])
def test_the_chat_template_of_the_data_takes_the_models_place(
    train, tmp_path, capsys, source, models, datas, kept, said
):
    data = make_dataset(tmp_path / "data" / "mine")
    meta = json.loads((data / "meta.json").read_text())
    model = tiny(vocab_size=len(meta["tokenizer"]["chars"]), block_size=SMALL["block_size"])
    loaded = Loaded(model, "gpt", meta["tokenizer"], {}, "it", chat_template=models)
    coder = from_dict(meta["tokenizer"])
    path = tmp_path / ("it" if source == "folder" else "it.safetensors")
    if source == "folder":
        export_hugging_face(loaded, coder, path, "float32")
    else:
        write_portable(path, portable(loaded, coder, "float32"))
    (data / "meta.json").write_text(json.dumps({**meta, "chat_template": datas} if datas else meta))
    sizes = {k: v for k, v in SMALL.items() if not k.startswith(("n_", "block"))}
    run = dict(init_from=str(path), dataset=str(data), max_iters=1, eval_interval=1)
    assert train(tmp_path / "out", sizes, run) == 0
    note = "the data's chat template is another than the model's, and takes its place"
    assert (note in capsys.readouterr().out) == said
    assert load(tmp_path / "out" / "last.pt")["chat_template"] == kept


def test_data_that_changed_are_said_and_measured_anew(train, tmp_path, capsys):
    folder = make_dataset(tmp_path / "data" / "mine")
    settings = {**SMALL, "dataset": str(folder), "always_save_checkpoint": False}
    assert train(tmp_path / "run", settings, max_iters=2) == 0
    assert "data are not those" not in capsys.readouterr().out
    assert train(tmp_path / "run", init_from="resume", dataset=str(folder), max_iters=4) == 0
    assert "data are not those" not in capsys.readouterr().out
    meta = json.loads((folder / "meta.json").read_text())
    for split in meta["splits"].values():
        split["sha256"] = ["1" * 64]
    (folder / "meta.json").write_text(json.dumps(meta))
    state = load(tmp_path / "run" / "last.pt")
    state["progress"]["best_val_loss"] = 1e-3  # out of reach
    torch.save(state, tmp_path / "run" / "last.pt")
    assert train(tmp_path / "run", init_from="resume", dataset=str(folder), max_iters=6) == 0
    said = capsys.readouterr().out
    assert "the data are not those that this run has trained on so far" in said
    assert f"{folder}/train" in said and f"{folder}/val" in said
    assert load(tmp_path / "run" / "ckpt.pt")["iter_num"] > 4  # the best on these data
    evals = {row["iter"]: row for row in metrics(tmp_path / "run") if "val_loss" in row}
    assert [step for step, row in evals.items() if "other_data" in row] == [4]
    assert f"validation loss {evals[4]['val_loss']:.4f} -> {evals[6]['val_loss']:.4f} (" in said


# ---- masked targets ----


def test_a_pass_that_is_cut_otherwise_is_said(train, tmp_path, capsys):
    """Which windows a pass has had by a step depends on how many there are in one."""
    out, epoch = tmp_path / "run", dict(batch_order="epoch", init_from="auto")
    assert train(out, SMALL, epoch, max_iters=2) == 0
    assert train(out, SMALL, epoch, max_iters=3) == 0
    assert "come twice" not in capsys.readouterr().out
    rows = SMALL["batch_size"] // 2
    cut = dict(batch_size=rows, gradient_accumulation_steps=4)  # as for more processes
    assert train(tmp_path / "cut", SMALL, epoch, max_iters=2, gradient_accumulation_steps=2) == 0
    assert train(tmp_path / "cut", SMALL, epoch, max_iters=3, **cut) == 0
    assert "come twice" not in capsys.readouterr().out  # the same windows, in other micro-batches
    assert train(out, SMALL, epoch, max_iters=4, batch_size=rows) == 0
    assert "batch_order=epoch with another batch_size than before" in capsys.readouterr().out
    assert train(out, SMALL, init_from="resume", max_iters=5, batch_order="random") == 0
    assert "come twice" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def holes(tmp_path_factory) -> str:
    """Rows of 9 tokens with 0 to 8 targets; two in three have none at all."""
    folder = tmp_path_factory.mktemp("holes") / "holes"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 30, (120, 9)).astype(np.uint16)
    mask = np.arange(9) >= rng.integers(1, 9, (120, 1))
    mask[np.arange(120) % 3 != 0] = False
    for split in ("train", "val"):
        (folder / f"{split}.bin").write_bytes(rows.tobytes())
        (folder / f"{split}.mask.bin").write_bytes(mask.astype(np.uint8).tobytes())
    masks = {s: {"mask_files": [f"{s}.mask.bin"]} for s in ("train", "val")}
    write_meta(folder, {"train": rows.ravel(), "val": rows.ravel()}, masks, row_length=9)
    return str(folder)


@pytest.mark.parametrize("model", ["gpt", "further", "muon", "megabyte", "spacebyte"])
def test_a_step_is_the_mean_over_its_targets(train, holes, tmp_path, model):
    """However its rows are cut into micro-batches, some of which have no target at all."""
    kind = MODELS.get(model, {"further_weight": 0.5})  # a second loss, of the token after next
    shape = {**SMALL, **kind, "block_size": 8, "eval_iters": 0, "max_iters": 4}
    if model == "megabyte":
        shape |= dict(patch_size=2)
    for rows in (8, 4, 1):
        cut = dict(batch_size=rows, gradient_accumulation_steps=8 // rows, dataset=holes)
        assert train(tmp_path / str(rows), shape, cut) == 0
    one, two, eight = (metrics(tmp_path / name) for name in ("8", "4", "1"))
    for a, b, c in zip(one, two, eight):
        assert a.keys() == b.keys() == c.keys()
        for key in a.keys() & {"loss", "grad_norm", "val_loss", "train_loss"}:
            assert math.isfinite(a[key])
            assert b[key] == pytest.approx(a[key], rel=1e-4) == c[key]
        assert a.get("val_bpb") is None  # masked tokens have bytes but no loss


def test_windows_are_as_long_as_rows(train, tmp_path, capsys):
    """Unless the command says otherwise; those of a loaded model never become longer."""
    without = {name: value for name, value in SMALL.items() if name != "block_size"}

    def context(name: str, *parts: dict, **settings) -> int:
        assert train(tmp_path / name, *parts, max_iters=1, **settings) == 0
        return load(tmp_path / name / "last.pt")["model_args"]["block_size"]

    as_rows = "block_size = 7, as the data have rows of 8 tokens"
    assert context("new", without, dataset="rows") == 7
    assert as_rows in capsys.readouterr().out
    assert context("long", SMALL) == 16
    assert context("shorter", without, dataset="rows", init_from=str(tmp_path / "long")) == 7
    assert as_rows in capsys.readouterr().out
    assert context("same", without, dataset="rows", init_from=str(tmp_path / "new")) == 7
    assert "as the data have rows" not in capsys.readouterr().out
    assert context("given", SMALL, dataset="rows") == 16
    assert "windows of block_size 16 + 1 are filled up where rows end" in capsys.readouterr().out
    assert context("mixed", SMALL, dataset="rows,meta") == 16
    assert context("short", SMALL, block_size=5) == 5
    for start in (dict(init_from=str(tmp_path / "short")), dict(block_size=5)):
        with pytest.raises(UserError, match=r"rows of 8 tokens.* set block_size=7"):
            train(tmp_path / "error", without, start, dataset="rows", max_iters=1)


# ---- an optimizer of one's own ----


OWN = {  # what they remember has other names, shapes and kinds than AdamW's
    "Adamax": {},
    "NAdam": {},
    "Adafactor": {},
    "ASGD": {},
    "SGD": dict(momentum=0.9),
}


@pytest.mark.parametrize("name", OWN)
def test_a_run_with_an_optimizer_of_ones_own_goes_on_exactly(train, tmp_path, monkeypatch, name):
    def own(model, c, runtime):
        return getattr(torch.optim, name)(model.parameters(), lr=c.learning_rate, **OWN[name])

    monkeypatch.setitem(optim.OPTIMIZERS, "own", own)
    settings = {**SMALL, "optimizer": "own", "lr_decay_iters": 4}
    assert train(tmp_path / "whole", settings, max_iters=4) == 0
    assert train(tmp_path / "pieces", settings, max_iters=2) == 0
    assert train(tmp_path / "pieces", init_from="resume", max_iters=4) == 0
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")


def test_an_optimizer_is_one_function(train, tmp_path, monkeypatch):
    """torch's SGD, which has no fused guard against gradients that are not finite."""

    def sgd(model, settings, runtime):
        rate, momentum = settings["learning_rate"], settings["momentum"]
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, nesterov=True)

    monkeypatch.setitem(optim.OPTIMIZERS, "sgd", sgd)
    settings = {**SMALL, "optimizer": "sgd", "learning_rate": 0.1, "max_iters": 10}
    assert train(tmp_path / "run", settings) == 0
    evals = [row["val_loss"] for row in metrics(tmp_path / "run") if "val_loss" in row]
    assert evals[-1] < evals[0]
    assert train(tmp_path / "run", init_from="resume", max_iters=12) == 0
    wild = {**settings, "learning_rate": 1e30, "decay_lr": False, "max_skipped": 3, "max_iters": 20}
    assert train(tmp_path / "wild", wild, eval_interval=100) == 1
    skipped = [row for row in metrics(tmp_path / "wild") if row.get("skipped")]
    assert len(skipped) == 3


def test_the_dial_says_what_it_costs_before_it_starts(train, tmp_path, capsys):
    small = dict(block_size=16, batch_size=4, eval_iters=1, max_iters=1)
    assert train(tmp_path, small, depth=1, gradient_accumulation_steps=1) == 0
    said = capsys.readouterr().out
    cost = "depth=1: 0.1M parameters, 0.00M tokens, "  # one step of 64
    assert cost in said and said.index(cost) < said.index("step 0: train loss")


def test_the_dial_is_the_gpts(train, tmp_path):
    with pytest.raises(UserError, match="depth=2 is a rule for the gpt: leave it out for megabyte"):
        train(tmp_path, SMALL, MODELS["megabyte"], depth=2)


def test_which_weights_are_used_is_said_where_they_are_not_the_newest(train, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, SMALL, max_iters=2) == 0
    assert "which samples and evaluations take" not in capsys.readouterr().out
    assert load_model("best", out).newer == load_model(str(out), "").newer == ""
    still = dict(learning_rate=0.0, min_lr=0.0, always_save_checkpoint=False)
    assert train(out, init_from="resume", max_iters=4, **still) == 0
    said = capsys.readouterr().out
    assert "which samples and evaluations take, is of step 2" in said
    assert f"{out / 'last.pt'} is of step 4: --init_from={out / 'last.pt'}" in said
    for loaded in (load_model("best", out), load_model(str(out), "")):
        assert loaded.source.endswith("ckpt.pt") and loaded.newer in said
    assert load_model("resume", out).newer == load_model(str(out / "last.pt"), "").newer == ""
    for source, told in ((out, True), (out / "ckpt.pt", False), (out / "last.pt", False)):
        assert train(tmp_path / "on", init_from=str(source), max_iters=0, eval_iters=1) == 0
        assert (loaded.newer in capsys.readouterr().out) == told, source
