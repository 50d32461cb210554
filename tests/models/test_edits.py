"""An edit of model.py takes effect wherever its parts are replaced by faster code."""

import json
import sys

import pytest
import torch
from helpers.byte_models import every, make
from helpers.model_choices import every_choice
from helpers.programs import ROOT, run_command

from bonsai.models.edits import (
    computes_activation,
    computes_attention,
    computes_gpt,
    computes_loss,
    computes_with_cache,
    order_of_blocks,
)
from model import ACTIVATIONS, GPT, GPTConfig


@every_choice
def test_nothing_was_edited_whatever_is_chosen(fields):
    model = GPT(GPTConfig(**fields))
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    between = order_of_blocks(model, model.transformer)
    apart = model.config.residual_lambdas or model.config.value_embeddings
    assert between == ("something" if apart else "nothing")
    assert computes_gpt(model) and computes_with_cache(model) and computes_loss(model)
    assert computes_attention(model.transformer.h[0].attn.attend)
    # nothing of the model or of a run has changed
    assert torch.equal(state, torch.get_rng_state()) and model.training and model.further is None
    assert all(map(torch.equal, weights, model.parameters()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_function_is_known_by_what_it_computes(name):
    known = [other for other in ACTIVATIONS if computes_activation(name, ACTIVATIONS[other])]
    assert known == [name]


@every
def test_models_of_bytes_too(name, fields):
    model = make(name, **fields)
    owners = [m for m in model.modules() if isinstance(getattr(m, "h", None), torch.nn.ModuleList)]
    assert [order_of_blocks(model, owner) for owner in owners] == ["nothing"] * len(owners)
    assert owners and computes_loss(model)


LOOP = "                x = block(x, rotation, cache, values)\n"
BLOCK = """        x = x + self.attn(self.ln_1(x), rotation, cache, values)
        return x + self.mlp(self.ln_2(x))
"""
PARALLEL = """        a, mlp = self.attn, self.mlp
        return x + a(self.ln_1(x), rotation, cache, values) + mlp(self.ln_2(x))
"""
SUBCLASS = f"""class Parallel(Block):
    def forward(self, x, rotation=None, cache=None, values=None):
{PARALLEL}

class GPT(nn.Module)"""
GATE = "        self.gate = None\n"
HEADS = "        y = y.transpose(1, 2).contiguous()"
SHAPES = "    T, S = q.size(2), k.size(2)\n"
SQUARE = '"relu2": lambda x: F.relu(x).square()'
MEAN = "ignore_index=-1)\n    if further"
HEAD = "logits = self.lm_head(x).float()"
# what is edited: what takes the place of what in model.py, and what is then said to have changed
EDITS = {
    "a parallel block": ({BLOCK: PARALLEL}, ["Block"]),
    "a subclass": (
        {"class GPT(nn.Module)": SUBCLASS, "nn.ModuleList(Block(": "nn.ModuleList(Parallel("},
        ["Block"],
    ),
    "a gate for each head": (
        {
            GATE: f"{GATE}        self.heads = nn.Parameter(torch.zeros(self.nh, 1, 1))\n",
            HEADS: f"        y = y * (1 + self.heads)\n{HEADS}",
        },
        ["Block"],
    ),
    "a norm": ({"self.weight, self.bias, 1e-5)": "self.weight, self.bias, 0.1)"}, ["Block"]),
    "the MLP": ({"return self.dropout(self.c_p": "return 2 * self.dropout(self.c_p"}, ["Block"]),
    "attention": ({SHAPES: f"{SHAPES}    q = q * 0\n"}, ["attention", "Block"]),
    "an activation": ({SQUARE: SQUARE.replace(".square()", " ** 3")}, ["relu2", "Block"]),
    "the loss": ({MEAN: MEAN.replace(")", ") * 2")}, ["the loss of the head"]),
    "the head": ({HEAD: f"{HEAD} / 2"}, ["the loss of the head"]),
    "a skip between blocks": ({LOOP: f"{LOOP}                x = x + 0.5 * x0\n"}, []),
    "in place": ({LOOP: f"{LOOP}                x.mul_(0.5)\n"}, ["GPT.forward"]),
    "more of a block": ({LOOP: LOOP.replace("(x,", "(x * block.attn.nh,")}, ["GPT.forward"]),
}

SCRIPT = """
import json, sys, types
edits, root = json.loads(sys.argv[1]), sys.argv[2]
sys.path.insert(0, root)
source = open(root + "/model.py").read()
for old, new in edits.items():
    assert source.count(old) == 1, old
    source = source.replace(old, new)
sys.modules["model"] = edited = types.ModuleType("model")
exec(compile(source, "model.py", "exec"), vars(edited))

import copy
import torch
from bonsai.engine.weights import prepare
from bonsai.models import edits, head_loss
from bonsai.models.kernels import to_device

def make(**fields):
    torch.manual_seed(0)
    sizes = dict(n_layer=3, n_head=2, n_embd=64, block_size=16, vocab_size=90, activation="relu2")
    model = edited.GPT(edited.GPTConfig(**sizes | fields))
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return model

head_loss.MOST["cpu"] = 100
idx = torch.arange(32).view(2, 16) * 7 % 90
trained = []
for fast in (False, True):
    model = make()
    model = to_device(model, torch.device("cpu")) if fast else model
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx, idx.roll(-1, 1), return_logits=False)[1]
    loss.backward()
    trained.append([loss.item(), *(p.grad.norm().item() for p in model.parameters())])
made = []
with torch.no_grad():
    for model in (make().eval(), prepare(to_device(make(), torch.device("cpu")))):
        cache = model.new_cache(2, 16)
        parts = [model(part, cache=cache)[0] for part in idx.split((8, *[1] * 8), dim=1)]
        made.append(torch.cat(parts, 1))
    whole = make().eval()(idx, idx)[0][:, 7:]
blocks = type(model.transformer.h[0]).__name__
with_cache = (made[0] - whole).abs().max().item()
apart = (made[1] - made[0]).abs().max().item()
gpt = edits.computes_gpt(make())
print(json.dumps([trained, apart, with_cache, blocks, gpt]))
"""


def edited(folder, edits):
    (folder / "edited.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "edited.py"), json.dumps(edits), str(ROOT)]
    result = run_command(command, folder)
    assert result.rc == 0, result
    return json.loads(result.stdout), result.stderr.splitlines()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_takes_effect_in_training_and_in_texts(name, tmp_path):
    edits, parts = EDITS[name]
    ((plain, fast), apart, with_cache, blocks, gpt), said = edited(tmp_path, edits)
    assert fast == pytest.approx(plain, rel=0.02)
    assert apart < 1e-4 and with_cache < 1e-4
    assert gpt == (name == "the loss")  # others have the same logits
    assert [line.partition(" was changed: ")[0] for line in said] == parts
    assert (blocks == "Blocks") == (not {"Block", "GPT.forward"} & {*parts})


def test_without_an_edit_nothing_is_said_and_all_is_replaced(tmp_path):
    ((plain, fast), apart, with_cache, blocks, gpt), said = edited(tmp_path, {})
    assert fast == pytest.approx(plain, rel=0.02) and apart < 1e-4 and with_cache < 1e-4
    assert (said, blocks, gpt) == ([], "Blocks", True)


def test_what_a_cache_does_not_hold_is_said(tmp_path):
    shifted = "        x = x + F.pad(x, (0, 0, 1, -1))\n"
    (_, apart, with_cache, _, _), said = edited(tmp_path, {BLOCK: shifted + BLOCK})
    assert apart < 1e-4 and with_cache > 0.1
    assert any("--kv_cache=False" in line for line in said)
