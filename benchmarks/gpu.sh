#!/usr/bin/env bash
# What has to be checked and measured on a GPU, in stages of less than 8 minutes on one H100.
#
#   benchmarks/gpu.sh tests throughput decode           # all there is
#   PEER=../nanoGPT benchmarks/gpu.sh throughput        # beside a checkout of nanoGPT
#   TOY=1 OUT=/tmp/dry benchmarks/gpu.sh tests throughput   # a dry run on the CPU, tiny sizes
#
#   OUT=bench_out   folder for the stages' JSON, logs and tables
#   FORCE=1         repeat what is there already; without it, a stage (and a row of throughput)
#                   that is there is not run again, so that an interrupted call can be repeated
#   PYTHON=python   the Python to use
#
# Nothing is installed: torch, numpy, tqdm and this repository are enough (pytest if it is there).
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$(pwd)
python=${PYTHON:-python}
out=${OUT:-bench_out}
peer=${PEER:-}
toy=${TOY:-}
force=${FORCE:-}
limit=470 # seconds for a stage

fail() {
    echo "error: $*" >&2
    exit 1
}

# the stages run in the repository, so what the caller gave as relative paths is made absolute
case $out in /*) ;; *) out=$here/$out ;; esac
case $peer in "" | /*) ;; *) peer=$here/$peer ;; esac
case $python in */*) [[ $python == /* ]] || python=$here/$python ;; esac
mkdir -p "$out" || fail "cannot make the folder $out: set OUT to another"
command -v "$python" > /dev/null || fail "there is no $python: set PYTHON"
[[ $# -gt 0 ]] || fail "no stage given: benchmarks/gpu.sh tests throughput"
for stage in "$@"; do
    [[ $stage == tests || $stage == throughput || $stage == decode ]] ||
        fail "unknown stage $stage: there are tests, throughput, decode"
done
if [[ -z $toy ]] && ! "$python" -c "import torch; assert torch.cuda.is_available()" 2> /dev/null; then
    fail "$python finds no torch with a CUDA GPU: set PYTHON, or TOY=1 for a dry run on the CPU"
fi

limited() { # run a command for at most $limit seconds where the system can see to that
    if command -v timeout > /dev/null; then timeout "$limit" "$@"; else "$@"; fi
}

stage_tests() {
    local device=auto
    [[ -n $toy ]] && device=cpu
    rm -f "$out/tests.json"
    if [[ -z $toy ]] && "$python" -c "import pytest" 2> /dev/null; then
        # only the files with such tests: others may need packages that are not there
        local files
        files=$(grep -l "mark.gpu" tests/test_*.py)
        # shellcheck disable=SC2086 # one word per file
        limited "$python" -m pytest -m gpu $files 2>&1 | tee "$out/tests.log"
        local status=${PIPESTATUS[0]}
        tail -n 1 "$out/tests.log" > "$out/tests.txt"
        [[ $status == 0 ]] || return "$status"
        printf '{"runner": "pytest", "summary": "%s"}\n' \
            "$(tr -d '"\\' < "$out/tests.txt")" > "$out/tests.json"
    else
        limited "$python" benchmarks/gpu_checks.py --device="$device" \
            --out="$out/tests.part" 2>&1 | tee "$out/tests.log"
        local status=${PIPESTATUS[0]}
        tail -n 1 "$out/tests.log" > "$out/tests.txt"
        [[ $status == 0 ]] || return "$status"
        mv "$out/tests.part" "$out/tests.json"
    fi
}

stage_throughput() {
    local options=(--out="$out")
    [[ -n $peer ]] && options+=(--peer="$peer")
    [[ -n $force ]] && options+=(--force)
    [[ -n $toy ]] && options+=(--device=cpu --sizes=toy --repeats=2)
    limited "$python" benchmarks/throughput.py "${options[@]}" 2>&1 | tee "$out/throughput.log"
    return "${PIPESTATUS[0]}"
}

stage_decode() {
    local options=(--out="$out" --sizes=124M)
    [[ -n $peer ]] && options+=(--peer="$peer")
    [[ -n $toy ]] && options=(--out="$out" --device=cpu --sizes=toy --repeats=2)
    limited "$python" benchmarks/decode.py "${options[@]}" 2>&1 | tee "$out/decode.log"
    return "${PIPESTATUS[0]}"
}

cd "$root" || exit 1
failed=0
for stage in "$@"; do
    if [[ -z $force && -e $out/$stage.json ]]; then
        echo "== $stage: done before, in $out/$stage.json (FORCE=1 repeats it)"
        continue
    fi
    echo "== $stage"
    begin=$SECONDS
    if "stage_$stage"; then
        echo "== $stage: done in $((SECONDS - begin)) s"
    else
        echo "== $stage: FAILED after $((SECONDS - begin)) s; the same command goes on with it"
        failed=1
    fi
done

echo
for stage in "$@"; do
    [[ -e $out/$stage.txt ]] && echo "$stage:" && cat "$out/$stage.txt" && echo
done
exit $failed
