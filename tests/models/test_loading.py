"""bonsai/models/loading.py: other people's names for the same weights, and what is left out."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import needs_resource, tiny
from helpers.programs import ROOT, differences, environment

from bonsai.models import loading
from bonsai.models.export import export_hugging_face
from bonsai.models.loading import Loaded, find_source, load_model
from bonsai.models.table import MODELS
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, from_dict
from bonsai.tokenizers.chat import TEMPLATES
from bonsai.tokenizers.jinja import jinja
from bonsai.training.settings import StepSettings
from bonsai.training.start import check_loads_again
from bonsai.training.step import TrainingStep
from model import GPT, GPTConfig


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


@dataclass
class AdapterConfig(GPTConfig):
    lora_rank: int = 0


class Adapted(GPT):
    """An adapter (LoRA, Hu et al. 2021) of one's own: a field, and parts that start at 0."""

    def __init__(self, config: AdapterConfig):
        super().__init__(config)
        for block in self.transformer.h if config.lora_rank else ():
            block.lora_a = torch.nn.Linear(config.n_embd, config.lora_rank, bias=False)
            block.lora_b = torch.nn.Linear(config.lora_rank, config.n_embd, bias=False)
            torch.nn.init.zeros_(block.lora_b.weight)
            block.register_forward_hook(lambda m, args, out: out + m.lora_b(m.lora_a(args[0])))
        if config.lora_rank:
            for name, p in self.named_parameters():
                p.requires_grad_("lora_" in name)


def test_an_adapter_is_added_to_weights_trained_alone_and_loaded_again(tmp_path, monkeypatch):
    base, state = tiny()
    torch.save(state, tmp_path / "ckpt.pt")
    monkeypatch.setitem(MODELS, "gpt", (Adapted, AdapterConfig))
    monkeypatch.setattr(loading, "RUN_FIELDS", (*loading.RUN_FIELDS, "lora_rank"))
    drawn, idx = torch.get_rng_state(), torch.arange(8)[None]
    one, other = (load_model("best", tmp_path, {"lora_rank": 2}).model for _ in range(2))
    assert torch.equal(drawn, torch.get_rng_state())
    assert differences(one.state_dict(), other.state_dict()) == []  # as in another process
    assert torch.equal(one(idx)[0], base(idx)[0])
    check_loads_again(one, "gpt")
    training = TrainingStep(one, StepSettings(learning_rate=1e-2), setup("cpu", "float32", False))
    for number in range(2):
        training(number, [(idx, idx)])
    own = one.state_dict()
    moved = {key for key, w in other.state_dict().items() if not torch.equal(w, own[key])}
    assert moved == {key for key in own if "lora_" in key} and len(moved) == 4
    new = {**state, "model": own, "model_config": asdict(one.config)}
    torch.save(new, tmp_path / "ckpt.pt")
    again = load_model("best", tmp_path).model
    assert differences(again.state_dict(), own) == [] and again.config == one.config


def test_a_head_that_is_no_longer_tied_is_refused(tmp_path):
    """Not overwritten by the embedding without a word."""
    model, state = tiny()
    state["model"] = {**model.state_dict(), "lm_head.weight": torch.ones(30, 16)}
    torch.save(state, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"lm_head\.weight should be the same"):
        load_model("resume", tmp_path)


def test_what_programs_that_use_a_model_mean(tmp_path, monkeypatch):
    """'resume' is the run in out_dir, at its last evaluation; what else is given stands alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    _, state = tiny()
    for name, step in (("ckpt.pt", 5), ("last.pt", 6)):
        torch.save({**state, "iter_num": step}, tmp_path / "out" / name)
    loaded = load_model(find_source("resume", "out"))
    assert loaded.checkpoint["iter_num"] == 5 and "step 6" in loaded.newer
    assert load_model(find_source("out/last.pt", "nowhere")).checkpoint["iter_num"] == 6
    assert find_source("gpt2", "out") == "gpt2"
    assert load_model(find_source("resume", "out/last.pt")).checkpoint["iter_num"] == 6  # a file
    with pytest.raises(UserError, match="no checkpoint in nowhere: there are runs in out"):
        find_source("resume", "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in empty: .* choose one with --out_dir"):
        find_source("resume", "empty")
    with pytest.raises(UserError, match=r"no checkpoint in empty: .* give one of these instead"):
        load_model(find_source("empty", "out"))
    with pytest.raises(UserError, match=r"no such GPT-2 .*: there are runs in out.*; give one of"):
        load_model(find_source("nowhere", "out"))


def test_a_run_may_have_its_stream_in_another_dtype(tmp_path):
    """Than the run whose weights it loads; one that says nothing has the same."""
    _, state = tiny()
    for was in (False, True):
        fields = {**state["model_args"], "bfloat16_stream": was}
        torch.save({**state, "model_config": fields}, tmp_path / "ckpt.pt")
        assert load_model("resume", tmp_path).model.config.bfloat16_stream == was
        for now in (False, True):
            loaded = load_model("resume", tmp_path, {"bfloat16_stream": now})
            assert loaded.model.config.bfloat16_stream == now


TOKENS = (EOT_TEXT, "<|im_start|>", "<|im_end|>")


def exported(path: Path, special: tuple[str, ...] = TOKENS) -> Path:
    """A folder of Hugging Face's, without a chat template, of a vocabulary with special tokens."""
    bpe = BPETokenizer.train(["to be or not to be " * 9], 280, special_tokens=special)
    model, _ = tiny(vocab_size=bpe.vocab_size)
    export_hugging_face(Loaded(model, "gpt", bpe.to_dict(), {}, "it"), bpe, path, "float32")
    return path


@pytest.mark.parametrize(("source", "special", "note"), [
    (None, TOKENS, ""),
    (jinja(TEMPLATES["chatml"]), TOKENS, ""),
    (jinja(TEMPLATES["chatml"]), TOKENS[:2], "it has <|im_end|>, which is no special token"),
    ("{{ tools }}", TOKENS, "it has {{ tools }}"),
])  # fmt: skip
def test_how_a_folders_model_chats(tmp_path, source, special, note):
    folder = exported(tmp_path / "hf", special)
    if source is not None:
        (folder / "chat_template.jinja").write_text(source)
    loaded = load_model(str(folder))
    assert loaded.chat == (TEMPLATES["chatml"] if source and not note else None)
    said = f"the chat template of {folder} is not supported: {note}" if note else ""
    assert loaded.chat_note.startswith(said) and bool(loaded.chat_note) == bool(note)
    (folder / "tokenizer.json").unlink()  # nor does it chat without a tokenizer
    assert load_model(str(folder)).chat is None


def test_an_answer_ends_where_the_folder_says(tmp_path):
    """generation_config.json; older folders have config.json alone. No model draws other ids."""
    folder = exported(tmp_path / "hf")
    tokenizer = from_dict(load_model(str(folder)).tokenizer)
    eot, _, end = tokenizer.special_tokens.values()
    config = json.loads((folder / "config.json").read_text())
    for ends, stops in (
        (None, []), (end, [end]), ([5, end], [5, end]), ([-1, True, "a", 10**9], []), ({}, [])
    ):  # fmt: skip
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert load_model(str(folder)).answer_ends(tokenizer) == (eot, *stops)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [end]}))
    assert load_model(str(folder)).answer_ends(tokenizer) == (eot, end)


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
