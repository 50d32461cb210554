#!/usr/bin/env bash
# What has to be checked and measured on a GPU, in stages of at most 4 minutes on one H100.
#
#   benchmarks/gpu.sh tests train decode long bytes     # all that needs no text
#   TEXT=text.xz benchmarks/gpu.sh race                 # again and again until it is done
#   TOY=1 OUT=/tmp/dry benchmarks/gpu.sh tests train decode race long bytes     # on a CPU, tiny
#
# All of it in two calls of less than 5 minutes, each with a budget for the call:
#
#   TOTAL=285 PEER=../nanoGPT benchmarks/gpu.sh tests train decode long
#   TOTAL=285 LIMIT=285 PEER=../nanoGPT TEXT=text.xz benchmarks/gpu.sh race bytes
#
#   OUT=bench_out   folder for the stages' JSON, logs and tables
#   PEER=FOLDER     a checkout of nanoGPT, measured beside us
#   TEXT=FILE       for the race: text or C, a file or a folder, .gz, .xz or .zst too; not needed
#                   where data/race_text has been prepared before and brought along
#   TOTAL=SECONDS   for all stages of this call together; those that do not fit go on next time
#   LIMIT=240       seconds for each stage
#   TOKENS=14745600 of each run of the race; the longer, the less the start counts; 7372800 fits a call
#   FORCE=1         repeat what is there already; without it, a stage that is done is not run again,
#                   nor a row that is there, so that an interrupted call can be repeated
#   PYTHON=python   the Python to use
#
# Nothing is installed or downloaded: torch, numpy, tqdm and this repository are enough, but to
# prepare TEXT: tiktoken with GPT-2's vocabulary in TIKTOKEN_CACHE_DIR. What has been measured is
# in OUT/STAGE.txt and printed at the end, whatever the end is.
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$(pwd)
python=${PYTHON:-python}
out=${OUT:-bench_out}
peer=${PEER:-}
toy=${TOY:-}
text=${TEXT:-}
force=${FORCE:-}
total=${TOTAL:-0}
limit=${LIMIT:-240}
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
known="tests train decode race long bytes"
for stage in "$@"; do
    [[ " $known " == *" $stage "* ]] || fail "unknown stage $stage: there are ${known// /, }"
done
if [[ -z $toy ]] && ! "$python" -c "import torch; assert torch.cuda.is_available()" 2> /dev/null; then
    fail "$python finds no torch with a CUDA GPU: set PYTHON, or TOY=1 for a dry run on the CPU"
fi

left() { # seconds that the stage may still take
    local most=$((begin + limit - SECONDS))
    [[ $total -gt 0 && $((total - SECONDS)) -lt $most ]] && most=$((total - SECONDS))
    echo $((most > 0 ? most : 0))
}

