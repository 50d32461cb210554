"""What the tests of the server share: tiny models that know a text, and the server as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from conftest import ROOT, environment

# Characters of one to four bytes, a doubled letter before a stop string, a text with an end.
TEXT = "One day a cat said aaab to me. Zoë saw 漢字 and 😀👍 too; we ate 5 figs, quick as jam."
EOT = 256  # the byte tokenizer's


def memorise(
    out: Path, text: str = TEXT, steps: int = 2000, block_size: int = 160, **fields
) -> Path:
    """A checkpoint of a byte model that has learnt one text and that an end of text follows."""
    import torch

    from bonsai.checkpoint import save_checkpoint
    from bonsai.models import describe_model
    from model import GPT, GPTConfig

    torch.manual_seed(0)
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 257, "bias": False}
    model = GPT(GPTConfig(**{**settings, "block_size": block_size, **fields}))
    ids = [*text.encode(), EOT]
    stream = torch.tensor(ids * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    rng, T = np.random.default_rng(0), min(block_size, 96)
    for step in range(steps):
        begins = rng.integers(len(ids), size=8)
        begins[:2] = len(ids) - 1  # the end of the text before it
        x = torch.stack([stream[b : b + T] for b in begins])
        y = torch.stack([stream[b + 1 : b + T + 1] for b in begins])
        y[2:, :3] = -1  # too little to know where in the text this is
        loss = model(x, y)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49 and loss.item() < 0.05:
            wanted, start = stream[None, : len(ids)], stream[None, :7]
            if torch.equal(model.generate(start, len(ids) - 7, temperature=0), wanted):
                break
    out.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        **describe_model(model, "gpt"),
        "iter_num": steps,
        "best_val_loss": torch.tensor(loss.item()),
        "config": {},
        "tokenizer": {"type": "byte"},
    }
    save_checkpoint(out, state)
    return out


class ServerProcess:
    """serve.py in a process of its own."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path):
        self.process, self.url, self.log = process, url, log
        self.ended = False  # as it should
        self.http = httpx.Client(base_url=url, timeout=60)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"bonsai_{name}")]
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Until no row waits or runs."""
        end = time.monotonic() + seconds
        while self.metric("rows_running") or self.metric("rows_waiting"):
            assert time.monotonic() < end, self.http.get("/metrics").text
            time.sleep(0.05)


@contextmanager
def server(cwd: Path, *options: str, env: dict[str, str] | None = None):
    """serve.py on a free port, in `cwd`; its output in cwd/serve.log."""
    log = cwd / "serve.log"
    command = [sys.executable, "-u", str(ROOT / "serve.py"), "--port=0", "--device=cpu", *options]
    with open(log, "wb") as f:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(**(env or {})), stdout=f, stderr=subprocess.STDOUT
        )
    try:
        url = None
        end = time.monotonic() + 120
        while url is None:
            text = log.read_text(encoding="utf-8")
            url = next((w for w in text.split() if w.startswith("http://")), None)
            assert process.poll() is None and time.monotonic() < end, text
            time.sleep(0.05)
        running = ServerProcess(process, url, log)
        while True:  # the socket listens before the server does
            try:
                assert running.http.get("/health").status_code == 200
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
        yield running
        assert running.ended or process.poll() is None, log.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def events(response: httpx.Response) -> list[dict]:
    """The chunks of a stream; the last line must be [DONE]."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: "), parse_constant=refuse) for line in lines[:-1]]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
