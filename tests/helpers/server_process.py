"""What the tests of the server share: the server as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from helpers.programs import ROOT, environment


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

    def wait_for(self, name: str, seconds: float = 20) -> None:
        """Until a metric is not 0."""
        end = time.monotonic() + seconds
        while not self.metric(name):
            assert time.monotonic() < end, self.http.get("/metrics").text

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Until no row waits or runs."""
        end = time.monotonic() + seconds
        while self.metric("rows_running") or self.metric("rows_waiting"):
            assert time.monotonic() < end, self.http.get("/metrics").text
            time.sleep(0.05)


@contextmanager
def server(cwd: Path, *options: str, env: dict[str, str] | None = None, code: str = ""):
    """serve.py on a free port, in `cwd`; its output in cwd/serve.log. code: run in its place, with
    {path!r} for serve.py."""
    log, path = cwd / "serve.log", str(ROOT / "serve.py")
    program = ["-c", code.format(path=path)] if code else [path]
    command = [sys.executable, "-u", *program, "--port=0", "--device=cpu", *options]
    env = {"PYTHONPATH": str(ROOT), **(env or {})}
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
