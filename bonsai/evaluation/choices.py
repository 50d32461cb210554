"""Multiple choice: which of several endings a model takes for the likeliest.

The endings are compared in three ways: by their log-likelihood, by its mean over the ending's
tokens, and by its mean over the ending's bytes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bonsai.evaluation.likelihood import ending_scores
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.system.progress import Track
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer


@dataclass
class Question:
    """A text, and several ways in which it might go on."""

    context: str
    endings: list[str]
    label: int  # index of the true ending
    where: str  # file and line, for messages


def read_questions(path: Path) -> list[Question]:
    """Read JSON lines in HellaSwag's format: `ctx`, `endings`, `label`; other fields are ignored.

    Zellers et al. 2019 have four endings; here two or more are accepted. Raises UserError, with the
    line's number, for any other line.
    """
    lines = read_text(path, "the questions").split("\n")
    questions = [
        parse_question(line, f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not questions:
        raise UserError(f"{path} holds no questions")
    return questions


def parse_question(line: str, where: str) -> Question:
    """
    >>> parse_question('{"ctx": "1 + 1 is", "endings": ["2.", "3."], "label": 0}', "").endings
    ['2.', '3.']
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not JSON: {e}") from None
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a JSON object with ctx, endings and label")
    for name in ("ctx", "endings", "label"):
        if name not in entry:
            raise UserError(f"{where} has no {name!r}: each line needs ctx, endings and label")
    context, endings, label = entry["ctx"], entry["endings"], entry["label"]
    if not isinstance(context, str) or not context:
        raise UserError(f"{where}: ctx is not a text of at least one character")
    if not isinstance(endings, list) or len(endings) < 2:
        raise UserError(f"{where}: endings is not a list of at least two texts")
    if not all(isinstance(ending, str) and ending.strip() for ending in endings):
        raise UserError(f"{where}: an ending is not a text, or is empty")
    if isinstance(label, str) and label.isdecimal() and len(label) < 10:  # as the hub has it
        label = int(label)
    if type(label) is not int or not 0 <= label < len(endings):
        raise UserError(
            f"{where}: label is {label!r}, not the number of an ending (0 to {len(endings) - 1})"
        )
    return Question(context, endings, label, where)


def encode_endings(
    question: Question, tokenizer: Tokenizer, block_size: int
) -> list[tuple[list[int], int]]:
    """For each ending: the ids of context and ending, and how many of them are the ending's.

    The two are encoded separately, the ending with a space in front. What does not fit into
    block_size + 1 ids (the last one is never an input) is cut off at the left. Raises UserError for
    a character that is not in the vocabulary, for a context or an ending that is no token, and for
    an ending that alone is too long.
    """
    rows = []
    try:
        context = tokenizer.encode(question.context)
        if not context:  # SentencePiece's models of others drop blanks
            raise UserError("ctx is no token of this vocabulary")
        for ending in question.endings:
            ids = tokenizer.encode(" " + ending.lstrip())
            if not ids:
                raise UserError("an ending is no token of this vocabulary")
            if len(ids) > block_size:
                raise UserError(
                    f"an ending has {len(ids)} tokens, the model's context holds {block_size}"
                )
            rows.append(((context + ids)[-(block_size + 1) :], len(ids)))
    except UserError as e:
        raise UserError(f"{question.where}: {e}") from None
    return rows


def multiple_choice(
    model,
    tokenizer: Tokenizer,
    questions: list[Question],
    runtime: Runtime,
    batch_size: int,
    track: Track = iter,
) -> dict:
    """The share of questions whose true ending is the likeliest, in three ways.

    accuracy: by log-likelihood; accuracy_per_token and accuracy_per_byte: by its mean over the
    ending's tokens, or over its bytes of UTF-8, which does not depend on the tokenizer. Also
    `questions`, their number; `chance`, the accuracy of guessing; and `error`, the standard error
    of accuracy. The processes share the questions; all return the same.
    """
    share = questions[runtime.rank :: runtime.world_size]
    block_size = model.config.block_size
    encoded = [encode_endings(question, tokenizer, block_size) for question in share]
    rows = [row for group in encoded for row in group]
    scores = iter(ending_scores(model, rows, runtime, batch_size, track))
    right = torch.zeros(4, dtype=torch.float64)
    for question, group in zip(share, encoded):
        total = np.array([next(scores)[0] for _ in group])
        tokens = np.array([n for _, n in group])
        size = np.array([len(e.encode("utf-8", "replace")) for e in question.endings])
        for k, values in enumerate((total, total / tokens, total / size)):
            right[k] += int(values.argmax()) == question.label
        right[3] += 1 / len(group)
    shares = runtime.sum(right.to(runtime.float64_device)) / len(questions)
    plain, per_token, per_byte, chance = shares.tolist()
    return {
        "questions": len(questions),
        "accuracy": plain,
        "accuracy_per_token": per_token,
        "accuracy_per_byte": per_byte,
        "chance": chance,
        "error": math.sqrt(plain * (1 - plain) / len(questions)),
    }
