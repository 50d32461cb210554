"""How a training run begins: with new weights, where it stopped, or with another model's weights.

Which settings are the weights' and which the command's: inherited.py.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn as nn

from bonsai.data.batches import Batches
from bonsai.data.dataset import Mixture
from bonsai.models.fit import check_fit
from bonsai.models.loading import RUN_FIELDS, Loaded, load_model
from bonsai.models.table import MODELS, build_model
from bonsai.planning.depth import compute_optimal
from bonsai.planning.memory import describe_memory
from bonsai.runs.names import resumable
from bonsai.runs.restore import crop_moments
from bonsai.system.devices import peak_flops
from bonsai.system.errors import UserError
from bonsai.system.processes import common_settings, weights_checksum
from bonsai.system.runtime import Runtime
from bonsai.training.forecast import describe_cost
from bonsai.training.inherited import changed_settings, defaults_of, fit_model, take_settings
from bonsai.training.optimizers import load_optimizer_state
from bonsai.training.progress import Progress
from bonsai.training.settings import check_settings, schedule_notes
from bonsai.training.trackers import tracker_name

# the settings that decide which windows of a pass over the data have been seen at a step
ACCUMULATES = "gradient_accumulation_steps"
PASS = ("batch_size", ACCUMULATES, "block_size", "batch_ramp", "seed", "batch_order")


@dataclass
class Start:
    """What a run starts from."""

    model: nn.Module
    data: Mixture
    tokenizer: dict | None  # Tokenizer.to_dict()
    chat_template: dict | None
    notes: list[str]  # lines to print
    resuming: bool = False  # whether an earlier run goes on
    checkpoint: dict | None = None  # of that run, until restore() has used it
    wandb_id: str | None = None
    progress: Progress = field(default_factory=Progress)

    def in_common(self, c, runtime: Runtime) -> dict:
        """What all processes of a run have in common, for Runtime.check_agreement."""
        return {
            "settings": common_settings(c),
            "number format": runtime.dtype,
            "data": self.data.samples(),
            "progress": {k: vars(self.progress)[k] for k in ("step", "evaluated", "bad_evals")},
            "weights": weights_checksum(self.model),
        }

    def restore(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """If a run goes on, give both their state, and free the memory of the checkpoint."""
        state, self.checkpoint = self.checkpoint, None
        if state is None:
            return
        crop_moments(state["optimizer"], [p for g in optimizer.param_groups for p in g["params"]])
        load_optimizer_state(optimizer, state["optimizer"])
        if state.get("scaler") and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])


def describe_run(c, runtime: Runtime, start: Start, batches: Batches) -> Iterator[str]:
    """The first lines that a run prints: what it starts from, its size, and what it will take."""
    model, T = start.model, start.model.config.block_size
    yield f"tokens per iteration will be: {batches.rows * T:,}"
    yield from start.notes
    yield from start.data.notes
    if unknown := start.data.without_bytes("val"):
        yield unknown
    yield f"number of parameters: {model.num_params() / 1e6:.2f}M"
    yield runtime.summary
    if runtime.restarts and not start.resuming:
        yield (
            f"torchrun's restart {runtime.restarts} begins a new run, as init_from={c.init_from}; "
            "with --init_from=auto it would go on from the last checkpoint"
        )
    yield describe_memory(model, c.batch_size, T, runtime)
    if start.resuming and start.progress.step >= c.max_iters and not c.eval_only:
        done = start.progress.step
        yield f"nothing left to do: {done} of max_iters={c.max_iters} steps are done"
    if c.depth:
        tokens, size = batches.rows_before(c.max_iters) * T, model.num_params(False)
        peak = peak_flops(runtime.device, runtime.dtype)
        rate = peak and peak * runtime.world_size
        yield describe_cost(c.depth, size, tokens, tokens * model.flops_per_token(T), rate)


def is_fresh(init_from: str, folder) -> bool:
    """Whether a run begins with new weights; with 'auto' it does if there is nothing to resume."""
    if init_from == "auto":
        return not resumable(folder)
    return init_from == "scratch"


def begin(c, folder, runtime: Runtime, lap: Callable[[str], None]) -> Start:
    """The data and the model of a run, on its device. Changes `c` to the settings that take effect.

    c: a configurator.Config. folder: the run's. lap: called with the name of each part when it is
    done. Raises UserError for settings that clash with one another, with the data, or with the
    weights.
    """
    before, loaded, requested = None, None, dict(c)
    if not is_fresh(c.init_from, folder):
        resuming = c.init_from in ("resume", "auto")
        overrides = {name: c[name] for name in RUN_FIELDS if name in c.given}
        loaded = load_model("resume" if resuming else c.init_from, folder, overrides)
        if resuming:
            before = loaded.config
            take_settings(c, before, loaded.source)
    lap("model")  # loading it
    data = Mixture.open(c.dataset)
    data.fingerprints()  # now, before the files can change
    of_rows = fit_rows(c, data, loaded) if before is None else ""
    lap("data")
    if c.depth > 0 and (loaded is None or "depth" in c.given):
        if c.model != "gpt":
            raise UserError(f"depth={c.depth} is a rule for the gpt: leave it out for {c.model}")
        rule = compute_optimal(c.depth, c, c.given, runtime.world_size)
        c.update(rule)
        c.given |= rule.keys()
    # lr_decay_iters is max_iters unless it was given, now or when the run that goes on began
    follows = before is None or before.get("lr_decay_iters") == before.get("max_iters")
    if "lr_decay_iters" not in c.given and follows:
        c["lr_decay_iters"] = c.max_iters
    check_settings(c, runtime.world_size)
    if loaded is None:
        start = new_model(c, data, runtime.device)
    else:
        start = loaded_model(c, data, loaded, before)
        taken = {k: v for k, v in c.items() if k not in c.given and requested.get(k) != v}
        if taken.get("vocab_size") in (data.vocab_size, data.model_vocab_size):
            taken.pop("vocab_size", None)  # follows from the data, and would be no news
        if taken:
            listed = " ".join(f"{k}={v}" for k, v in taken.items())
            start.notes.insert(1, f"settings that were left out: {listed}")
    if before is not None:  # what goes on keeps the record of what it began from
        c["init_from"] = before.get("init_from", c.init_from)
    data.check(start.model.config.block_size, start.model.config.vocab_size)
    check_loads_again(start.model, c.model)
    start.notes += [*filter(None, [of_rows]), *schedule_notes(c)]
    start.model.to(runtime.device)  # now, while train.py imports torch.compile beside it
    lap("model")
    return start


def check_loads_again(model: nn.Module, name: str) -> None:
    """Raise UserError if a checkpoint of the model could not be loaded, as it may happen to a class
    of one's own; hours later would be too late."""
    settings, kind = asdict(model.config), type(model).__name__
    for field_name, value in settings.items():
        if not isinstance(value, int | float | str | None):
            raise UserError(
                f"{type(model.config).__name__}.{field_name} is a {type(value).__name__}: only "
                "numbers and words can be settings in a checkpoint"
            )
    try:
        check_fit(*MODELS[name], settings, model.state_dict(), Path("a checkpoint of this model"))
    except UserError as e:
        raise UserError(f"{e}: {kind}(config) has to make the tensors that are there now") from None


