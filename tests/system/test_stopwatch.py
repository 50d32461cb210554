"""bonsai/system/stopwatch.py: laps, and the age of this process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bonsai.system import stopwatch
from bonsai.system.stopwatch import Stopwatch, seconds_of_this_process


def test_laps_go_on_from_one_another(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    for part, seconds in (("model", 2.0), ("data", 0.25), ("model", 1.0)):
        now[0] += seconds
        watch.lap(part)
    assert watch.laps == {"model": 3.0, "data": 0.25}
    assert str(watch) == "3.2 s (model 3.0, data 0.2)"
    monkeypatch.setattr(stopwatch, "seconds_of_this_process", lambda: 7.0)
    watch = Stopwatch(since_the_command=True)
    watch.lap("imports")
    assert watch.laps == {"imports": 7.0}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_the_age_of_a_process_counts_its_sleep():
    code = "import time; time.sleep(0.3)\n"
    code += "from bonsai.system.stopwatch import seconds_of_this_process as s; print(s())"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.28 < float(done.stdout) < time.perf_counter() - begin + 0.02


def test_a_system_that_does_not_say(monkeypatch):
    monkeypatch.setattr(stopwatch, "Path", lambda name: Path("/nowhere"))
    assert 0 < seconds_of_this_process() <= time.process_time()
