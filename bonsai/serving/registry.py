"""The models of a server by name, and the tokenizers that the page can show."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bonsai import tokenizers
from bonsai.engine import Engine
from bonsai.engine.text import find_tokenizer, start_tokens
from bonsai.files.textfile import whole_text
from bonsai.models.kernels import to_device
from bonsai.models.loading import load_model
from bonsai.system.devices import DTYPES
from bonsai.system.errors import UserError
from bonsai.system.paths import resolve_path
from bonsai.system.runtime import Runtime
from bonsai.tokenizers import Tokenizer
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.templates import find_template


@dataclass(eq=False)
class Served:
    """A model with its engine, tokenizer and chat template."""

    name: str
    model: torch.nn.Module
    tokenizer: Tokenizer
    engine: Engine
    created: int  # when its weights were written, in seconds since 1970
    chat: ChatTemplate | None = None
    ends: tuple[int, ...] = ()  # tokens that end an answer in a chat
    note: str = ""  # why the model does not chat, although its source has a template
    _bytes: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._anchor = self.tokenizer.decode_bytes([0])
        self.start = start_tokens(self.tokenizer)  # what an empty prompt becomes
        # Bytes of the longest token. It bounds the text that fits into a context, so a longer text
        # need not be encoded
        self.longest = max(len(self.token_bytes(i)) for i in range(self.tokenizer.vocab_size))

    @property
    def context(self) -> int:
        return self.model.config.block_size

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text. At the beginning of a text they may differ:
        SentencePiece drops its first space."""
        data = self._bytes.get(token)
        if data is None:
            data = self.tokenizer.decode_bytes([0, token])[len(self._anchor) :]
            self._bytes[token] = data
        return data

    def token_text(self, token: int) -> str:
        """A token's text. If its bytes are not whole characters: bytes:\\xf0, as OpenAI does."""
        data = self.token_bytes(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in data)


def load_served(
    name: str,
    source: str,
    runtime: Runtime,
    max_batch: int,
    template: str = "",
    **options,
) -> Served:
    """Load a model and its tokenizer for serving. Raises UserError.

    source: like load_model's init_from. template: the chat template to use instead of the model's,
    like find_template's name. options: Engine's, such as quantize. Steps are captured as graphs if
    the runtime supports that, unless `capture` is False.
    """
    options.setdefault("capture", runtime.captures)
    loaded = load_model(source, "", {"dropout": 0.0})
    if loaded.newer:
        print(loaded.newer, flush=True)
    tokenizer, _ = find_tokenizer(loaded)
    if template:
        loaded.chat_template = find_template(template, tokenizer).to_dict()
    model = to_device(loaded.model, runtime.device).eval()
    engine = Engine(
        model,
        max_batch=max_batch,
        dtype=DTYPES[runtime.dtype],
        compile=runtime.compile,
        **options,
    )
    note = "" if template else loaded.chat_note
    ends = loaded.answer_ends(tokenizer)
    return Served(name, model, tokenizer, engine, written(source), loaded.chat, ends, note)


def written(source: str) -> int:
    """When a checkpoint, or a folder's newest one, was written; 0 if there is none."""
    path = Path(source)
    files = path.glob("*.pt") if path.is_dir() else [path] if path.is_file() else []
    return int(max((file.stat().st_mtime for file in files), default=0))


def is_there(model: str) -> bool:
    """Whether the path in `name=PATH` exists."""
    path = model.partition("=")[2].strip()
    return bool(path) and resolve_path(path).exists()


def parse_models(text: str) -> dict[str, str]:
    """`a=out-a,b=out-b/ckpt.pt` -> {name: path}. Raises UserError.

    >>> parse_models("small=out-small,big=out-big/last.pt")
    {'small': 'out-small', 'big': 'out-big/last.pt'}
    """
    models: dict[str, str] = {}
    parts = re.split(r",(?=[^,=]*=)", text)
    # a comma without `name=` behind it is part of a path if that path exists
    parts = [p for whole in parts for p in ([whole] if is_there(whole) else whole.split(","))]
    for part in filter(None, map(str.strip, parts)):
        name, equals, path = (word.strip() for word in part.partition("="))
        if not equals or not name or not path:
            raise UserError(f"models={text}: {part!r} is not name=PATH")
        whole_text(name, "models: a name")  # answers contain it, so it must be valid UTF-8
        if name in models:
            raise UserError(f"models={text}: the name {name} is given twice")
        models[name] = path
    return models


def usable_tokenizers(names: Iterable[str] | None = None) -> dict[str, Tokenizer]:
    """The general tokenizers that work here. GPT-2's and GPT-4's are downloaded the first time."""
    usable = {}
    for name in tokenizers.names() if names is None else names:
        try:
            tokenizer = tokenizers.get(name)
            tokenizer.encode("a")
        except UserError:
            continue
        usable[name] = tokenizer
    return usable
