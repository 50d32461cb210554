"""What a GPU has to show: half precision, compilation, resume, decoding; without pytest too.

    python -m pytest -m gpu tests/benchmarks            # as tests
    python tests/benchmarks/test_gpu.py                 # needs nothing but torch and the repository
    python tests/benchmarks/test_gpu.py --device=cpu    # what of them a CPU can do

Each prints one line; exit status 1 when one fails.
"""

import contextlib
import inspect
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import SkipTest  # on which pytest skips too

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from benchmarks.harness import Results, table
from bonsai import ROOT
from bonsai.data.dataset import open_dataset
from bonsai.data.writer import Writer
from bonsai.engine import Engine, SamplingParams, generate
from bonsai.engine.cuda.block import StepBlock
from bonsai.engine.cuda.kernels import can_overlap, load_kernels
from bonsai.engine.weights import prepare as prepare_weights
from bonsai.evaluation.loss import split_loss
from bonsai.models import head_loss, loss_kernel
from bonsai.models.embedding import accumulate_in_place
from bonsai.models.kernels import attend, to_device
from bonsai.models.table import build_model
from bonsai.planning import recipe
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.names import CKPT
from bonsai.runs.restore import load_checkpoint
from bonsai.system.errors import run
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer
from bonsai.training import breakdown
from bonsai.training.adam import KernelAdamW, fastest_adamw
from bonsai.training.background import BackgroundWriter, on_host, tensors_in
from bonsai.training.optimizers import build_optimizer, clip_gradients, load_optimizer_state
from bonsai.training.orthogonal import (
    POLAR_EXPRESS,
    fastest_product,
    orthogonalize,
    plain_product,
)
from bonsai.training.schedule import set_rates
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps, synthetic
from configurator import configure
from model import attention

with contextlib.suppress(ImportError):  # a machine that is lent may lack it
    import pytest

    pytestmark = [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        pytest.mark.parametrize("device", ["cuda"]),
    ]

# -----------------------------------------------------------------------------
device = "auto"  # cpu, cuda, cuda:1; auto: the first that is there
out = ""  # folder for tests.json and .txt; checks that passed there are not repeated [path]
force = False  # repeat them
# -----------------------------------------------------------------------------

# fields of the recipe's model
RECIPE = ("norm", "norm_gain", "position", "activation", "qk_norm", "value_embeddings", "zero_init")

FIELDS = dict(n_layer=2, n_head=4, n_embd=128, block_size=64, vocab_size=257, bias=False)


def make_step(device: str, dtype: str, compiled: bool, **more) -> TimedSteps:
    """Steps on one random batch, which a model learns by heart. more: fields of the model."""
    runtime, fields = setup(device, dtype, compiled), FIELDS | more
    torch.manual_seed(0)
    model = build_model("gpt", fields).to(runtime.device)
    stream = synthetic(fields["vocab_size"], 8, fields["block_size"], runtime.device)
    settings = StepSettings(learning_rate=1e-3, seed=0)
    return TimedSteps(TrainingStep(model, settings, runtime), stream)


def losses(step: TimedSteps, count: int) -> list[float]:
    found = [step.log(step())[0] for _ in range(count)]
    weights = step.training.model.parameters()
    assert all(torch.isfinite(p).all() for p in weights), "a weight is not finite"
    return found


def test_bfloat16_trains(device):
    """Losses under bf16 autocast are finite, fall, and follow those in float32."""
    half = losses(make_step(device, "bfloat16", False), 30)
    full = losses(make_step(device, "float32", False), 30)
    assert half[-1] < half[0] - 0.3, half
    apart = max(abs(a - b) for a, b in zip(half, full))
    assert apart < 0.05, f"bfloat16 and float32 are {apart} apart"
    print(f"loss {half[0]:.4f} to {half[-1]:.4f} in 30 steps, at most {apart:.4f} from float32")


def test_float16_trains(device):
    """Losses under fp16 autocast with a GradScaler are finite and fall."""
    if not device.startswith("cuda"):
        raise SkipTest("float16 trains on CUDA only")
    step = make_step(device, "float16", False)
    found = losses(step, 40)
    assert step.training.scaler.is_enabled() and 1 <= step.training.scaler.get_scale() <= 65536
    assert found[-1] < found[0] - 0.3, found
    print(
        f"loss {found[0]:.4f} to {found[-1]:.4f}, loss scale {step.training.scaler.get_scale():.0f}"
    )


