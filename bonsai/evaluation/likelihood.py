"""The log-likelihood of the ends of texts, by which multiple choice, CORE and tasks are scored.

The endings of a question share its context, which a GPT reads once and keeps in a cache. Then it
reads the endings alone: of a question with four of them a third of the tokens, and of one with
solved examples in front, or with answers of one token, a quarter. Logits, the largest tensor, are
computed after these tokens only.
"""

import torch
from torch.nn import functional as F

from bonsai.models.edits import difference
from bonsai.system.progress import Track
from bonsai.system.runtime import Runtime
from model import GPT, dtype_of_products

Row = tuple[list[int], int]  # the ids of a text, and how many of them, at its end, are the ending


@torch.no_grad()
def ending_scores(
    model,
    rows: list[Row],
    runtime: Runtime,
    batch_size: int,
    track: Track = iter,
) -> list[tuple[float, bool]]:
    """For each row: the log-likelihood in nats of its ending, given the ids before it, of which
    there must be one or more, and whether each id of it is the likeliest in its place; of no ids:
    0 and True.

    Processes may have different rows, but all must call this. track: wraps the iteration over the
    batches, as many in each process; if it stops early, the other rows have 0 and False.
    """
    was_training, scores = model.training, [(0.0, not n) for _, n in rows]
    model.eval()
    # an edited GPT may compute something else with a cache
    caches = type(model) is GPT and not difference(model)
    room = model.config.block_size if caches else None
    batches = in_batches(rows, batch_size, room)
    logits_of = endings_logits if caches else whole_logits
    for i in track(range(most_of_all(len(batches), runtime))):
        if i >= len(batches):
            continue  # another process has more
        with runtime.autocast():
            logits, y = logits_of(model, [rows[r] for r in batches[i]], runtime.device)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none"
        )
        likeliest = ((logits.argmax(dim=-1) == y) | (y < 0)).all(dim=1)
        sums = loss.view_as(y).sum(dim=1)
        for r, value, best in zip(batches[i], sums.tolist(), likeliest.tolist()):
            scores[r] = -value, best
    model.train(was_training)
    return scores


def in_batches(rows: list[Row], batch_size: int, room: int | None) -> list[list[int]]:
    """The numbers of the rows that have an ending, in batches. Rows of one context are side by
    side; the longest come first, so that a lack of memory is found at once.

    room: how many tokens the longest context of a batch and its longest ending, without the token
    that is never an input, may have together; None: any number.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for r, (ids, n) in enumerate(rows):
        if n:
            groups.setdefault(tuple(ids[:-n]), []).append(r)

    def lengths(context: tuple[int, ...]) -> tuple[int, int]:
        return len(context), max(rows[r][1] for r in groups[context])

    batches: list[list[int]] = []
    longest = most = 0
    for context in sorted(groups, key=lengths, reverse=True):
        for r in groups[context]:
            most = max(most, rows[r][1])
            full = not batches or len(batches[-1]) == batch_size
            if full or (room is not None and longest - 1 + most > room):
                batches.append([])
                longest, most = len(context), rows[r][1]
            batches[-1].append(r)
    return batches


def endings_logits(
    model: GPT, rows: list[Row], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, N, V) at the ids of the B endings, and these ids (B, N), after the shorter ones
    -1. Each context is read once; its last token is read with the endings, to predict their first
    ids."""
    contexts = {tuple(ids[:-n]): len(ids) - n - 1 for ids, n in rows}  # and what is read at first
    before, most = max(contexts.values()), max(n for _, n in rows)
    dtype = dtype_of_products(model.lm_head.weight)
    cache = model.new_cache(len(contexts), before + most, dtype, device)
    if before:
        model(padded([context[:-1] for context in contexts], device), cache=cache)
    cache.lengths = list(contexts.values())
    if len(contexts) < len(rows):
        known, cache = cache, model.new_cache(len(rows), before + most, dtype, device)
        place = {context: i for i, context in enumerate(contexts)}
        for row, (ids, n) in enumerate(rows):
            cache.copy_row(row, known, place[tuple(ids[:-n])], len(ids) - n - 1)
    y = padded([ids[-n:] for ids, n in rows], device, -1)
    logits, _ = model(padded([ids[-n - 1 : -1] for ids, n in rows], device), y, cache)
    return logits, y


def whole_logits(model, rows: list[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, T, V) at the ids after each row's first, and these ids (B, T), -1 where they are
    not the ending's: for any model."""
    x = padded([ids[:-1] for ids, _ in rows], device)  # padding is after what is scored
    y = padded([[-1] * (len(ids) - n - 1) + ids[-n:] for ids, n in rows], device, -1)
    return model(x, y)[0], y


def padded(rows: list, device: torch.device, value: int = 0) -> torch.Tensor:
    """Lists of ids as one tensor (B, T), with `value` after the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows]).to(device)


def most_of_all(count: int, runtime: Runtime) -> int:
    """The largest of the processes' counts."""
    if runtime.world_size == 1:
        return count
    counts = torch.zeros(runtime.world_size, dtype=torch.int64, device=runtime.device)
    counts[runtime.rank] = count
    return int(runtime.sum(counts).max())
