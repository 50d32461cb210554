#!/usr/bin/env bash
# matrix.sh PYTHON TORCH...: the tests that depend most on torch, under other releases of it.
#
# Each release gets an environment of its own in .venv-matrix, several GB, which is removed when its
# tests have passed: so one at a time is on the disk. What fails with one, installing included, is
# said at the end; the others are run. `make matrix` calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
export OMP_NUM_THREADS=1
# of kernels in Triton, which torch brings on Linux: by its interpreter, each in its own process
kernels=(
    tests/models/test_triton_loss.py
    tests/training/test_symmetric.py
    tests/training/test_triton_adam.py
    tests/engine/cuda/test_block_kernels.py
    tests/engine/cuda/test_draw_kernel.py
)

install() { # TORCH FOLDER: it first, which also chooses its setuptools
    "$python" -m venv "$2" && "$2/bin/pip" install -q "torch==$1" || return 1
    cat requirements.txt requirements-all.txt | grep -Ev '^(torch|setuptools)==|^-r' > "$2/others.txt"
    "$2/bin/pip" install -q -r "$2/others.txt"
}

run_tests() { # FOLDER
    local passed=yes
    "$1/bin/python" -c 'import sys, torch; print("torch", torch.__version__, "on", sys.version)'
    "$1/bin/python" -m pytest tests/models tests/training tests/engine || passed=
    # in one process with the others they skip, and with triton 3.6 also where numpy is 2.4
    "$1/bin/pip" install -q "numpy<2.4" || passed=
    for test in "${kernels[@]}"; do
        "$1/bin/python" -m pytest "$test" || passed=
    done
    [ -n "$passed" ]
}

results=() status=0
for torch in "$@"; do
    folder=.venv-matrix/$torch
    rm -rf "$folder"
    if ! install "$torch" "$folder"; then
        results+=("torch $torch: not installed, pip says why above") status=1
    elif run_tests "$folder"; then
        results+=("torch $torch: passed") && rm -rf "$folder"
    else
        results+=("torch $torch: FAILED, its environment is in $folder") status=1
    fi
done
printf '%s\n' "${results[@]}"
exit $status
