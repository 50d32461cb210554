"""bonsai/training/muon.py: against torch's own Muon and AdamW, and one process against several."""

import os
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from helpers.programs import ROOT, run_as_several, run_program
from helpers.settings import SETTINGS
from helpers.waiting import Waiting

from bonsai.system.runtime import setup
from bonsai.training import muon
from bonsai.training.muon import Muon
from bonsai.training.optimizers import build_optimizer
from bonsai.training.orthogonal import POLAR_EXPRESS
from bonsai.training.schedule import learning_rate_at, set_rates
from model import GPT, GPTConfig

# Jordan et al. 2024: the same coefficients five times, singular values in 0.7 ... 1.2
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
MUON = dict(kind="muon", lr=0.02, weight_decay=0.1, cautious=False, momentum=0.95)
ADAM = dict(kind="adamw", lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def parameters(*shapes) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def copies(params) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def train(params, optimizer, steps: int, clip=None) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        if clip is not None:
            optimizer.clip_gradients(clip)
        optimizer.step()


def test_torchs_muon_agrees():
    """Its coefficients, its number format (bf16), wide and tall matrices, several of one shape."""
    ours = parameters((48, 16), (16, 64), (48, 16), (16, 16))
    theirs = copies(ours)
    train(
        ours,
        Muon([{"params": ours, "coefficients": NEWTON_SCHULZ, **MUON}], torch.bfloat16),
        10,
        0.0,
    )
    train(theirs, torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95), 10)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_torchs_adamw_agrees():
    ours = parameters((7, 5), (3,), (1,))
    theirs = copies(ours)
    train(ours, Muon([{"params": ours, **ADAM}], torch.float32), 10, 0.0)
    del (options := dict(ADAM))["kind"]
    train(theirs, torch.optim.AdamW(theirs, **options), 10)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


# ---- the update as a function of tensors ----


def model_and_optimizer(**fields):
    runtime = setup("cpu", "bfloat16", False)
    torch.manual_seed(0)
    shape = dict(block_size=8, vocab_size=11, n_layer=2, n_head=4, n_kv_head=2, n_embd=16)
    model = GPT(GPTConfig(**shape, tie_head=False))
    settings = replace(SETTINGS, optimizer="muon", cautious_decay=True, momentum_warmup=5)
    return model, build_optimizer(model, settings, replace(runtime, **fields)), settings


def one_step(model, optimizer, settings, step: int) -> None:
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    set_rates(optimizer, learning_rate_at(step, settings), step, settings)
    norm = optimizer.clip_gradients(1.0)
    optimizer.found_inf = (~torch.isfinite(norm)).float()
    optimizer.step()


def test_the_guard_against_waiting_sees_it():
    x = torch.ones(3)
    for wait in (torch.Tensor.item, torch.Tensor.sum, lambda x: bool(x[0]), torch.nonzero):
        waits = wait is not torch.Tensor.sum
        with Waiting(), pytest.raises(AssertionError) if waits else nullcontext():
            wait(x[:1])


def test_a_step_waits_for_nothing():
    """And AdamW is one fused call for each rate."""
    given = model_and_optimizer()
    one_step(*given, 0)  # makes AdamW's moments
    with Waiting() as seen:
        one_step(*given, 1)
    kinds = [group["kind"] for group in given[1].param_groups]
    assert seen.calls.count("aten::_fused_adamw_") == kinds.count("adamw") == 3
    assert "aten::bmm" in seen.calls


def test_all_shapes_and_rates_are_one_compilation(monkeypatch):
    """Five shapes, and steps whose rates and momentum differ; the weights are the eager ones."""
    graphs, real = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiler = partial(real, backend=backend, fullgraph=True)
    monkeypatch.setattr(muon.torch, "compile", compiler)
    compiled, eager = model_and_optimizer(compile=True), model_and_optimizer()
    for step in range(6):
        for given in (compiled, eager):
            torch.manual_seed(step)
            one_step(*given, step)
    assert len(compiled[1].stacks) == 4 and len(graphs) == 1
    for a, b in zip(compiled[0].parameters(), eager[0].parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_a_gradient_of_nothing_moves_nothing():
    params = parameters((8, 8), (8,))
    before = copies(params)
    groups = [
        {"params": params[:1], "coefficients": POLAR_EXPRESS, **MUON, "weight_decay": 0.0},
        {"params": params[1:], **ADAM, "weight_decay": 0.0},
    ]
    optimizer = Muon(groups, torch.float32)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.clip_gradients(0.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before))


def test_cautious_decay_shrinks_only_what_shrinks_anyway():
    plain, cautious = parameters((8, 8)), parameters((8, 8))
    for params, on in ((plain, False), (cautious, True)):
        group = {"params": params, "coefficients": POLAR_EXPRESS, **MUON, "cautious": on}
        train(params, Muon([group], torch.float32), 1, 0.0)
    free = parameters((8, 8))
    group = {"params": free, "coefficients": POLAR_EXPRESS, **MUON, "weight_decay": 0.0}
    train(free, Muon([group], torch.float32), 1, 0.0)
    start = parameters((8, 8))[0]
    shrinks = (free[0] - start) * start < 0
    torch.testing.assert_close(cautious[0], torch.where(shrinks, plain[0], free[0]))
    assert shrinks.any() and not shrinks.all()