def fit_rows(c, data: Mixture, loaded: Loaded | None) -> str:
    """Unless the command gives a block_size, make windows as long as the rows of the data. The
    context of a loaded model is shortened to that, as by --block_size, but never made longer.
    Returns a line that says so, or that windows are longer than rows, or ''."""
    row, given = data.row_length or 1, "block_size" in c.given
    now = loaded.model.config.block_size if loaded and not given else c.block_size
    if row == 1 or now + 1 == row or ((given or loaded) and now + 1 < row):  # see Mixture.check
        return ""
    if given:
        return f"windows of block_size {now} + 1 are filled up where rows end, after {row} tokens"
    c["block_size"] = row - 1
    c.given.add("block_size")
    return f"block_size = {row - 1}, as the data have rows of {row} tokens"


def new_model(c, data: Mixture, device: torch.device) -> Start:
    """A model with random weights, for the vocabulary of the data unless vocab_size is given."""
    torch.manual_seed(c.seed)
    note = f"found vocab_size = {data.vocab_size} (inside {data.parts[0].source})"
    if "vocab_size" in c.given:
        note = f"vocab_size = {c.vocab_size}, as set"
    elif data.vocab_size is None:
        note = "defaulting to vocab_size of GPT-2: 50304 (50257 rounded up for efficiency)"
    if "vocab_size" not in c.given:
        c["vocab_size"] = data.model_vocab_size
    model = build_model(c.model, c, device)
    return Start(model, data, data.tokenizer, data.chat_template, [note])


