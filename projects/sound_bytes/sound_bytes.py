"""Sound as bytes: train MEGABYTE on 8-bit samples, then let it go on with what it has heard.

    python projects/sound_bytes/sound_bytes.py                    # tunes that the script makes
    python projects/sound_bytes/sound_bytes.py --source=FOLDER    # WAV files of your own
    python projects/sound_bytes/sound_bytes.py --seconds=10 --temperature=0.9

A sample is a byte: 128 is silence, one channel, `rate` samples a second. WAV files with other
numbers (16, 24 or 32 bits, stereo, other rates) are converted. Held-out sounds and how the model
goes on from their beginnings are WAV files in out_dir, drawn in waves.png.
"""

import math
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import numpy as np
import torch

from bonsai.data.corpus import document_key
from bonsai.data.dataset import open_dataset
from bonsai.data.finding import files_below
from bonsai.data.writer import Writer
from bonsai.engine import SamplingParams, generate
from bonsai.evaluation.loss import split_loss
from bonsai.models.kernels import to_device
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer
from configurator import Config, configure, refuse_idle, resolve_path
from projects.common import COLORS, new_figure, save_figure, train, without_empty

# the sound
source = ""  # a folder of WAV files; without: tunes that this script makes [path]
rate = 4000  # samples a second [>= 100]
tunes = 200  # how many to make, of 8 seconds [>= 1]
val_fraction = 0.05  # share of the files, or tunes, that is held out [> 0, < 1]
# training; all else is in config.py
steps = 600  # [>= 1]
seed = 1337  # [>= 0]
# afterwards
shown = 3  # held-out sounds to go on with [>= 1]
given = 1.0  # seconds of them that are given [> 0]
seconds = 3.0  # to generate [> 0]
temperature = 0.95  # [>= 0]
out_dir = ""  # default: out-sound [path]
# -----------------------------------------------------------------------------

