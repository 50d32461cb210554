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
failed=
for torch in "$@"; do
    folder=.venv-matrix/$torch
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/pip" install -q "torch==$torch"
    cat requirements.txt requirements-all.txt | grep -Ev '^(torch==|-r)' > "$folder/others.txt"
    "$folder/bin/pip" install -q -r "$folder/others.txt"
    "$folder/bin/python" -c 'import sys, torch; print("torch", torch.__version__, "on", sys.version)'
    if "$folder/bin/python" -m pytest tests/models tests/training tests/engine; then
        rm -rf "$folder"
    else
        failed="$failed $torch"
    fi
done
[ -z "$failed" ] || { echo "tests failed with torch$failed; look into .venv-matrix"; exit 1; }
