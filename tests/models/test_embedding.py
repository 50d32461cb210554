"""bonsai/models/embedding.py: gradients of tables added up where they lie are autograd's sums."""

import copy
from contextlib import nullcontext

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from bonsai.engine import prepare
from bonsai.models.embedding import AccumulatingEmbedding, accumulate_in_place
from model import GPT, GPTConfig

SHAPE = dict(block_size=12, vocab_size=31, n_layer=3, n_head=4, n_embd=32)
TABLES = dict(value_embeddings=True, bigram_embeddings=2, position="rope")
VARIANTS = {
    "tied": TABLES,
    "untied": TABLES | dict(tie_head=False, init="fan_in", norm_embedding=True),
    "recomputed": TABLES | dict(activation_checkpointing=True, tie_head=False),
    "mixed into layers": TABLES | dict(residual_lambdas=True, n_kv_head=1),
}
NAMES = {"bigrams.weight", "values.0.weight", "values.2.weight"}


def made(fields: dict) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, **fields))
    for p in model.parameters():  # what starts at 0 hides the gradients of others
        nn.init.normal_(p, std=0.3)
    return model


def gradients(
    model: GPT, forward, dtype: torch.dtype, steps: int, tables: list, lengths=(12, 7, 12)
) -> list[dict]:
    """After each of `steps` steps, which have a micro-batch of each of these lengths."""
    found = []
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        for table in tables:
            table.begin()
        for i, T in enumerate(lengths):
            generator = torch.Generator().manual_seed(3 * step + i)
            idx = torch.randint(31, (2, T), generator=generator)
            mixed = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
            with mixed:
                loss = forward(idx, idx)[1]
            (loss / 3).backward()
        found.append({k: p.grad.clone() for k, p in model.named_parameters()})
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_autograds_sums(fields, dtype):
    plain, model = made(fields), made(fields)
    tables = accumulate_in_place(model)
    assert plain.state_dict().keys() == model.state_dict().keys()
    want = gradients(plain, plain, dtype, 2, [])
    got = gradients(model, model, dtype, 2, tables)
    for a, b in zip(want, got):
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend, lengths", [("aot_eager", (12, 7, 12)), ("inductor", (12, 12))])
def test_compiled(backend, lengths):
    """As one graph; of several lengths, too, which inductor would compile anew."""
    torch._dynamo.reset()
    fields = VARIANTS["untied"]
    plain, model = made(fields), made(fields)
    tables = accumulate_in_place(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    got = gradients(model, compiled, torch.float32, 2, tables, lengths)
    for a, b in zip(gradients(plain, plain, torch.float32, 2, [], lengths), got):
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_no_gradient_of_a_tables_size_is_made():
    """In the compiled backward, where nn.Embedding has one for each table; and there is one graph
    for all steps and for an evaluation before them, which caches can keep."""
    fields = VARIANTS["untied"]
    sizes = {(31, 32), (62, 32)}
    made_there: list[list] = []

    def look(graph, inputs):
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        filled = [node.meta["val"] for node in calls if not node.all_input_nodes]
        made_there.append([x.shape for x in filled if x.shape in sizes])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        bw_compiler=look,
        decompositions=select_decomp_table(),
    )
    called: list[str] = []

    def looked_at(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return backend(graph, inputs)

    for in_place in (False, True):
        torch._dynamo.reset()
        model = made(fields)
        tables = accumulate_in_place(model) if in_place else []
        compiled = torch.compile(model, backend=looked_at, fullgraph=True)
        idx = torch.randint(31, (2, 12))
        compiled(idx, idx)
        for _ in range(3):
            for table in tables:
                table.begin()
            for _ in range(2):
                idx = torch.randint(31, (2, 12))
                compiled(idx, idx)[1].backward()
            model.zero_grad()
    without, with_tables = made_there
    assert len(without) == 4 and with_tables == []
    assert not [name for name in called if "autograd_function" in name]


def test_which_tables_and_that_they_stay_the_models():
    for fields, names in (
        (VARIANTS["tied"], NAMES),
        (VARIANTS["untied"], NAMES | {"transformer.wte.weight"}),
        ({}, set()),
        (dict(tie_head=False), {"transformer.wte.weight"}),
    ):
        model = made(fields)
        before = dict(model.named_parameters())
        tables = accumulate_in_place(model)
        assert {id(t.weight) for t in tables} == {id(before[name]) for name in names}
        after = dict(model.named_parameters())
        assert list(before) == list(after) and all(before[k] is after[k] for k in before)
        assert accumulate_in_place(model) == []  # they are there already


def test_the_sum_is_the_gradient_and_stays_in_its_place():
    model = made(VARIANTS["tied"])
    tables, idx = accumulate_in_place(model), torch.tensor([[1, 2, 3]])
    places = []
    for _ in range(2):
        for table in tables:
            table.begin()
            assert table.weight.grad is table.total and not table.total.any()
        model(idx, idx)[1].backward()
        assert all(table.weight.grad is table.total and table.total.any() for table in tables)
        places.append([table.total.data_ptr() for table in tables])
        model.zero_grad(set_to_none=True)
    assert places[0] == places[1]


def test_without_gradients_it_is_an_embedding():
    """Nothing is added where nobody records gradients, nor by a forward pass alone."""
    model = made(VARIANTS["tied"])
    idx = torch.tensor([[1, 2, 3]])
    want = model(idx)[0]
    tables = accumulate_in_place(model)
    for recorded in (False, True):
        for table in tables:
            table.begin()
        with torch.set_grad_enabled(recorded):
            assert torch.equal(model(idx)[0], want)
        assert not any(t.total.any() for t in tables)


def test_a_copy_has_no_sum_of_its_own():
    """One to write texts with would keep it for nothing."""
    model, idx = made(VARIANTS["untied"]), torch.tensor([[1, 2, 3]])
    tables = accumulate_in_place(model)
    for table in tables:
        table.begin()
    for copied in (copy.deepcopy(model), prepare(model, torch.float32)):
        theirs = [m for m in copied.modules() if isinstance(m, AccumulatingEmbedding)]
        assert len(theirs) == len(tables) and all(t.total is None for t in theirs)
    copied = copy.deepcopy(model)
    for each in (model, copied):
        each(idx, idx)[1].backward()
    gradients = [[p.grad for p in each.parameters()] for each in (model, copied)]
    torch.testing.assert_close(*gradients)
    assert all(t.weight.grad is t.total for t in tables)