measure() { # a program of this repository, for as long as is left; what it prints goes to a log too
    [[ $(left) -gt 0 ]] || { echo "no time is left: the same command goes on" && return 1; }
    [[ -n $toy && $1 != */race_gpu.py && $1 != data/* ]] && set -- "$@" --device=cpu
    set -m # a process group for each of these two: what the program has started ends with it
    { "$python" "$@" 2>&1 | tee -a "$out/$stage.log"; exit "${PIPESTATUS[0]}"; } &
    child=$!
    { sleep "$(left)"; kill -TERM -- -$child; sleep 10; kill -KILL -- -$child; } &> /dev/null &
    local watch=$! status
    set +m
    wait $child 2> /dev/null
    status=$?
    child=
    { kill -- -$watch; wait $watch; } 2> /dev/null
    return $status
}

tables() { # of all stages of this call, whole or not; at the end, and where a signal ends it
    trap - EXIT
    echo
    for stage in "${stages[@]}"; do
        [[ -e $out/$stage.txt ]] && echo "$stage:" && cat "$out/$stage.txt" && echo
    done
}

stage_tests() {
    measure tests/benchmarks/test_gpu.py --out="$out"
}

stage_train() { # ours beside the peer; where a step's time goes, of the classic and the fast; a run's
    local sizes=124M,355M modes=compiled config=config/fast_gpt2.py micro=16
    local model=(--batch_size=32 --block_size=1024 --bias=False --vocab_size=50304 --real_data=False)
    [[ -n $toy ]] && sizes=toy modes=eager micro=2
    [[ -n $toy ]] && model=(--n_layer=1 --n_head=1 --n_embd=32 --block_size=32 --vocab_size=99
        --batch_size=2 --steps=2 --warmup=1 --real_data=False)
    measure benchmarks/train.py --out="$out" --sizes=$sizes --modes=$modes ${toy:+--repeats=2} \
        ${peer:+--peer="$peer"} ${force:+--force} || return 1
    measured classic "${model[@]}" --profile && measured fast $config "${model[@]}" --profile &&
        measured fast_run $config "${model[@]}" --micro_batches=$micro --steps=5 --warmup=2
}

measured() { # a row of stage_train: bench.py with these options
    local name=$1
    shift
    measure bench.py "$@" --out_dir="$out/$name" --json="$out/$name.json" > "$out/$name.txt" ||
        return 1
    { echo && echo "$name:" && sed -n '/^share of time/,/^a trace/p; /^tokens\/s/,$p' \
        "$out/$name.txt"; } | tee -a "$out/train.txt"
}

stage_decode() { # one text and 64, compiled ones left out, as they take minutes; whole programs
    local options=(--sizes=124M "--kinds=bfloat16;bfloat16, graphs;int8, graphs") tiny=()
    [[ -n $toy ]] && options=(--sizes=toy --repeats=2 "--kinds=float32;int8, float32")
    [[ -n $toy ]] && tiny=(--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --repeats=1
        "--options=--num_samples=2 --max_new_tokens=9")
    measure benchmarks/decode.py --out="$out" "${options[@]}" ${peer:+--peer="$peer"} || return 1
    measure benchmarks/sample.py --out="$out" "${tiny[@]}" ${peer:+--peer="$peer"}
    local status=$?
    [[ -e $out/sample.txt ]] && { echo && cat "$out/sample.txt"; } >> "$out/decode.txt"
    return $status
}

stage_long() { # what local attention saves
    local options=(--lengths=1024,4096,16384 --n_head=12 --n_embd=768)
    [[ -n $toy ]] && options=(--lengths=64,128 --n_layer=2 --n_embd=32 --window=16)
    measure benchmarks/windows.py --out="$out" "${options[@]}" &&
        cp "$out/windows.txt" "$out/long.txt"
}

stage_race() { # a run and its evaluation take up to a minute: none is begun in the last one
    local options=(--out="$out" ${TOKENS:+--tokens="$TOKENS"}) tokenizer=gpt2 data=race_text last
    if [[ -n $toy ]]; then
        local tiny="--device=cpu --dtype=float32 --compile=False --n_layer=1 --n_head=1 --n_embd=32"
        tokenizer=byte text=$out/toy.txt.xz data=race_toy
        cat docs/*.md | xz -0 > "$text"
        options+=(--tokens=512 --block_size=64 --shipped=2x2 --batches=2x1 --rates=1e-3,2e-3
            --theirs="$tiny --block_size=64"
            --ours="$tiny --block_size=64 --batch_size=2 --gradient_accumulation_steps=1")
    fi
    if [[ ! -e data/$data/meta.json ]]; then
        [[ -n $text ]] ||
            { echo "no text: set TEXT to a file or folder of some hundred MB" && return 1; }
        measure data/custom/prepare.py --input="$text" --endings=".c,.h,.py,.md,.${text##*.}" \
            --name="$data" --tokenizer=$tokenizer --val_fraction=0.005 || return 1
    fi
    last=$(($(left) - 60))
    measure benchmarks/race_gpu.py "${options[@]}" --dataset="$data" ${peer:+--peer="$peer"} \
        --minutes="$((last > 0 ? last / 60 : 0)).$((last > 0 ? last % 60 * 10 / 6 : 1))"
}

stage_bytes() { # byte models at equal FLOPs
    local scale=gpu
    [[ -n $toy ]] && scale=toy
    [[ -n $force ]] && rm -rf "$out/bytes"
    [[ -e data/python_stdlib/meta.json ]] || "$python" data/python_stdlib/prepare.py || return 1
    measure benchmarks/bytes.py --quick --scale=$scale --out="$out/bytes"
    local status=$?
    [[ -e $out/bytes/bytes.txt ]] && cp "$out/bytes/bytes.txt" "$out/bytes.txt"
    return $status
}

cd "$root" || exit 1
failed=0 stages=("$@") child=
trap tables EXIT
trap '[[ -n $child ]] && kill -- "-$child" 2> /dev/null; exit 143' INT TERM HUP
for stage in "$@"; do
    if [[ -z $force && -e $out/$stage.done ]]; then
        echo "== $stage: done before, in $out/$stage.txt (FORCE=1 repeats it)"
        continue
    fi
    echo "== $stage"
    begin=$SECONDS
    rm -f "$out/$stage.done" "$out/$stage.log"
    if "stage_$stage"; then
        touch "$out/$stage.done"
        echo "== $stage: done in $((SECONDS - begin)) s"
    else
        echo "== $stage: NOT done after $((SECONDS - begin)) s; the same command goes on with it"
        failed=1
    fi
done
exit $failed
