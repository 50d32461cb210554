"""How a GPT knows where a token stands: learned, sinusoidal, rotary positions, or none.

    python data/python_stdlib/prepare.py
    python projects/positions/positions.py              # four runs of train.py, then the pictures

The same model, data and batches; only GPTConfig.position differs. Each model is then given windows
four times as long as those it was trained on.
"""

import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import torch

from bonsai.data.dataset import Mixture
from bonsai.files.jsonfile import write_json
from bonsai.models.loading import load_model
from bonsai.system.errors import UserError, run
from bonsai.system.tables import table
from configurator import Config, configure
from model import GPT, sinusoids
from projects.common import COLORS, loss_by_position, new_figure, save_figure, train

kinds = "learned,sinusoidal,rope,none"  # values of GPTConfig.position [list]
dataset = "python_stdlib"  # a folder in data/ [paths]
steps = 500  # [>= 1]
block_size = 128  # tokens of a training window [>= 1]
times = 4  # the windows afterwards are so many times as long [>= 1]
windows = 512  # how many of them [>= 1]
options = ""  # more for train.py, such as "--n_layer=2 --n_embd=64"
out_dir = "out-positions"  # a folder for each run, positions.png and positions.json [path]
# -----------------------------------------------------------------------------


def lengthened(model: GPT, T: int) -> GPT:
    """The same model with a context of T tokens.

    Sinusoidal and rotary positions are formulas and go on; of learned ones those beyond the
    trained context are what initialisation left: N(0, 0.02), never trained.
    """
    longer = GPT(replace(model.config, block_size=T))
    weights = model.state_dict()
    if model.config.position == "learned":
        trained = weights["transformer.wpe.weight"]
        weights["transformer.wpe.weight"] = longer.transformer.wpe.weight.detach().clone()
        weights["transformer.wpe.weight"][: len(trained)] = trained
    longer.load_state_dict(weights)
    return longer


def similarity(vectors: torch.Tensor) -> torch.Tensor:
    """Cosine between every two rows: (T, C) -> (T, T)."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def draw(c: Config, losses: dict[str, torch.Tensor], models: dict[str, GPT], path: Path) -> None:
    """The loss by position for each kind; how alike the vectors of two positions are."""
    T = len(next(iter(losses.values())))
    figure = new_figure(10, 3.9)
    left, *maps = figure.subplots(1, 3, width_ratios=(1.7, 1, 1))
    width = max(1, T // 64)
    for (kind, loss), color in zip(losses.items(), COLORS):
        means = loss.unfold(0, width, width).mean(dim=1)
        at = [width * (i + 0.5) for i in range(len(means))]
        left.plot(at, means, color=color, label=kind)
    left.axvline(c.block_size, color="black", lw=0.8, ls=":")
    left.text(c.block_size, left.get_ylim()[1], " trained up to here", fontsize=8, va="top")
    left.set(xlabel="position", ylabel="validation loss (nats per token)", xlim=(0, T))
    left.legend()
    vectors = {"sinusoidal: by the formula": sinusoids(torch.arange(c.block_size), 128)}
    if "learned" in models:
        wpe = models["learned"].transformer.wpe.weight.detach()[: c.block_size]
        vectors = {"learned: after training": wpe, **vectors}
    for axes, (name, v) in zip(maps, vectors.items()):
        axes.imshow(similarity(v), cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
        axes.set_title(name)
        axes.set(xlabel="position", ylabel="position")
        axes.grid(False)
    for axes in maps[len(vectors) :]:
        axes.axis("off")
    save_figure(figure, path)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    chosen = [kind.strip() for kind in c.kinds.split(",") if kind.strip()]
    if not chosen or set(chosen) - {"learned", "sinusoidal", "rope", "none"}:
        raise UserError(f"kinds={c.kinds!r}: some of learned, sinusoidal, rope, none, with commas")
    data = Mixture.open(c.dataset)
    T = c.times * c.block_size
    data.check(T, data.model_vocab_size, ["val"])
    losses, models, rows = {}, {}, []
    for kind in chosen:
        more = [f"--dataset={c.dataset}", f"--block_size={c.block_size}", f"--position={kind}"]
        train(HERE / "config.py", Path(c.out_dir) / kind, c.steps, *more, *c.options.split())
        models[kind] = lengthened(load_model("best", Path(c.out_dir) / kind).model, T)
        loss = losses[kind] = loss_by_position(
            models[kind], data.parts[0].split("val"), T, c.windows
        )
        half = c.block_size // 2
        row = {"kind": kind, "first": loss[:8].mean().item()}
        row |= {"late": loss[half : c.block_size].mean().item()}
        row |= {
            "twice": loss[c.block_size : 2 * c.block_size].mean().item() if c.times > 1 else None
        }
        rows.append(row | {"end": loss[-c.block_size :].mean().item() if c.times > 2 else None})
    columns = [("positions", "kind", ""), ("first 8", "first", ".3f")]
    columns += [(f"{c.block_size // 2} to {c.block_size}", "late", ".3f")]
    columns += [(f"{c.block_size} to {2 * c.block_size}", "twice", ".3f")]
    columns += [(f"{T - c.block_size} to {T}", "end", ".3f")]
    print(f"\nValidation loss by position, trained on windows of {c.block_size}:")
    print(table(rows, columns) + "\n")
    result = {"block_size": c.block_size, "losses": {k: v.tolist() for k, v in losses.items()}}
    write_json(Path(c.out_dir) / "positions.json", result)
    draw(c, losses, models, Path(c.out_dir) / "positions.png")


if __name__ == "__main__":
    run(main)
