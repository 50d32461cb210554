"""bonsai/models/modeling_bonsai.py, as transformers loads it from a folder of export.py."""

import copy
import importlib.util
import json
import sys

import pytest
import torch
from helpers.gpt2_folder import logits, transformers
from helpers.tiny_model import BLOCK, VARIANTS, texts, tiny
from torch.nn import functional as F

from bonsai.files.safetensors import read_safetensors
from bonsai.models import with_code
from bonsai.models.export import export_with_code
from bonsai.models.loading import Loaded
from bonsai.tokenizers import CharTokenizer

CHARS = CharTokenizer.from_text("abcdefghijklmnopqrstuvwxyz ,.\n!")  # 31, as many as tiny has
QUICKSTART = dict(norm_gain=False, bias=False, norm_embedding=True, qk_norm=True, position="rope")
QUICKSTART |= dict(activation="relu2", attention_window=4, window_pattern="LD", tie_head=False)
QUICKSTART |= dict(value_embeddings=True)
FAST = QUICKSTART | dict(norm="rmsnorm", residual_lambdas=True, logit_softcap=15.0)
FAST |= dict(bigram_embeddings=2, attention_scale=0.12, bfloat16_stream=True)
SHAPES = VARIANTS | {
    "quickstart": QUICKSTART,
    "fast": FAST,
    "sinusoidal": dict(position="sinusoidal", norm_placement="post"),
    "no positions": dict(position="none", n_kv_head=1),
}
every = pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
LENGTHS = (7, 3, 5)  # tokens of the rows of a batch that is padded


@pytest.fixture(scope="session", autouse=True)
def modules(tmp_path_factory):
    """transformers copies code to here before it is imported; else into the user's cache."""
    place = transformers.dynamic_module_utils
    place.HF_MODULES_CACHE = str(tmp_path_factory.mktemp("modules"))


def write(folder, model, tokenizer=CHARS):
    source = Loaded(model, "gpt", tokenizer.to_dict(), {}, "out/ckpt.pt")
    export_with_code(source, tokenizer, folder, "float32")
    return folder


def read(folder, **options):
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()


@pytest.fixture
def both(tmp_path, fields):
    """A model of ours, and what transformers makes of its folder."""
    model = tiny(**fields)
    return model, read(write(tmp_path / "hf", model))


