"""Models whose answers are made, not learnt: weights written by hand, so that what the server says
of them is the same on every processor, by a wide margin."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from bonsai.models.table import describe_model
from bonsai.runs.checkpoint import save_checkpoint
from bonsai.tokenizers import ByteTokenizer, Tokenizer
from model import GPT, GPTConfig, rope_angles, rotate

# Characters of one to four bytes, a doubled letter before a stop string, a text with an end.
TEXT = "One day a cat said aaab to me. Zoë saw 漢字 and 😀👍 too; we ate 5 figs, quick as jam."
EOT = 256  # the byte tokenizer's

CODE = 16  # channels of a token's code
NEAREST = 8  # the largest product of two codes; of a code with itself: CODE
HEAD = 32  # channels of a head
LOGIT = 12.0  # of the token that follows; all others have about 0: p = 0.998 of 257


def codes(vocab_size: int) -> torch.Tensor:
    """(V, CODE) of +1 and -1, as many of each: every token's own pattern."""
    generator, patterns = torch.Generator().manual_seed(0), torch.empty(0, CODE)
    while len(patterns) < vocab_size:
        code = torch.ones(CODE)
        code[torch.randperm(CODE, generator=generator)[: CODE // 2]] = -1
        if not len(patterns) or (patterns @ code).max() <= NEAREST:
            patterns = torch.cat((patterns, code[None]))
    return patterns


def endings(texts: Iterable[Sequence[int]], most: int) -> dict[tuple[int, ...], int]:
    """The token that follows, by the fewest tokens before it that leave no doubt, at most `most`.

    >>> endings([[1, 2, 1, 3]], 2)
    {(2,): 1, (2, 1): 3}
    """
    followers: dict[tuple[int, ...], set[int]] = {}
    for text in texts:
        for end in range(1, len(text)):
            for size in range(1, min(most, end) + 1):
                followers.setdefault(tuple(text[end - size : end]), set()).add(text[end])
    sure = {ending: min(after) for ending, after in followers.items() if len(after) == 1}
    return {ending: token for ending, token in sure.items() if ending[1:] not in sure}


@torch.no_grad()
def knowing(
    texts: Sequence[Sequence[int]], vocab_size: int, block_size: int = 160, lags: int = 4
) -> GPT:
    """A GPT that goes on with one of `texts` wherever its last tokens (at most `lags`) are of one,
    and holds all tokens for about equally likely elsewhere.

    The stream has a place for the codes of the last `lags` tokens, one channel per token of a text
    and one that is always 1. Head j of the first layer looks j tokens back and copies the code; a
    hidden unit of its MLP for each ending says what follows it. The second layer does nothing.
    """
    known, code = endings(texts, lags), codes(vocab_size)
    answers = sorted(set(known.values()))
    width = (CODE * lags + len(answers) + 1 + 7) // 8 * 8
    hidden = 4 * width
    assert len(known) <= hidden, f"{len(known)} endings, {hidden} hidden units"
    one, channel = width - 1, {token: CODE * lags + i for i, token in enumerate(answers)}
    fields = {"n_layer": 2, "n_head": lags, "head_size": HEAD, "n_embd": width}
    fields |= {"block_size": block_size, "vocab_size": vocab_size, "tie_head": False}
    model = GPT(GPTConfig(**fields, position="rope", activation="relu")).eval()
    for name, p in model.named_parameters():
        p.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)

    def norm(channels: int) -> float:
        """What a norm divides by where so many channels are +1 or -1."""
        return ((channels + 1) / width - 1 / width**2) ** 0.5

    block, attention = model.transformer.h[0], model.transformer.h[0].attn
    model.transformer.wte.weight[:, :CODE] = code
    model.transformer.wte.weight[:, one] = 1
    _, _, copied = attention.c_attn.weight.split(lags * HEAD)
    queries, keys, _ = attention.c_attn.bias.split(lags * HEAD)
    keys.fill_(1)
    for lag in range(lags):
        turn = rope_angles(torch.tensor([-lag]), HEAD, model.config.rope_base)
        begin, to = lag * HEAD, CODE * lag
        queries[begin : begin + HEAD] = rotate(torch.full((1, 1, 1, HEAD), 200.0), turn).flatten()
        if lag:  # the token's own code is there already
            copied[begin : begin + CODE, :CODE] = norm(CODE) * torch.eye(CODE)
            attention.c_proj.weight[to : to + CODE, begin : begin + CODE] = torch.eye(CODE)
    for unit, (ending, token) in enumerate(known.items()):
        wanted = torch.cat([code[seen] for seen in reversed(ending)])
        block.mlp.c_fc.weight[unit, : len(wanted)] = norm(CODE * lags) * wanted
        # one other token takes at least CODE - NEAREST from the product, which is then below 0
        block.mlp.c_fc.bias[unit] = (CODE - NEAREST) / 2 - len(wanted)
        block.mlp.c_proj.weight[channel[token], unit] = 100
    for token, place in channel.items():  # one large channel is sqrt(width) after the last norm
        model.lm_head.weight[token, place] = LOGIT / width**0.5
    model.lm_head.weight[:, one] = -0.01 * torch.arange(vocab_size)  # no two are equally likely
    return model


def save(out: Path, model: GPT, tokenizer: Tokenizer, **more) -> Path:
    """A checkpoint of a model in the folder `out`. more: further keys, such as chat_template."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        **describe_model(model, "gpt"),
        "iter_num": 0,
        "best_val_loss": torch.tensor(0.0),
        "config": {},
        "tokenizer": tokenizer.to_dict(),
    }
    save_checkpoint(out, {**state, **more})
    return out


def knows_text(out: Path, block_size: int = 160, **more) -> Path:
    """A checkpoint of a byte model that knows TEXT, and that an end of text follows."""
    ids = [EOT, *TEXT.encode(), EOT]
    return save(out, knowing([ids], EOT + 1, block_size), ByteTokenizer(), **more)


def knows_nothing(out: Path, block_size: int = 160, **more) -> Path:
    """A checkpoint of a byte model as it is before training; its texts have no end."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": EOT + 1, "bias": False}
    return save(out, GPT(GPTConfig(**shape, block_size=block_size)), ByteTokenizer(), **more)