def loaded_model(c, data: Mixture, loaded: Loaded, before: dict | None) -> Start:
    """The start from loaded weights. before: the settings of the run that goes on; None: a new run
    begins with them."""
    for key in ("optimizer", "iter_num", "best_val_loss") if before is not None else ():
        if key not in (loaded.checkpoint or {}):
            advice = shlex.quote(f"--init_from={loaded.source}")
            raise UserError(f"{loaded.source} has no {key}: use {advice}")
    fit_model(c, loaded)
    data.check_tokenizer(loaded.tokenizer, loaded.source, insist=c.other_tokenizer)
    template = data.chat_template or loaded.chat_template
    tokenizer = data.tokenizer or loaded.tokenizer
    notes = [f"weights from {loaded.source}"]
    notes += filter(None, (loaded.newer, loaded.unknown_tokenizer))
    if loaded.chat_template not in (None, template):
        notes.append("the data's chat template is another than the model's, and takes its place")
    start = Start(loaded.model, data, tokenizer, template, notes)
    if before is not None:
        go_on(start, c, loaded, before)
    return start


def go_on(start: Start, c, loaded: Loaded, before: dict) -> None:
    """Let the loaded run go on: where it is, its tracker, and notes on what has changed since."""
    start.resuming, start.checkpoint = True, loaded.checkpoint
    start.progress = Progress.of(loaded.checkpoint)
    was, now = tracker_name(before), tracker_name(c)
    if was == now or not (was and now):  # another tracker does not know the id
        start.wandb_id = loaded.checkpoint.get("wandb_id")
    start.notes[0] += f", step {start.progress.step}"
    start.notes[0] += changed_settings({**defaults_of(c, loaded.model), **before}, c)
    changed = start.data.changed_since(loaded.checkpoint.get("data") or {})
    if changed:
        start.notes.append(
            f"the data are not those that this run has trained on so far: {', '.join(changed)} "
            "changed since; batches and losses are of the new ones"
        )
    # losses on other data do not compare
    if changed or before.get("dataset", c.dataset) != c.dataset:
        start.progress.forget_evaluations()
        start.notes.append("other data: the best validation loss is counted anew")
    if c.batch_order == "epoch" and (names := recut(c, before)):
        start.notes.append(
            f"batch_order=epoch with another {', '.join(names)} than before: of this pass over "
            "the data, some windows come twice or not at all"
        )


def recut(c, before: dict) -> list[str]:
    """The settings that cut a pass over the data otherwise than before. The same number of rows in
    other micro-batches does not."""
    names = [name for name in PASS if c.get(name) != before.get(name, c.get(name))]
    was, now = (s.get("batch_size", 0) * s.get(ACCUMULATES, 0) for s in ({**c, **before}, c))
    return [name for name in names if was != now or name not in ("batch_size", ACCUMULATES)]
