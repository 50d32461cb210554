"""CORE: one number for a base model, from 22 tasks (DataComp-LM, Li et al. 2024), as nanochat
computes it.

The tasks are read from a bundle, a folder with core.yaml (the tasks), eval_meta_data.csv (the
accuracy of guessing in each) and eval_data/ (questions as JSON lines). The accuracy in each task is
brought to a scale on which guessing is 0 and perfect is 1; CORE is the mean of these. GPT-2 XL
reaches 0.2565.
"""

import csv
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bonsai.evaluation.likelihood import ending_scores
from bonsai.files.jsonfile import parse_json_object
from bonsai.files.textfile import read_text
from bonsai.files.yamlfile import read_yaml
from bonsai.runs.schema import brief, is_whole
from bonsai.system.errors import UserError
from bonsai.system.progress import Track
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer


@dataclass
class Task:
    """A task of CORE: questions of one kind, and how they are asked."""

    name: str
    kind: str  # a key of KINDS
    items: list[dict]
    shots: int  # solved questions in front of each
    delimiter: str  # between a question and its answer
    baseline: float  # accuracy of guessing


FIELDS = {  # of a task in core.yaml, and what each is
    "label": (str, "a name"),
    "icl_task_type": (str, "a word"),
    "dataset_uri": (str, "a file in eval_data/"),
    "num_fewshot": (list, "a list of one whole number, as [10]"),
    "continuation_delimiter": (str, "text"),
}
KINDS = {  # what an item has to have
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
LISTS = ("choices", "context_options")


def read_bundle(folder: Path, limit: int = 0) -> list[Task]:
    """The tasks of a bundle, each with its questions, shuffled. limit: how many questions of each;
    0: all. Raises UserError, with the file, the task and the field, for what is missing or not as
    described above."""
    path = folder / "core.yaml"
    described = read_yaml(path, "the tasks")
    entries = described.get("icl_tasks") if isinstance(described, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no icl_tasks, the list of the tasks")
    table = folder / "eval_meta_data.csv"
    baselines, tasks = read_baselines(table), []
    for number, entry in enumerate(entries, 1):
        entry = check_task(entry, f"{path}: task {number}")
        name, kind = entry["label"], entry["icl_task_type"]
        items = read_items(folder / "eval_data" / entry["dataset_uri"], name, kind)
        random.Random(1337).shuffle(items)
        shots, delimiter = entry["num_fewshot"][0], entry["continuation_delimiter"]
        share = guessing(baselines, name, table)
        tasks.append(Task(name, kind, items[: limit or None], shots, delimiter, share))
    return tasks


def check_task(entry: object, where: str) -> dict:
    """A task of core.yaml; for what is none UserError, which begins with `where`."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {brief(entry)}, not fields by their names")
    entry = {"continuation_delimiter": " ", **entry}
    where += f" ({entry['label']})" if isinstance(entry.get("label"), str) else ""
    for field, (kind, what) in FIELDS.items():
        if field not in entry:
            raise UserError(f"{where}: it has no {field}, {what}")
        value = entry[field]
        if not isinstance(value, kind) or (kind is list and not is_whole((*value, -1)[0], 0, 1000)):
            raise UserError(f"{where}: its {field} is {brief(value)}, where {what} should be")
    if entry["icl_task_type"] not in KINDS:
        kind = brief(entry["icl_task_type"])
        raise UserError(f"{where}: its icl_task_type is {kind}, not one of {', '.join(KINDS)}")
    return entry


def read_baselines(path: Path) -> dict[str, str]:
    """The accuracy of guessing in percent, as text, by task, from eval_meta_data.csv."""
    try:
        rows = [*csv.DictReader(io.StringIO(read_text(path, "the baselines")))]
    except csv.Error as e:
        raise UserError(f"{path} is no table of baselines: {e}") from None
    for column in ("Eval Task", "Random baseline") if rows else ():
        if column not in rows[0]:
            raise UserError(f"{path} has no column {column!r}")
    return {row["Eval Task"]: row["Random baseline"] or "" for row in rows}


def guessing(baselines: dict[str, str], name: str, path: Path) -> float:
    """The share of a task's questions that guessing answers."""
    if name not in baselines:
        raise UserError(f"{path} has no row for the task {name}")
    try:
        share = float(baselines[name]) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(
            f"{path}: the task {name} has 'Random baseline' {brief(baselines[name])}, no percentage"
        )
    return share


def read_items(path: Path, name: str, kind: str) -> list[dict]:
    """The questions of a task, from JSON lines; for any other line UserError, with its number."""
    lines = read_text(path, f"the questions of {name}").split("\n")
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            items.append(parse_json_object(line, f"{path}:{number}"))
            check_item(items[-1], kind, f"{path}:{number}")
    if not items:
        raise UserError(f"{path} holds no questions")
    return items


def check_item(item: dict, kind: str, where: str) -> None:
    """Raise UserError for a question that lacks a field of its kind. where: its file and line."""
    answers = 0
    for field in KINDS[kind]:
        value = item.get(field)
        if field in LISTS:
            known, what = isinstance(value, list) and value, "a list of texts"
            known = known and all(isinstance(text, str) for text in value)
            answers = len(value) if known else 0
        elif field == "gold":
            known, what = is_whole(value, 0, answers - 1), f"a whole number below {answers}"
        else:
            known, what = isinstance(value, str), "a text"
        if not known:
            said = f"its {field} is {brief(value)}" if field in item else f"it has no {field}"
            raise UserError(f"{where}: {said}, where {what} should be")


def core(
    model,
    tokenizer: Tokenizer,
    tasks: list[Task],
    runtime: Runtime,
    batch_size: int,
    tracker: Callable[[str], Track] = lambda task: iter,
) -> list[dict]:
    """A row for each task: accuracy, and `centered`. The last row is CORE, the mean of the latter.

    tracker: called with a label for each task; returns what wraps the iteration over its batches.
    """
    rows = []
    for number, task in enumerate(tasks, 1):
        track = tracker(f"{task.name} ({number} of {len(tasks)})")
        accuracy = task_accuracy(model, tokenizer, task, runtime, batch_size, track)
        centered = (accuracy - task.baseline) / (1 - task.baseline)
        row = {"task": task.name, "questions": len(task.items), "accuracy": accuracy}
        rows.append({**row, "centered": centered})
    questions = sum(row["questions"] for row in rows)
    mean = sum(row["centered"] for row in rows) / len(rows)
    return [*rows, {"task": "CORE", "questions": questions, "accuracy": None, "centered": mean}]


def task_accuracy(
    model, tokenizer, task: Task, runtime: Runtime, batch_size: int, track: Track = iter
) -> float:
    """The share of questions that are answered right. Multiple choice: the right answer is the
    likeliest one per token; schema: the right context makes its continuation the likeliest;
    language modeling: the model would write the continuation word for word. The processes share the
    questions."""
    length, start = model.config.block_size, tokenizer.eot
    share = range(runtime.rank, len(task.items), runtime.world_size)
    groups = []
    for number in share:
        texts = prompts(task, number)
        ids = [([] if start is None else [start]) + tokenizer.encode(text) for text in texts]
        rows = [
            (row[-(length + 1) :], min(n, length, len(row) - 1)) for row, n in scored(task, ids)
        ]
        if any(n < 1 for _, n in rows):
            raise UserError(
                f"a question of {task.name} has an answer with nothing before it: a tokenizer "
                "without an end of text cannot score it"
            )
        groups.append(rows)
    flat = [row for group in groups for row in group]
    scores = iter(ending_scores(model, flat, runtime, batch_size, track))
    right = 0
    for number, group in zip(share, groups):
        got = [(*next(scores), n) for _, n in group]
        if task.kind == "language_modeling":
            right += got[0][1]
        else:
            means = [score / n for score, _, n in got]
            right += means.index(max(means)) == task.items[number]["gold"]
    total = torch.tensor(right, dtype=torch.float64, device=runtime.float64_device)
    return runtime.sum(total).item() / len(task.items)


def prompts(task: Task, number: int) -> list[str]:
    """The texts of a question, with solved questions in front: one for each answer, or for each
    context; for language modeling the text without and with its continuation."""
    others = [i for i in range(len(task.items)) if i != number]
    shots = random.Random(1234 + number).sample(others, min(task.shots, len(others)))
    solved = "".join(f"{written(task, task.items[i])}\n\n" for i in shots)
    item = task.items[number]
    texts = [solved + text for text in answered(task, item)]
    if task.kind != "language_modeling":
        return texts
    # without a delimiter at the end, which would become other tokens than in the middle of a text
    return [(solved + item["context"].strip() + task.delimiter).rstrip(), *texts]


def written(task: Task, item: dict) -> str:
    """A question with its right answer."""
    return answered(task, item)[0 if task.kind == "language_modeling" else item["gold"]]


def answered(task: Task, item: dict) -> list[str]:
    """A question with each of its answers, or in each of its contexts."""
    if task.kind == "multiple_choice":
        return [item["query"] + task.delimiter + choice for choice in item["choices"]]
    if task.kind == "schema":
        end = task.delimiter + item["continuation"]
        return [context + end for context in item["context_options"]]
    return [item["context"].strip() + task.delimiter + item["continuation"]]


def scored(task: Task, ids: list[list[int]]) -> list[tuple[list[int], int]]:
    """The ids to score, and how many at their end count. Multiple choice: those after the common
    beginning; schema: the common end; language modeling: the continuation."""
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
