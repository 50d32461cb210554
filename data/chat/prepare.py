"""Turn conversations into data for finetuning; only what the assistant says is learned.

python data/chat/prepare.py --input=chats.jsonl                # into data/chat
python data/chat/prepare.py --input='logs/*.jsonl.gz' --name=logs --tokenizer=my.json
python data/chat/prepare.py --hub=HuggingFaceTB/smol-smoltalk --name=smoltalk
python data/chat/prepare.py --input=chats.jsonl --block_size=256   # for a model with that context

Each row of a .jsonl or .parquet file is one conversation, in one of these forms:

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
{"prompt": "Hi", "completion": "Hello"}
{"instruction": "Translate to French", "input": "Hello", "output": "Bonjour"}

Whole conversations are packed into rows of block_size + 1 tokens, which training takes as they are.
"""

import functools
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line


from bonsai.data.advice import context_for, describe_prepared
from bonsai.data.conversations import ConversationEncoder
from bonsai.data.corpus import split_documents, write_encoded
from bonsai.data.messages import ROW_FIELDS, conversation_text
from bonsai.data.pieces import Options, Seen
from bonsai.data.sources import from_settings
from bonsai.data.writer import FIELDS, Writer, named_folder
from bonsai.system.errors import UserError, run
from bonsai.system.progress import ProgressBar
from bonsai.tokenizers import Tokenizer, get, names
from bonsai.tokenizers.chat import ChatTemplate, template_for
from bonsai.tokenizers.hugging_face import read_chat
from bonsai.tokenizers.templates import find_template
from configurator import Config, configure, refuse_idle, resolve_path

# what
input = ""  # files, folders or patterns, several between commas [paths]
on_error = "stop"  # skip: leave out damaged files, and rows that are no conversation [stop | skip]

# or a data set of the Hugging Face hub
hub = ""  # its name, such as HuggingFaceTB/smol-smoltalk
revision = "main"  # branch or commit
files = "*"  # pattern of the paths to take; default: those of the train split, if they say so
keep = False  # keep the downloaded files

# into what
name = "chat"  # of the data set: it is written to data/<name>/
out = ""  # folder to write to instead of data/<name>/ [path]
tokenizer = "gpt2"  # gpt2, gpt4, byte, a file of train_tokenizer.py, or a model's folder [path]
block_size = 0  # context of the model; 0: GPT-2's or, with another tokenizer, 256 [>= 0]
template = "auto"  # plain, tokens, chatml, a JSON file, or a model's folder; see readme.md [path]
val_fraction = 0.05  # share of the conversations that go to val, by a hash of the text [> 0, < 1]
shard_tokens = 0  # tokens per file: train_00000.bin, train_00001.bin, ...; 0: one train.bin [>= 0]

# how
workers = 0  # threads that encode; 0: one per core [>= 0]


def template_of(c: Config, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that the settings ask for: by default that of the model whose tokenizer it is,
    or else the safest."""
    if c.template != "auto":
        return find_template(c.template, tokenizer)
    folder = resolve_path(c.tokenizer)
    if c.tokenizer not in names() and folder.is_dir() and read_chat(folder) is not None:
        return find_template(c.tokenizer, tokenizer)
    return template_for(tokenizer)


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (not c.hub, "revision files keep", "without --hub"))
    start = time.time()
    folder = Path(c.out) if c.out else named_folder(c.name)
    path = resolve_path(c.tokenizer)
    chosen = get(path if path.is_file() else c.tokenizer)
    chat = template_of(c, chosen)  # loads the vocabulary: before a long download
    seen = Seen()
    text = functools.partial(conversation_text, chat)
    options = Options(on_error=c.on_error, row_text=text, row_fields=ROW_FIELDS)
    read, size = from_settings(c, folder, options, seen)
    print(f"{size / 1e6:,.2f} MB to read")

    model = str(path) if path.is_dir() and (path / "config.json").exists() else ""
    context = c.block_size or context_for(chosen.to_dict()["type"], model)
    row = context + 1  # its last token is only a target
    shard = c.shard_tokens and max(c.shard_tokens // row, 1) * row
    encode = ConversationEncoder(chosen, chat, row)
    with (
        Writer(
            folder,
            chosen,
            row_length=row,
            masks=True,
            chat_template=chat.to_dict(),
            shard_tokens=shard,
        ) as writer,
        ProgressBar(size) as progress,
    ):
        parts = split_documents(read, c.val_fraction, progress.advance, cut=False)
        write_encoded(writer, parts, encode, c.workers)
        if not sum(encode.rows):
            raise UserError(
                f"no conversation has an answer within block_size={context} tokens: set it to "
                "the context of your model"
            )
        meta = writer.finish()
    if c.hub and not c.keep:
        shutil.rmtree(folder / "downloads", ignore_errors=True)
    print("\n".join([*seen.lines(options), encode.summary]))
    fields = (*FIELDS, "chat_template")
    print(describe_prepared(meta, folder, time.time() - start, fields, model))


if __name__ == "__main__":
    run(main)
