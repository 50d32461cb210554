"""Train a GPT, on a laptop's CPU, a GPU, or many.

    python train.py config/quickstart.py                              # a minute on two CPU cores
    python train.py config/train_shakespeare_char.py --batch_size=32  # a config file, then a change
    python train.py config/train_shakespeare_char.py --init_from=resume
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 train.py ...

Every setting below, and every field of the model (n_layer, block_size, ...: see model.py), can be
set in a config file or as --key=value. The run is in out_dir: ckpt.pt and last.pt, metrics.jsonl,
loss.png, log.txt, config.json. Ctrl-C finishes the step, saves, and says how to go on. A new run in
the folder of an earlier one moves that to out_dir/earlier/1, the next one to earlier/2.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import math
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from bonsai.data.batches import Batches, prefetch
from bonsai.engine.text import sample_text
from bonsai.evaluation.loss import bits_per_byte, mixture_loss
from bonsai.models.kernels import to_device
from bonsai.models.table import CONFIGS, describe_model
from bonsai.planning.memory import LOWER, describe_memory, out_of_memory
from bonsai.planning.presets import FIELDS
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.earlier import set_aside, set_aside_newer, take_back
from bonsai.runs.lock import RunLock
from bonsai.runs.names import BEST, CKPT, DIVERGED, LAST, remove_unfinished, step_name
from bonsai.runs.restore import newer_weights
from bonsai.system.errors import UserError, run
from bonsai.system.provenance import versions
from bonsai.system.runtime import Runtime, peak_flops, seed_everything, setup
from bonsai.training.forecast import Forecast, describe_cost, tracked
from bonsai.training.interrupts import Interrupts
from bonsai.training.optimizers import build_optimizer
from bonsai.training.report import Report
from bonsai.training.schedule import learning_rate_at, set_rates
from bonsai.training.start import begin
from configurator import Config, configure, resolve_path

# -----------------------------------------------------------------------------
# The defaults train GPT-2 (124M) on OpenWebText.
# files and evaluation
out_dir = "out"  # where the run goes [path]
eval_interval = 2000  # steps between evaluations; the last step is always evaluated [>= 1]
log_interval = 1  # steps between console lines, which are rows of metrics.jsonl [>= 1]
eval_iters = 200  # batches per evaluation, the same ones each time; 0: all of the split [>= 0]
eval_only = False  # evaluate once and exit
always_save_checkpoint = True  # save ckpt.pt at every evaluation; False: only when it improves
init_from = "scratch"  # scratch, resume, auto, gpt2*, a Hugging Face folder, or a checkpoint [path]
save_interval = 0  # steps between saves of last.pt; 0: only at the end and on interruption [>= 0]
keep_last = 0  # how many of those saves to keep beside it, as step_NNNNNNN.pt [>= 0]
keep_best = False  # keep the model with the lowest validation loss as best.pt
patience = 0  # stop after so many evaluations without improvement; 0: never [>= 0]
sample_interval = 0  # steps between samples on the console; 0: none [>= 0]
# wandb logging
wandb_log = False  # track the run with Weights & Biases
wandb_project = "owt"  # name of the project there
wandb_run_name = "gpt2"  # name of the run there
# data
dataset = "openwebtext"  # a folder in data/, or several by weight: a:0.7,b:0.3 [paths]
other_tokenizer = False  # also data whose tokenizer is not that of the weights
gradient_accumulation_steps = 5 * 8  # micro-batches per step, over all processes together [>= 1]
batch_size = 12  # rows per micro-batch [>= 1]
batch_ramp = 0  # steps with fewer micro-batches: half of them with a quarter, then with half [>= 0]
batch_order = "random"  # epoch: each window once per pass, shuffled [random | epoch]
token_noise = 0.0  # share of random inputs, for many passes over little text [>= 0, < 1]
seed = 1337  # of the initial weights, the batches and dropout [>= 0]
# model
model = "gpt"  # the architecture; its fields are settings too
depth = 0  # layers of a compute-optimal run: all else follows (bonsai/planning/depth.py) [>= 0]
bias = False  # biases in the linear layers and norms (GPT-2: True)
# optimizer
optimizer = "adamw"  # adamw, or muon: Muon for the matrices, AdamW for the rest
learning_rate = 6e-4  # the highest rate; with muon that of the matrices [>= 0]
max_iters = 600000  # steps in all [>= 0]
weight_decay = 1e-1  # on tensors of two or more dimensions [>= 0]
beta1 = 0.9  # decay of the mean of the gradients [>= 0, < 1]
beta2 = 0.95  # decay of the mean of their squares [>= 0, < 1]
adam_eps = 1e-8  # added to the root of that [>= 0]
grad_clip = 1.0  # largest norm of the gradient; 0.0: no clipping [>= 0]
embedding_lr = 0.3  # muon: the rate of embeddings [>= 0]
head_lr = 4e-3  # muon: the rate of a head that is not tied to the embedding [>= 0]
scalar_lr = 1.5e-2  # muon: the rate of gains, biases and the like [>= 0]
momentum = 0.95  # muon: of the gradient, with Nesterov's look ahead [>= 0, < 1]
momentum_warmup = 300  # muon: steps from 0.85 to that [>= 0]
cautious_decay = False  # muon: decay a weight only where its update, too, moves towards 0
max_skipped = 20  # stop after so many steps in a row whose gradient is not finite [>= 1]
# learning rate schedule
decay_lr = True  # False: constant, without warm-up
lr_schedule = "cosine"  # trapezoid: constant, then a linear cooldown [cosine | trapezoid]
warmup_iters = 2000  # steps of linear warm-up [>= 0]
lr_decay_iters = 600000  # step at which min_lr is reached; usually max_iters [>= 0]
min_lr = 6e-5  # the rate from there on; usually learning_rate / 10 [>= 0]
cooldown = 0.4  # share of lr_decay_iters in which a trapezoid falls [0 to 1]
# system
backend = "auto"  # of torch.distributed; auto: nccl on CUDA [auto | nccl | gloo | mpi | ucc]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # auto: bfloat16 where hardware computes in it [auto | float32 | bfloat16 | float16]
compile: bool | str = "auto"  # torch.compile; auto: on CUDA [auto | on | off]
# -----------------------------------------------------------------------------


def train(c: Config, runtime: Runtime, at_end: ExitStack) -> int:
    """The whole run; returns the exit status. at_end: takes what is to be done when it is over."""
    world, device = runtime.world_size, runtime.device
    folder = resolve_path(c.out_dir) if c.init_from in ("resume", "auto") else Path(c.out_dir)
    lock = at_end.enter_context(RunLock(folder))
    if runtime.master and not c.eval_only:
        lock.acquire(patience=20 if c.init_from == "auto" else 0)
        if c.init_from in ("resume", "auto"):
            take_back(folder)
    runtime.barrier()  # the folder is as it will be read

    # ---- data, model and optimizer: new, or where they stood ----
    start = begin(c, folder, world)
    data, raw_model = start.data, to_device(start.model, device)
    block_size, vocab_size = raw_model.config.block_size, raw_model.config.vocab_size
    rows = c.gradient_accumulation_steps * c.batch_size
    noise = (c.token_noise, vocab_size)
    batches = Batches(data, block_size, rows, c.seed, c.batch_order, c.batch_ramp, *noise)
    optim = build_optimizer(raw_model, c, runtime)
    scaler = torch.amp.GradScaler(device.type, enabled=runtime.dtype == "float16")
    start.restore(optim, scaler)
    step, best_val_loss, progress = start.step, start.best_val_loss, start.progress
    counted = batches.rows_before(step) * block_size
    other_tokens = progress.get("tokens", counted) - counted  # of batches of another size before

    # ---- say what will be done ----
    runtime.barrier()  # all have read what they start from
    moved = ""
    if runtime.master and not c.eval_only:
        remove_unfinished(folder)
        moved = set_aside_newer(folder, step) if start.resuming else set_aside(folder)
    interrupts = at_end.enter_context(Interrupts(runtime))
    evaluated, closed = progress["evaluated"], interrupts.stdout_closed
    report = Report(folder, c, runtime, step, evaluated, closed)
    at_end.push(report.close)
    if moved:
        report.say(moved)
    report.say(f"tokens per iteration will be: {rows * block_size:,}")
    for line in start.notes:
        report.say(line)
    if unknown := data.without_bytes("val"):
        report.say(
            f"bits per byte are not known: {unknown} does not say how many bytes of text it is"
        )
    report.say(f"number of parameters: {raw_model.num_params() / 1e6:.2f}M")
    report.say(runtime.summary)
    report.say(describe_memory(raw_model, c.batch_size, block_size, runtime))
    if start.resuming and step >= c.max_iters and not c.eval_only:
        report.say(f"nothing left to do: {step} of max_iters={c.max_iters} steps are done")
    wandb_id = report.start_wandb(start.wandb_id)
    net = local_model = torch.compile(raw_model) if runtime.compile else raw_model
    if world > 1 and not optim.sharded:
        net = DDP(local_model, device_ids=[device.index] if device.type == "cuda" else None)
    peak = peak_flops(device, runtime.dtype)
    flops_per_token = raw_model.flops_per_token(block_size)
    if c.depth:
        tokens, size = batches.rows_before(c.max_iters) * block_size, raw_model.num_params(False)
        rate = peak and peak * world
        report.say(describe_cost(c.depth, size, tokens, tokens * flops_per_token, rate))

    def tokens_before(step: int) -> int:
        """Tokens that the run has trained on when `step` begins."""
        return batches.rows_before(step) * block_size + other_tokens

    def evaluate() -> dict:
        """Losses on fixed windows of both splits, shared by the processes."""
        args = (runtime, block_size, c.batch_size, c.eval_iters * c.batch_size)
        losses = {}
        for split in ("train", "val"):

            def watched(batches, label=f"evaluating {split}"):
                shown = tracked(batches, label, report.say, runtime.master)
                return interrupts.until_stopped(shown)

            losses[split] = mixture_loss(local_model, data, split, *args, watched)
        return {
            "iter": step,
            "train_loss": losses["train"],
            "val_loss": losses["val"],
            "val_bpb": bits_per_byte(losses["val"], data.bytes_per_token("val")),
            "lr": learning_rate_at(step, c),
            "mfu": mfu,
            "tokens": tokens_before(step),
            "seconds": progress["seconds"],
        }

    def save_due(step: int) -> bool:
        return bool(c.save_interval) and step % c.save_interval == 0

    def save(*names: str) -> None:
        """Write one checkpoint under each of `names`."""
        nonlocal saved
        saved = step
        progress["tokens"] = tokens_before(step)
        optimizer_state = optim.state_dict()  # a sharded one is gathered from all
        if runtime.master:
            if lock.check():
                report.say(
                    f"{folder} was removed or renamed: it is made anew, without what was in it"
                )
            report.reopen()
            state = {
                "model": raw_model.state_dict(),
                "optimizer": optimizer_state,
                "scaler": scaler.state_dict(),
                **describe_model(raw_model, c.model),
                "iter_num": step,
                "best_val_loss": torch.tensor(best_val_loss),
                "config": dict(c),
                "tokenizer": start.tokenizer,
                "chat_template": start.chat_template,
                "data": data.fingerprints(),
                "progress": {**progress, "best_val_loss": best_val_loss},  # in double precision
                "wandb_id": wandb_id,
                "versions": versions(),
            }
            if c.keep_last and LAST in names:
                names += (step_name(step),)
            if not (sound and torch.isfinite(step_loss)):  # the others stay as they were
                names = (DIVERGED,)
                report.say(f"the loss is not finite: saving as {folder / DIVERGED} alone")
            save_checkpoint(folder, state, names, c.keep_last)

    def rescue(kind: type | None, error: BaseException | None, trace: object) -> None:
        """Whatever ends the loop, what was trained is saved: the weights are those of `step`."""
        alone = world == 1 or not optim.sharded  # else the others would have to help
        if error is None or not complete or saved == step or not alone or not runtime.master:
            return
        try:
            save(LAST)
            report.say(f"saved at step {step}, then ended by an error")
        except Exception as e:
            report.say(f"not saved at step {step}: {e}")

    # ---- the loop ----
    stream = prefetch(
        batches,
        step,
        c.batch_size,
        runtime.rank,
        world,
        check_below=0 if data.stated else vocab_size,
        pin=device.type == "cuda",
    )
    saved, sound, complete = step, True, True
    mfu, status = None, 0
    step_loss = torch.zeros((), device=device)  # this process's part of the step's mean
    skipped, logged_step = torch.zeros((), device=device), step
    net.train()
    interrupts.watch()
    at_end.push(rescue)
    rows_left = batches.rows_before(c.max_iters) - batches.rows_before(step)
    forecast = Forecast(rows_left, block_size, device.type, c.dataset, report.say)
    t0 = time.perf_counter()
    while True:
        # evaluate and save
        due = step % c.eval_interval == 0 or step >= c.max_iters
        if c.eval_only or (due and step != progress["evaluated"]):
            runtime.synchronize()
            paused = time.perf_counter()
            row = evaluate()
            if status := interrupts.status():  # it may be a part of an evaluation
                break
            report.evaluation(row)
            if c.eval_only:
                break
            sound = math.isfinite(row["val_loss"]) and math.isfinite(row["train_loss"])
            improved = row["val_loss"] < best_val_loss
            best_val_loss = min(best_val_loss, row["val_loss"])
            progress["evaluated"] = step
            progress["bad_evals"] = 0 if improved else progress["bad_evals"] + 1
            stop = bool(c.patience) and progress["bad_evals"] >= c.patience
            names = []
            if step > 0:
                names += [CKPT] if improved or c.always_save_checkpoint else []
                names += [BEST] if improved and c.keep_best else []
                names += [LAST] if stop or step >= c.max_iters or save_due(step) else []
            if names:
                report.say(f"saving checkpoint to {folder}")
                save(*names)
            t0 += time.perf_counter() - paused
            if stop:
                report.say(f"no improvement in {c.patience} evaluations: stopping early")
                break
        if step >= c.max_iters:
            break
        if c.sample_interval and step % c.sample_interval == 0 and step > 0 and runtime.master:
            paused = time.perf_counter()
            report.say(sample_text(raw_model, start.tokenizer, runtime, seed=step))
            t0 += time.perf_counter() - paused

        # one step: micro-batches, clip, update
        lr = set_rates(optim, step, c)
        seed_everything(c.seed, step, runtime.rank)  # dropout
        step_loss.zero_()
        divisors = batches.divisors(step, c.batch_size, runtime.rank, world)
        for micro_step, divisor in enumerate(divisors, 1):
            x, y = next(stream)
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            if net is not local_model:  # gradients are averaged once, after the last micro-batch
                net.require_backward_grad_sync = micro_step == len(divisors)
            with runtime.autocast():
                _, loss = net(x, y)
            loss = loss / divisor  # the number of micro-batches, or what masks make of it
            step_loss += loss.detach()
            scaler.scale(loss).backward()
            forecast.count(c.batch_size * world)
        scaler.unscale_(optim)
        norm = optim.clip_gradients(c.grad_clip)
        bad = (~torch.isfinite(norm)).float()
        skipped = (skipped + bad) * bad  # in a row
        if not scaler.is_enabled():
            optim.found_inf = bad  # the fused kernels leave everything as it is where this is 1
        complete = False
        scaler.step(optim)
        scaler.update()
        optim.zero_grad(set_to_none=True)
        step += 1
        complete = True

        # log
        if (step - 1) % c.log_interval == 0:
            n = step - logged_step
            loss_mean = runtime.sum(step_loss).item() / world  # waits for the device
            forecast.look()
            now = time.perf_counter()
            seconds, t0 = now - t0, now
            progress["seconds"] += seconds
            tokens = tokens_before(step) - tokens_before(logged_step)
            mfu = flops_per_token * tokens / seconds / world / peak if peak else None
            row = {
                "iter": step - 1,
                "loss": loss_mean,
                "lr": lr,
                "grad_norm": norm.item(),
                "ms": 1000 * seconds / n,
                "tokens_per_s": tokens / seconds,
            }
            if scaler.is_enabled():
                row["loss_scale"] = scaler.get_scale()
            if in_row := int(skipped):
                row["skipped"] = in_row
                report.say(f"iter {step - 1} skipped: gradient not finite ({in_row} in a row)")
            report.step(row, mfu)
            logged_step = step
            if in_row >= c.max_skipped:
                report.say(f"{in_row} steps in a row had no finite gradient: stopping")
                status = 1
                break
        if save_due(step) and step % c.eval_interval and step < c.max_iters:  # else evaluated first
            paused = time.perf_counter()
            save(LAST)
            t0 += time.perf_counter() - paused
        if status := interrupts.status():
            break

    # ---- the end ----
    if step != logged_step:
        progress["seconds"] += time.perf_counter() - t0
    if not c.eval_only:
        if saved != step:
            save(LAST)
        report.summary(step, tokens_before(step), progress["seconds"])
        if runtime.master and (note := newer_weights(folder / CKPT)):
            report.say(note)
    if status > 128:
        go_on = "; to go on: the same command, --init_from=resume" if not c.eval_only else ""
        report.say(f"stopped at step {step}{go_on}")
    return status


def main(**settings) -> int:
    """Train as the command line says or, from Python, with these settings; the exit status.

    >>> train.main(dataset="shakespeare_char", n_layer=2, max_iters=100)  # doctest: +SKIP
    """
    given = settings or None  # without any, the command line's
    c = configure(globals(), models=CONFIGS, presets=FIELDS, settings=given, bind=False)
    runtime = setup(c.device, c.dtype, c.compile, c.backend)
    try:
        with ExitStack() as at_end:
            return train(c, runtime, at_end)
    except (RuntimeError, MemoryError) as e:
        if out_of_memory(e):
            size = f"{c.batch_size} x {c.block_size}"
            raise UserError(f"out of memory with micro-batches of {size} tokens: {LOWER}") from None
        raise
    finally:
        runtime.close()


if __name__ == "__main__":
    run(main)
