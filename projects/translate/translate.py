"""The Transformer as it was in 2017: German to English, from Multi30k, on a CPU.

    python data/multi30k/prepare.py
    python projects/translate/translate.py                     # train, BLEU, attention maps
    python projects/translate/translate.py --compare=True      # and a decoder-only GPT as large
    python projects/translate/translate.py --text="Ein Hund rennt durch den Schnee."

An encoder-decoder has a source and padding, which train.py does not know: here is its loop, on
the parts that train.py uses. It saves after every epoch and when it is interrupted, and goes on
where it stopped; what the command then leaves out is as it was.
"""

import gzip
import sys
import time
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np
import torch

from bonsai import tokenizers
from bonsai.data.dataset import Dataset, Mixture
from bonsai.engine import SamplingParams, generate
from bonsai.files.access import write_whole
from bonsai.files.jsonfile import write_json
from bonsai.files.textfile import whole_text
from bonsai.models.fit import check_fit
from bonsai.models.kernels import to_device
from bonsai.models.loading import load_model
from bonsai.models.seq2seq import Seq2Seq, Seq2SeqConfig, beam_search, warmup_rate
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.lock import RunLock
from bonsai.runs.names import CKPT, DIVERGED
from bonsai.runs.restore import load_checkpoint
from bonsai.system.errors import UserError, end_if_told, flush, run
from bonsai.system.runtime import Runtime, setup
from bonsai.system.tables import table
from bonsai.training.interrupts import Interrupts
from bonsai.training.optimizers import load_optimizer_state
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from configurator import Config, configure, model_fields, refuse_idle
from projects.common import new_figure, save_figure, train

# data
dataset = "multi30k"  # a folder in data/, by its prepare.py [paths]
# the model
n_layer = 3  # of the encoder and of the decoder [>= 1]
n_head = 4  # [>= 1]
n_embd = 256  # [>= 1]
hidden = 1024  # of the feed-forward layers [>= 1]
dropout = 0.2  # [>= 0, < 1]
label_smoothing = 0.1  # [>= 0, < 1]
norm_placement = "pre"  # post: as in the paper [pre | post]
# training
epochs = 10  # passes over the pairs [>= 1]
batch_tokens = 2048  # target tokens of a batch, padding included [>= 1]
warmup = 800  # steps [>= 1]
rate_factor = 1.0  # on the paper's learning rate [>= 0]
seed = 1337  # [>= 0]
# translating
beams = 4  # 1: greedy [>= 1]
alpha = 0.6  # of the length penalty [>= 0]
sentences = 0  # translate the first so many of the test only; 0: all 1,000 [>= 0]
text = ""  # translate this instead, with the model that was trained
source = "de"  # as prepared
target = "en"
# a decoder-only GPT of the same size, on the same rows
compare = False
gpt_steps = 2250  # of train.py with gpt.py [>= 1]
gpt_options = ""  # more for it, such as "--n_layer=2 --n_embd=64"
# the picture
picture_source = "Die Pizza kam aus dem Ofen und sie schmeckte gut."
picture_target = "The pizza came out of the oven and it tasted good."
look_at = " it"  # the token of it whose attention is drawn in detail
look_at_source = " sie"  # the same in the source
# system
device = "auto"
dtype = "auto"  # [auto | float32 | bfloat16 | float16]
out_dir = "out-translate"  # [path]
# -----------------------------------------------------------------------------

Pair = tuple[list[int], list[int]]
# settings that decide over a run's batches and rates, beside the fields of its model
OF_THE_RUN = ("seed", "batch_tokens", "warmup", "rate_factor")


def special_ids(data: Dataset) -> dict[str, int]:
    """The ids of end, separator and padding; UserError for another kind of data set."""
    names = (data.tokenizer or {}).get("special_tokens", {})
    if not {"<|endoftext|>", "<|sep|>", "<|pad|>"} <= set(names) or "row_length" not in data.meta:
        raise UserError(f"{data.folder} holds no rows of pairs: run data/multi30k/prepare.py")
    return {"eos": names["<|endoftext|>"], "bos": names["<|sep|>"], "pad": names["<|pad|>"]}


def read_pairs(data: Dataset, split: str) -> list[Pair]:
    """Source ids and target ids of every row, without separator, end and padding."""
    ids, part = special_ids(data), data.split(split)
    pairs = []
    for row in part.read(0, len(part)).reshape(-1, data.meta["row_length"]):
        words = row.tolist()
        cut, end = words.index(ids["bos"]), words.index(ids["eos"])
        pairs.append((words[:cut], words[cut + 1 : end]))
    return pairs


