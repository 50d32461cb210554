#!/usr/bin/env bash
# What has to be checked and measured on a GPU, in stages of less than 8 minutes on one H100.
#
#   benchmarks/gpu.sh tests train decode bytes          # all that needs no data
#   PEER=../nanoGPT benchmarks/gpu.sh train             # beside a checkout of nanoGPT
#   TEXT=text.zst PEER=../nanoGPT benchmarks/gpu.sh race    # again and again until it is done
#   TOY=1 OUT=/tmp/dry benchmarks/gpu.sh tests train    # a dry run on the CPU, tiny sizes
#
#   OUT=bench_out   folder for the stages' JSON, logs and tables
#   FORCE=1         repeat what is there already; without it, a stage whose table is there is not
#                   run again, nor a row that is there, so that an interrupted call can be repeated
#   PYTHON=python   the Python to use
#
# Nothing is installed: torch, numpy, tqdm and this repository are enough.
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$(pwd)
python=${PYTHON:-python}
out=${OUT:-bench_out}
peer=${PEER:-}
toy=${TOY:-}
text=${TEXT:-}
force=${FORCE:-}
limit=470 # seconds for a stage
export PYTHONUNBUFFERED=1

fail() {
    echo "error: $*" >&2
    exit 1
}

# the stages run in the repository, so what the caller gave as relative paths is made absolute
case $out in /*) ;; *) out=$here/$out ;; esac
case $peer in "" | /*) ;; *) peer=$here/$peer ;; esac
case $text in "" | /*) ;; *) text=$here/$text ;; esac
case $python in */*) [[ $python == /* ]] || python=$here/$python ;; esac
mkdir -p "$out" || fail "cannot make the folder $out: set OUT to another"
command -v "$python" > /dev/null || fail "there is no $python: set PYTHON"
[[ $# -gt 0 ]] || fail "no stage given: benchmarks/gpu.sh tests train"
for stage in "$@"; do
    [[ " tests train decode race bytes " == *" $stage "* ]] ||
        fail "unknown stage $stage: there are tests, train, decode, race, bytes"
done
if [[ -z $toy ]] && ! "$python" -c "import torch; assert torch.cuda.is_available()" 2> /dev/null; then
    fail "$python finds no torch with a CUDA GPU: set PYTHON, or TOY=1 for a dry run on the CPU"
fi

limited() { # run a command for at most $limit seconds where the system can see to that
    if command -v timeout > /dev/null; then timeout "$limit" "$@"; else "$@"; fi
}

measure() { # a program of this repository; what it prints goes to a log too
    [[ -n $peer && $1 == benchmarks/* && $1 != */bytes.py ]] && set -- "$@" --peer="$peer"
    [[ -n $toy && $1 != */race.py ]] && set -- "$@" --device=cpu
    limited "$python" "$@" 2>&1 | tee "$out/$stage.log"
    return "${PIPESTATUS[0]}"
}

stage_tests() {
    measure tests/benchmarks/test_gpu.py --out="$out"
}

stage_train() {
    measure benchmarks/train.py --out="$out" ${force:+--force} ${toy:+--sizes=toy --repeats=2}
}

stage_decode() {
    local size=124M
    [[ -n $toy ]] && size=toy
    measure benchmarks/decode.py --out="$out" --sizes=$size ${toy:+--repeats=2}
}

stage_race() { # TEXT: a file, or a folder, of some hundred MB of text; .gz and .zst do
    local options=(--race=gpu --seeds=1 --out="$out/race" ${peer:+--sweep=True})
    local tokenizer=gpt2
    if [[ -n $toy ]]; then
        tokenizer=byte text=$out/toy.txt
        cat docs/*.md > "$text"
        options+=(--steps=2 --block_size=64
            --ours="--device=cpu --dtype=float32 --n_layer=1 --n_head=1 --n_embd=32 --block_size=64
            --batch_size=2 --gradient_accumulation_steps=1 --compile=False")
    else
        options+=(--minutes=1 --plot="$out/race.png")
    fi
    if [[ ! -e data/race_text/meta.json ]]; then
        [[ -n $text ]] ||
            { echo "no text: set TEXT to a file or folder of some hundred MB" && return 1; }
        limited "$python" data/custom/prepare.py --input="$text" --name=race_text \
            --tokenizer="$tokenizer" > "$out/prepare.log" 2>&1 ||
            { tail -n 1 "$out/prepare.log" && return 1; }
    fi
    measure benchmarks/race.py "${options[@]}" && cp "$out/race/gpu.txt" "$out/race.txt"
}

stage_bytes() { # byte models at equal FLOPs
    local scale=gpu
    [[ -n $toy ]] && scale=toy
    [[ -n $force ]] && rm -rf "$out/bytes"
    [[ -e data/python_stdlib/meta.json ]] || "$python" data/python_stdlib/prepare.py || return 1
    measure benchmarks/bytes.py --quick --scale=$scale --out="$out/bytes" &&
        cp "$out/bytes/bytes.txt" "$out/bytes.txt"
}

cd "$root" || exit 1
failed=0
for stage in "$@"; do
    if [[ -z $force && -e $out/$stage.txt ]]; then
        echo "== $stage: done before, in $out/$stage.txt (FORCE=1 repeats it)"
        continue
    fi
    echo "== $stage"
    begin=$SECONDS
    rm -f "$out/$stage.txt"
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
