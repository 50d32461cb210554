"""bonsai/evaluation/likelihood.py: scores by brute force, of any shape, and what is computed."""

import copy
import random
from itertools import chain, pairwise

import pytest
import torch
from helpers.evaluated import BLOCK, questions, runtime, score_one, tiny
from helpers.tiny_data import CHARS

from bonsai.engine import SamplingParams, generate
from bonsai.evaluation.choices import encode_endings
from bonsai.evaluation.likelihood import ending_scores, in_batches
from bonsai.models.kernels import to_device
from bonsai.tokenizers import CharTokenizer
from model import GPT, GPTConfig


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_are_those_of_brute_force(batch_size):
    model, coder = tiny().eval(), CharTokenizer(CHARS)
    rows = [row for q in questions(6) for row in encode_endings(q, coder, BLOCK)]
    assert max(len(ids) for ids, _ in rows) == BLOCK + 1  # contexts are cut
    want = [score_one(model, ids, n) for ids, n in rows]
    scores = ending_scores(model, rows, runtime(), batch_size)
    assert [score for score, _ in scores] == pytest.approx(want, abs=1e-4)


def test_an_ending_may_be_what_the_model_would_write():
    model = tiny().eval()
    params = SamplingParams(3, temperature=0)
    (first, *rest) = [token for (token,) in generate(model, [1, 2], params)]
    ids = [1, 2, first, *rest]
    other = [*ids[:-1], (ids[-1] + 1) % model.config.vocab_size]
    rows = [(ids, 3), (ids, 1), (other, 3), (other, 1), ([*other, 0][:4], 2)]
    greedy = [best for _, best in ending_scores(model, rows, runtime(), 2)]
    assert greedy == [True, True, False, False, True]


def test_no_ids_are_certain():
    rows = [([1, 2], 0), ([1, 2, 3], 2), ([1], 0)]
    model = tiny().eval()
    first, second, third = ending_scores(model, rows, runtime(), 3)
    assert first == third == (0.0, True)
    assert second[0] == pytest.approx(score_one(model, *rows[1]), abs=1e-4)


MODERN = dict(norm="rmsnorm", position="rope", activation="relu2", qk_norm=True, tie_head=False)
SHAPES = {
    "classic": {},
    "no positions": dict(position="none"),
    "sinusoids": dict(position="sinusoidal", norm_placement="post"),
    "modern": MODERN | dict(n_kv_head=1, logit_softcap=15.0),
    "windows": MODERN | dict(attention_window=3, window_pattern="LD"),
    "a window of one": dict(attention_window=1),
    "tables": MODERN | dict(value_embeddings=True, bigram_embeddings=2, residual_lambdas=True),
}


def texts(rng: random.Random, vocab_size: int) -> list[tuple[list[int], int]]:
    """Rows of ids, up to the context's length, most of them with others that begin alike."""
    rows = []
    for _ in range(12):
        context = rng.choices(range(vocab_size), k=rng.choice([1, 1, 2, 7, 12, BLOCK]))
        for _ in range(rng.choice([1, 2, 4])):
            n = rng.choice([0, 1, 1, 2, 5])
            ending = rng.choices(range(vocab_size), k=n)
            rows.append(((context + ending)[-(BLOCK + 1) :], n))
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_gpt(shape):
    """Through the cache or not, in batches of any size: what brute force gives."""
    torch.manual_seed(1)
    sizes = dict(n_layer=2, n_head=2, n_embd=32, block_size=BLOCK, vocab_size=40)
    model = GPT(GPTConfig(**sizes, **SHAPES[shape])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 4)
    rows = texts(random.Random(shape), 40)
    want = [score_one(model, ids, n) for ids, n in rows]
    for batch_size in (1, 5, 64):
        for made in (model, to_device(copy.deepcopy(model), torch.device("cpu"))):
            got = ending_scores(made, rows, runtime(), batch_size)
            assert [score for score, _ in got] == pytest.approx(want, abs=1e-4)


def test_contexts_are_read_once_and_logits_are_of_endings():
    model, seen = tiny().eval(), []
    rows = [([*range(1, 11), i, j], 2) for i in (1, 2) for j in (3, 4)]  # one context, four endings
    rows += [([*range(2, 12), i], 1) for i in range(3)]
    forward, head = GPT.forward, GPT.head

    def read(self, idx, *args, **more):
        seen.append(idx.numel())
        return forward(self, idx, *args, **more)

    def predicted(self, x):
        seen.append(x.size(0) * x.size(1))
        return head(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bonsai.evaluation.likelihood.difference", lambda model: "")
        patch.setattr(GPT, "forward", read)
        patch.setattr(GPT, "head", predicted)
        ending_scores(model, rows, runtime(), 8)
    # two contexts without their last tokens, one prediction each; seven endings
    assert seen == [2 * 9, 2, 7 * 2, 7 * 2]


def test_an_edited_model_is_read_whole():
    """What a token depends on may not be in the cache: here a shift by one token."""

    class Shifted(GPT):
        def forward(self, idx, targets=None, cache=None, return_logits=True):
            return super().forward(idx.roll(1, 1), targets, cache, return_logits)

    torch.manual_seed(0)
    edited = Shifted(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=BLOCK, vocab_size=40))
    hooked = tiny(40).eval()
    hooked.transformer.h[0].register_forward_hook(lambda block, inputs, x: x + x.roll(1, 1))
    rows = [(row, n) for row, n in texts(random.Random(2), 40) if n]
    for model in (edited.eval(), hooked):
        want = []
        for ids, n in rows:
            logits = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))[0][0, -n:]
            want.append(logits.log_softmax(-1).gather(1, torch.tensor(ids[-n:])[:, None]).sum())
        rows_alone = [ending_scores(model, [row], runtime(), 1)[0][0] for row in rows]
        assert rows_alone == pytest.approx([x.item() for x in want], abs=1e-4)


def test_batches_fit_the_context_and_keep_contexts_together():
    rng = random.Random(0)
    rows = texts(rng, 40)
    for batch_size, room in ((1, BLOCK), (4, BLOCK), (100, BLOCK), (5, None)):
        batches = in_batches(rows, batch_size, room)
        assert sorted(chain(*batches)) == [r for r, (_, n) in enumerate(rows) if n]
        contexts = [tuple(rows[r][0][: -rows[r][1]]) for batch in batches for r in batch]
        changes = sum(a != b for a, b in pairwise(contexts))
        assert changes == len(set(contexts)) - 1
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            longest = max(len(rows[r][0]) - rows[r][1] for r in batch)
            assert room is None or longest - 1 + max(rows[r][1] for r in batch) <= room
    assert len(in_batches(rows, 100, BLOCK)) < len(in_batches(rows, 4, BLOCK))
