"""What the tests of evaluation share: a small model of texts, a process, questions."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from helpers.tiny_data import CHARS
from torch.nn import functional as F

from bonsai.evaluation.choices import Question
from bonsai.system.runtime import Runtime
from model import GPT, GPTConfig

BLOCK = 16
WORDS = ["a", "tree", "has", "roots", "and", "leaves", ";", "or not,", "it", "grows", "12", "äöü"]


def phrase(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def runtime(rank: int = 0, world_size: int = 1, compile: bool = False) -> Runtime:
    return Runtime(torch.device("cpu"), "float32", compile, "gloo", rank, world_size, "")


def tiny(vocab_size: int = len(CHARS), seed: int = 0) -> GPT:
    """A small model whose losses differ a lot from token to token; in training mode."""
    torch.manual_seed(seed)
    shape = dict(n_layer=2, n_head=2, n_embd=32, block_size=BLOCK)
    model = GPT(GPTConfig(vocab_size=vocab_size, dropout=0.5, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() >= 2 else 1)
    return model


@torch.no_grad()
def score_one(model, ids: list[int], n: int) -> float:
    """Log-likelihood of the last n ids, token by token."""
    total = 0.0
    for end in range(len(ids) - n, len(ids)):
        logits, _ = model(torch.tensor([ids[:end]]))
        total += F.log_softmax(logits[0, -1].double(), dim=-1)[ids[end]].item()
    return total


def write_questions(path: Path, count: int) -> None:
    """A file of questions in HellaSwag's format."""
    lines = [json.dumps(vars(q) | {"ctx": q.context}) for q in questions(count)]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_bundle(folder: Path, count: int, shots: int = 0) -> Path:
    """CORE's bundle with a single task, ab, of multiple choice."""
    (folder / "eval_data").mkdir(parents=True)
    lines = [{"query": "ab", "choices": ["ba", "ca"], "gold": k % 2} for k in range(count)]
    (folder / "eval_data" / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "core.yaml").write_text(
        f"icl_tasks: [{{label: ab, dataset_uri: q.jsonl, num_fewshot: [{shots}], "
        "icl_task_type: multiple_choice}]"
    )
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nab,25\n")
    return folder


def questions(count: int, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return "".join(rng.choice(list(CHARS[2:]), rng.integers(1, longest)))

    return [
        Question(text(30), [text(14) for _ in range(4)], int(rng.integers(4)), f"q:{i + 1}")
        for i in range(count)
    ]
