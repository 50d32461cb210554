"""Conversations as training data: rows of whole ones, as tokens and a mask.

The mask is 1 where the assistant speaks; the rest is context, which has no loss.
"""

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from bonsai.data.corpus import Encoded
from bonsai.data.encoders import Text
from bonsai.data.messages import Message
from bonsai.data.meta import dtype_of
from bonsai.data.packing import best_fit
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.chat import ChatTemplate

Tokens = tuple[list[int], list[int]]  # ids, and for each 1 if it has a loss


class Counts(NamedTuple):
    """What became of a conversation."""

    tokens: int  # of the whole
    kept: int  # in rows
    learnt: int  # of these, with a loss
    parts: int  # in which it stands; 0: nowhere
    cut: bool  # whether an answer, or the end of one, did not fit


class ConversationEncoder:
    """Conversations to rows of tokens, by a template; `summary` says what became of them.

    Each stands whole in one row, after others or at its beginning; what is left of a row is filled
    up with the end of text, which has no loss. One that is longer than a row is cut in front of
    questions, into as few parts as it takes. Each part begins as a conversation does, with the
    system message: so it is what the model is asked when its context is full and the oldest
    messages are dropped (bonsai/engine/conversation.py). An answer for which a row has no room
    behind its question ends where the row does.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, row_length: int):
        self.tokenizer, self.template, self.row_length = tokenizer, template, row_length
        self.dtype = dtype_of(tokenizer.vocab_size)
        # Of each conversation, and the rows of each batch. Threads append to them.
        self.counts: list[Counts] = []
        self.rows: list[int] = []

    def __call__(self, batch: Sequence[Text]) -> Encoded:
        parts: list[Tokens] = []
        size = 0
        for data, _ in batch:
            messages = json.loads(data)
            parts += self._parts(messages)
            size += sum(len(content.encode("utf-8")) for _, content, *_ in messages)
        rows = best_fit([len(ids) for ids, _ in parts], self.row_length)
        all_ids = np.full((len(rows), self.row_length), self.tokenizer.eot or 0, self.dtype)
        all_masks = np.zeros((len(rows), self.row_length), np.uint8)
        for i, numbers in enumerate(rows):
            start = 0
            for ids, mask in (parts[n] for n in numbers):
                here = slice(start, start + len(ids))
                all_ids[i, here], all_masks[i, here] = ids, mask
                start += len(ids)
        self.rows.append(len(rows))
        return Encoded(all_ids.ravel(), size, all_masks.ravel())

    def _parts(self, messages: list[Message]) -> list[Tokens]:
        """A conversation in parts that fit into a row and have an answer: one, as a rule."""
        room = self.row_length
        whole = self._encode(messages)
        parts = [whole] if len(whole[0]) <= room else map(self._encode, self._cut(messages))
        kept = [(ids[:room], mask[:room]) for ids, mask in parts]
        # what the first token of a row is cannot be learnt: nothing stands before it
        kept = [(ids, mask) for ids, mask in kept if any(mask[1:])]
        learnt = sum(sum(mask) for _, mask in kept)
        lengths = len(whole[0]), sum(len(ids) for ids, _ in kept)
        self.counts.append(Counts(*lengths, learnt, len(kept), learnt < sum(whole[1])))
        return kept

    def _encode(self, messages: Sequence[Message]) -> Tokens:
        """Messages as tokens, from the beginning of a conversation to its end."""
        eot = self.tokenizer.eot
        ids, mask = self.template.encode_conversation(self.tokenizer, messages)
        if eot is not None and eot not in (ids[0], ids[-1]):  # what ends every document
            ids, mask = [*ids, eot], [*mask, 0]
        return ids, mask

    def _cut(self, messages: list[Message]) -> list[list[Message]]:
        """The messages of a long conversation in parts for as many rows. Each has what is said in
        front of the first question, by the system, and as many questions with their answers as fit,
        or one that does not."""
        if self.template.system is not None and messages[0][0] != "system":
            messages = [("system", self.template.system), *messages]
        speakers = ("user", "assistant")
        first = next(i for i, (role, *_) in enumerate(messages) if role in speakers)
        parts: list[list[Message]] = []
        size, turn, begun = 0, [], self._size(messages[:first])
        for message, following in zip_longest(messages[first:], messages[first + 1 :]):
            turn.append(message)
            if message[0] != "assistant" or (following and following[0] == "assistant"):
                continue
            alone = self._size([*messages[:first], *turn])
            if parts and size + alone - begun <= self.row_length:
                parts[-1] += turn
                size += alone - begun
            else:
                parts.append([*messages[:first], *turn])
                size = alone
            turn = []
        return parts

    def _size(self, messages: list[Message]) -> int:
        return len(self.template.encode_conversation(self.tokenizer, messages)[0])

    @property
    def summary(self) -> str:
        whole = sorted(count.tokens for count in self.counts)
        kept = sum(count.kept for count in self.counts)
        learnt = sum(count.learnt for count in self.counts)
        rows = sum(self.rows)
        lines = [
            f"{len(whole):,} conversations of {whole[0]:,} to {whole[-1]:,} tokens, half of them "
            f"up to {whole[len(whole) // 2]:,}; {learnt / max(kept, 1):.0%} of the tokens are the "
            "assistant's and have a loss",
            f"they fill {rows:,} row{'s' * (rows != 1)} of {self.row_length:,} tokens, "
            f"{1 - kept / max(rows * self.row_length, 1):.0%} of which is padding",
        ]
        if divided := [count.parts for count in self.counts if count.parts > 1]:
            lines.append(
                f"{len(divided):,} longer than a row {'were' if len(divided) > 1 else 'was'} cut "
                f"in front of questions, into {sum(divided):,} parts"
            )
        if cut := sum(count.cut and count.parts > 0 for count in self.counts):
            lines.append(f"{cut:,} lost answers, or ends of answers, that fit into no row")
        if out := sum(count.parts == 0 for count in self.counts):
            lines.append(f"{out:,} left out: their questions leave no room for an answer")
        return "\n".join(lines)
