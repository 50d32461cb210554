"""A conversation with a model, turn by turn: what it is asked next, and its answer as text."""

from collections.abc import Iterable, Iterator

from bonsai.engine.textstream import TextStream
from bonsai.system.errors import UserError
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.chat import ChatTemplate


class Conversation:
    """The messages so far.

        prompt = conversation.ask("Hi")
        for text in conversation.answer(tokens):  # tokens: what the model makes of the prompt
            print(text, end="")

    system: what it begins with, if anything. context: tokens that the model sees. answer: tokens
    that an answer may take, for which there is room, unless that is more than half of the context.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        context: int,
        answer: int,
        system: str = "",
    ):
        self.template, self.tokenizer = template, tokenizer
        self.context, self.most = context, max(context - answer, context // 2)
        self.system = [("system", system)] if system else []
        self.messages: list[tuple[str, str]] = []
        template.encode(tokenizer, self.system)  # UserError where it has no place for a system

    def ask(self, text: str) -> list[int]:
        """The prompt (tokens) for the user's next message. If there is no room for all messages,
        the oldest are dropped. Raises UserError, and does not keep the message, if it is longer
        than the context or has characters that the vocabulary lacks."""
        answered = self.messages[: len(self.messages) // 2 * 2]  # no answer may have begun
        messages = [*answered, ("user", text)]
        prompt = self.template.encode(self.tokenizer, [*self.system, *messages])
        while len(prompt) > self.most and len(messages) > 1:
            messages = messages[2:]  # what was asked, and its answer
            prompt = self.template.encode(self.tokenizer, [*self.system, *messages])
        if len(prompt) > self.context:
            raise UserError(
                f"the message makes a prompt of {len(prompt)} tokens, and the model sees "
                f"{self.context}: say it shorter"
            )
        self.messages = messages
        return prompt

    def answer(self, tokens: Iterable[int | None]) -> Iterator[str]:
        """Yield the text of an answer as its tokens arrive, up to the string that ends it, or to a
        None. What was yielded by then is kept as the answer, even if the iterator is closed."""
        said: list[str] = []
        stops = [self.template.stop] if self.template.stop else []
        stream = TextStream(lambda token: self.tokenizer.decode_bytes([token]), stops)
        try:
            for token in tokens:
                if token is None:
                    break
                said.append(stream.push(token))
                yield said[-1]
                if stream.stopped:
                    break
            said.append(stream.finish())
            yield said[-1]
        finally:
            self.messages.append(("assistant", "".join(said)))
