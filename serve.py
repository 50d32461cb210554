"""A playground and an OpenAI-compatible API for trained models.

    python serve.py --out_dir=out-shakespeare-char        # then open http://127.0.0.1:8000
    python serve.py --models=small=out-small,big=out-big  # several, by name
    python serve.py --api_key=SECRET --host=0.0.0.0       # for others on your network

Any client of OpenAI's API works with base_url="http://127.0.0.1:8000/v1"; docs/serving.md has
examples and the limits. Ctrl-C ends the server.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import re
import socket
import sys
from pathlib import Path

from bonsai import ROOT
from bonsai.files.textfile import text_or_file
from bonsai.models.loading import find_source
from bonsai.planning.memory import memory_errors
from bonsai.serving.api.plans import Limits
from bonsai.serving.app import Server, create_app
from bonsai.serving.guard import GuardLimits, parse_origins
from bonsai.serving.http import listen, serve
from bonsai.serving.registry import load_served, parse_models
from bonsai.system.errors import UserError, run
from bonsai.system.runtime import leave_a_core, setup_inference
from configurator import Config, configure, refuse_idle, resolve_path

# -----------------------------------------------------------------------------
# the models
init_from = "resume"  # resume: the run in out_dir; gpt2*; or a checkpoint, or a folder [path]
out_dir = "out"  # the run to serve; ignored if init_from is not resume [path]
models = ""  # several instead of one, by name: small=out-small,big=out-big/ckpt.pt [paths]
template = ""  # of chats, if not the model's own: plain, tokens, chatml, a file or folder [path]
# the address
host = "127.0.0.1"  # only this machine; 0.0.0.0: others too, then set an api_key
port = 8000  # 0: any free one [0 to 65535]
hosts = ""  # other names by which clients call the server: gpu.example.org,gpu [list]
origins = ""  # other sites whose pages may ask: https://a.org,http://localhost:3000; *: all [list]
api_key = ""  # what clients must send; FILE:key.txt reads it from a file; empty: anything will do
# limits
max_batch = 16  # texts that a model writes side by side [>= 1]
max_queue = 256  # texts that may wait; more are answered 429 [>= 1]
max_rows = 128  # prompts x n of one request [>= 1]
max_tokens = 4096  # the most tokens a request may ask for [>= 1]
truncate = False  # cut the beginning off prompts longer than the context; False: refuse them
max_body_mb = 4.0  # the largest body of a request, in MiB [> 0]
max_connections = 1024  # at once; more are answered 503 [>= 1]
# system
device = "auto"  # cpu, cuda, cuda:1, mps; auto: the first of cuda, mps, cpu that is there
dtype = "auto"  # auto: float32; bfloat16 on CUDA and for int8 [auto | float32 | bfloat16 | float16]
quantize = ""  # int8: weights in 8 bits, faster at small batches; empty: as they are [int8]
prefix_cache = 2048  # tokens of prompts to remember, for prompts that begin alike [>= 0]
lookup = 0  # while only one text is written: tokens to guess ahead from the text so far [>= 0]
draft = 0  # while only one text is written: tokens to guess ahead with int8 weights [>= 0]
cuda_graphs = True  # on a GPU replay one-token steps from CUDA graphs; False: launch each kernel
compile = False  # torch.compile the one-token step instead: slow to start
threads = 0  # of a model on the CPU; 0: one fewer than there are cores [>= 0]
# -----------------------------------------------------------------------------


def chosen_models(c: Config) -> dict[str, str]:
    """Name of each model -> what load_model takes."""
    if c.models:
        return {name: str(resolve_path(path)) for name, path in parse_models(c.models).items()}
    source = find_source(c.init_from, c.out_dir)
    name = Path(source).stem if Path(source).is_file() else Path(source).name
    return {re.sub(r"[^\w.:-]+", "-", name) or "model": source}


def read_key(text: str) -> str:
    """The key; from a file if `text` names one, because others can see a command line."""
    key = text_or_file(text, "the api_key")
    if key == text:
        return key
    if not key.strip():
        raise UserError(f"api_key={text}: the file is empty")
    return key.strip()


def main(**settings) -> int:
    c = configure(globals(), settings=settings)
    refuse_idle(c, (c.models, "init_from out_dir template", "with --models"))
    origins = parse_origins(c.origins)
    key = read_key(c.api_key)
    chosen = chosen_models(c)
    runtime = setup_inference(c.device, c.dtype, c.compile, c.quantize)
    if runtime.device.type == "cpu":
        leave_a_core(c.threads)
    print(runtime.summary)
    sock = listen(c.host, c.port)  # before the models, so that a taken port is known at once
    address, bound = sock.getsockname()[:2]
    loopback = address in ("127.0.0.1", "::1")
    names = [c.host, *c.hosts.split(",")] + ([] if loopback else [socket.gethostname()])
    served = {}
    names_of_options = ("template", "quantize", "prefix_cache", "lookup", "draft")
    options = {name: c[name] for name in names_of_options}
    options["capture"] = c.cuda_graphs and runtime.captures
    smaller = f"choose a smaller --max_batch (now {c.max_batch}) or --quantize=int8"
    for name, source in chosen.items():
        with memory_errors(lambda name=name: f" with model {name}: {smaller}"):
            m = served[name] = load_served(name, source, runtime, c.max_batch, **options)
        size = f"{m.model.num_params() / 1e6:.2f}M parameters, context {m.context}"
        print(f"model {name}: {source}, {size}{', chat' if m.chat else ''}")
        if m.note:
            print(f"model {name} does not chat: {m.note}; --template=plain or another gives it one")
        for guess in ("lookup", "draft"):
            if c[guess] and not getattr(m.engine, guess):
                print(
                    f"model {name}: --{guess} is without effect: its cache is not one for guesses"
                )
    if not loopback and not key:
        print(
            f"warning: {c.host} can be reached from other machines and no api_key is set",
            file=sys.stderr,
        )
    web = ROOT / "web"
    server = Server(
        served,
        max_waiting=c.max_queue,
        limits=Limits(min(c.max_rows, c.max_queue), c.max_tokens, c.truncate),
        guard=GuardLimits(body_bytes=int(c.max_body_mb * 2**20)),
        api_key=key,
        hosts=tuple(names),
        any_address=not loopback,
        origins=origins,
        run_folders=tuple(dict.fromkeys((Path.cwd(), ROOT))),
        web=web if (web / "index.html").exists() else None,
    )
    shown = f"[{address}]" if ":" in address else address
    print(f"serving on http://{shown}:{bound} (Ctrl-C ends)", flush=True)
    serve(create_app(server), server.worker, sock, c.max_connections)
    if server.worker.died is not None:
        raise UserError("the engine has died of what stands above: start the server again")
    print("stopped")
    return 0


if __name__ == "__main__":
    run(main)
