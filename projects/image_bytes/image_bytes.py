"""Pictures as bytes: train MEGABYTE on small pictures, then let it complete halves of others.

    python projects/image_bytes/image_bytes.py                         # handwritten digits, 8 x 8
    python projects/image_bytes/image_bytes.py --source=photo          # 32 x 32 cuts of a photo
    python projects/image_bytes/image_bytes.py --source=FOLDER --size=64 --patch=4
    python projects/image_bytes/image_bytes.py --source=photo --order=squares --patch=4

A picture is a row of bytes, red, green and blue of each pixel, pixels row by row (or square by
square), with the end-of-text id in front. Patches are whole pixels. A folder may hold pictures of
any kind and size, or ImageNet64's .npz files. Completions are in out_dir/completions.png: the
original, the half that was given, and what the model made of it.
"""

import math
import sys
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
from bonsai.system.caches import keep_fonts
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import setup
from bonsai.tokenizers import ByteTokenizer
from configurator import Config, configure, refuse_idle, resolve_path
from projects.common import new_figure, save_figure, train, without_empty

# the pictures
source = "digits"  # digits (scikit-learn's), photo (one of matplotlib's), or a folder [path]
size = 0  # pixels of a side, others are cut and resized; 0: 8 for digits, else 32 [0 or >= 2]
gray = False  # one byte per pixel instead of three (the digits are gray)
order = "raster"  # of the pixels: row by row, or square by square, each a patch [raster | squares]
patch = 0  # pixels in a patch, or beside a square; 0: a row of digits, 4 pixels, 2 x 2 [>= 0]
val_fraction = 0.1  # share of the pictures that is held out [> 0, < 1]
# training; all else is in config.py
steps = 1000  # [>= 1]
seed = 1337  # [>= 0]
# afterwards
shown = 8  # pictures to complete [>= 1]
samples = 4  # completions of each [>= 1]
given = 0.5  # share of a picture that is given [> 0, < 1]
temperature = 1.0  # [>= 0]
out_dir = ""  # default: out-image-SOURCE [path]
# -----------------------------------------------------------------------------

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
CHUNK = 1024  # pictures that are held in memory at once

Pictures = Iterator[tuple[str, np.ndarray]]  # split, (n, size, size, channels) uint8