def test_blocks_of_rows_are_matrices_of_their_own():
    """A parameter of three blocks moves as three parameters do."""
    whole = parameters((24, 8))
    whole[0].row_block = 8
    parts = [torch.nn.Parameter(x.clone()) for x in whole[0].detach().split(8)]
    group = {"coefficients": POLAR_EXPRESS, **MUON}
    train(whole, Muon([{"params": whole, **group}], torch.float32), 5, 0.0)
    optimizer = Muon([{"params": parts, **group}], torch.float32)
    train(parts, optimizer, 5, 0.0)
    torch.testing.assert_close(whole[0], torch.cat(parts))


def test_clipping_scales_all_gradients_together():
    params = parameters((8, 8), (6, 8), (5,))
    groups = [
        {"params": params[:2], "coefficients": POLAR_EXPRESS, **MUON},
        {"params": params[2:], **ADAM},
    ]
    optimizer = Muon(groups, torch.float32)
    for p in params:
        p.grad = torch.ones_like(p)
    norm = optimizer.clip_gradients(0.5)
    assert norm.item() == pytest.approx((64 + 48 + 5) ** 0.5)
    assert torch.nn.utils.get_total_norm(optimizer.grads).item() == pytest.approx(0.5, rel=1e-4)


def test_a_step_without_a_finite_gradient_changes_nothing():
    runtime = setup("cpu", "float32", False)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16))
    optimizer = build_optimizer(model, replace(SETTINGS, optimizer="muon"), runtime)

    def step(spoil: bool) -> dict:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        if spoil:
            model.lm_head.weight.grad[0, 0] = torch.inf
        norm = optimizer.clip_gradients(1.0)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
        state = optimizer.state_dict()["state"]
        return {
            **{n: p.detach().clone() for n, p in model.named_parameters()},
            **{f"{i} {k}": v for i, s in state.items() for k, v in s.items()},
        }

    first, spoilt, last = step(False), step(True), step(False)
    assert all(torch.equal(first[k], spoilt[k]) for k in first)
    assert not any(torch.equal(first[k], last[k]) for k in first)


def test_state_moves_between_optimizers():
    params = parameters((8, 8), (24, 8), (5,))
    twins = copies(params)

    def make(p):
        groups = [
            {"params": p[:2], "coefficients": POLAR_EXPRESS, **MUON},
            {"params": p[2:], **ADAM},
        ]
        return Muon(groups, torch.float32)

    a = make(params)
    train(params, a, 3, 1.0)
    b = make(twins)
    with torch.no_grad():
        for p, q in zip(params, twins):
            q.copy_(p)
    b.load_state_dict(a.state_dict())
    train(params, a, 3, 1.0)
    train(twins, b, 3, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(params, twins))


# One process, and two or three that share the work: the same weights, the same saved state.
WORKER = """
import torch
from bonsai.training.optimizers import build_optimizer
from bonsai.training.settings import StepSettings
from bonsai.system.runtime import setup
from model import GPT, GPTConfig
runtime = setup("cpu", "float32", False)
torch.manual_seed(0)
fields = dict(block_size=8, vocab_size=11, n_layer=3, n_head=2, n_embd=16, value_embeddings=True)
model = GPT(GPTConfig(**fields, residual_lambdas=True, tie_head=False))
chosen = {"optimizer": "muon", "learning_rate": 0.02, "neuron_beta": 0.9, "table_decay": 0.5}
settings = StepSettings(**{**SETTINGS, **chosen})
optimizer = build_optimizer(model, settings, runtime)
rows = torch.randint(11, (5, 6, 9), generator=torch.Generator().manual_seed(1))
norms = []
for step, batch in enumerate(rows):
    if step == 3:  # as in a resume
        optimizer.load_state_dict(torch.load(sys.argv[1] + ".state", weights_only=True))
    mine = batch[runtime.rank :: runtime.world_size]
    model(mine[:, :-1], mine[:, 1:])[1].backward()
    norms.append(optimizer.clip_gradients(0.5).item())
    optimizer.step()
    optimizer.zero_grad()
    if step == 2:
        state = optimizer.state_dict()
        if runtime.master and not sys.argv[2:]:
            torch.save(state, sys.argv[1] + ".state")
        runtime.barrier()
state = optimizer.state_dict()
if runtime.master:
    torch.save({"model": model.state_dict(), "state": state["state"], "norms": norms}, sys.argv[1])
runtime.close()
"""


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_work(world, tmp_path):
    """The others take the state that one process saved: whole, whatever their number."""
    program = tmp_path / "program.py"
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nSETTINGS = {asdict(SETTINGS)}\n"
    program.write_text(start + WORKER)
    alone, shared = tmp_path / "alone.pt", tmp_path / "shared.pt"
    done = run_program([alone], tmp_path, program=program)
    assert done.rc == 0, done
    os.rename(f"{alone}.state", f"{shared}.state")
    done = run_as_several([shared, "keep"], tmp_path, program, world)
    assert done.rc == 0, done
    a, b = (torch.load(path, weights_only=True) for path in (alone, shared))
    assert a["norms"] == pytest.approx(b["norms"], rel=1e-4)
    for name in a["model"]:
        torch.testing.assert_close(a["model"][name], b["model"][name], atol=1e-4, rtol=1e-4)
    for i, state in a["state"].items():
        for k in state:
            torch.testing.assert_close(state[k], b["state"][i][k], atol=1e-4, rtol=1e-3)