def prompt(n: int, seed: int = 0) -> list[int]:
    return torch.randint(31, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
    """Rows of several lengths as a batch; padding is a token that occurs in texts, too."""
    most = max(map(len, rows))
    ids, mask = torch.full((len(rows), most), 3), torch.zeros(len(rows), most, dtype=torch.int64)
    for i, row in enumerate(rows):
        at = slice(most - len(row), most) if left else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@every
@torch.no_grad()
def test_logits_are_ours_to_the_last_bit(both, fields):
    ours, theirs = both
    ids = torch.tensor([prompt(BLOCK), prompt(BLOCK, 1)])
    want = logits(ours, ids)
    assert want.std() > 0.1
    for options in ({}, {"attention_mask": torch.ones_like(ids)}, {"use_cache": True}):
        given = theirs(ids, **options)
        assert torch.equal(given.logits, want), options
        assert (given.past_key_values is None) == ("use_cache" not in options)
    assert torch.equal(theirs(ids, logits_to_keep=3).logits, want[:, -3:])
    assert torch.equal(theirs(ids, logits_to_keep=torch.tensor([2, 5])).logits, want[:, [2, 5]])
    assert theirs(ids, return_dict=False)[0].shape == want.shape
    torch.testing.assert_close(theirs(ids, logits_to_keep=1).logits, want[:, -1:])


@every
@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_a_padded_row_is_as_it_is_alone(both, fields, left):
    ours, theirs = both
    rows = [prompt(n, n) for n in LENGTHS]
    batch = padded(rows, left)
    for options in ({}, {"use_cache": True}):
        given = theirs(**batch, **options).logits
        assert given.isfinite().all()
        for row, mask, out in zip(rows, batch["attention_mask"], given):
            want = logits(ours, torch.tensor([row]))[0]
            torch.testing.assert_close(out[mask.bool()], want, rtol=1e-5, atol=1e-5)


@every
def test_the_loss_is_that_of_transformers(both, fields):
    """Shifted; -100 is ignored; summed over micro-batches if their number of labels is given."""
    ours, theirs = both
    ids = torch.tensor([prompt(9), prompt(9, 1)])
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    logits = ours(ids, ids)[0]
    targets = labels[:, 1:].flatten()
    want = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets)
    given = theirs(ids, labels=labels)
    torch.testing.assert_close(given.loss, want, rtol=1e-6, atol=0)
    summed = theirs(ids, labels=labels, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(summed, want * (targets >= 0).sum() / 50)
    given.loss.backward()
    want.backward()
    own = {f"gpt.{name}": p.grad for name, p in ours.named_parameters()}
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(p.grad, own[name], rtol=1e-5, atol=1e-6, msg=name)


@every
def test_greedy_texts_are_those_of_our_engine(both, fields):
    """With and without a cache, alone and in a batch, and beyond the context."""
    ours, theirs = both
    rows, n = [prompt(k, k) for k in LENGTHS], BLOCK
    want = [texts(ours, row, temperature=0.0, max_new_tokens=n)[0] for row in rows]
    assert len({id_ for text in want for id_ in text}) > 1
    options = dict(max_new_tokens=n, do_sample=False)
    for use_cache in (True, False):
        for row, text in zip(rows, want):
            given = theirs.generate(torch.tensor([row]), use_cache=use_cache, **options)
            assert given[0, len(row) :].tolist() == text, use_cache
        batch = padded(rows, left=True)
        given = theirs.generate(**batch, use_cache=use_cache, **options)
        assert given[:, max(LENGTHS) :].tolist() == want, use_cache


@every
def test_beams_do_not_depend_on_the_cache(both, fields):
    batch = padded([prompt(k, k) for k in LENGTHS], left=True)
    options = dict(max_new_tokens=6, do_sample=False, num_beams=3, num_return_sequences=2)
    found = [both[1].generate(**batch, use_cache=u, **options) for u in (True, False)]
    assert torch.equal(*found)


@every
def test_what_transformers_saves_is_the_same_with_its_code(both, fields, tmp_path):
    ours, theirs = both
    theirs.save_pretrained(tmp_path / "again")
    names = {p.name for p in (tmp_path / "again").iterdir()}
    assert {"config.json", "model.safetensors", "model.py", "modeling_bonsai.py"} <= names
    again = read(tmp_path / "again")
    ids = torch.tensor([prompt(BLOCK)])
    assert torch.equal(logits(again.gpt, ids), logits(ours, ids))
    tied = ours.config.tie_head
    assert (again.gpt.lm_head.weight is again.gpt.transformer.wte.weight) == tied
    for folder in ("hf", "again"):
        held = read_safetensors(tmp_path / folder / "model.safetensors")
        assert ("gpt.lm_head.weight" in held) == (not tied)
        assert sum(w.numel() for w in held.values()) == sum(p.numel() for p in ours.parameters())


@every
@torch.no_grad()
def test_bfloat16_weights(both, fields, tmp_path):
    ours, theirs = copy.deepcopy(both[0]).bfloat16(), read(tmp_path / "hf", dtype="bfloat16")
    assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16}
    ids = torch.tensor([prompt(BLOCK)])
    assert torch.equal(theirs(ids).logits, logits(ours, ids))
    batch = padded([prompt(k, k) for k in LENGTHS], left=True)
    assert theirs.generate(**batch, max_new_tokens=5).shape == (3, max(LENGTHS) + 5)


@pytest.mark.parametrize("fields", [FAST])
def test_activation_checkpointing_changes_no_gradient(both, fields):
    theirs, ids = both[1].train(), torch.tensor([prompt(9), prompt(9, 1)])
    grads = []
    for enable in (False, True):
        if enable:
            theirs.activation_checkpointing_enable()
        assert theirs.gpt.config.activation_checkpointing == enable
        theirs.zero_grad()
        theirs(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in theirs.parameters()])
    assert all(map(torch.equal, *grads))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    theirs(ids, attention_mask=mask, labels=ids)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        theirs(ids, attention_mask=mask, labels=ids)


@pytest.mark.parametrize("fields", [{}])
def test_arguments_without_a_meaning_are_errors(both, fields):
    ids = torch.tensor([prompt(5)])
    for name in ("position_ids", "inputs_embeds"):
        with pytest.raises(ValueError, match=f"model.py takes no {name}"):
            both[1](ids, **{name: ids})
    with pytest.raises(ValueError, match="output_hidden_states"):
        both[1](ids, output_hidden_states=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 5\), not \(1, 1, 5, 5\)"):
        both[1](ids, attention_mask=torch.ones(1, 1, 5, 5))
    kept = both[1](ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 6\), not \(1, 1\)"):
        both[1](ids[:, :1], past_key_values=kept, attention_mask=torch.ones(1, 1))
    with pytest.raises(AssertionError, match="17 tokens do not fit a context of 16"):
        both[1](torch.tensor([prompt(BLOCK + 1)]))


