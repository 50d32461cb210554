#!/usr/bin/env bash
# matrix.sh PYTHON TORCH...: the tests that depend most on torch, under other releases of it.
#
# Each release gets an environment of its own in .venv-matrix, several GB, which is removed when its
# tests have passed: so one at a time is on the disk. `make matrix` calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
export OMP_NUM_THREADS=1
# of kernels in Triton, which torch brings on Linux: by its interpreter, each in its own process
kernels=(
    tests/models/test_triton_loss.py
    tests/training/test_symmetric.py
    tests/engine/cuda/test_block_kernels.py
    tests/engine/cuda/test_draw_kernel.py
)
failed=
for torch in "$@"; do
    folder=.venv-matrix/$torch
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/pip" install -q "torch==$torch"  # which also chooses its setuptools
    cat requirements.txt requirements-all.txt | grep -Ev '^(torch|setuptools)==|^-r' > "$folder/others.txt"
    "$folder/bin/pip" install -q -r "$folder/others.txt"
    "$folder/bin/python" -c 'import sys, torch; print("torch", torch.__version__, "on", sys.version)'
    passed=yes
    "$folder/bin/python" -m pytest tests/models tests/training tests/engine || passed=
    # in one process with the others they skip, and with triton 3.6 also where numpy is 2.4
    "$folder/bin/pip" install -q "numpy<2.4"
    for test in "${kernels[@]}"; do
        "$folder/bin/python" -m pytest "$test" || passed=
    done
    if [ -n "$passed" ]; then rm -rf "$folder"; else failed="$failed $torch"; fi
done
[ -z "$failed" ] || { echo "tests failed with torch$failed; look into .venv-matrix"; exit 1; }
