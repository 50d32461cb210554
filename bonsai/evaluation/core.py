"""CORE: one number for a base model, from 22 tasks (DataComp-LM, Li et al. 2024), as nanochat
computes it.

The tasks are read from a bundle, a folder with core.yaml (the tasks), eval_meta_data.csv (what
guessing reaches in each) and eval_data/ (questions as JSON lines). Of each task the accuracy is
brought to a scale on which guessing is 0 and all right is 1; CORE is the mean. GPT-2 XL reaches
0.2565.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from bonsai.evaluation.choices import ending_scores
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer


@dataclass
class Task:
    name: str
    kind: str  # a key of KINDS
    items: list[dict]
    shots: int  # solved questions in front of each
    delimiter: str  # between a question and its answer
    baseline: float  # accuracy of guessing


KINDS = {  # what an item has to have
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}


def read_bundle(folder: Path, limit: int = 0) -> list[Task]:
    """The tasks of a bundle, each with its questions in an order of their own; limit: how many of
    each, 0: all. Raises UserError for what is missing or otherwise than described above."""
    import yaml

    try:
        described = yaml.safe_load(read_text(folder / "core.yaml", "the tasks"))["icl_tasks"]
        known = csv.DictReader(io.StringIO(read_text(folder / "eval_meta_data.csv", "baselines")))
        baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in known}
        tasks = []
        for entry in described:
            name, kind = entry["label"], entry["icl_task_type"]
            if kind not in KINDS:
                raise UserError(f"{folder}: {name} is of a kind {kind!r}, not {', '.join(KINDS)}")
            file = folder / "eval_data" / entry["dataset_uri"]
            lines = read_text(file, f"the questions of {name}").split("\n")
            items = [json.loads(line) for line in lines if line.strip()]
            for number, item in enumerate(items, 1):
                if missing := [key for key in KINDS[kind] if key not in item]:
                    raise UserError(f"{file}: question {number} has no {missing[0]}")
            random.Random(1337).shuffle(items)
            items, shots = items[: limit or None], entry["num_fewshot"][0]
            if not items:
                raise UserError(f"{file} holds no questions")
            delimiter = entry.get("continuation_delimiter", " ")
            tasks.append(Task(name, kind, items, shots, delimiter, baselines[name]))
    except (KeyError, IndexError, TypeError, ValueError, yaml.YAMLError) as e:
        what = " ".join(f"{type(e).__name__} {e}".split())[:150]
        raise UserError(f"{folder} is no bundle of CORE's tasks: {what}") from None
    return tasks


def core(
    model,
    tokenizer: Tokenizer,
    tasks: list[Task],
    runtime: Runtime,
    batch_size: int,
    track: Callable[[Iterable], Iterable] = iter,
) -> list[dict]:
    """A row for each task: accuracy, and `centered`; the last one, CORE, is their mean."""
    rows = []
    for task in track(tasks):
        accuracy = task_accuracy(model, tokenizer, task, runtime, batch_size)
        centered = (accuracy - task.baseline) / (1 - task.baseline)
        row = {"task": task.name, "questions": len(task.items), "accuracy": accuracy}
        rows.append({**row, "centered": centered})
    questions = sum(row["questions"] for row in rows)
    mean = sum(row["centered"] for row in rows) / len(rows)
    return [*rows, {"task": "CORE", "questions": questions, "accuracy": None, "centered": mean}]


def task_accuracy(model, tokenizer, task: Task, runtime: Runtime, batch_size: int) -> float:
    """Share of the questions that are answered as they should be: with the answer, or in the
    context, that is likeliest per token; or, where there is one way to go on, word for word as the
    model would. The processes share the questions."""
    length, start = model.config.block_size, tokenizer.eot
    share = range(runtime.rank, len(task.items), runtime.world_size)
    groups = []
    for number in share:
        texts = prompts(task, number)
        ids = [([] if start is None else [start]) + tokenizer.encode(text) for text in texts]
        groups.append([(row[-(length + 1) :], min(n, length)) for row, n in scored(task, ids)])
    flat = [row for group in groups for row in group]
    scores = iter(ending_scores(model, flat, runtime, batch_size))
    right = 0
    for number, group in zip(share, groups):
        got = [(*next(scores), n) for _, n in group]
        if task.kind == "language_modeling":
            right += got[0][1]
        else:
            means = [score / n for score, _, n in got]
            right += means.index(max(means)) == task.items[number]["gold"]
    device = "cpu" if runtime.device.type == "mps" else runtime.device
    total = runtime.sum(torch.tensor(right, dtype=torch.float64, device=device))
    return total.item() / len(task.items)


def prompts(task: Task, number: int) -> list[str]:
    """The texts of a question, solved ones in front: one for each answer, or for each context. Of
    language modeling the text without and with what should follow."""
    others = [i for i in range(len(task.items)) if i != number]
    shots = random.Random(1234 + number).sample(others, min(task.shots, len(others)))
    solved = "".join(f"{written(task, task.items[i])}\n\n" for i in shots)
    item = task.items[number]
    if task.kind == "multiple_choice":
        return [solved + item["query"] + task.delimiter + choice for choice in item["choices"]]
    if task.kind == "schema":
        end = task.delimiter + item["continuation"]
        return [solved + context + end for context in item["context_options"]]
    context = solved + item["context"].strip()
    # a delimiter at the end would be cut into tokens otherwise than in mid-text
    return [(context + task.delimiter).rstrip(), context + task.delimiter + item["continuation"]]


def written(task: Task, item: dict) -> str:
    """A question with its answer."""
    if task.kind == "multiple_choice":
        return item["query"] + task.delimiter + item["choices"][item["gold"]]
    if task.kind == "schema":
        return item["context_options"][item["gold"]] + task.delimiter + item["continuation"]
    return item["context"].strip() + task.delimiter + item["continuation"]


def scored(task: Task, ids: list[list[int]]) -> list[tuple[list[int], int]]:
    """The ids to score, and how many at their end count: those after what all answers have in
    common; those that all contexts end with; those that go on after the text."""
    if task.kind == "language_modeling":
        without, whole = ids
        return [(whole, max(1, len(whole) - len(without)))]
    if task.kind == "multiple_choice":
        common = 0
        while all(len(row) > common and row[common] == ids[0][common] for row in ids):
            common += 1
        return [(row, max(1, len(row) - common)) for row in ids]
    common = 0
    while all(len(row) > common and row[-1 - common] == ids[0][-1 - common] for row in ids):
        common += 1
    return [(row, max(1, common)) for row in ids]