@pytest.mark.parametrize("fields", [FAST, {}])
def test_a_new_model_begins_as_ours(both, fields):
    config = both[1].config
    torch.manual_seed(3)
    auto = transformers.AutoModelForCausalLM
    new = auto.from_config(config, trust_remote_code=True)
    torch.manual_seed(3)
    ours = type(both[0])(both[0].config)
    for (name, p), own in zip(new.named_parameters(), ours.parameters()):
        assert torch.equal(p, own), name


@pytest.mark.parametrize("fields", [{}, dict(tie_head=False)])
def test_more_tokens_for_a_dialogue(both, fields, tmp_path):
    """As those do who finetune with special tokens of their own."""
    theirs, ids = both[1], torch.tensor([prompt(5)])
    before = theirs(ids).logits
    theirs.resize_token_embeddings(40, mean_resizing=False)
    theirs.save_pretrained(tmp_path / "more")
    again = read(tmp_path / "more")
    assert again.config.vocab_size == again.gpt.config.vocab_size == 40
    assert torch.equal(again(ids).logits[..., :31], before)
    assert (again.gpt.lm_head.weight is again.gpt.transformer.wte.weight) == (
        "tie_head" not in fields
    )


def test_ids_that_pad_the_vocabulary_are_never_drawn(tmp_path):
    chars = CharTokenizer.from_text("abcdef")
    theirs = read(write(tmp_path / "hf", tiny(), chars))
    drawn = theirs.generate(torch.tensor([[1, 2]] * 9), do_sample=True, max_new_tokens=12)
    assert theirs.config.vocab_size == 31 and drawn.max() < 6


SCALED = """def scaled(model, x):
    return x * model.config.depth_scale


class GPT(nn.Module):"""
OWN = """        self.register_buffer("ramp", torch.arange(31.0), persistent=False)
        self.more = torch.arange(31.0)
        self.init_weights()
"""
EDITS = {  # texts of model.py, and what takes their place
    "a formula": {"F.relu(x).square()": "F.relu(x) ** 3"},
    "a field": {
        "    dropout: float = 0.0": "    depth_scale: float = 0.5\n    dropout: float = 0.0",
        "x = block(x, rotation, cache, values)": "x = block(scaled(self, x), rotation, cache)",
        "class GPT(nn.Module):": SCALED,
    },
    "a buffer in no file, and a tensor": {
        "        self.init_weights()\n": OWN,
        "logits = self.lm_head(x)": "logits = self.lm_head(x) + self.ramp * self.more",
    },
    "another name": {"class Block(": "class Layer(", "(Block(config": "(Layer(config"},
    "a head of its own": {"transformer.wte.weight = self.lm_head.weight": "tied = False"},
}


@pytest.mark.parametrize("places", EDITS.values(), ids=EDITS)
@torch.no_grad()
def test_an_edited_model_computes_what_it_computes_here(tmp_path, monkeypatch, places):
    name = tmp_path.name  # transformers 5.0 takes folders of one name for the same code
    text = with_code.MODEL.read_text(encoding="utf-8")
    for before, after in places.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    source = tmp_path / "edited" / "model.py"
    source.parent.mkdir()
    source.write_text(text)
    spec = importlib.util.spec_from_file_location("edited_model", source)
    edited = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "edited_model", edited)
    spec.loader.exec_module(edited)
    monkeypatch.setattr(with_code, "MODEL", source)
    torch.manual_seed(0)
    sizes = dict(block_size=BLOCK, vocab_size=31, n_layer=2, n_head=2, n_embd=32)
    model = edited.GPT(edited.GPTConfig(**sizes, activation="relu2")).eval()
    for p in model.parameters():
        p.mul_(5)
    theirs = read(write(tmp_path / name, model))
    ids = torch.tensor([prompt(9)])
    want = logits(model, ids)
    assert torch.equal(theirs(ids).logits, want)
    assert not torch.equal(logits(tiny(n_head=2, activation="relu2"), ids), want)
    cached = theirs.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(cached, model.generate(ids, 5, temperature=0))
    theirs.save_pretrained(tmp_path / f"{name}-again")
    assert torch.equal(read(tmp_path / f"{name}-again")(ids).logits, want)
    assert (tmp_path / f"{name}-again" / "model.py").read_text() == text


def test_the_names_of_the_wrapper_are_those_that_are_written(tmp_path):
    theirs = read(write(tmp_path / "hf", tiny()))
    assert type(theirs).__name__ == with_code.CLASSES["AutoModelForCausalLM"]
    assert type(theirs.config).__name__ == with_code.CLASSES["AutoConfig"]
    assert theirs.config.model_type == with_code.MODEL_TYPE
    assert all(name.startswith(with_code.PREFIX) for name in theirs.state_dict())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert theirs.config.hidden_size == config["n_embd"] == 32
    assert theirs.config.max_position_embeddings == config["block_size"] == BLOCK