SILENCE = 128
SCALE = (0, 2, 4, 7, 9)  # semitones of a pentatonic scale: whatever is played, it fits


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] -> unsigned 8-bit PCM."""
    return np.clip(np.round(SILENCE + 127 * x), 0, 255).astype(np.uint8)


def tune(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Eight seconds of plucked notes over a bass, at one of a few tempos: (8 rate,) in [-1, 1]."""
    x = np.zeros(8 * rate)
    beat = float(rng.choice((0.2, 0.25, 0.3)))
    root, step = rng.integers(45, 52), int(rng.integers(5, 10))
    for i in range(int(8 / beat)):
        step = int(np.clip(step + rng.integers(-2, 3), 0, 14))
        pitches = [(root + 12 * (step // 5) + SCALE[step % 5], 0.5, 0.3)]
        if i % 4 == 0:  # a bass note on every fourth beat
            pitches.append((root - 12 + SCALE[int(rng.choice((0, 3)))], 0.4, 0.8))
        for pitch, loudness, decay in pitches:
            frequency = 440 * 2 ** ((pitch - 69) / 12)
            t = np.arange(int(4 * decay * rate)) / rate
            overtones = sum(
                np.sin(2 * np.pi * k * frequency * t) * np.exp(-k * t / decay) / k**1.5
                for k in (1, 2, 3)
                if k * frequency < rate / 2
            )
            begin = int(i * beat * rate)
            overtones = overtones[: len(x) - begin]
            x[begin : begin + len(overtones)] += loudness * overtones
    return 0.9 * x / np.abs(x).max()


def read_wav(path: Path, rate: int) -> np.ndarray:
    """A WAV file as one channel of bytes at `rate`. Raises UserError for what is no PCM."""
    try:
        with wave.open(str(path), "rb") as f:
            channels, width, source_rate = f.getnchannels(), f.getsampwidth(), f.getframerate()
            data = f.readframes(f.getnframes())
    except (wave.Error, EOFError, OSError) as e:
        raise UserError(f"cannot read {path} as a WAV file of PCM samples: {e}") from None
    data = data[: len(data) // (width * channels) * width * channels]
    if not data:
        raise UserError(f"{path} holds no sound")
    if width == 1:
        if channels == 1 and source_rate == rate:
            return np.frombuffer(data, np.uint8)  # as it is
        x = (np.frombuffer(data, np.uint8).astype(np.float64) - SILENCE) / 127
    else:  # signed, little-endian: the bytes go to the upper end of 32 bits
        raw = np.frombuffer(data, np.uint8).reshape(-1, width)
        wide = np.zeros((len(raw), 4), np.uint8)
        wide[:, 4 - width :] = raw
        x = wide.view("<i4")[:, 0] / 2**31
    return to_bytes(resample(x.reshape(-1, channels).mean(axis=1), source_rate, rate))


def resample(x: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """x from `source_rate` to `rate` samples a second: averaged to fewer, interpolated to more."""
    if source_rate == rate:
        return x
    count = max(1, round(len(x) * rate / source_rate))
    if source_rate > rate:  # the mean over each new sample's time: takes away what is too high
        total = np.concatenate(([0.0], np.cumsum(x)))
        edges = np.interp(np.linspace(0, len(x), count + 1), np.arange(len(x) + 1), total)
        return np.diff(edges) * count / len(x)
    return np.interp(np.arange(count) * (source_rate / rate), np.arange(len(x)), x)


def sounds(c: Config) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bytes) of each sound."""
    if not c.source:
        for i in range(c.tunes):
            yield f"tune {i}", to_bytes(tune(np.random.default_rng((c.seed, i)), c.rate))
        return
    folder = resolve_path(c.source)
    files = without_empty([folder] if folder.is_file() else files_below(folder, (".wav",)))
    if not files:
        raise UserError(f"source={c.source}: there is no WAV file")
    for path in files:
        yield path.name, read_wav(path, c.rate)


def prepare(c: Config, folder: Path) -> None:
    """Write the data set: the sounds one after the other, each followed by the end of text."""
    tokenizer, count = ByteTokenizer(), 0
    end = np.array([tokenizer.eot], "<u2")
    with Writer(folder, tokenizer) as writer:
        for name, data in sounds(c):
            held = document_key(name.encode()) < c.val_fraction
            if count == 0 and len(data) > 10:  # of the first something is always held out
                cut = int(len(data) * (1 - c.val_fraction))
                parts = (("train", data[:cut]), ("val", data[cut:]))
            else:
                parts = (("val" if held else "train", data),)
            for split, part in parts:
                writer.add(split, np.concatenate((part, end)), text_bytes=len(part))
            count += 1
        meta = writer.finish()
    length = sum(part["bytes"] for part in meta["splits"].values()) / c.rate
    print(f"{count} sounds, {length / 60:.1f} minutes at {c.rate} samples a second")


def write_wav(path: Path, data: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(1)
        f.setframerate(rate)
        f.writeframes(data.tobytes())
    print(f"wrote {path}")


def excerpts(c: Config, val: np.ndarray, length: int) -> list[np.ndarray]:
    """`shown` excerpts of the held-out sounds, none across the end of a sound: bytes."""
    clips = []
    for part in np.split(val, np.flatnonzero(val > 255)):
        part = part[part < 256].astype(np.uint8)
        clips += [part[i : i + length] for i in range(0, len(part) - length + 1, 2 * length)]
    if not clips:
        raise UserError(f"no held-out sound has {length / c.rate:g} s: lower given or seconds")
    chosen = np.linspace(0, len(clips) - 1, min(c.shown, len(clips))).astype(int)
    return [clips[i] for i in chosen]


def go_on(c: Config, model: torch.nn.Module, start: np.ndarray) -> np.ndarray:
    """What the model makes of a beginning, `seconds` of it; patches stay where they are."""
    params = SamplingParams(int(c.seconds * c.rate), c.temperature, seed=c.seed, vocab_limit=256)
    rows = generate(model, start.tolist(), params, on_full="refill")
    return np.array([*start, *(row[0] for row in rows)], dtype=np.uint8)


def draw(c: Config, pairs: list[tuple[np.ndarray, np.ndarray]], begin: int, path: Path) -> None:
    """Waves and spectrograms, original above, the model's below, for each excerpt."""
    figure = new_figure(9, 1.5 * 2 * len(pairs))
    grid = figure.subplots(2 * len(pairs), 2, squeeze=False, sharex=True)
    for i, pair in enumerate(pairs):
        for j, (title, data) in enumerate(zip(("original", "continued"), pair)):
            left, right = grid[2 * i + j]
            x = (data.astype(np.float64) - SILENCE) / 127
            t = np.arange(len(x)) / c.rate
            left.plot(t[:begin], x[:begin], color=COLORS[7], linewidth=0.4)
            left.plot(t[begin:], x[begin:], color=COLORS[j], linewidth=0.4)
            left.set(ylim=(-1, 1), ylabel=title)
            right.specgram(x + 1e-6, NFFT=256, Fs=c.rate, noverlap=128, vmin=-120)
            right.axvline(begin / c.rate, color="white", linewidth=0.8)
            right.grid(False)
    grid[-1][0].set_xlabel("seconds")
    grid[-1][1].set_xlabel("seconds")
    save_figure(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.source, "tunes", "with --source"))
    out = Path(c.out_dir or "out-sound")
    prepare(c, out / "data")
    options = [f"--dataset={out.resolve() / 'data'}", f"--seed={c.seed}"]
    train(HERE / "config.py", out / "run", c.steps, *options)

    loaded = load_model("best", out / "run")
    runtime = setup(dtype="float32", compile=False)
    model = to_device(loaded.model, runtime.device)
    val = open_dataset(str(out / "data")).split("val")
    loss, count = split_loss(model, val, runtime, model.config.block_size, 8)
    print(f"{loss / math.log(2):.4f} bits per byte on {count / c.rate:.1f} s of held-out sound")
    begin = int(c["given"] * c.rate)  # c.given are the names that were given
    pairs = []
    length = begin + int(c.seconds * c.rate)
    for i, original in enumerate(excerpts(c, val.read(0, len(val)), length)):
        made = go_on(c, model, original[:begin])
        write_wav(out / f"{i}_original.wav", original, c.rate)
        write_wav(out / f"{i}_continued.wav", made, c.rate)
        pairs.append((original, made))
    draw(c, pairs, begin, out / "waves.png")


if __name__ == "__main__":
    run(main)
