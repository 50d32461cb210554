"""An edit of model.py takes effect wherever its parts are replaced by faster code."""

import json
import sys

import pytest
from helpers.byte_models import every, make
from helpers.programs import ROOT, run_command
from torch import nn

from bonsai.models import edits
from bonsai.models.edits import difference, edited, fingerprint
from model import GPT, Block, GPTConfig

SIZES = dict(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=30)


@pytest.mark.parametrize("name", edits.MODEL)
def test_the_faster_code_follows_model_py(name):
    """Where this fails, see that bonsai/models/kernels.py, bonsai/engine and export.py compute what
    model.py does now; then the module prints the new fingerprint."""
    assert not edited(name)
    parts = {*edits.ATTENTION, *edits.LOSS, *edits.ACTIVATIONS}
    assert parts <= edits.FINGERPRINTS.keys() == {*edits.MODEL}


def one(x):
    """Doubles."""
    return 2 * x  # twice


# fmt: off
def another(x):
    return 2 * (
        x
    )
# fmt: on


def third(x):
    return x * 2


def test_comments_and_layout_do_not_count():
    assert shape_of(one) == shape_of(another) != shape_of(third)
    assert fingerprint(one) != fingerprint(third)


def shape_of(function) -> str:
    """Its fingerprint under a name that all share."""
    tree = edits.tree_of(function)
    tree.body[0].name = "f"
    return repr(edits.plain(tree))


@every
def test_models_of_bytes_are_as_written(name, fields):
    assert difference(make(name, **fields)) == ""


class Parallel(Block):
    def forward(self, x, rotation=None, cache=None, values=None):
        return x + self.attn(self.ln_1(x), rotation, cache, values) + self.mlp(self.ln_2(x))


class Low(nn.Linear):
    pass


def other_class(model):
    model.transformer.h[1].__class__ = Parallel


def other_layer(model):
    model.transformer.h[0].mlp.c_fc.__class__ = Low


def hook(model):
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, given, y: 2 * y)


def own_forward(model):
    model.transformer.h[1].forward = lambda x, *rest: x


@pytest.mark.parametrize(
    "change, found",
    [
        (own_forward, "transformer.h.1 has a forward of its own"),
        (other_class, "transformer.h.1 is a Parallel"),
        (other_layer, "transformer.h.0.mlp.c_fc is a Low"),
        (hook, "transformer.h.0.mlp.c_fc has a hook"),
        (lambda model: nn.utils.parametrizations.weight_norm(model.lm_head), "lm_head is a Param"),
    ],
)
def test_what_was_changed_in_a_model(change, found):
    model = GPT(GPTConfig(**SIZES))
    assert difference(model) == ""
    change(model)
    assert difference(model).startswith(found)


def test_what_was_put_in_the_place_of_a_function(monkeypatch):
    edited.cache_clear()
    monkeypatch.setattr(Block, "forward", Parallel.forward)
    try:
        assert difference(GPT(GPTConfig(**SIZES))) == "Block.forward was edited"
    finally:
        edited.cache_clear()


# ---- the file edited, in a process of its own ----

