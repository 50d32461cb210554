"""A training step is one compiled graph, of every config: what breaks a graph costs a quarter of
the speed on a GPU, and breaks silently."""

from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from helpers.programs import ROOT
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from bonsai.models.contract import counted_arguments, loss_alone
from bonsai.models.head_loss import kernel_head_loss
from bonsai.models.kernels import gelu, to_device
from bonsai.models.loss_kernel import product_later, summed_loss
from bonsai.models.table import build_model
from bonsai.training.schedule import set_further, set_windows
from model import MLP

TINY = dict(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=97)
TINY_BYTES = dict(local_layer=2, local_head=2, local_embd=16, patch_size=4)
CONFIG_FILES = sorted(p.name for p in (ROOT / "config").glob("*.py") if "eval" not in p.name)
SPACEBYTE = "megabyte.py --model=spacebyte"  # docs/bytes.md


class Counter:
    """A compiler backend that counts the graphs it is given, forward and backward, and looks at
    what the forward one leaves in memory."""

    def __init__(self):
        self.forward = self.backward = 0
        self.kept = []  # (elements, dtype) of what the forward graph writes
        self.calls = {}  # forward, backward -> bonsai's own operators in the graph

    def __call__(self, module, inputs):
        def count(kind):
            def compile(graph, inputs):
                setattr(self, kind, getattr(self, kind) + 1)
                self.calls[kind] = [n.target for n in graph.graph.nodes if ours(n.target)]
                if kind == "forward":
                    outputs = [
                        n.meta["val"] for n in graph.graph.find_nodes(op="output")[0].args[0]
                    ]
                    self.kept = [
                        (x.numel(), x.dtype) for x in outputs if isinstance(x, torch.Tensor)
                    ]
                return make_boxed_func(graph.forward)

            return compile

        compiler = aot_autograd(
            fw_compiler=count("forward"),
            bw_compiler=count("backward"),
            partition_fn=min_cut_rematerialization_partition,  # as inductor does
            decompositions=select_decomp_table(),
        )
        return compiler(module, inputs)


def ours(target) -> bool:
    return getattr(target, "namespace", "") == "bonsai"


def settings_of(file: str) -> dict:
    values = {"model": "gpt", "bias": False}  # train.py's
    file, _, model = file.partition(" --model=")
    exec((ROOT / "config" / file).read_text(), values)
    values |= {"model": model} if model else {}
    return {k: v for k, v in values.items() if not k.startswith("__")}


EVERYTHING = dict(
    dropout=0.1, activation_checkpointing=True, attention_window=8, logit_softcap=15.0, qk_norm=True
)
OF_A_GPT = dict(
    position="rope", value_embeddings=True, residual_lambdas=True, bigram_embeddings=2, n_kv_head=1,
    bfloat16_stream=True,
)  # fmt: skip


@pytest.mark.parametrize("name", ["gpt", "megabyte", "spacebyte"])
def test_settings_together_are_one_graph(name):
    """Those that no config has beside one another; with the windows and the second loss of a run's
    first steps, and targets that are left out."""
    torch._dynamo.reset()
    more = OF_A_GPT if name == "gpt" else TINY_BYTES
    model = to_device(build_model(name, TINY | EVERYTHING | more), torch.device("cpu"))
    model.head_loss = kernel_head_loss
    first = SimpleNamespace(further_weight=0.3, lr_decay_iters=9, window_ramp=9)
    set_windows(model, 0, first)
    if name == "gpt":
        set_further(model, 0, first)
    counter = Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(3):
        idx = torch.randint(97, (2, 24))
        with torch.autocast("cpu", torch.bfloat16):
            more = counted_arguments(model, idx, idx.device)
            _, loss = compiled(idx, idx.masked_fill(idx < 9, -1), return_logits=False, **more)
        loss.backward()
    assert (counter.forward, counter.backward) == (1, 1) and loss.isfinite()


@pytest.mark.parametrize("kernels", ["model.py's", "a CPU's", "a GPU's"])
@pytest.mark.parametrize("file", [*CONFIG_FILES, SPACEBYTE])
def test_a_step_is_one_graph_forward_and_one_backward(file, kernels):
    torch._dynamo.reset()
    settings = settings_of(file)
    tiny = TINY if settings["model"] == "gpt" else TINY | TINY_BYTES
    if settings.get("attention_window"):
        tiny = tiny | {"attention_window": 6}
    model = build_model(settings["model"], settings | tiny)
    if kernels == "a CPU's":
        model = to_device(model, torch.device("cpu"))
    if kernels == "a GPU's":
        model.head_loss = kernel_head_loss
        for mlp in (m for m in model.modules() if isinstance(m, MLP) and m.activation == "gelu"):
            mlp.activate = gelu
    counter = Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for seed in range(3):  # the same shapes again: nothing is compiled again
        idx = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16):
            more = loss_alone(model) | counted_arguments(model, idx, idx.device)
            _, loss = compiled(idx, idx, **more)
        loss.backward()
    assert (counter.forward, counter.backward) == (1, 1)
    logits = [dtype for n, dtype in counter.kept if n == idx.numel() * 97]
    assert torch.float32 not in logits, counter.kept
    if kernels == "a GPU's":  # an evaluation, which goes forward alone, makes no gradient of W
        assert counter.calls["forward"] == [summed_loss._opoverload]
        assert counter.calls["backward"] == 2 * [product_later._opoverload]
        assert logits == [torch.bfloat16]  # of which there is one tensor
    if not model.config.dropout:
        with torch.autocast("cpu", torch.bfloat16):
            want = model(idx, idx, **loss_alone(model))[1].item()
        assert loss.item() == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("boundary", ["space", "fixed"])
@pytest.mark.parametrize("window", [0, 24])
def test_patches_of_any_number_are_one_graph(boundary, window):
    """Of SpaceByte, to train and to evaluate it: how many there are is a symbol. Their counted
    slots, whose last ones are not used, change nothing."""
    torch._dynamo.reset()
    settings = settings_of(SPACEBYTE) | TINY | TINY_BYTES
    settings |= {"block_size": 200, "boundary": boundary, "local_window": window}
    model = to_device(build_model("spacebyte", settings), torch.device("cpu"))
    counter, slots = Counter(), set()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for every in (9, 3, 2, 1, 5):
        idx = torch.full((2, 200), ord("A"))
        idx[0, ::every] = ord(" ")
        idx[1, ::7] = ord(" ")
        more = counted_arguments(compiled, idx, idx.device)
        slots.add(len(more["slots"]))
        model.train(every != 5)
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = compiled(idx, idx, return_logits=False, **more)
            _, want = model(idx, idx, return_logits=False)
        loss.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-3)
    assert (counter.forward, counter.backward) == (1, 1)
    assert slots == ({64, 128} if boundary == "space" else {64})
