"""Many streaming clients on a server: errors, throughput, memory, and whether texts are equal.

    python benchmarks/serve.py --out_dir=out-quickstart --seconds=10          # a look
    python benchmarks/serve.py --out_dir=out-shakespeare-char --out=results   # two minutes

First the engine alone is timed in this process, with the same requests and as many at a time. Then
serve.py is started on a free port; each client sends a request, reads the stream to its end and
sends the next. Afterwards some of the requests are repeated alone: in float32 the tokens must be
the same. If one differs, both candidates are scored again from the whole context; a difference is
excused if their scores are closer than 1e-3 (in nats, noise included). The server ends with this
program, even if that is killed.
"""

import asyncio
import itertools
import json
import math
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import psutil
import torch

from benchmarks.harness import Results
from benchmarks.processes import supervised
from bonsai import ROOT
from bonsai.engine import Engine, SamplingParams, generate
from bonsai.engine.sampling import Row, candidates, noise, step_key
from bonsai.models.loading import find_source
from bonsai.serving.registry import load_served, written
from bonsai.system.errors import UserError, interrupts_of_python, run
from bonsai.system.runtime import Runtime, leave_a_core, setup
from configurator import Config, configure

# -----------------------------------------------------------------------------
out_dir = "out"  # the run to serve [path]
clients = 64  # streams at a time [>= 1]
seconds = 120.0  # of load on the server [> 0]
engine_seconds = 20.0  # in which the engine is timed alone [> 0]
tokens = 100  # the most of each answer [>= 1]
checks = 64  # requests that are repeated alone [>= 0]
max_batch = 16  # rows at once, of engine and server [>= 1]
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "float32"  # only float32 guarantees equal tokens [auto | float32 | bfloat16 | float16]
quantize = ""  # int8: weights in 8 bits [int8]
compile = False  # compile the one-token step
threads = 0  # of engine and server on a CPU; 0: one less than the cores, as in serve.py [>= 0]
seed = 1337  # of prompts and requests [>= 0]
out = ""  # folder for serve.json and .txt; rows in it are not measured again [path]
force = False  # measure them again
# -----------------------------------------------------------------------------

PREFIX_CACHE = 2048  # serve.py's default
TIE = 1e-3  # nats; tokens whose scores are closer may be exchanged by rounding


COLUMNS = (
    ("threads", "threads", "d"), ("clients", "clients", "d"), ("s", "seconds", ".0f"),
    ("requests", "requests", "d"), ("errors", "errors", "d"), ("engine tok/s", "engine", ",.0f"),
    ("server tok/s", "server", ",.0f"), ("share", "share", ".0%"),
    ("first token s", "first", ".2f"), ("95%", "first95", ".2f"), ("MiB", "memory", ",.0f"),
    ("growth MiB", "growth", "+.1f"), ("checked", "checked", "d"), ("equal", "equal", "d"),
    ("within 1e-3", "excused", "d"), ("different", "different", "d"),
)  # fmt: skip


@dataclass
class Ask:
    """A request for at most `tokens` tokens, and its answer."""

    prompt: list[int]
    seed: int
    tokens: int
    raw: list[bytes] = field(default_factory=list)
    first: float | None = None  # seconds to the first chunk
    error: str = ""

    def body(self, stream: bool) -> bytes:
        sampling = {"max_tokens": self.tokens, "temperature": 0.8, "seed": self.seed}
        asked = {"model": "m", "prompt": self.prompt, **sampling, "stream": stream}
        return json.dumps({**asked, "return_token_ids": True}).encode()

    def params(self, served) -> SamplingParams:
        """The server's sampling settings for this request."""
        eot = served.tokenizer.eot
        stop = () if eot is None else (eot,)
        limit = served.vocab_size
        return SamplingParams(self.tokens, 0.8, seed=self.seed, stop_tokens=stop, vocab_limit=limit)

    def answer(self) -> list[int]:
        """The token ids of the stream. Sets `error` if it is not complete."""
        text = b"".join(self.raw).decode()
        if not self.error and ("200 OK" not in text[:20] or "data: [DONE]" not in text):
            self.error = text[:300]
        chunks = re.findall(r"^data: (\{.*\})\r?$", text, re.M)
        return [
            i for c in chunks for choice in json.loads(c)["choices"] for i in choice["token_ids"]
        ]


