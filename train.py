"""Train a GPT, on a laptop's CPU, a GPU, or many.

    python train.py config/quickstart.py                              # a minute on two CPU cores
    python train.py config/quickstart.py --max_iters=2000             # a config file, then a change
    python train.py config/quickstart.py --init_from=resume           # continues where it stopped
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py  # on eight GPUs
    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 \\
        train.py config/train_gpt2.py     # on sixteen GPUs; docs/distributed.md has more

Every setting below, and every field of the model (n_layer, block_size, ...: see model.py), can be
set in a config file or as --key=value. A run writes ckpt.pt, last.pt, metrics.jsonl, loss.png,
log.txt and config.json to out_dir. Ctrl-C finishes the current step (or abandons it, if it would
take minutes), saves, and says how to resume. A new run in the same folder first moves the earlier
one to out_dir/earlier/1, the next one to earlier/2.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

from contextlib import ExitStack
from pathlib import Path

from bonsai.data.batches import Batches, prefetch
from bonsai.data.dataset import Mixture
from bonsai.engine.text import sample_text
from bonsai.evaluation.loss import bits_per_byte, mixture_loss
from bonsai.evaluation.questions import Questions, read_all
from bonsai.models.table import CONFIGS
from bonsai.planning.memory import LOWER, memory_errors
from bonsai.planning.presets import FIELDS
from bonsai.runs.earlier import set_aside, set_aside_newer, take_back
from bonsai.runs.lock import RunLock
from bonsai.runs.names import CKPT, LAST, remove_unfinished
from bonsai.runs.restore import newer_weights
from bonsai.system.compiler import loading_compiler
from bonsai.system.errors import run
from bonsai.system.runtime import Runtime, setup
from bonsai.system.stopwatch import Stopwatch
from bonsai.training.forecast import Forecast, tracked
from bonsai.training.interrupts import Interrupts
from bonsai.training.progress import Meter
from bonsai.training.report import Report
from bonsai.training.saving import Saving
from bonsai.training.schedule import (
    evaluation_due,
    learning_rate_at,
    set_further,
    set_rates,
    set_windows,
)
from bonsai.training.start import begin, describe_run
from bonsai.training.step import TrainingStep
from bonsai.training.trackers import check_tracker
from configurator import Config, configure, refuse_idle, resolve_path

# -----------------------------------------------------------------------------
# The defaults train GPT-2 (124M) on OpenWebText.
# files and evaluation
out_dir = "out"  # where the run goes [path]
eval_interval = 2000  # steps between evaluations; the last step is always evaluated [>= 1]
log_interval = 1  # steps between console lines, each also a row of metrics.jsonl [>= 1]
eval_iters = 200  # batches per evaluation, the same ones each time; 0: all of the split [>= 0]
eval_only = False  # evaluate once and exit
choices = ""  # questions in HellaSwag's format to answer at each evaluation, too [path]
core = ""  # the bundle of CORE's 22 tasks to do at each evaluation, too [path]
eval_questions = 0  # how many of choices, and of each of those tasks; 0: all [>= 0]
always_save_checkpoint = True  # save ckpt.pt at every evaluation; False: only when it improves
init_from = "scratch"  # scratch, resume, auto, gpt2*, a Hugging Face folder, or a checkpoint [path]
save_interval = 0  # steps between saves of last.pt; 0: only at the end and on interruption [>= 0]
keep_last = 0  # how many of those saves to keep beside it, as step_NNNNNNN.pt [>= 0]
keep_best = False  # keep the model with the lowest validation loss as best.pt
patience = 0  # stop after this many evaluations without improvement; 0: never [>= 0]
sample_interval = 0  # steps between samples on the console; 0: none [>= 0]
# tracking
tracker = ""  # a service that shows the run, too [wandb | tensorboard | trackio]
wandb_log = False  # nanoGPT's way to say tracker="wandb"
wandb_project = "owt"  # name of the project in the tracker
wandb_run_name = "gpt2"  # name of the run in the tracker
# data
dataset = "openwebtext"  # a folder in data/, or several by weight: a:0.7,b:0.3 [paths]
other_tokenizer = False  # train even if the data's tokenizer is not that of the weights
gradient_accumulation_steps = 5 * 8  # micro-batches per step, over all processes together [>= 1]
batch_size = 12  # rows per micro-batch [>= 1]
batch_ramp = 0  # this many first steps take a quarter, then half of the micro-batches [>= 0]
batch_order = "random"  # epoch: each window once per pass, shuffled [random | epoch]
token_noise = 0.0  # share of inputs made random, for many passes over little text [>= 0, < 1]
seed = 1337  # of the initial weights, the batches and dropout [>= 0]
# model
model = "gpt"  # the architecture; its fields are settings too
depth = 0  # layers of a compute-optimal run: all else follows (bonsai/planning/depth.py) [>= 0]
bias = False  # biases in the linear layers and norms (GPT-2: True)
further_weight = 0.0  # initial weight of a loss on the token after next; falls to 0 [>= 0]
window_ramp = 0  # in this many first steps attention sees a quarter, then half as far [>= 0]
# optimizer
optimizer = "adamw"  # adamw, or muon: Muon for the matrices, AdamW for the rest
learning_rate = 6e-4  # the highest rate; with muon that of the matrices [>= 0]
max_iters = 600000  # steps in all [>= 0]
weight_decay = 1e-1  # on tensors of two or more dimensions [>= 0]
beta1 = 0.9  # decay of AdamW's mean of the gradients [>= 0, < 1]
beta2 = 0.95  # decay of AdamW's mean of the squared gradients [>= 0, < 1]
adam_eps = 1e-8  # added to the root of the mean square, against division by 0 [>= 0]
grad_clip = 1.0  # largest norm of the gradient; 0.0: no clipping [>= 0]
embedding_lr = 0.3  # muon: the rate of embeddings [>= 0]
table_decay = 0.0  # muon: weight decay of value and bigram embeddings [>= 0]
head_lr = 4e-3  # muon: the rate of a head that is not tied to the embedding [>= 0]
scalar_lr = 1.5e-2  # muon: the rate of gains, biases and the like [>= 0]
momentum = 0.95  # muon: Nesterov momentum [>= 0, < 1]
momentum_warmup = 300  # muon: first steps, in which momentum rises from 0.85 to that value [>= 0]
neuron_beta = 0.0  # muon: decay of neurons' mean squared update (NorMuon); 0: off [>= 0, < 1]
cautious_decay = False  # muon: decay a weight only where its update, too, moves it towards 0
max_skipped = 20  # stop after this many steps in a row whose gradient is not finite [>= 1]
# learning rate schedule
decay_lr = True  # False: constant, without warm-up
lr_schedule = "cosine"  # trapezoid: constant, then a linear cooldown [cosine | trapezoid]
warmup_iters = 2000  # steps of linear warm-up [>= 0]
lr_decay_iters = 600000  # step at which min_lr is reached; usually max_iters [>= 0]
min_lr = 6e-5  # the rate from that step on; usually learning_rate / 10 [>= 0]
cooldown = 0.4  # trapezoid: share of lr_decay_iters in which the rate falls [0 to 1]
# system
backend = "auto"  # of torch.distributed; auto: nccl on CUDA [auto | nccl | gloo | mpi | ucc]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # auto: bfloat16 where hardware computes in it [auto | float32 | bfloat16 | float16]
compile: bool | str = "auto"  # torch.compile; auto: on CUDA [auto | on | off]
# -----------------------------------------------------------------------------


def train(c: Config, runtime: Runtime, watch: Stopwatch, at_end: ExitStack) -> int:
    """The whole run; returns the exit status. watch: times the start. at_end: closes, when the run
    is over, what is pushed on it here."""
    world, device = runtime.world_size, runtime.device
    may_resume = c.init_from in ("resume", "auto")
    folder = resolve_path(c.out_dir) if may_resume else Path(c.out_dir)
    lock = at_end.enter_context(RunLock(folder))
    if runtime.master and not c.eval_only:
        lock.acquire(patience=20 if c.init_from == "auto" else 0)
        if may_resume:
            take_back(folder)
    runtime.barrier()  # from here on all processes read the folder

    # ---- data, model and optimizer: new, or those of the run that is resumed ----
    watch.lap("device")  # and the wait for other processes
    with loading_compiler(runtime.compile):  # torch.compile is imported in a thread meanwhile
        start = begin(c, folder, runtime, watch.lap)
    watch.lap("imports")  # the wait for that thread
    runtime.check_agreement(lambda: start.in_common(c, runtime))
    data, model, progress = start.data, start.model, start.progress
    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    refuse_idle(c, (not (c.choices or c.core), "eval_questions", "without --choices or --core"))
    questions = read_all(c.choices, c.core, c.eval_questions, start.tokenizer, model.config)
    rows = c.gradient_accumulation_steps * c.batch_size  # of a step, over all processes
    batches = Batches(
        data, block_size, rows, c.seed, c.batch_order, c.batch_ramp, c.token_noise, vocab_size
    )
    accumulates = c.gradient_accumulation_steps > runtime.world_size
    training = TrainingStep(model, c, runtime, accumulates)  # makes the optimizer, too
    start.restore(training.optimizer, training.scaler)
    if progress.tokens is None:
        progress.tokens = batches.rows_before(progress.step) * block_size
    watch.lap("model")

    # ---- say what will be done ----
    runtime.barrier()  # all have read what they start from
    moved = ""
    if runtime.master and not c.eval_only:
        check_tracker(c)  # before anything moves
        remove_unfinished(folder)
        # what an earlier run, or a later part of this one, has left in the folder
        moved = set_aside_newer(folder, progress.step) if start.resuming else set_aside(folder)
    interrupts = at_end.enter_context(Interrupts(runtime))
    closed = interrupts.stdout_closed
    report = Report(folder, c, runtime, progress.step, progress.evaluated, closed)
    at_end.push(report.close)
    for line in filter(None, (moved, *describe_run(c, runtime, start, batches))):
        report.say(line)
    start.wandb_id = report.start_tracker(progress.step, start.wandb_id)
    saving = Saving(folder, c, runtime, lock, report, start, training)
    rows_left = batches.rows_before(c.max_iters) - batches.rows_before(progress.step)
    forecast = Forecast(rows_left, block_size, device.type, c.dataset, report.say)

    # ---- the loop ----
    pin = device.type == "cuda"
    stream = prefetch(batches, progress.step, c.batch_size, runtime.rank, world, pin)
    interrupts.watch()
    at_end.push(saving.rescue)
    meter, status = Meter(progress, training, watch), 0
    while True:
        saving.check()
        step = progress.step  # steps that are done, and the number of the next one
        lr = learning_rate_at(step, c)
        set_further(model, step, c)  # here, as a compiled evaluation runs the graph of training

        # evaluate, and save what is due then
        if c.eval_only or (evaluation_due(step, c) and step != progress.evaluated):
            runtime.synchronize()
            with meter.paused():
                set_windows(model, c.window_ramp, c)  # whole: one compiled graph for evaluations
                losses = evaluate(training, data, questions, c, report, interrupts)
                if status := interrupts.status():  # then not all windows may have been seen
                    break
                report.evaluation(meter.evaluation_row(lr, losses))
                if c.eval_only:
                    break
                improved = progress.evaluate(losses["val_loss"])
                out_of_patience = bool(c.patience) and progress.bad_evals >= c.patience
                saving.after_evaluation(losses, improved, out_of_patience or step >= c.max_iters)
            if out_of_patience:
                report.say(f"no improvement in {c.patience} evaluations: stopping early")
                break
        if step >= c.max_iters:
            break
        if c.sample_interval and step % c.sample_interval == 0 and step > 0 and runtime.master:
            with meter.paused():
                track = interrupts.until_noted
                text = sample_text(model, start.tokenizer, runtime, seed=step, track=track)
                report.sample(text, step)

        # one step: forward and backward of each micro-batch, then clip and update
        set_rates(training.optimizer, lr, step, c)
        set_windows(model, step, c)
        divisors = batches.divisors(step, c.batch_size, runtime.rank, world)
        training.begin(step, len(divisors))
        for divisor in divisors:
            x, y = next(stream)
            training.backward(x, y, divisor=divisor)
            forecast.count(c.batch_size * world)
            if training.micro_batches_left and interrupts.is_urgent():
                break
        if training.micro_batches_left:  # abandoned: weights and optimizer are as before this step
            status = interrupts.status()
            break
        training.update()
        progress.step += 1
        progress.tokens += batches.rows_at(step) * block_size

        # log
        if line := meter.first_step():
            report.say(line)
        if step % c.log_interval == 0:
            row = meter.step_row(lr)  # waits for the device
            forecast.look()
            report.step(row, meter.mfu)
            if row.get("skipped", 0) >= c.max_skipped:
                report.say(f"{row['skipped']} steps in a row had no finite gradient: stopping")
                status = 1
                break

        # save, unless the evaluation that comes next does
        if saving.due(progress.step) and not evaluation_due(progress.step, c):
            with meter.paused():
                saving.save(LAST)
        if status := interrupts.status():
            break

    # ---- the end ----
    meter.stop()
    if not c.eval_only:
        saving.finish()
        report.summary(progress.step, progress.tokens, progress.seconds)
        if runtime.master and (note := newer_weights(folder / CKPT)):
            report.say(note)
    if status > 128:  # a signal
        saved = progress.step and not c.eval_only  # before the first step there is no checkpoint
        go_on = "; to go on: the same command, --init_from=resume" if saved else ""
        report.say(f"stopped at step {progress.step}{go_on}")
    return status


def evaluate(
    training: TrainingStep,
    data: Mixture,
    questions: Questions,
    c: Config,
    report: Report,
    interrupts: Interrupts,
) -> dict[str, float | None]:
    """Losses on fixed windows of both splits, and the scores on questions, if there are any. The
    processes share them. After a signal the numbers are those of what was seen so far."""
    model, runtime, windows = training.model, training.runtime, c.eval_iters * c.batch_size
    T = model.config.block_size

    def watched(label: str):
        def track(batches):
            return interrupts.until_stopped(tracked(batches, label, report.say, runtime.master))

        return track

    losses = {}
    for split in ("train", "val"):
        track = watched(f"evaluating {split}")
        losses[f"{split}_loss"] = mixture_loss(
            training.compiled, data, split, runtime, T, c.batch_size, windows, track
        )
    losses["val_bpb"] = bits_per_byte(losses["val_loss"], data.bytes_per_token("val"))
    model.eval()  # without dropout, also for numbers of your own, whose place is here
    scores = questions.scores(model, runtime, c.batch_size, watched)
    model.train()
    return losses | scores


def main(**settings) -> int:
    """Train as the command line says or, from Python, with these settings; returns the exit status.

    >>> train.main(dataset="shakespeare_char", n_layer=2, max_iters=100)  # doctest: +SKIP
    """
    watch = Stopwatch(since_the_command=not settings)
    c = configure(globals(), models=CONFIGS, presets=FIELDS, settings=settings)

    def too_large() -> str:
        return f" with micro-batches of {c.batch_size} x {c.block_size} tokens: {LOWER}"

    watch.lap("imports")
    runtime = setup(c.device, c.dtype, c.compile, c.backend)
    with runtime, memory_errors(too_large), ExitStack() as at_end:
        return train(c, runtime, watch, at_end)


if __name__ == "__main__":
    run(main)
