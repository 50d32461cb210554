"""The tokens of a text, coloured, for several tokenizers side by side.

python show_tokens.py --text="How long is a string?"
python show_tokens.py --file=train.py --tokenizers=gpt2,gpt4,tokenizer.json --html=tokens.html
echo "some text" | python show_tokens.py --ids
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import sys

from bonsai.files.access import write_whole
from bonsai.files.textfile import check_writable, decode_text, read_text
from bonsai.system.errors import UserError, run
from bonsai.system.paths import split_paths
from bonsai.tokenizers import get
from bonsai.tokenizers.view import html_page, terminal
from configurator import Config, configure, refuse_idle, resolve_path

text = ""  # the text; \n and \t stand for a line end and a tab [escapes]
file = ""  # a file with the text instead; with neither, standard input is read [path]
tokenizers = "gpt2,gpt4"  # names and files, as for data/custom/prepare.py [paths]
ids = False  # print the ids too
special = False  # read "<|endoftext|>" in the text as the special token
html = ""  # write a page to this file instead [path]
color: bool | str = "auto"  # auto: on a terminal [auto | on | off]


def the_text(c: Config) -> str:
    if c.text and c.file:
        raise UserError("give --text or --file, not both")
    if c.text:
        return c.text
    if not c.file:
        return decode_text(sys.stdin.buffer.read(), "standard input")
    return read_text(resolve_path(c.file))


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.html, "color ids", "with --html"))
    chosen = {name: get(name) for name in split_paths(c.tokenizers)}
    if not chosen:
        raise UserError("no tokenizer: name some with --tokenizers=gpt2,gpt4")
    shown = the_text(c)
    if c.html:
        page = html_page([shown], chosen, allow_special=c.special)
        check_writable(c.html, "the page", [c.file, *chosen])
        write_whole(c.html, page)
        print(f"wrote {c.html}")
        return
    coloured = sys.stdout.isatty() if c.color == "auto" else bool(c.color)
    print(terminal(shown, chosen, coloured, c.ids, c.special))


if __name__ == "__main__":
    run(main)
