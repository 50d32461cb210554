"""How the threads that compute on a CPU wait for one another: without spinning on a busy machine.

torch's threads meet after every operation, and those that are early spin, for some milliseconds.
While another program needs the same core, spinning keeps away the very thread that is waited for.
On two cores with other work a step of 45 ms took 700 to 1,400; with threads that sleep, 69. On two
idle cores it takes 45 ms and 72. So they sleep only where others compute as a run begins.
"""

import os
import time

POLICY = "OMP_WAIT_POLICY"
LOAD = "/proc/loadavg"  # on Linux: load in 1, 5 and 15 minutes, running/existing, the last process
SAID = "threads do not spin, as other programs compute here"
sleeping = False  # whether sleep_on_busy_cpus has found it so


def sleep_on_busy_cpus() -> None:
    """Let OpenMP's threads sleep while they wait, if the machine is busy. To be called before torch
    is loaded. What the environment sets is not changed."""
    global sleeping
    set_already = {POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()
    if not set_already and os.environ.get("OMP_NUM_THREADS") != "1" and is_busy():
        os.environ[POLICY] = "passive"  # the same sums, to the last bit
        sleeping = True


def is_busy() -> bool:
    """Whether other programs keep at least half of the machine's cores busy: for a minute, so that
    no program of a moment counts, and now, so that none counts that has ended.

    Always False where the system does not say what is running now.
    """
    half = (os.cpu_count() or 1) / 2
    try:
        if os.getloadavg()[0] < half:
            return False
        for pause in (0.0, 0.005, 0.005):
            time.sleep(pause)
            with open(LOAD, encoding="ascii") as f:
                running = int(f.read().split()[3].partition("/")[0]) - 1  # all but this process
            if running < half:
                return False
    except (OSError, AttributeError, ValueError, IndexError):  # another system
        return False
    return True
