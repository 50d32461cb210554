"""The short way to text: n answers to one prompt, side by side."""

from collections.abc import Iterator, Sequence

import torch

from bonsai.engine.cuda.steps import CapturedSteps
from bonsai.engine.prefill_decode import check_request, decode_one_token, new_cache, prefill
from bonsai.engine.sampling import Row, SamplingParams, sample_next
from bonsai.system.errors import UserError, end_if_told

# What to do when the context holds block_size tokens and another one is wanted:
ON_FULL = {
    "slide": "recompute the last block_size tokens for every token, as nanoGPT does: exact, slow",
    "refill": "keep the last half of the context, compute it once and go on cached: fast",
    "stop": "end the text",
}


def generate(
    model: torch.nn.Module,
    prompt: Sequence[int],
    params: SamplingParams,
    n: int = 1,
    use_cache: bool = True,
    on_full: str = "slide",
    first_row: int = 0,
    dtype: torch.dtype | None = None,
    captured: CapturedSteps | None = None,
) -> Iterator[list[int | None]]:
    """Continue `prompt` n times; yields the new token of each of the n rows, step by step.

    A row that has drawn a stop token yields None from then on (the stop token itself is not
    yielded); the iterator ends after max_new_tokens steps, or after the step in which the last row
    has stopped. Of a prompt longer than the context the last block_size tokens are used.

    use_cache: False computes the whole context anew for every token; the tokens are the same.
    on_full: a key of ON_FULL.
    first_row: number of the first row. Row 7 is the same with (n=8) and with (n=1, first_row=7).
    dtype: of the cache; default: autocast's if that is on, else the weights'.
    captured: CapturedSteps of this model with at least n rows, long enough for prompt and answer.
        Then one-token steps are queued on the device ahead of the tokens that are read. It brings
        its own cache, so only one iterator at a time may use it.

    The model computes in eval mode without gradients, and returns to its mode when the iterator
    ends. Raises UserError for an empty prompt, ids outside the vocabulary and unknown values.
    """
    check_request(prompt, params, n, model.config.vocab_size)
    if on_full not in ON_FULL:
        raise UserError(f"on_full={on_full!r} is not one of {', '.join(ON_FULL)}")
    # a generator: the checks above run at the call, but `steps` only when a token is asked for
    return steps(model, prompt, params, n, use_cache, on_full, first_row, dtype, captured)


@torch.no_grad()  # with inference_mode autocast would convert every weight anew for each token
def steps(model, prompt, params, n, use_cache, on_full, first_row, dtype, captured):
    """The loop behind `generate`, whose arguments have been checked."""
    device = next(model.parameters()).device
    block_size = model.config.block_size
    begin, end = len(prompt), len(prompt) + params.max_new_tokens
    if on_full == "stop":
        end = min(end, max(begin, block_size) + 1)  # one can be drawn from a full context
    rows = [Row(prompt, params, first_row + i) for i in range(n)]
    ids = torch.empty((n, end), dtype=torch.int64, device=device)  # prompt and answer of each row
    ids[:, :begin] = torch.tensor(prompt, device=device)
    first = max(0, begin - block_size)  # to draw token t the model sees ids[:, first:t]
    captured = captured if use_cache else None
    cache = ahead = None  # ahead: an iterator over the tokens of queued steps
    alive = [True] * n
    was_training = model.training
    model.eval()
    try:
        for t in range(begin, end):
            end_if_told()
            if t - first > block_size:  # the context is full: drop its first tokens
                keep = block_size if on_full == "slide" else max(1, block_size // 2)
                step = model.context_step  # a model of patches drops whole patches, at least enough
                first += min(-(-(t - keep - first) // step) * step, t - 1 - first)
                if cache is not None:
                    cache.reset()  # every token has a new position now
                if ahead is not None:  # tokens of queued steps are not in ids yet
                    ahead, answers = None, [row.tokens for row in rows]
                    ids[:, begin:t] = torch.tensor(answers, device=device)
            logits = None
            if t == begin:  # the prompt
                length = min(block_size, end) if use_cache else 0
                logits, cache = read_prompt(model, ids[:1, first:t], n, length, dtype, captured)
            elif cache is None or cache.used == 0:  # no cache, or an empty one: the whole context
                logits = prefill(model, ids[:, first:t], cache)
            elif captured is None:
                logits = decode_one_token(model, ids[:, t - 1 : t], cache)
            if logits is not None:
                ids[:, t] = sample_next(logits, rows)
                tokens = ids[:, t].tolist()  # the only wait for the device
            else:  # captured steps compute logits and draw tokens on the device
                if ahead is None:
                    steps_left = min(end, first + block_size + 1) - t
                    ahead = captured.run(rows, t - 1 - first, steps_left)
                tokens = next(ahead)
            for row, token in zip(rows, tokens):
                row.tokens.append(token)
            alive = [a and token not in params.stop_tokens for a, token in zip(alive, tokens)]
            yield [token if a else None for a, token in zip(alive, tokens)]
            if not any(alive):
                return
    finally:
        model.train(was_training)


def read_prompt(model, idx, n, length, dtype, captured):
    """Compute the prompt idx (1, T) once for n rows, which are still equal: logits (n, V), and the
    cache of all rows, the captured steps' or a new one. length: of that; 0: without a cache."""
    if captured is not None:
        captured.cache.reset()
        first = captured.cache.view(0, 1)
        logits = prefill(model, idx, first)
        for row in range(n):
            captured.cache.copy_row(row, first, 0, idx.size(1))
        return logits.expand(n, -1), captured.cache.view(0, n)
    cache = new_cache(model, 1, length, dtype) if length else None
    logits = prefill(model, idx, cache)
    if cache is not None:
        cache.expand(n)
    return logits.expand(n, -1), cache