def batches(c: Config, pairs: list[Pair], epoch: int | None) -> list[np.ndarray]:
    """Rows of each batch: pairs of similar length together, at most batch_tokens with padding.

    A pure function of (seed, epoch); None: the order of an evaluation.
    """
    rng = np.random.default_rng((c.seed, epoch or 0))
    length = np.array([max(len(a), len(b)) + 1 for a, b in pairs])
    order = np.argsort(length + (rng.random(len(pairs)) * 2 if epoch is not None else 0))
    batches, begin = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or (i + 1 - begin) * length[order[begin : i + 1]].max() > c.batch_tokens:
            batches.append(order[begin:i])
            begin = i
    return [batches[i] for i in rng.permutation(len(batches))] if epoch is not None else batches


def padded(rows: list[list[int]], pad: int) -> torch.Tensor:
    """Rows of different lengths as one tensor (B, longest)."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def tensors(pairs: list[Pair], c: Seq2SeqConfig, where: torch.device) -> tuple[torch.Tensor, ...]:
    """source, target_in, target_out for Seq2Seq.forward."""
    parts = (
        [a for a, _ in pairs],
        [[c.bos, *b] for _, b in pairs],
        [[*b, c.eos] for _, b in pairs],
    )
    return tuple(padded(rows, c.pad).to(where) for rows in parts)


@torch.no_grad()
def validation_loss(c: Config, model: Seq2Seq, pairs: list[Pair], runtime: Runtime) -> float:
    """Mean cross-entropy in nats per target token, the end included, without smoothing."""
    model.eval()
    total = count = 0.0
    for rows in batches(c, pairs, None):
        x, y_in, y_out = tensors([pairs[i] for i in rows], model.config, runtime.device)
        n = (y_out != model.config.pad).sum().item()
        with runtime.autocast():
            total += model(x, y_in, y_out)[1].item() * n
        count += n
    return total / count


def go_on_from(c: Config, data: Mixture, path: Path) -> dict:
    """The checkpoint of a run in out_dir; the settings by which it was made go into `c`. UserError
    for one that was given and differs, and for another tokenizer."""
    state = load_checkpoint(path)
    before = {**state["model_args"], **state.get("config", {})}
    for name in (*model_fields(c, Seq2SeqConfig), *OF_THE_RUN):
        was = before.get(name, c[name])
        if name in c.given and c[name] != was:
            raise UserError(
                f"{path} was trained with {name}={was}, not {c[name]}: leave it out, or set "
                "another --out_dir"
            )
        c[name] = was
    if state.get("tokenizer") != data.tokenizer:
        raise UserError(
            f"{path} has another tokenizer than the data set {c.dataset}: set another --out_dir"
        )
    if changed := data.changed_since(state.get("data", {})):
        print(f"the data are not those of this run so far: {', '.join(changed)} changed since")
    return state


def train_model(c: Config, data: Mixture, runtime: Runtime, lock: RunLock) -> tuple[Seq2Seq, float]:
    """Train from where the last run stopped; returns the model and the seconds of training. It ends
    the program where that was asked to stop, after saving. lock: has out_dir."""
    out, part = Path(c.out_dir), data.parts[0]
    pairs, val = read_pairs(part, "train"), read_pairs(part, "val")
    state = go_on_from(c, data, out / CKPT) if (out / CKPT).exists() else {}
    try:
        shape = model_fields(c, Seq2SeqConfig)
        config = Seq2SeqConfig(part.vocab_size, **special_ids(part), **shape)
    except ValueError as e:
        raise UserError(e) from None
    if state and state["model_args"] != asdict(config):
        raise UserError(f"{out / CKPT} is a model of another kind: set another --out_dir")
    torch.manual_seed(c.seed)
    model = Seq2Seq(config)
    settings = StepSettings(weight_decay=0.0, beta2=0.98, adam_eps=1e-9, seed=c.seed)
    training = TrainingStep(model, settings, runtime)
    if state:
        model.load_state_dict(state["model"])
        load_optimizer_state(training.optimizer, state["optimizer"])
    first, done = state.get("epoch", 0), state.get("batch", 0)  # batches of the first epoch
    step, seconds = state.get("iter_num", 0), state.get("seconds", 0.0)
    print(f"{model.num_params() / 1e6:.2f}M parameters, {len(pairs):,} pairs, {runtime.summary}")
    with Interrupts(runtime) as interrupts:
        interrupts.watch()

        def save(epoch: int, batch: int = 0) -> None:
            lock.check()
            state = {"model": model.state_dict(), "optimizer": training.optimizer.state_dict()}
            state |= {"model_args": asdict(config), "tokenizer": data.tokenizer, "config": dict(c)}
            state |= {"model_name": "seq2seq"}  # so that other programs know that it is not theirs
            state |= {"data": data.fingerprints(), "seconds": seconds}
            names = (CKPT,)
            if not all(p.isfinite().all() for p in model.parameters()):  # the one there stays
                names = (DIVERGED,)
                print(f"weights are not finite: saving as {out / DIVERGED} alone", file=sys.stderr)
            state |= {"iter_num": step, "epoch": epoch, "batch": batch}
            save_checkpoint(out, state, names)

        def stop(epoch: int, batch: int = 0) -> None:
            if status := interrupts.status():
                save(epoch, batch)
                print(f"saved at step {step}: the same command goes on", file=sys.stderr)
                sys.exit(status)

        for epoch in range(first, c.epochs):
            begin, losses, before = time.perf_counter(), [], seconds
            model.train()
            for number, rows in enumerate(batches(c, pairs, epoch)):
                if number < done:
                    continue
                stop(epoch, number)
                for group in training.optimizer.param_groups:
                    group["lr"] = warmup_rate(step, c.n_embd, c.warmup, c.rate_factor)
                batch = tensors([pairs[i] for i in rows], config, runtime.device)
                losses.append(training(step, [batch]).item())
                step += 1
                seconds = before + time.perf_counter() - begin
            done = 0
            save(epoch + 1)
            loss = validation_loss(c, model, val, runtime)
            line = f"epoch {epoch + 1} of {c.epochs}, step {step}: train loss {np.mean(losses):.4f}"
            try:
                print(f"{line}, val loss {loss:.4f}, {seconds:.0f} s", flush=True)
            except OSError:  # nobody reads it
                flush()
                interrupts.stdout_closed()
        stop(c.epochs)
    return model, seconds


# ---- translating ----


def translate(c: Config, model: Seq2Seq, coder, texts: list[str], runtime: Runtime) -> list[str]:
    """The translations, in the order of the texts; batches of similar length."""
    most, eos, pad = model.config.max_length - 60, model.config.eos, model.config.pad
    rows = [coder.encode(t)[:most] or [eos] for t in texts]
    order, targets = sorted(range(len(rows)), key=lambda i: len(rows[i])), {}
    for i in range(0, len(order), 32):
        end_if_told()
        chosen = order[i : i + 32]
        x = padded([rows[k] for k in chosen], pad).to(runtime.device)
        with runtime.autocast():
            targets |= zip(chosen, beam_search(model, x, c.beams, c.alpha))
    return [coder.decode(targets[i]) for i in range(len(texts))]


def translate_with_gpt(model, coder, texts: list[str], ids: dict[str, int], T: int) -> list[str]:
    """The same by a decoder-only model: source, separator, then greedily up to the end."""
    translations = []
    for t in texts:
        prompt = [*coder.encode(t)[: T // 2], ids["bos"]]
        params = SamplingParams(T - len(prompt), temperature=0, stop_tokens=(ids["eos"],))
        said = [row[0] for row in generate(model, prompt, params)]
        translations.append(coder.decode([i for i in said if i is not None and i != ids["pad"]]))
    return translations


def test_sentences(c: Config, data: Dataset, language: str) -> list[str]:
    """The sentences of test_2016_flickr, as prepare.py kept them."""
    path = data.folder / "downloads" / f"test_2016_flickr.{language}.gz"
    if not path.exists():
        raise UserError(f"{path} is missing: run data/multi30k/prepare.py")
    with gzip.open(path, "rt", encoding="utf-8") as f:
        return [line.strip() for line in f][: c.sentences or None]


def bleu(said: list[str], wanted: list[str]) -> float:
    """Corpus BLEU, 0 to 100, by sacrebleu with its own tokenization (13a)."""
    try:
        import sacrebleu
    except ImportError:
        raise UserError("BLEU needs sacrebleu: pip install sacrebleu") from None
    return sacrebleu.corpus_bleu(said, [wanted]).score


# ---- the picture ----


@torch.no_grad()
def attention_maps(c: Config, model: Seq2Seq, coder) -> tuple:
    """What the last layers look at while the model reads the two sentences of the picture.

    Returns the tokens of source and target, and three tensors of attention weights: of target
    positions to the source (nh, T, S), of target positions to the target so far (nh, T, T), and of
    the source to itself, in the encoder (nh, S, S).
    """
    bos, where = model.config.bos, next(model.parameters()).device
    a, b = coder.encode(c.picture_source), coder.encode(c.picture_target)
    parts = (model.decoder[-1].cross, model.decoder[-1].attention, model.encoder[-1].attention)
    for part in parts:
        part.keep_weights = True
    model.eval()
    model(torch.tensor([a], device=where), torch.tensor([[bos, *b]], device=where))
    weights = []
    for part in parts:
        weights.append(part.weights[0].float().cpu())
        part.keep_weights = False
    return [coder.decode([i]) for i in a], ["<sep>", *(coder.decode([i]) for i in b)], *weights


def draw(c: Config, model: Seq2Seq, coder, path: Path) -> None:
    """Cross-attention of the whole sentence, and where one word of each language looks."""
    words, said, cross, itself, encoder = attention_maps(c, model, coder)
    at = said.index(c.look_at) if c.look_at in said else len(said) - 1
    there = words.index(c.look_at_source) if c.look_at_source in words else len(words) - 1
    figure = new_figure(11, 5.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.25))
    left, *right = (figure.add_subplot(grid[g]) for g in (np.s_[:, 0], np.s_[0, 1], np.s_[1, 1]))
    left.imshow(cross.mean(dim=0), cmap="Blues", vmin=0)
    left.set_xticks(range(len(words)), words, rotation=60, ha="right")
    left.set_yticks(range(len(said)), said)
    left.set_title("attention to the source, mean of the heads")
    both = torch.cat((cross[:, at], itself[:, at, : at + 1]), dim=1)  # (nh, S + at + 1)
    right[0].axvline(len(words) - 0.5, color="black", lw=0.8)
    panels = [(both, words + said[: at + 1]), (encoder[:, there], words)]
    for axes, (weights, names) in zip(right, panels):
        axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(weights)), [f"head {i + 1}" for i in range(len(weights))])
    right[0].set_title(f"where {said[at]!r} looks: in the source, and in what was said")
    right[1].set_title(f"where {words[there]!r} looks, in the encoder")
    for axes in (left, *right):
        axes.grid(False)
    save_figure(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (not c.compare, "gpt_steps gpt_options", "without --compare"))
    runtime = setup(c.device, c.dtype, False)
    out = Path(c.out_dir)
    if c.text:
        whole_text(c.text, "the text")
        state = load_checkpoint(out / CKPT, optimizer=False)
        check_fit(Seq2Seq, Seq2SeqConfig, state["model_args"], state["model"], out / CKPT)
        model = Seq2Seq(Seq2SeqConfig(**state["model_args"])).to(runtime.device)
        model.load_state_dict(state["model"])
        print(translate(c, model, tokenizers.from_dict(state["tokenizer"]), [c.text], runtime)[0])
        return
    mixture = Mixture.open(c.dataset)
    data = mixture.parts[0]
    ids = special_ids(data)
    questions, wanted = test_sentences(c, data, c.source), test_sentences(c, data, c.target)
    bleu(wanted[:1], wanted[:1])  # what can fail should fail before the training
    coder = tokenizers.from_dict(data.tokenizer)
    with RunLock(out) as lock:
        lock.acquire()
        model, seconds = train_model(c, mixture, runtime, lock)
    begin = time.perf_counter()
    said = translate(c, model, coder, questions, runtime)
    row = {"model": "encoder-decoder", "parameters": model.num_params(), "minutes": seconds / 60}
    row |= {"bleu": bleu(said, wanted), "decoding": time.perf_counter() - begin}
    rows = [row | {"search": f"{c.beams} beams" if c.beams > 1 else "greedy"}]
    if c.compare:
        begin = time.perf_counter()
        options = [f"--dataset={c.dataset}", f"--device={c.device}", f"--dtype={c.dtype}"]
        train(HERE / "gpt.py", out / "gpt", c.gpt_steps, *options, *c.gpt_options.split())
        minutes = (time.perf_counter() - begin) / 60
        gpt = to_device(load_model("best", out / "gpt").model, runtime.device)
        begin = time.perf_counter()
        with runtime.autocast():
            heard = translate_with_gpt(gpt, coder, questions, ids, gpt.config.block_size)
        row = {"model": "decoder-only", "parameters": gpt.num_params(False), "minutes": minutes}
        row |= {"bleu": bleu(heard, wanted), "decoding": time.perf_counter() - begin}
        rows.append(row | {"search": "greedy"})
    columns = [("model", "model", ""), ("parameters", "parameters", ",d"), ("search", "search", "")]
    columns += [("BLEU", "bleu", ".2f"), ("minutes of training", "minutes", ".1f")]
    columns += [("seconds of translating", "decoding", ".0f")]
    print(f"\n{len(wanted):,} sentences of test_2016_flickr:\n{table(rows, columns)}\n")
    for question, ours, true in list(zip(questions, said, wanted))[:3]:
        print(f"{question}\n  = {ours}\n  ~ {true}")
    write_whole(out / "test.txt", "\n".join(said) + "\n")
    write_json(out / "translate.json", {"rows": rows})
    draw(c, model, coder, out / "attention.png")


if __name__ == "__main__":
    run(main)
