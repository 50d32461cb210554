"""Text from a trained model.

    python sample.py --out_dir=out-shakespeare-char                   # ten texts
    python sample.py --start="To be" --temperature=0 --num_samples=1  # the likeliest one
    python sample.py --start=FILE:prompt.txt > samples.txt            # faster: drawn side by side
    python sample.py --interactive                                    # type a text, read on
    python sample.py --out_dir=out-chat --chat                        # talk to a model that can
    python sample.py --init_from=gpt2-xl --start="The answer is"      # or a checkpoint, or a folder
    python sample.py --prompts=questions.jsonl --out=answers.jsonl    # many prompts at once

Samples go to stdout, each followed by a line of 15 dashes; remarks go to stderr. On a terminal the
samples are drawn one after another and appear token by token; for a file or pipe they are drawn
side by side. In float32 the texts are the same, except where two tokens are so close that rounding
decides.

--prompts reads a JSON object per line, such as {"prompt": "To be"}, or for a model that chats
{"messages": [{"role": "user", "content": "Hi"}]}. An object may have its own n (texts to draw),
max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty and seed. For each text one
line is written, in the order of the prompts: the object with text (only the continuation), row
(which of the n; a prompt that comes again gets further ones), tokens, and finish: 'stop' at an end
of text or of an answer, or 'length'.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import codecs
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import replace
from itertools import chain
from typing import TextIO

import torch

from bonsai.engine import Engine, SamplingParams, generate, prepare
from bonsai.engine.conversation import Conversation
from bonsai.engine.cuda.steps import CapturedSteps
from bonsai.engine.prompt_file import answer_jobs, read_jobs
from bonsai.engine.text import encode_start, find_tokenizer
from bonsai.files.textfile import check_writable, text_or_file, whole_text
from bonsai.models.kernels import to_device
from bonsai.models.loading import Loaded, find_source, load_model
from bonsai.system.devices import DTYPES
from bonsai.system.errors import UserError, end_if_told, heeded, run
from bonsai.system.progress import ProgressBar
from bonsai.system.runtime import Runtime, setup_inference
from bonsai.tokenizers import Tokenizer, UnknownText
from bonsai.tokenizers.chat import ChatTemplate
from bonsai.tokenizers.templates import find_template
from configurator import Config, configure, refuse_idle, resolve_path

# -----------------------------------------------------------------------------
# the model
init_from = "resume"  # resume: the run in out_dir; gpt2*; or a checkpoint, or a folder [path]
out_dir = "out"  # the run to sample from; ignored if init_from is not resume [path]
# the text
start = "\n"  # what to continue; "<|endoftext|>" is that token; FILE:prompt.txt reads a file
prompts = ""  # a JSONL file of prompts, continued side by side; see above [path]
out = ""  # a file for the answers to --prompts, also JSONL; empty: stdout [path]
num_samples = 10  # texts to draw; per prompt of --prompts 1, unless given here or there [>= 1]
max_new_tokens = 500  # tokens in each, after the start [>= 0]
temperature = 0.8  # below 1.0 less random, above more; 0: always the likeliest token [>= 0]
top_k = 200  # draw from the top_k likeliest tokens; 0: from all [>= 0]
top_p = 1.0  # draw from the likeliest with this probability together; 1.0: from all [> 0, <= 1]
min_p = 0.0  # draw from tokens with at least this share of the likeliest one's probability [0 to 1]
repetition_penalty = 1.0  # above 1.0, tokens that occurred before become less likely [> 0]
seed = 1337  # the same seed gives the same texts [>= 0]
interactive = False  # continue the lines you type; Ctrl-C ends a text, Ctrl-D the program
chat = False  # answer the lines you type, with a model that was trained on conversations
system = ""  # with --chat: the system's message, with which the conversation begins
template = ""  # of chats, if not the model's own: plain, tokens, chatml, a file or folder [path]
on_full = "slide"  # when the context is full; slide: as nanoGPT, slow [slide | refill | stop]
# system
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # auto: float32; bfloat16 on CUDA and for int8 [auto | float32 | bfloat16 | float16]
quantize = ""  # int8: weights of a quarter of the size, faster, a little less exact [int8]
batch_size = 16  # prompts of --prompts continued at once [>= 1]
cuda_graphs = True  # on a GPU replay one-token steps from CUDA graphs; False: launch each kernel
compile = False  # torch.compile the model instead: slow to start, for long texts on a GPU
kv_cache = True  # keep keys and values; False: compute them anew for every token, same text
# -----------------------------------------------------------------------------

PREFIX_TOKENS = 4096  # of prompts whose keys and values are kept for prompts that begin alike
CACHE_BYTES = 2**30  # limit for the caches of samples that are drawn side by side, together


def default_start(tokenizer: Tokenizer, text: str) -> str:
    """`text` or, if the vocabulary cannot spell it, '': encode_start says what that begins with."""
    try:
        tokenizer.encode(text)
    except UnknownText:
        say("there is no line break in the vocabulary: texts begin with another token; see --start")
        return ""
    return text


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids, piece by piece as they come; incomplete UTF-8 characters are held back."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in ids:
        yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


# A byte-level model that knows little yet would ring the bell and switch character sets. So on a
# terminal control characters, except tab and newline, are shown as their Unicode pictures.
PICTURES = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {0x7F: 0x2421}
PICTURES |= {c: 0xFFFD for c in range(0x80, 0xA0)}


def show(texts: Iterable[str]) -> None:
    """Print pieces of text as they come, and a newline."""
    printable = PICTURES if sys.stdout.isatty() else {}
    for text in texts:
        print(text.translate(printable), end="", flush=True)
    print(flush=True)


def rows_at_once(model, length: int) -> int:
    """How many samples of `length` tokens to draw side by side."""
    return max(1, min(32, CACHE_BYTES // (length * model.new_cache(1, 1).nbytes)))


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(**settings) -> None:
    c = configure(globals(), settings=settings, say=say)  # stdout is for the samples
    # the user's mistakes first: loading takes a while
    refuse_idle(
        c,
        (c.prompts, "start interactive chat on_full kv_cache", "with --prompts"),
        (not c.prompts, "batch_size", "without --prompts"),
        (c.interactive, "start num_samples", "with --interactive"),
        (c.chat, "start num_samples", "with --chat"),
        (not c.chat, "system", "without --chat"),
        (not c.chat and not c.prompts, "template", "without --chat or --prompts"),
    )
    params = SamplingParams(
        c.max_new_tokens,
        c.temperature,
        c.top_k,
        c.top_p,
        c.seed,
        min_p=c.min_p,
        repetition_penalty=c.repetition_penalty,
    )
    typed = c.interactive or c.chat
    text = "" if typed or c.prompts else text_or_file(c.start, "the start")
    jobs = read_jobs(resolve_path(c.prompts), params, say) if c.prompts else []
    if c.out and not c.prompts:
        raise UserError("--out is a file for the answers to --prompts; > FILE takes samples")
    if c.out:
        check_writable(c.out, "the answers", [c.prompts, c.init_from])
    runtime = setup_inference(c.device, c.dtype, c.compile, c.quantize)
    say(runtime.summary)
    loaded, model, tokenizer = load(c, runtime)
    template, ends = loaded.chat, loaded.answer_ends(tokenizer)
    if template is None and (c.chat or any("messages" in job for job in jobs)):
        raise UserError(
            f"{loaded.chat_note or 'the model has no chat template'}: name one (--template=plain, "
            "or another), train the model with config/finetune_chat.py, or continue texts with "
            "--interactive"
        )
    dtype = DTYPES[runtime.dtype]
    params = replace(params, vocab_limit=tokenizer.vocab_size)  # not the padding of the vocabulary
    graphs = c.cuda_graphs and runtime.captures
    if c.prompts:
        engine = Engine(
            model,
            c.batch_size,
            dtype=dtype,
            quantize=c.quantize,
            compile=runtime.compile,
            prefix_cache=PREFIX_TOKENS,
            capture=graphs,
        )
        n = c.num_samples if "num_samples" in c.given else 1
        return write_answers(engine, tokenizer, template, jobs, params, c.out, n, ends)
    alone = typed or sys.stdout.isatty()  # texts are written one after another
    batch = 1 if alone else c.num_samples
    model = prepare(model, dtype, c.quantize, pack=not runtime.compile, batch=batch)
    if runtime.compile:
        model.compile()

    at_once, length = 1, model.config.block_size
    if not typed:
        if "start" not in c.given:
            text = default_start(tokenizer, text)
        prompt = encode_start(tokenizer, text)
        shown = prompt if text else []
        wanted = len(prompt) + c.max_new_tokens
        if c.on_full == "slide" and c.kv_cache and length < wanted:
            say(f"beyond the context of {length} tokens each is slow: --on_full=refill is fast")
        length = min(length, wanted)
        at_once = 1 if alone else min(c.num_samples, rows_at_once(model, length))
    captured = CapturedSteps.of(model, at_once, length) if graphs and c.kv_cache else None

    def continuations(prompt: list[int], params: SamplingParams, first: int = 0, n: int = 1):
        """Texts first ... first + n - 1 of a prompt, token by token."""
        options = {"use_cache": c.kv_cache, "on_full": c.on_full, "captured": captured}
        return generate(model, prompt, params, n, first_row=first, **options)

    if c.chat:
        params = replace(params, stop_tokens=ends)
        context = model.config.block_size
        talk = Conversation(template, tokenizer, context, c.max_new_tokens, c.system)
        say("say something; Ctrl-C ends an answer, Ctrl-D the conversation")
        return typed_lines(lambda line, turn: reply(talk, line, params, turn, continuations))
    if c.interactive:
        if tokenizer.eot is not None:
            params = replace(params, stop_tokens=(tokenizer.eot,))
        say("type the beginning of a text; Ctrl-C ends a continuation, Ctrl-D the program")
        return typed_lines(lambda line, turn: go_on(tokenizer, line, params, turn, continuations))
    if alone:
        for sample in range(c.num_samples):
            steps = continuations(prompt, params, sample)
            show(pieces(tokenizer, chain(shown, (token for (token,) in steps))))
            print("-" * 15)
        return
    for first in range(0, c.num_samples, at_once):
        rows = [[*shown] for _ in range(first, min(first + at_once, c.num_samples))]
        for tokens in continuations(prompt, params, first, len(rows)):
            for row, token in zip(rows, tokens):
                row.append(token)
        for row in rows:
            show(pieces(tokenizer, row))
            print("-" * 15)


def load(c: Config, runtime: Runtime) -> tuple[Loaded, torch.nn.Module, Tokenizer]:
    """What was loaded, the model on its device and its tokenizer; says which they are."""
    loaded = load_model(find_source(c.init_from, c.out_dir), overrides={"dropout": 0.0})
    if not c.quantize:  # in the dtype of computation: on a GPU this takes half of the memory
        loaded.model.to(DTYPES[runtime.dtype])
    model = to_device(loaded.model, runtime.device)
    tokenizer, where = find_tokenizer(loaded)
    if loaded.newer:
        say(loaded.newer)
    say(f"model: {loaded.source}, {model.num_params() / 1e6:.2f}M parameters; tokenizer: {where}")
    if c.template:
        loaded.chat_template = find_template(c.template, tokenizer).to_dict()
    return loaded, model, tokenizer


def is_utf8(target: TextIO) -> bool:
    """Whether any character can be written to this stream as it is."""
    encoding = getattr(target, "encoding", None)  # a text in memory has none
    return not encoding or codecs.lookup(encoding).name == "utf-8"


def write_answers(
    engine: Engine,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    jobs: list[dict],
    params: SamplingParams,
    out: str,
    n: int,
    ends: Sequence[int],
) -> None:
    """Continue all jobs side by side; their lines in order, each as soon as those before it.

    out: the file for the lines; '': stdout. n: texts of a job that does not say how many. ends: the
    tokens that end an answer.
    """
    total = sum(job.get("n", n) for job in jobs)
    with ExitStack() as stack:
        target = sys.stdout
        stack.enter_context(redirect_stdout(sys.stderr))  # progress
        progress = stack.enter_context(ProgressBar(total, " texts", "sampling"))
        answers = answer_jobs(engine, tokenizer, jobs, params, n, template, progress.advance, ends)
        if out:
            target = stack.enter_context(open(out, "w", encoding="utf-8"))
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=not is_utf8(target)), file=target, flush=True)


def typed_lines(answer: Callable[[str, int], None]) -> None:
    """Answer what the user types, a line at a time. answer: takes the line and its number."""
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() editing and history; not on Windows)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # for whole_text to say what is wrong
    turn = 0
    end_if_told()
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            heeded()
            print()
            return
        try:
            answer(whole_text(line, "the line"), turn)
        except KeyboardInterrupt:
            print()
        except UserError as e:  # such as a character that the model does not know
            say(f"error: {e}")
        heeded()  # a Ctrl-C ended this answer, not the program
        turn += 1


def go_on(tokenizer: Tokenizer, line: str, params: SamplingParams, turn: int, steps_of) -> None:
    """Continue a line up to the end of the text. steps_of: `continuations` in main."""
    steps = steps_of(encode_start(tokenizer, line), params, turn)
    show(pieces(tokenizer, (token for (token,) in steps if token is not None)))


def reply(
    conversation: Conversation, line: str, params: SamplingParams, turn: int, steps_of
) -> None:
    """Answer a line as a message of the conversation. steps_of: `continuations` in main."""
    if line.strip():  # a blank line is no message
        steps = steps_of(conversation.ask(line), params, turn)
        show(conversation.answer(token for (token,) in steps))


if __name__ == "__main__":
    run(main)