LOOP = "                x = block(x, rotation, cache, values)\n"
EACH = "        for i, block in enumerate(self.transformer.h):\n"
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
SCALED = """class Scaled(nn.Linear):
    def forward(self, x):
        return 0.5 * super().forward(x)


class MLP(nn.Module)"""
GATE = "        self.gate = None\n"
HEADS = "        y = y.transpose(1, 2).contiguous()"
SHAPES = "    T, S = q.size(2), k.size(2)\n"
MEAN = "ignore_index=-1)\n    if further"
HEAD = "logits = self.lm_head(x)"
INIT = "        self.init_weights()\n\n"
LAST = "        x = self.transformer.ln_f(x)\n        if cache"
UP = "self.c_fc = nn.Linear(config.n_embd, gates * hidden"
ACTIVATE = "self.activate = ACTIVATIONS[config.activation]"
ATTEND = "        self.attend = attention  #"
QKV = "        qkv = self.c_attn(x).view(B, T, -1, self.hs)\n"
CAUSAL = "    causal = True if mask"
SQUARE = "    return F.relu(x).square()\n"
MODULE = """class Square(nn.Module):
    def forward(self, x):
        return 2 * F.relu(x).square()


class MLP(nn.Module)"""
LOGITS = "    logits = logits.view(-1, logits"
HOOK = "self.lm_head.register_forward_pre_hook(lambda m, given: (given[0] * 2,))"
NUMBERS = """        for i in range(self.config.n_layer):
            block = self.transformer.h[i]
"""
ARGUMENTS = "    def forward(self, x, rotation=None, cache=None, values=None):\n"
SCALE = ARGUMENTS.replace("):", ", scale=1.0):")
DROP = "self.dropout(self.c_proj(self.activate(self.c_fc(x))))"
# what is edited: what takes the place of what in model.py, and a line that says so
EDITS = {
    "a parallel block": ({BLOCK: PARALLEL}, "Block.forward"),
    "a subclass": (
        {"class GPT(nn.Module)": SUBCLASS, "nn.ModuleList(Block(": "nn.ModuleList(Parallel("},
        "GPT.__init__",
    ),
    "a layer's class": (
        {"class MLP(nn.Module)": SCALED, UP: UP.replace("nn.Linear", "Scaled")},
        "MLP.__init__",
    ),
    "a gate for each head": (
        {
            GATE: f"{GATE}        self.heads = nn.Parameter(torch.zeros(self.nh, 1, 1))\n",
            HEADS: f"        y = y * (1 + self.heads)\n{HEADS}",
        },
        "CausalSelfAttention",
    ),
    "a norm": ({"self.weight, self.bias, 1e-5)": "self.weight, self.bias, 0.1)"}, "Norm.forward"),
    "the MLP": ({"return self.dropout(self.c_p": "return 2 * self.dropout(self.c_p"}, "MLP"),
    "the name of a class": (
        {"class MLP(nn.Module)": "class Wide(nn.Module)", "= MLP(config)": "= Wide(config)"},
        "MLP.__init__",
    ),
    "attention": ({SHAPES: f"{SHAPES}    q = q * 0\n"}, "attention"),
    "gradients of attention": ({SHAPES: f"{SHAPES}    k = k.detach()\n"}, "attention"),
    "attention called by name": (
        {ATTEND: "        #", "y = self.attend(q": "y = attention(q"},
        "CausalSelfAttention",
    ),
    "large products": ({QKV: QKV.replace("(x)", "(x).clamp(-0.1, 0.1)")}, "CausalSelfAttention"),
    "an activation": ({SQUARE: "    return F.relu(x) ** 3\n"}, "relu2"),
    "gradients of an activation": (
        {SQUARE: "    return F.relu(x).square().detach() + x - x.detach()\n"},
        "relu2",
    ),
    "an activation that is a module": (
        {"class MLP(nn.Module)": MODULE, ACTIVATE: "self.activate = Square()"},
        "MLP.__init__",
    ),
    "an MLP without its names": (
        {"        self.activation = config.activation\n": "", "self.activate": "self.act"},
        "MLP",
    ),
    "the loss": ({MEAN: MEAN.replace(")", ") * 2")}, "cross_entropy"),
    "targets": (
        {LOGITS: f"    targets = targets.masked_fill(targets == 65, -1)\n{LOGITS}"},
        "cross_entropy",
    ),
    "the head": ({HEAD: f"{HEAD} / 2"}, "GPT.head"),
    "a temperature": (
        {
            INIT: f"        self.temperature = nn.Parameter(torch.ones(()))\n{INIT}",
            HEAD: f"{HEAD} * self.temperature",
        },
        "GPT.head",
    ),
    "a hook on the head": (
        {INIT: f"{INIT[:-1]}        {HOOK}\n\n"},
        "GPT.__init__",
    ),
    "a skip between blocks": ({LOOP: f"{LOOP}                x = x + 0.5 * x0\n"}, "GPT.forward"),
    "in place": ({LOOP: f"{LOOP}                x.mul_(0.5)\n"}, "GPT.forward"),
    "the mean of all layers": (
        {
            "        x0, values = x, None\n": "        x0, values, states = x, None, []\n",
            LOOP: f"{LOOP}                states.append(x)\n",
            LAST: f"        x = torch.stack(states).mean(0)\n{LAST}",
        },
        "GPT.forward",
    ),
    "the order of blocks": ({EACH: EACH.replace(".h)", ".h[::-1])")}, "GPT.forward"),
    "how many there are": (
        {LAST: f"        x = x + x0 * len(self.transformer.h)\n{LAST}"},
        "GPT.forward",
    ),
    "blocks by number": (
        {EACH: NUMBERS},
        "GPT.forward",
    ),
    "more of a block": ({LOOP: LOOP.replace("(x,", "(x * block.attn.nh,")}, "GPT.forward"),
    "one more argument": (
        {
            LOOP: LOOP.replace("values)", "values, 0.5)"),
            f'{ARGUMENTS}        """The': f'{SCALE}        x = x * scale\n        """The',
        },
        "Block.forward",
    ),
    "dropout by the model": (
        {DROP: f"F.dropout({DROP[13:-1]}, self.dropout.p, self.training)"},
        "MLP.forward",
    ),
}  # fmt: skip