def digits(c: Config, side: int) -> Pictures:
    """1,797 handwritten digits of the UCI repository, (1797, 8, 8), 17 shades."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the digits come with scikit-learn: pip install scikit-learn, or --source=photo"
        ) from None
    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    pictures = np.stack([fit(p[:, :, None], side) for p in pixels])
    yield from by_hash(c, pictures)


def photo(c: Config, side: int, count: int = 6000) -> Pictures:
    """Random cuts of matplotlib's sample photograph; those held out are of its lower fifth."""
    keep_fonts()
    import matplotlib.cbook
    from PIL import Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as f:
        whole = np.asarray(Image.open(f).convert("L" if c.gray else "RGB"))
    border = whole.shape[0] * 4 // 5
    rng = np.random.default_rng(c.seed)
    for split, part, n in (("train", whole[:border], count), ("val", whole[border:], count // 20)):
        cuts = []
        for _ in range(n):
            s = int(rng.integers(side, 1 + max(side, min(part.shape[0], 3 * side))))
            y, x = (int(rng.integers(0, length - s + 1)) for length in part.shape[:2])
            cut = part[y : y + s, x : x + s].reshape(s, s, -1)
            cuts.append(fit(cut[:, :: rng.choice((-1, 1))], side))
        yield split, np.stack(cuts)


def folder_of_pictures(c: Config, folder: Path, side: int) -> Pictures:
    """All pictures below a folder, split by folders train/ and val/, or by a hash of the path."""
    from PIL import Image, UnidentifiedImageError

    files = without_empty(files_below(folder, ENDINGS))
    if not files:
        raise UserError(f"no picture ({', '.join(ENDINGS)}) and no .npz file in {folder}")
    keys = {p: document_key(p.relative_to(folder).as_posix().encode()) for p in files}
    limit = max(c.val_fraction, min(keys.values()))  # one at least
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    odd = 0
    for path in files:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if c.gray else "RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
            raise UserError(f"cannot read the picture {path}: {e}") from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        odd += pixels.shape[:2] != (side, side)
        top = path.relative_to(folder).parts[0]
        split = top if top in parts else "val" if keys[path] <= limit else "train"
        parts[split].append(fit(pixels, side))
        if len(parts[split]) == CHUNK:
            yield split, np.stack(parts.pop(split))
            parts[split] = []
    for split, pictures in parts.items():
        if pictures:
            yield split, np.stack(pictures)
    if odd:
        print(f"{odd:,} of {len(files):,} pictures are not {side} x {side}: cut and resized")


def imagenet64(files: list[Path], side: int, gray: bool = False) -> Pictures:
    """Downsampled ImageNet (Chrabaszcz et al. 2017): `data` (N, 3 s s), red before green before
    blue, in .npz files; those named val* are held out."""
    held = [p for p in files if p.name.startswith("val")]
    if not held:
        raise UserError(f"no file named val*.npz beside {files[0]}: what is to be held out?")
    for path in files:
        try:
            with np.load(path) as archive:
                data = archive["data"]
        except (OSError, ValueError, KeyError) as e:
            raise UserError(f"{path} is not of ImageNet64's format, with `data`: {e}") from None
        s = math.isqrt(data.shape[-1] // 3) if data.ndim == 2 else 0
        if data.dtype != np.uint8 or s == 0 or data.shape[1] != 3 * s * s:
            raise UserError(f"{path}: data is {data.dtype} {data.shape}, not uint8 (N, 3 s s)")
        for i in range(0, len(data), CHUNK):
            pictures = data[i : i + CHUNK].reshape(-1, 3, s, s).transpose(0, 2, 3, 1)
            if gray:
                pictures = pictures.mean(axis=3, keepdims=True).astype(np.uint8)
            if s != side:
                pictures = np.stack([fit(p, side) for p in pictures])
            yield "val" if path in held else "train", pictures


def by_hash(c: Config, pictures: np.ndarray) -> Pictures:
    """Pictures that have no name are split by their content."""
    held = np.array([document_key(p.tobytes()) < c.val_fraction for p in pictures])
    yield "train", pictures[~held]
    yield "val", pictures[held]


def fit(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (h, w, c) -> (side, side, c): the middle square, resized."""
    h, w, channels = pixels.shape
    if (h, w) == (side, side):
        return pixels
    from PIL import Image

    s = min(h, w)
    y, x = (h - s) // 2, (w - s) // 2
    square = pixels[y : y + s, x : x + s]
    image = Image.fromarray(square[:, :, 0] if channels == 1 else square)
    small = np.asarray(image.resize((side, side), Image.Resampling.BOX))
    return small.reshape(side, side, channels)


class Layout:
    """Where a picture's bytes stand in its row: pictures (n, S, S, C) <-> bytes (n, S S C).

    width: pixels in a patch; with squares, in a side of one.
    """

    def __init__(self, side: int, channels: int, squares: bool, width: int):
        self.shape = (side, side, channels)
        if not 0 < width <= side or side % width:
            raise UserError(f"patch={width} does not divide the {side} pixels of a side")
        self.patch_size = channels * (width * width if squares else width)
        places = np.arange(side * side * channels).reshape(side, side, channels)
        if squares:
            n = side // width
            places = places.reshape(n, width, n, width, channels).transpose(0, 2, 1, 3, 4)
        self.places = places.reshape(-1)
        self.back = np.argsort(self.places)

    def rows(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), -1)[:, self.places]

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, self.back].reshape(-1, *self.shape)


def open_source(c: Config) -> tuple[Pictures, Layout]:
    """The pictures, not read yet, and their layout."""
    side = c.size or (8 if c.source == "digits" else 32)
    channels = 1 if c.gray or c.source == "digits" else 3
    squares = c.order == "squares"
    width = c.patch or (2 if squares else side if c.source == "digits" else min(4, side))
    layout = Layout(side, channels, squares, width)
    if c.source in ("digits", "photo"):
        return (digits if c.source == "digits" else photo)(c, side), layout
    folder = resolve_path(c.source)
    if not folder.is_dir():
        raise UserError(f"source={c.source} is not digits, photo or a folder of pictures")
    archives = sorted(folder.glob("*.npz"))
    if archives:
        return imagenet64(archives, side, c.gray), layout
    return folder_of_pictures(c, folder, side), layout


def prepare(folder: Path, pictures: Pictures, layout: Layout) -> None:
    """Write the data set: a row per picture, with the end-of-text id in front."""
    tokenizer, length = ByteTokenizer(), len(layout.places)
    with Writer(folder, tokenizer, row_length=length + 1) as writer:
        for split, part in pictures:
            ids = np.full((len(part), length + 1), tokenizer.eot, dtype="<u2")
            ids[:, 1:] = layout.rows(part)
            # a byte for every token: the first of a row is no target, so no byte is left out
            writer.add(split, ids.ravel(), text_bytes=ids.size, documents=len(part))
        meta = writer.finish()
    count = {name: part["documents"] for name, part in meta["splits"].items()}
    print(
        f"{count['train']:,} pictures to train on, {count['val']:,} held out, {length:,} bytes each"
    )


def complete(c: Config, model: torch.nn.Module, rows: np.ndarray, begin: int) -> np.ndarray:
    """rows (n, N) with `begin` bytes given -> completions (n, samples, N)."""
    params = SamplingParams(rows.shape[1] - begin, c.temperature, seed=c.seed, vocab_limit=256)
    completed = np.repeat(rows[:, None], c.samples, axis=1)
    for row in completed:
        prompt = [ByteTokenizer.eot, *row[0, :begin].tolist()]
        row[:, begin:] = np.array(list(generate(model, prompt, params, c.samples))).T
    return completed


def draw(originals: np.ndarray, halves: np.ndarray, made: np.ndarray, path: Path) -> None:
    """originals, halves (n, S, S, C), made (n, samples, S, S, C): a column per picture."""
    n = len(originals)
    lines = [originals, halves, *made.transpose(1, 0, 2, 3, 4)]
    figure = new_figure(0.9 * n, 0.9 * len(lines))
    titles = ("original", "given", *(f"completion {i + 1}" for i in range(made.shape[1])))
    for axes_row, line, title in zip(figure.subplots(len(lines), n, squeeze=False), lines, titles):
        for axes, picture in zip(axes_row, line):
            shade = picture[:, :, 0] if picture.shape[2] == 1 else picture
            axes.imshow(shade, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        axes_row[0].set_ylabel(title, fontsize=7)
    save_figure(figure, path)


def model_options(layout: Layout) -> list[str]:
    """Context, patches and a width that they divide, about 192 channels."""
    width = layout.patch_size * max(1, round(192 / layout.patch_size))
    heads = next(h for h in (4, 2, 1) if width % h == 0)
    options = [f"--block_size={len(layout.places)}", f"--patch_size={layout.patch_size}"]
    return [*options, f"--n_embd={width}", f"--n_head={heads}"]


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(
        c,
        (c.source == "digits", "gray", "with --source=digits: they are gray"),
        (c.source == "photo", "val_fraction", "with --source=photo"),
    )
    pictures, layout = open_source(c)
    name = c.source if c.source in ("digits", "photo") else Path(c.source).name
    out = Path(c.out_dir or f"out-image-{name}")
    prepare(out / "data", pictures, layout)
    options = [f"--dataset={out.resolve() / 'data'}", f"--seed={c.seed}", *model_options(layout)]
    train(HERE / "config.py", out / "run", c.steps, *options)

    loaded = load_model("best", out / "run", {"dropout": 0.0})
    runtime = setup(dtype="float32", compile=False)
    model, N = to_device(loaded.model, runtime.device), len(layout.places)
    val = open_dataset(str(out / "data")).split("val")
    loss, count = split_loss(model, val, runtime, N, 32)
    print(f"{loss / math.log(2):.4f} bits per byte on {count // N:,} pictures held out")
    starts = val.eval_starts(N, c.shown)
    rows = val.windows(starts, N)[1].astype(np.uint8)  # targets: the picture's bytes
    given = c["given"] * N  # c.given are the names that were given
    begin = max(1, round(given / layout.patch_size) * layout.patch_size)
    made = complete(c, model, rows, min(begin, N - 1))
    halves = rows.copy()
    halves[:, begin:] = 128
    flat = layout.pictures(made.reshape(-1, N))
    pictures_made = flat.reshape(len(rows), c.samples, *layout.shape)
    draw(layout.pictures(rows), layout.pictures(halves), pictures_made, out / "completions.png")


if __name__ == "__main__":
    run(main)
