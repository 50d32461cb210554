"""Conversations as training data: their messages become tokens and a mask.

The mask is 1 where the assistant speaks; the rest is context, which has no loss.
"""

import json
from collections.abc import Sequence

import numpy as np

from bonsai.data.corpus import Encoded
from bonsai.data.encoders import Text
from bonsai.data.meta import dtype_of
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.chat import ChatTemplate


class ConversationEncoder:
    """Conversations to tokens, by a template; `summary` says what became of them."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self.tokenizer, self.template = tokenizer, template
        self.dtype = dtype_of(tokenizer.vocab_size)
        # Of each conversation: tokens, and how many of them have a loss. Threads append to it.
        self.counts: list[tuple[int, int]] = []

    def __call__(self, batch: Sequence[Text]) -> Encoded:
        eot = self.tokenizer.eot
        ids: list[int] = []
        mask: list[int] = []
        size = 0
        for data, _ in batch:
            messages = json.loads(data)
            tokens, learnt = self.template.encode_conversation(self.tokenizer, messages)
            if eot is not None and eot not in (tokens[0], tokens[-1]):  # what ends every document
                tokens, learnt = [*tokens, eot], [*learnt, 0]
            ids += tokens
            mask += learnt
            size += sum(len(content.encode("utf-8")) for _, content, *_ in messages)
            self.counts.append((len(tokens), sum(learnt)))
        return Encoded(np.asarray(ids, self.dtype), size, np.asarray(mask, np.uint8))

    @property
    def summary(self) -> str:
        lengths = sorted(length for length, _ in self.counts)
        learnt = sum(learnt for _, learnt in self.counts) / sum(lengths)
        return (
            f"{len(lengths):,} conversations of {lengths[0]:,} to {lengths[-1]:,} tokens, half of "
            f"them up to {lengths[len(lengths) // 2]:,}; {learnt:.0%} of the tokens are the "
            "assistant's and have a loss"
        )
