"""A chat template by what a user names: one of ours, a JSON or Jinja file, or a model's folder."""

import json

from bonsai.files.access import exists
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.system.paths import resolve_path
from bonsai.tokenizers.base import Tokenizer
from bonsai.tokenizers.chat import TEMPLATES, ChatTemplate, missing_tokens
from bonsai.tokenizers.hugging_face import read_chat
from bonsai.tokenizers.jinja import read_jinja


def find_template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of this name, or in this file or folder. Raises UserError for one that this
    tokenizer cannot write, or in which nothing ends an answer."""
    template = TEMPLATES.get(name) or read_template(name)
    if not template.roles["assistant"][1]:
        raise UserError(f"{name} ends no answer: the assistant's second string is empty")
    if missing := missing_tokens(template, tokenizer):
        raise UserError(
            f"the chat template has {missing[0]}, which is no special token of the tokenizer: "
            "choose another --template, or a tokenizer that has it (train_tokenizer.py takes "
            "--special_tokens)"
        )
    return template


def read_template(name: str) -> ChatTemplate:
    """The template in a file of JSON or Jinja, or of the model in a folder."""
    path = resolve_path(name)
    if path.is_dir():
        try:
            template = read_chat(path)
        except UserError as e:
            raise UserError(f"the chat template of {path} is not supported: {e}") from None
        if template is None:
            raise UserError(f"{path} has no chat template")
        return template
    if not exists(path):
        raise UserError(
            f"the chat template {name} is not one of {', '.join(TEMPLATES)}, and there is no such "
            "file or folder"
        )
    if path.suffix == ".gguf":
        raise UserError(f"{path} is a model, which --init_from= reads with its chat template")
    text = read_text(path, "the chat template")
    if path.suffix in (".jinja", ".j2"):
        try:
            return read_jinja(text)
        except UserError as e:
            more = "; its folder says what eos_token is: name that" if "eos_token" in text else ""
            raise UserError(f"the chat template {path} is not supported: {e}{more}") from None
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"the chat template {path} is not valid JSON: {e}") from None
    if isinstance(state, dict) and "chat_template" in state:  # a meta.json of data has it there
        state = state["chat_template"]
    if isinstance(state, str):
        raise UserError(f"{path} has a chat template in Jinja: name its folder")
    return ChatTemplate.from_dict(state)