def test_compiled_equals_eager(device):
    """The compiled model has the losses of the eager one, in float32 and bf16, and with tokens' own
    values beside windows, for which it has a kernel."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    windows = dict(position="rope", attention_window=32, block_size=256, value_embeddings=True)
    kinds = (("float32", 2e-3, {}), ("bfloat16", 2e-2, {}), ("bfloat16", 2e-2, windows))
    said = []
    for dtype, limit, more in kinds:
        a, b = (losses(make_step(device, dtype, way, **more), 5) for way in (False, True))
        apart = max(abs(x - y) for x, y in zip(a, b))
        assert apart < limit, f"{dtype} {more}: {a} and {b}"
        said.append(f"{dtype}{', windows' * bool(more)}: at most {apart:.1e} apart")
    print("; ".join(said))


def test_attention_to_a_window(device):
    """Of a compiled model by FlexAttention: as with a mask, gradients too, of odd lengths too."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    torch.manual_seed(0)
    apart, compiled = 0.0, torch.compile(attend)
    for T, window, nkv in ((300, 70, 4), (1024, 256, 2), (130, 129, 4), (100, 30, 2)):
        q, k, v = (
            torch.randn(2, n, T, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
            for n in (4, nkv, nkv)
        )
        results = []
        for f in (attention, compiled):
            y = f(q, k, v, None, window, 0.125, 0.0)
            results.append([y.float(), *torch.autograd.grad(y.float().square().sum(), (q, k, v))])
        for a, b in zip(*results):
            apart = max(apart, ((a - b).norm() / a.norm()).item())
    assert apart < 0.02, f"{apart} of the whole apart"
    print(f"at most {100 * apart:.2f}% apart from attention with a mask")


def test_models_of_bytes(device):
    """Compiled, MEGABYTE and SpaceByte are one graph, whose step waits for nothing and has the loss
    of the uncompiled; milliseconds of attention within patches, torch's kernel beside it."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    text = torch.frombuffer(bytearray((ROOT / "model.py").read_bytes()), dtype=torch.uint8).long()
    local = dict(local_layer=2, local_head=2, local_embd=128, patch_size=4)
    fields = FIELDS | local | dict(n_layer=1, position="rope", qk_norm=True, block_size=1024)
    apart, waits = 0.0, 0
    for name, more in (("megabyte", {"cross_patch": 2}), ("spacebyte", {"local_window": 128})):
        runs = []
        for compiled in (False, True):
            torch.compiler.reset()
            torch._dynamo.utils.counters.clear()
            runtime = setup(device, "bfloat16", compiled)
            torch.manual_seed(0)
            training = TrainingStep(
                build_model(name, fields | more), StepSettings(learning_rate=1e-3, seed=0), runtime
            )
            runs.append([])
            for i in range(5):
                rows = text[2000 * i : 2000 * i + 4 * 1024 + 1]
                batch = rows[:-1].view(4, 1024), rows[1:].view(4, 1024)
                with count_of_waits() as seen:
                    loss = training(i, [batch])
                runs[-1].append(loss.item())
            assert all(map(math.isfinite, runs[-1])), runs
        waits += len(seen)  # of the last step compiled
        counters = torch._dynamo.utils.counters
        broken, graphs = counters["graph_break"], counters["stats"]["unique_graphs"]
        assert not broken and graphs == 1, f"{name}: {graphs} graphs, {dict(broken)}"
        apart = max(apart, *(abs(a - b) for a, b in zip(*runs)))
    assert apart < 0.03, f"compiled and eager losses are {apart} apart"
    assert not waits, f"{waits} waits in two steps, as {seen[:1]}"

    q, k, v = (
        torch.randn(32768, 6, 4, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    took, compiled = [], torch.compile(attend)
    for f in (compiled, attention):

        def both(f=f):
            y = f(q, k, v, None, 0, 0.125, 0.0)
            torch.autograd.grad(y, (q, k, v), y)

        took.append(milliseconds(both))
    print(
        f"losses at most {apart:.1e} apart, no wait; attention of 32,768 x 6 heads to 4 keys, "
        "forward and backward: {:.2f} ms, torch's kernel {:.2f}".format(*took)
    )


@contextlib.contextmanager
def count_of_waits():
    """What is done within that makes the host wait for the GPU, a list of torch's warnings."""
    seen = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")
            # the first call also says that this mode is a prototype
            said = [str(w.message) for w in caught]
            seen += [text for text in said if "called a synchronizing" in text]


def test_no_logits_in_memory(device):
    """A compiled step has them once, in 16 bits, by a kernel; in chunks it needs less still, and an
    eager step no more; the loss is the same."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    runtime, V, B, T = setup(device, "bfloat16", True), 50304, 16, 1024
    torch.manual_seed(0)
    fields = dict(n_layer=1, n_head=2, n_embd=256, block_size=T, vocab_size=V, logit_softcap=15.0)
    model = to_device(build_model("gpt", fields), runtime.device)
    if model.head_loss is not head_loss.kernel_head_loss:
        raise SkipTest("triton is not installed")
    model.further = torch.tensor(0.5, device=device)
    idx = torch.randint(V, (B, T), device=device)
    whole = head_loss.MOST_COMPILED
    losses_of, peaks = {}, {}
    try:
        for name, most in (("compiled", whole), ("eager", whole), ("chunks", 2**27)):
            head_loss.MOST_COMPILED = most
            torch._dynamo.reset()
            network = model if name == "eager" else torch.compile(model)
            for _ in range(2):
                model.zero_grad()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                with runtime.autocast():
                    loss = network(idx, idx, return_logits=False)[1]
                loss.backward()
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / (B * T * V)
            losses_of[name] = loss.item(), model.lm_head.weight.grad.clone()
    finally:
        head_loss.MOST_COMPILED = whole
    b, db = losses_of["chunks"]
    for name in ("compiled", "eager"):
        a, da = losses_of[name]
        assert abs(a - b) < 1e-3 and (da - db).norm() < 0.02 * db.norm(), (name, a, b)
        assert peaks[name] < 3, f"{peaks} bytes per logit: they are there twice"
    assert loss_kernel.checked and not loss_kernel.refused, "the kernel was not taken"
    print(", ".join(f"{name}: {peak:.1f} bytes per logit" for name, peak in peaks.items()))


def test_losses_by_a_kernel(device):
    """Losses and gradient of logits in 16 bits are torch's, for GPT-2's vocabulary and a byte's, in
    all the kernel's kinds; milliseconds for 8 x 1,024 tokens."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    if not loss_kernel.has_kernel(torch.device(device)):
        raise SkipTest("triton is not installed")
    said, apart = [], 0.0
    for V, rows in ((50304, 8192), (50257, 512), (257, 8192)):
        for cap, second in ((0.0, False), (15.0, True)):
            logits = (3 * torch.randn(rows, V, device=device)).bfloat16()
            targets, after = torch.randint(-1, V, (2, rows), device=device)
            rest = (targets, after, torch.tensor(0.5, device=device)) if second else (targets,)
            rest = (*rest, *[None] * (3 - len(rest)), cap)
            ours, plain = logits.clone(), logits.float()
            found = loss_kernel.losses(ours, *rest, True)
            want = loss_kernel.plain_losses(plain, *rest, True)
            alone = loss_kernel.losses(logits, *rest, False)
            assert (found - want).abs().max() < 5e-3 and (alone - want).abs().max() < 5e-3
            apart = max(apart, float((ours - plain).norm() / plain.norm()))
            assert apart < 0.01, f"gradients are {apart} apart: V={V}, cap={cap}"
            if rows > 512:
                took = milliseconds(lambda given=(ours, *rest): loss_kernel.losses(*given, True))
                said.append(f"V={V}, cap {cap:.0f}: {took:.3f} ms")
    assert not loss_kernel.refused, "the kernel was refused"
    print(f"gradients at most {apart:.1e} apart; {'; '.join(said)}")


def test_steps_that_are_not_finite_are_left_out(device):
    """A step whose gradient is not finite leaves weights, moments and step counts alone."""
    runtime = setup(device, "float32", False)
    torch.manual_seed(0)
    model = build_model("gpt", FIELDS).to(runtime.device)
    optimizer = build_optimizer(model, StepSettings(), runtime)
    batch = next(synthetic(FIELDS["vocab_size"], 2, 16, runtime.device))
    x, y = (part.to(runtime.device) for part in batch)

    def step(spoil: bool) -> list[torch.Tensor]:
        """All that the optimizer holds, before and after a step, in two halves."""
        model(x, y)[1].backward()
        if spoil:
            next(model.parameters()).grad[0, 0] = float("inf")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = [t for s in optimizer.state.values() for t in s.values()]
        return [t.detach().clone() for t in [*model.parameters(), *state]]

    first, spoilt, next_one = step(False), step(True), step(False)
    assert all(torch.equal(a, b) for a, b in zip(first, spoilt)), "a bad step changed something"
    assert not any(torch.equal(a, b) for a, b in zip(first[:2], next_one[:2]))
    print(f"{len(first)} tensors unchanged")


def test_adamw_by_a_kernel(device):
    """Its weights and moments are those of torch's clipping and fused AdamW, for tensors of all
    lengths, aligned or not, and where a step is not finite; milliseconds for GPT-2 (124M)."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    if not loss_kernel.has_kernel(torch.device(device)):
        raise SkipTest("triton is not installed")
    noise = torch.Generator(device).manual_seed(0)
    shapes = ((50304, 768), (768,), (1,), (1023, 1025), (3, 7), *[(3072, 768)] * 36)

    def drawn(shape: tuple, offset: int) -> torch.Tensor:
        memory = torch.randn(math.prod(shape) + offset, generator=noise, device=device)
        return memory[offset:].view(shape)

    def made() -> torch.optim.AdamW:
        noise.manual_seed(0)
        odd = [torch.nn.Parameter(drawn(shape, i % 2)) for i, shape in enumerate(shapes[:5])]
        even = [torch.nn.Parameter(drawn(shape, 0)) for shape in shapes[5:]]
        groups = [{"params": odd, "weight_decay": 0.0}, {"params": even, "weight_decay": 0.1}]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)

    plain, ours = made(), fastest_adamw(made())
    assert type(ours) is KernelAdamW, "the kernel was refused"

    def update(optimizer: torch.optim.Optimizer, max_norm: float = 1.0) -> None:
        norm = clip_gradients(optimizer, max_norm)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()

    apart = 0.0
    for step, max_norm in enumerate((1.0, 0.0, 1.0, 1e6)):
        pairs = []
        for optimizer in (plain, ours):
            noise.manual_seed(step)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for i, p in enumerate(params):
                p.grad = drawn(p.shape, step % 2 * (i < 5))
            if step == 2:
                params[0].grad[0, 0] = float("inf")
            update(optimizer, max_norm)
            states = [optimizer.state[p] for p in params]
            pairs.append([*params, *[t for state in states for t in state.values()]])
        apart = max(apart, *[float((a - b).detach().abs().max()) for a, b in zip(*pairs)])
    assert apart < 1e-5, f"weights or moments are {apart} apart"
    took = [milliseconds(partial(update, optimizer)) for optimizer in (ours, plain)]
    print("{:.1e} apart; an update takes {:.2f} ms, torch's {:.2f}".format(apart, *took))


def test_muon_by_symmetric_products(device):
    """The kernel's products are torch's for the shapes of GPT-2 (124M), and so are its updates."""
    if not device.startswith("cuda") or not torch.cuda.is_bf16_supported(False):
        raise SkipTest("needs CUDA with bfloat16")
    dev, said = torch.device(device), []
    kernel = fastest_product(dev, torch.bfloat16)
    if kernel is plain_product:
        raise SkipTest("triton is not installed")
    for shape in ((48, 768, 768), (24, 768, 3072)):
        x = torch.randn(shape, device=dev, dtype=torch.bfloat16)
        x /= math.sqrt(shape[2])
        square = plain_product(x)
        for given in ((x,), (square, 0.7, -0.3)):
            torch.testing.assert_close(kernel(*given), plain_product(*given), atol=2e-2, rtol=2e-2)
            took = [milliseconds(partial(f, *given)) for f in (kernel, plain_product)]
            said.append("{:.3f} ms, torch's {:.3f}".format(*took))
        ours, plain = (
            orthogonalize([x], POLAR_EXPRESS, torch.bfloat16, f)[0] for f in (kernel, plain_product)
        )
        apart = float((ours - plain).norm() / plain.norm())
        assert apart < 0.05, f"orthogonalized matrices are {apart} apart"
    from bonsai.training.symmetric import chosen, refused  # there is triton

    assert not refused, f"refused: {refused}"
    print("; ".join([*said, *(f"{key[0]}: {tile}" for key, tile in chosen.items())]))


def milliseconds(function, calls: int = 10) -> float:
    """Of the device for a call, the median of 5 times some calls: a short one by itself would take
    as long as its launch."""
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return sorted(times[2:])[2]


def test_muons_update_compiled(device):
    """Muon's compiled update moves weights as the eager one; milliseconds for GPT-2 (124M)."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    weights = []
    small = dict(n_layer=2, n_head=4, n_embd=512, block_size=64, vocab_size=257)
    large = dict(n_layer=12, n_head=6, n_embd=768, block_size=64, vocab_size=50304)
    for fields, compiled in ((small, False), (small, True), (large, True)):
        runtime = setup(device, "auto", compiled)
        torch.manual_seed(0)
        model = build_model("gpt", fields).to(runtime.device)
        settings = StepSettings(optimizer="muon", learning_rate=0.02, cautious_decay=True)
        optimizer = build_optimizer(model, settings, runtime)

        def update(model=model, optimizer=optimizer):
            norm = optimizer.clip_gradients(1.0)
            optimizer.found_inf = (~torch.isfinite(norm)).float()
            optimizer.step()

        for step in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            set_rates(optimizer, 0.02 / (step + 1), step, settings)
            update()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    apart = float((weights[0] - weights[1]).norm() / weights[0].norm())
    assert apart < 0.02, f"compiled and eager updates are {apart} apart"
    took = milliseconds(update)
    print(f"{apart:.1e} apart; an update of 124M, clipping included, takes {took:.2f} ms")


def test_tables_add_up_the_gradients_of_micro_batches(device):
    """In their place: losses and norms are those of autograd's sums; milliseconds of a step."""
    on_gpu = device.startswith("cuda")
    shape = dict(n_layer=4, n_head=6, n_embd=768, block_size=256, vocab_size=50304)
    fields = {k: getattr(recipe, k) for k in (*RECIPE, "bigram_embeddings", "tie_head")}
    runtime = setup(device, "bfloat16", on_gpu)
    found, took = [], []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = build_model("gpt", (shape if on_gpu else FIELDS) | fields)
        settings = StepSettings(optimizer="muon", learning_rate=0.02, seed=0)
        training = TrainingStep(model, settings, runtime, accumulates=in_place)
        if in_place and not on_gpu:
            training.tables = accumulate_in_place(model)
        assert len(training.tables) == in_place * (2 + model.config.n_layer // 2)
        vocabulary, T = model.config.vocab_size, model.config.block_size
        step = TimedSteps(training, synthetic(vocabulary, 4, T, runtime.device), 6)
        found.append([step.log(step()) for _ in range(4)])
        if on_gpu:
            took.append(milliseconds(step, calls=1))
    for plain, own in zip(*found):
        torch.testing.assert_close(torch.tensor(own), torch.tensor(plain), rtol=0.02, atol=0)
    assert found[1][-1][0] < found[1][0][0], found[1]
    falls = f"loss {found[1][0][0]:.4f} to {found[1][-1][0]:.4f}, {found[0][-1][0]:.4f} by autograd"
    print(f"{falls}; ms of a step by autograd and so: {', '.join(f'{ms:.1f}' for ms in took)}")


def prepare(folder: Path) -> None:
    """data/tiny below the folder: bytes of this repository's own sources."""
    coder = ByteTokenizer()
    with Writer(folder / "data" / "tiny", coder) as writer:
        for split, name in (("train", "model.py"), ("val", "train.py")):
            text = (ROOT / name).read_text(encoding="utf-8")
            writer.add(split, coder.encode(text), text_bytes=len(text.encode()))
        writer.finish()


def test_evaluation_as_on_the_cpu(device, tmp_path):
    """Whole-split losses on both devices agree."""
    prepare(tmp_path)
    split = open_dataset(str(tmp_path / "data" / "tiny")).split("val")
    torch.manual_seed(0)
    model, found = build_model("gpt", FIELDS), []
    for where in ("cpu", device):
        runtime = setup(where, "float32", False)
        found.append(split_loss(to_device(model, runtime.device), split, runtime, 64, 8)[0])
    assert abs(found[0] - found[1]) < 2e-3, found
    print(f"loss {found[0]:.5f} on the CPU, {found[1]:.5f} here")


def test_resume_goes_on(device, tmp_path):
    """train.py: steps 4 to 6 have the same losses after a resume from step 3."""
    prepare(tmp_path)
    options = ["--dataset=tiny", "--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64"]
    options += ["--batch_size=4", "--gradient_accumulation_steps=2", "--dropout=0.1"]
    options += ["--warmup_iters=2", "--eval_iters=1", f"--device={device}", "--compile=False"]

    def train(name: str, *more: str) -> list[float]:
        command = [sys.executable, str(ROOT / "train.py"), *options, *more]
        command += [f"--out_dir={name}", "--max_iters=6", "--lr_decay_iters=6"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1000:]
        lines = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [row["loss"] for row in map(json.loads, lines) if "loss" in row]

    whole = train("whole", "--save_interval=3", "--keep_last=9")
    (tmp_path / "part").mkdir()
    shutil.copyfile(tmp_path / "whole" / "step_0000003.pt", tmp_path / "part" / "last.pt")
    part = train("part", "--init_from=resume")
    assert len(whole) == 6 and len(part) == 3, (whole, part)
    apart = max(abs(a - b) for a, b in zip(whole[3:], part))
    # a GPU adds up some gradients in no fixed order
    assert apart <= (0 if device == "cpu" else 1e-3), f"{whole} and {part}"
    print(f"losses at most {apart:.1e} apart")


def test_training_goes_on_while_a_checkpoint_is_written(device, tmp_path):
    """The file is that of a run which waits, and what goes on from it has the same losses as the
    steps that were made before it was written; milliseconds to copy a state to the host."""
    step, begin = make_step(device, "float32", False), threading.Event()
    losses(step, 5)
    training = step.training
    writer = BackgroundWriter(training.runtime)

    def state() -> dict:
        model, optimizer = training.model.state_dict(), training.optimizer.state_dict()
        return {"model": model, "model_args": {}, "optimizer": optimizer, "iter_num": 5}

    def write(copy: dict) -> None:
        assert begin.wait(600)
        save_checkpoint(tmp_path / "meanwhile", copy)

    save_checkpoint(tmp_path / "waits", state())
    writer.write(write, state())
    assert writer.thread is not None, "there was no memory for a copy"
    went_on = losses(step, 5)
    assert not (tmp_path / "meanwhile").exists()
    begin.set()
    writer.wait()
    waited, saved = (load_checkpoint(tmp_path / name / CKPT) for name in ("waits", "meanwhile"))
    pairs = list(zip(tensors_in(waited), tensors_in(saved), strict=True))
    assert len(pairs) > 50 and all(torch.equal(a, b) for a, b in pairs)

    step = make_step(device, "float32", False)
    step.training.model.load_state_dict(saved["model"])
    load_optimizer_state(step.training.optimizer, saved["optimizer"])
    apart = max(abs(a - b) for a, b in zip(went_on, losses(step, 5)))
    # a GPU adds up some gradients in no fixed order
    assert apart <= (0 if device == "cpu" else 1e-3), f"losses are {apart} apart"

    took, large = [], torch.ones(2**28 if device.startswith("cuda") else 2**20, device=device)
    copy = timed(lambda: (on_host({"w": large}), training.runtime.synchronize()), took)
    for _ in range(3):  # only the first one has to make the pinned memory
        copy()
    each = ", ".join(f"{1e3 * seconds:.0f}" for seconds in took)
    print(f"losses at most {apart:.1e} apart; {4 * len(large) >> 20} MiB copied in {each} ms")


def test_engine_decodes(device):
    """The engine's tokens are those of whole recomputation, eager and as CUDA graphs; its logits in
    bf16 and int8 stay close to float32's."""
    torch.manual_seed(0)
    model = build_model("gpt", {**FIELDS, "block_size": 256}).to(device).eval()
    params = SamplingParams(max_new_tokens=150, temperature=0.8, top_k=50, seed=1)
    prompts = [[(7 * i + j) % 257 for j in range(3 + 20 * i)] for i in range(5)]
    want = []
    for prompt in prompts:
        rows = generate(model, prompt, params, use_cache=False, on_full="stop")
        want.append([token for (token,) in rows])
    for compiled in (False, True) if device.startswith("cuda") else (False,):
        engine = Engine(model, max_batch=4, compile=compiled)
        requests = [engine.submit(prompt, params)[0] for prompt in prompts]
        while engine.busy:
            engine.step()
        got = [request.tokens for request in requests]
        same = sum(a == b for x, y in zip(got, want) for a, b in zip(x, y))
        total = sum(map(len, want))
        # a text that parts from another at a tie goes on differently: a wrong step parts all
        assert same > 0.7 * total, f"compiled={compiled}: {same} of {total} tokens are the same"
    idx = torch.randint(257, (4, 100), device=device)
    found = [f"{same} of {total} tokens the same"]
    with torch.no_grad():
        exact = model(idx, idx)[0]
        for dtype, quantize in ((torch.bfloat16, ""), (torch.bfloat16, "int8")):
            logits = Engine(model, 4, dtype=dtype, quantize=quantize).model(idx, idx)[0]
            error = float((logits - exact).std() / exact.std())
            assert error < (0.3 if quantize else 0.1), f"{dtype} {quantize}: off by {error:.3f}"
            found.append(f"{quantize or 'bfloat16'} off by {error:.3f}")
    print(", ".join(found))


def test_kernels_of_decoding(device):
    """Triton's kernels compile here and compute what plain torch does, for blocks of all kinds."""
    if not device.startswith("cuda"):
        raise SkipTest("needs CUDA")
    assert load_kernels(torch.device(device)), "no Triton kernels: the line on stderr says why"
    kinds = {
        "classic": dict(n_layer=2),
        "recipe": dict(n_layer=2, **{k: getattr(recipe, k) for k in RECIPE}),
        "llama": dict(n_layer=2, n_kv_head=4, norm="rmsnorm", activation="swiglu", position="rope"),
    }
    for name, fields in kinds.items():
        model = build_model("gpt", {"vocab_size": 300, "bias": name == "classic", **fields})
        for quantize in ("", "int8"):  # each checks its kernels, or says what is wrong
            ready = prepare_weights(model.to(device), torch.bfloat16, quantize, batch=64)
            blocks = ready.transformer.h
            assert all(isinstance(b, StepBlock) for b in blocks), (name, quantize)
            overlap = all(b.kernels.in_order for b in blocks)
            assert overlap == can_overlap(torch.device(device)), (name, quantize)
    how = "overlapping" if overlap else "one after another"
    print(f"blocks of {', '.join(kinds)} in bfloat16 and int8 go through them, {how}")


def drawn(engine: Engine, prompts: list, params: SamplingParams) -> tuple[list, list[float]]:
    """The tokens of all answers, and the seconds of each step after the one that begins them."""
    requests = [engine.submit(prompt, params)[0] for prompt in prompts]
    engine.step()
    waits = []
    while engine.busy:
        begin = time.perf_counter()
        engine.step()
        waits.append(time.perf_counter() - begin)
    return [request.tokens for request in requests], waits


def test_captured_steps(device):
    """Replayed graphs give what their kernels give when they are launched one by one, to the last
    token, and what the engine without graphs gives; no graph keeps a text waiting for long."""
    on_gpu, said = device.startswith("cuda"), []
    shape = dict(block_size=1024, vocab_size=50304) if on_gpu else {**FIELDS, "block_size": 256}
    torch.manual_seed(0)
    model = build_model("gpt", shape).to(device).eval()
    params = SamplingParams(100 if on_gpu else 40, 0.8, top_k=50, repetition_penalty=1.1)
    many = 64 if on_gpu else 5
    for dtype, quantize, rows in (
        (torch.float32, "", many),
        *((torch.bfloat16, quantize, n) for quantize in ("", "int8") for n in (1, many)),
    ):
        name = f"{str(dtype)[6:]} {quantize} x {rows}"
        # at once, of many lengths: captured, those of a padded size are read together
        prompts = [[(7 * i + j) % 257 for j in range(3 + 13 * i)] for i in range(rows)]
        options = dict(dtype=dtype, quantize=quantize)
        plain, _ = drawn(Engine(model, rows, **options), prompts, params)
        engine = Engine(model, rows, capture=True, **options)
        engine.captured.graphs.captures = False
        launched, _ = drawn(engine, prompts, params)
        engine = Engine(model, rows, capture=True, **options)
        graphs, seconds = engine.captured.graphs, []
        graphs.capture = timed(graphs.capture, seconds)
        replayed, waits = drawn(engine, prompts, params)
        assert replayed == launched, f"{name}: a replay gives other tokens than its kernels"
        together = max(key[1] for key in graphs.kept if key[0] == "prompts")
        assert together > 1 or rows == 1, f"{name}: prompts are read one by one"
        same = sum(a == b for x, y in zip(plain, replayed) for a, b in zip(x, y))
        total = sum(map(len, plain))
        # texts part where two tokens are within rounding; a wrong step parts all of them at once
        enough = 0.7 if dtype == torch.float32 else 0.2
        assert same > enough * total, f"{name}: {same} of {total} tokens are the same"
        if on_gpu:
            assert not graphs.refused, f"{name}: a capture was refused"
            assert max(waits) < 0.5, f"{name}: waited {max(waits):.2f} s"
        said.append(
            f"{name}: {same / total:.0%} of the engine's tokens, {len(seconds)} graphs, of up to "
            f"{together} prompts, a capture {1e3 * max(seconds):.0f} ms at most, "
            f"a wait {1e3 * max(waits):.0f} ms"
        )
    print("; ".join(said))


def timed(function, seconds: list[float]):
    """The function, which notes how long each call takes."""

    def call(*args):
        begin = time.perf_counter()
        try:
            return function(*args)
        finally:
            seconds.append(time.perf_counter() - begin)

    return call


MARKS = (breakdown.UPDATE, "Optimizer.", "ProfilerStep#")  # how names of marks begin


def test_where_a_steps_time_goes(device):
    """A profile has kernels, all parts but the rest have some, and the update's are the optimizer's
    alone: its mark and torch's own are no kernels."""
    step = make_step(device, "bfloat16", device.startswith("cuda"))
    step()
    recorded = breakdown.record(step, 3, step.training.runtime)
    rows = breakdown.timed(recorded.events(), device.startswith("cuda"))
    shares = breakdown.shares(rows)
    named = {part: share for part, share in shares.items() if part != breakdown.REST}
    assert rows and all(share > 0 for share in named.values()), shares
    assert shares["optimizer"] < 0.9, shares
    marks = [name for _, name, _ in rows if name.startswith(MARKS)]
    assert not marks, marks
    print(", ".join(f"{part} {share:.0%}" for part, share in shares.items()))


COLUMNS = (("check", "check", ""), ("ended", "how", ""), ("s", "seconds", ".1f"),
           ("what it said", "said", ""))  # fmt: skip


def main(**settings) -> int:
    """Run the tests above, in order; of an earlier call that was ended, those that are left."""
    c = configure(globals(), settings=settings)
    dev = setup(c.device, "float32", False).device
    results = Results("tests", c.out, dev, COLUMNS, again=c.force)
    results.rows = [row for row in results.rows if row["how"] == "passed"]
    for name, check in [(n, f) for n, f in globals().items() if n.startswith("test_")]:
        row = results.measure({"check": name}, lambda check=check: outcome(check, dev))
        print(f"{name}: {row['said']} ({row['seconds']:.1f} s)", flush=True)
    ways = [row["how"] for row in results.rows]
    ended = {how: ways.count(how) for how in ("passed", "failed", "skipped")}
    line = "{passed} checks passed, {failed} failed, {skipped} skipped".format(**ended)
    results.finish(f"{table(results.rows, COLUMNS)}\n\n{line}", **ended)
    return 1 if ended["failed"] else 0


def outcome(check: Callable, dev: torch.device) -> dict:
    """How a test ends, and what it prints."""
    begin, how, words = time.perf_counter(), "passed", io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        given = {"device": str(dev), "tmp_path": Path(folder)}
        try:
            with contextlib.redirect_stdout(words):
                check(**{k: given[k] for k in inspect.signature(check).parameters})
        except SkipTest as e:
            how = "skipped"
            words.write(f"skipped: {e}")
        except Exception as e:
            traceback.print_exc()
            how = "failed"
            words.write(f"FAILED: {' '.join(str(e).split())[:200]}")
    said = " ".join(words.getvalue().split())
    return {"how": how, "seconds": time.perf_counter() - begin, "said": said}


if __name__ == "__main__":
    run(main)
