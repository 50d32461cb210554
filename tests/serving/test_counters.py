"""bonsai/serving/counters.py: Prometheus' text format, and when a time is counted."""

import re
from types import SimpleNamespace

from bonsai.serving.counters import AnswerTimer, Histogram, Metrics, escape


def test_buckets_are_cumulative_and_their_bounds_belong_to_them():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    assert list(histogram.lines("t")) == [
        't_bucket{le="0.1"} 2',
        't_bucket{le="1.0"} 3',
        't_bucket{le="+Inf"} 4',
        "t_sum 7.600000",
        "t_count 4",
    ]


def test_the_format():
    metrics = Metrics()
    metrics.responses["/v1/completions", 200] += 2
    metrics.prompt_tokens['a"b'] += 5
    worker = SimpleNamespace(waiting=1, running=2, finished=3, cancelled=4)
    text = metrics.text(worker, {"m": 7})
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"bonsai_\w+(\{.*\})? [\d.]+", line), line
    for line in (
        'bonsai_responses_total{path="/v1/completions",status="200"} 2',
        r'bonsai_prompt_tokens_total{model="a\"b"} 5',
        'bonsai_generated_tokens_total{model="m"} 7',
        "bonsai_rows_waiting 1",
        "bonsai_rows_cancelled_total 4",
        "# TYPE bonsai_request_seconds histogram",
    ):
        assert line in text.splitlines()
    described = re.findall(r"# TYPE (\S+)", text)
    assert len(described) == len(set(described)) == text.count("# HELP")


def test_labels_are_escaped():
    assert escape('a\\b"c\nd') == r"a\\b\"c\nd"


def test_only_the_first_piece_counts():
    metrics = Metrics()
    watch = AnswerTimer(metrics)
    for _ in range(3):
        watch.piece()
    assert sum(metrics.first_token.counts) == 1 and sum(metrics.duration.counts) == 0
    watch.done()
    assert sum(metrics.duration.counts) == 1