def questions(c: Config, served) -> Iterator[Ask]:
    """Endless requests: prompts are 256 pieces of 4 to 48 tokens from a text that the model writes,
    used in turn, each time with another seed."""
    params = SamplingParams(400, seed=c.seed, vocab_limit=served.vocab_size)
    text = [row[0] for row in generate(served.model, served.start, params, on_full="refill")]
    rng, context = random.Random(c.seed), served.context
    lengths = [rng.randint(4, min(48, context // 2)) for _ in range(256)]
    prompts = [text[a : a + n] for n in lengths for a in [rng.randrange(len(text) - n)]]
    numbers = itertools.count()
    return (Ask(prompts[n % len(prompts)], c.seed + n, c.tokens) for n in numbers)


def time_engine(c: Config, served) -> float:
    """Tokens per second of the engine alone, which always has `clients` requests."""
    engine: Engine = served.engine
    asks, drawn, begun = questions(c, served), 0, None
    end = time.monotonic() + c.engine_seconds * 1.25
    # a single step may take longer than all of that time
    while (now := time.monotonic()) < end or begun is None or not drawn:
        if begun is None and now > end - c.engine_seconds:  # the first fifth warms up
            begun, drawn = now, 0
        while len(engine.waiting) + len(engine.running) < c.clients:
            ask = next(asks)
            engine.submit(ask.prompt, ask.params(served))
        drawn += sum(event.token is not None for event in engine.step())
    rate = drawn / (time.monotonic() - begun)
    for request in [*engine.waiting, *engine.running]:
        engine.cancel(request)
    while engine.busy:
        engine.step()
    return rate


# ---- the server and its clients ----


def server_command(c: Config, source: str) -> list[str]:
    command = [sys.executable, "-u", str(ROOT / "serve.py"), f"--models=m={source}", "--port=0"]
    given = ("max_batch", "device", "dtype", "quantize", "compile", "threads")
    command += [f"--{name}={c[name]}" for name in given]
    return [*command, f"--max_queue={2 * c.clients + 16}"]


def the_server(supervisor: int) -> psutil.Process:
    """The server's process, a child of supervise.py's."""
    children = psutil.Process(supervisor).children()
    return next(p for p in children if str(ROOT / "serve.py") in p.cmdline())


def port_of(server: subprocess.Popen) -> int:
    """The port that the server listens on; waits until it does."""
    for line in server.stdout:
        if match := re.search(r"serving on http://127.0.0.1:(\d+)", line):
            return int(match[1])
    raise UserError(f"the server did not start: {' '.join(server.args)}")


def post(port: int, ask: Ask) -> list[int]:
    """Send a request alone, without a stream; returns the token ids."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        ask.body(stream=False),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)["choices"][0]["token_ids"]


def drawn_so_far(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        return float(re.search(r"generated_tokens_total{.*} (\S+)", response.read().decode())[1])


async def client(port: int, asks: Iterator[Ask], end: float, asked: list[Ask]) -> None:
    """Send requests one after another until `end`. Answers are kept as bytes and parsed later, so
    that the clients take little time."""
    while time.monotonic() < end:
        asked.append(ask := next(asks))
        body, begun = ask.body(stream=True), time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            while data := await reader.read(2**16):
                if ask.first is None and b"data: " in data:
                    ask.first = time.monotonic() - begun
                ask.raw.append(data)
            writer.close()
        except OSError as e:
            ask.error = repr(e)


async def load(
    c: Config, port: int, process: psutil.Process, asks: Iterator[Ask]
) -> tuple[list[Ask], float, list[int]]:
    """Run all clients. Returns the requests, the tokens per second after the first tenth of the
    time, and the server's resident bytes, once per second."""
    asked, memory, end = [], [], time.monotonic() + c.seconds
    running = [asyncio.ensure_future(client(port, asks, end, asked)) for _ in range(c.clients)]
    await asyncio.sleep(c.seconds / 10)
    mark, drawn = time.monotonic(), await asyncio.to_thread(drawn_so_far, port)
    while not memory or time.monotonic() < end:
        memory.append(process.memory_info().rss)
        await asyncio.sleep(min(1.0, max(0.01, end - time.monotonic())))
    drawn = await asyncio.to_thread(drawn_so_far, port) - drawn
    rate = drawn / (time.monotonic() - mark)
    await asyncio.gather(*running)
    return asked, rate, memory


# ---- the same request alone ----


@torch.no_grad()
def margin(served, ask: Ask, common: list[int], a: int | None, b: int | None) -> float:
    """The difference between the scores of tokens a and b (None: the end of text), computed from
    the whole context."""
    params = ask.params(served)
    row = Row(ask.prompt, params, 0, common)
    where = next(served.model.parameters()).device
    context = torch.tensor([[*ask.prompt, *common]], device=where)
    logits, _ = candidates(served.model(context)[0][:, -1], replace(params, top_k=0))
    places = torch.arange(logits.size(-1), device=where)
    key = torch.tensor([[step_key(row.key, len(common))]], device=where)
    score = (logits + noise(key, places))[0]
    ids = [served.tokenizer.eot if token is None else token for token in (a, b)]
    return abs(float(score[ids[0]] - score[ids[1]]))


def compare(c: Config, port: int, served, asked: list[Ask]) -> dict:
    """Repeat some requests alone; returns how many answers were equal, excused or different."""
    whole = [ask for ask in asked if not ask.error]
    counts = {"checked": 0, "equal": 0, "excused": 0, "different": 0}
    for ask in random.Random(c.seed).sample(whole, min(c.checks, len(whole))):
        crowd, alone = ask.answer(), post(port, ask)
        counts["checked"] += 1
        if crowd == alone:
            counts["equal"] += 1
            continue
        at = next((i for i, (x, y) in enumerate(zip(crowd, alone)) if x != y), None)
        at = min(len(crowd), len(alone)) if at is None else at
        pair = [tokens[at] if at < len(tokens) else None for tokens in (crowd, alone)]
        apart = margin(served, ask, crowd[:at], *pair)
        counts["excused" if apart < TIE else "different"] += 1
        number = ask.seed - c.seed
        print(f"request {number} differs from token {at} on: {pair}, {apart:.2e} apart")
    return counts


def measure(c: Config, source: str, runtime: Runtime) -> dict:
    """Measure a row of the table, without its settings."""
    options = {"quantize": c.quantize, "prefix_cache": PREFIX_CACHE}
    served = load_served("m", source, runtime, c.max_batch, **options)
    row, asks = {"engine": time_engine(c, served)}, questions(c, served)
    command = server_command(c, source)
    with supervised(math.inf, command, stdout=subprocess.PIPE, text=True) as process:
        port = port_of(process)
        crowd = load(c, port, the_server(process.pid), asks)
        with interrupts_of_python():
            asked, row["server"], memory = asyncio.run(crowd)
        row |= {"requests": len(asked), "tokens": sum(len(ask.answer()) for ask in asked)}
        errors = [ask.error for ask in asked if ask.error]
        row |= {"errors": len(errors), **compare(c, port, served, asked)}
    row["share"] = row["server"] / row["engine"]
    row["memory"] = memory[-1] / 2**20
    row["growth"] = (memory[-1] - memory[len(memory) // 4]) / 2**20
    if firsts := sorted(ask.first for ask in asked if ask.first is not None):
        row["first"] = firsts[len(firsts) // 2]
        row["first95"] = firsts[int(len(firsts) * 0.95)]
    for error in sorted(set(errors))[:5]:
        print(f"error: {error}", file=sys.stderr)
    return row


def main(**settings) -> int:
    c = configure(globals(), settings=settings)
    runtime = setup(c.device, c.dtype, c.compile)
    key = {"threads": leave_a_core(c.threads), "clients": c.clients, "seconds": c.seconds}
    source = find_source("resume", c.out_dir)
    names = ("engine_seconds", "tokens", "checks", "max_batch", "quantize", "seed")
    about = {"model": source, "written": written(source), **{name: c[name] for name in names}}
    about |= {"dtype": runtime.dtype, "compile": runtime.compile}
    results = Results("serve", c.out, runtime.device, COLUMNS, again=c.force, **about)
    row = results.measure(key, lambda: measure(c, source, runtime))
    results.finish()
    exact = c.dtype == "float32" and not c.quantize
    return 1 if row["errors"] or (row["different"] and exact) else 0


if __name__ == "__main__":
    run(main)
