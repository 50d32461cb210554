"""The programs as commands of an installed package: bonsai-train is `python train.py`."""

import runpy
from functools import partial

from bonsai import ROOT


def run(program: str) -> None:
    """Run a program of the repository, with the arguments of this process."""
    runpy.run_path(str(ROOT / f"{program}.py"), run_name="__main__")


train = partial(run, "train")
sample = partial(run, "sample")
serve = partial(run, "serve")
evaluate = partial(run, "eval")
bench = partial(run, "bench")
train_tokenizer = partial(run, "train_tokenizer")
show_tokens = partial(run, "show_tokens")
export = partial(run, "export")