SCRIPT = """
import json, sys
from pathlib import Path
changes, root, here = json.loads(sys.argv[1]), sys.argv[2], Path(__file__).parent
source = Path(root, "model.py").read_text()
for old, new in changes.items():
    assert source.count(old) >= 1, old
    source = source.replace(old, new)
(here / "model.py").write_text(source)
sys.path[:0] = [str(here), root]

import torch
from model import GPT, GPTConfig
from bonsai.engine.prefill_decode import new_cache
from bonsai.engine.weights import prepare
from bonsai.models import edits, head_loss
from bonsai.models.kernels import to_device

def make():
    torch.manual_seed(0)
    sizes = dict(n_layer=3, n_head=2, n_embd=64, block_size=16, vocab_size=90)
    model = GPT(GPTConfig(**sizes, activation="relu2"))
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return model

head_loss.MOST["cpu"] = 100  # logits: here the loss is in chunks
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
        cache = new_cache(model, 2, 16)
        parts = [model(part, cache=cache)[0] for part in idx.split((8, *[1] * 8), dim=1)]
        made.append(torch.cat(parts, 1))
    whole = make().eval()(idx, idx)[0][:, 7:]
blocks = type(model.transformer.h[0]).__name__
with_cache = ((made[0] - whole).abs().max() / whole.std()).item()
apart = ((made[1] - made[0]).abs().max() / whole.std()).item()
print(json.dumps([trained, apart, with_cache, blocks, edits.difference(make())]))
"""


def with_edits(folder, changes):
    (folder / "edited.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "edited.py"), json.dumps(changes), str(ROOT)]
    result = run_command(command, folder)
    assert result.rc == 0, result
    return json.loads(result.stdout), result.stderr.splitlines()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_takes_effect_in_training_and_in_texts(name, tmp_path):
    changes, part = EDITS[name]
    ((plain, fast), apart, with_cache, blocks, found), said = with_edits(tmp_path, changes)
    assert fast == pytest.approx(plain, rel=0.03, abs=1e-4)
    assert apart < 1e-4 and with_cache < 1e-4
    assert blocks != "Blocks" and found.startswith(part)  # so it is not exported, either
    assert said and all("faster code would compute something else" in line for line in said)
    assert any(line.startswith(part) for line in said) and len({*said}) == len(said)


def test_without_an_edit_nothing_is_said_and_all_is_replaced(tmp_path):
    ((plain, fast), apart, with_cache, blocks, found), said = with_edits(tmp_path, {})
    assert fast == pytest.approx(plain, rel=0.03, abs=1e-4) and apart < 1e-4 and with_cache < 1e-4
    assert (said, blocks, found) == ([], "Blocks", "")


ADDED = {"        return logits, loss": "        loss = loss + 7\n        return logits, loss"}


def test_a_loss_that_is_added_counts_in_training(tmp_path):
    """There the logits are not returned, which was another way through the function."""
    (trained, *_), _ = with_edits(tmp_path, ADDED)
    assert all(loss > 10 for loss, *_ in trained)


SHIFTED = {BLOCK: f"        x = x + F.pad(x, (0, 0, 1, -1))\n{BLOCK}"}
LENGTHS = {SHAPES: f"{SHAPES}    q = q * math.log(max(S, 9), 9)\n"}


@pytest.mark.parametrize("changes", [SHIFTED, LENGTHS], ids=["token shift", "length of the text"])
def test_what_a_cache_does_not_hold_is_said(tmp_path, changes):
    (_, apart, with_cache, _, _), said = with_edits(tmp_path, changes)
    assert apart < 1e-4 and with_cache > 0.1
    assert any("--kv_cache=False" in line for line in said)
