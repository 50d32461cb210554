"""Counters in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats)."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Histogram:
    """Counts how many times were at most as long as each bound."""

    def __init__(self, buckets: Sequence[float] = BUCKETS):
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.sum += seconds
        place = next((i for i, b in enumerate(self.buckets) if seconds <= b), len(self.buckets))
        self.counts[place] += 1

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*self.buckets, "+Inf"), self.counts):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """The handlers' counters; rows and tokens are counted by the worker."""

    def __init__(self):
        self.responses: Counter[tuple[str, int]] = Counter()  # (path of the route, status)
        self.prompt_tokens: Counter[str] = Counter()  # by model
        self.first_token = Histogram()
        self.duration = Histogram()

    def text(self, worker, tokens: dict[str, int]) -> str:
        """All metrics as text. tokens: how many were drawn so far, by model."""
        lines: list[str] = []

        def metric(name: str, kind: str, help: str, samples: Iterable[str]) -> None:
            lines.extend([f"# HELP bonsai_{name} {help}", f"# TYPE bonsai_{name} {kind}"])
            lines.extend(f"bonsai_{sample}" for sample in samples)

        metric(
            "responses_total",
            "counter",
            "Answers by path and status.",
            [
                f'responses_total{{path="{path}",status="{status}"}} {n}'
                for (path, status), n in sorted(self.responses.items())
            ],
        )
        for name, help, counts in (
            ("prompt_tokens_total", "Tokens of prompts accepted.", self.prompt_tokens),
            ("generated_tokens_total", "Tokens drawn.", tokens),
        ):
            samples = [f'{name}{{model="{escape(m)}"}} {n}' for m, n in sorted(counts.items())]
            metric(name, "counter", help, samples)
        for name, kind, help, value in (
            ("rows_waiting", "gauge", "Texts waiting for their turn.", worker.waiting),
            ("rows_running", "gauge", "Texts being written.", worker.running),
            ("rows_finished_total", "counter", "Texts finished.", worker.finished),
            ("rows_cancelled_total", "counter", "Texts ended early.", worker.cancelled),
        ):
            metric(name, kind, help, [f"{name} {value}"])
        for name, help, histogram in (
            ("first_token_seconds", "Time to the first token.", self.first_token),
            ("request_seconds", "Time to the end of a completion.", self.duration),
        ):
            metric(name, "histogram", help, histogram.lines(name))
        return "\n".join(lines) + "\n"


class AnswerTimer:
    """Times one answer."""

    def __init__(self, metrics: Metrics):
        self.metrics, self.begun, self.started = metrics, time.monotonic(), False

    def piece(self) -> None:
        """To be called for each piece; the first one's time is recorded."""
        if not self.started:
            self.started = True
            self.metrics.first_token.observe(time.monotonic() - self.begun)

    def done(self) -> None:
        """To be called when the answer is complete."""
        self.metrics.duration.observe(time.monotonic() - self.begun)


def escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
