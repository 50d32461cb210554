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
#   OUT=bench_out   folder for the programs' JSON, logs and tables
#   PEER=FOLDER     a checkout of nanoGPT, measured beside us
#   TEXT=FILE       for the race: text or C, a file or a folder, .gz, .xz or .zst too; not needed,
#                   nor read, where data/race_text has been prepared before and brought along
#   TOTAL=SECONDS   for all stages of this call together; those that do not fit go on next time
#   LIMIT=240       seconds for each stage
#   TOKENS=14745600 of each run of the race; the longer, the less the start counts; 7372800 fits a call
#   FORCE=1         repeat what is there already; without it, what has ended well is not run again
#                   with the same words, commit, GPU and torch, nor is a row of a table measured
#                   again, so that an interrupted call can be repeated
#   PYTHON=python   the Python to use
#   TOY=1           all of it tiny, on a CPU: a rehearsal
#
# Nothing is installed or downloaded: torch, numpy, tqdm and this repository are enough, but to
# prepare TEXT: tiktoken with GPT-2's vocabulary in TIKTOKEN_CACHE_DIR. The tables of what has been
# measured are in OUT and printed at the end, whatever the end is. One call at a time works in OUT.
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

for name in TOTAL LIMIT TOKENS; do
    [[ ${!name:-0} =~ ^[0-9]+$ ]] || fail "$name=${!name} is no whole number"
done
# the stages run in the repository, so what the caller gave as relative paths is made absolute
case $out in /*) ;; *) out=$here/$out ;; esac
case $peer in "" | /*) ;; *) peer=$here/$peer ;; esac
case $text in "" | /*) ;; *) text=$here/$text ;; esac
case $python in */*) [[ $python == /* ]] || python=$here/$python ;; esac
[[ $# -gt 0 ]] || fail "no stage given: benchmarks/gpu.sh tests train"
known="tests train decode race long bytes"
for stage in "$@"; do
    [[ " $known " == *" $stage "* ]] || fail "unknown stage $stage: there are ${known// /, }"
done
[[ -z $peer || -e $peer/model.py ]] || fail "PEER=$peer is no checkout of nanoGPT: no model.py"
[[ -z $text || -e $text ]] || fail "TEXT=$text does not exist"
mkdir -p "$out" 2> /dev/null && [[ -w $out ]] ||
    fail "cannot write into the folder $out: set OUT to another"
command -v "$python" > /dev/null || fail "there is no $python: set PYTHON"
machine="a rehearsal" commit=unknown
git=(git --no-optional-locks -C "$root" describe --always --dirty=+ "--exclude=*")
[[ -e $root/.git ]] && commit=$("${git[@]}" 2> /dev/null || echo unknown)
if [[ -z $toy ]]; then
    code="import torch; print(torch.cuda.get_device_name(), torch.__version__)"
    machine=$("$python" -c "$code" 2> /dev/null) ||
        fail "$python finds no torch with a CUDA GPU: set PYTHON, or TOY=1 for a dry run on the CPU"
fi
if command -v flock > /dev/null; then # what an earlier call has started has it until it has ended
    exec 9> "$out/lock"
    flock -w 10 9 || fail "another call works in $out: wait for it, or set OUT to another"
fi

left() { # seconds that the stage may still take
    local most=$((begin + limit - SECONDS))
    [[ $total -gt 0 && $((total - SECONDS)) -lt $most ]] && most=$((total - SECONDS))
    echo $((most > 0 ? most : 0))
}

end() { # what is measured, with all that it has started: at once, or else in 5 seconds
    kill -TERM -- "-$1"
    for _ in {1..50}; do
        kill -0 -- "-$1" || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1"
} 2> /dev/null

goes_on() { # whether this call is there; one that was killed, and nobody has waited for, is not
    kill -0 $$ && [[ $(cat "/proc/$$/stat" 2> /dev/null) != *") Z "* ]]
}

measure() { # NAME PROGRAM ...: of this repository, for as long as is left; NAME.log has what it says
    local name=$1 last status
    shift
    last=$(left)
    [[ $last -gt 0 ]] || { echo "$name: no time is left: the same command goes on" && return 1; }
    last=$((SECONDS + last - (last > 10 ? 5 : 0))) # the time to end in
    set -m # a process group for each of these two: what the program has started ends with it
    {
        "$python" "$@" 2>&1 | tee "$out/$name.log"
        exit $((PIPESTATUS[0] ? PIPESTATUS[0] : PIPESTATUS[1]))
    } &
    child=$!
    { # this call may be killed, too
        while [[ $SECONDS -lt $last ]] && goes_on; do sleep 1; done
        end $child
    } &> /dev/null &
    watch=$!
    set +m
    wait $child 2> /dev/null
    status=$?
    { kill -- -$watch; wait $watch; } 2> /dev/null
    child=
    return $status
}

step() { # NAME PROGRAM ...: of a stage; not again where it has ended well with the same words
    local name=$1 what="$machine, commit $commit:" word
    shift
    [[ -n $toy && $1 != */race_gpu.py ]] && set -- "$@" --device=cpu
    for word in "$@"; do # but for how long it may go on
        [[ $word == --minutes=* || $word == --force ]] || what+=" $word"
    done
    if [[ $force || ! -e $out/$name.words || $(< "$out/$name.words") != "$what" ]]; then
        rm -f "$out/$name".{done,log,txt}
        echo "$what" > "$out/$name.words"
    fi
    [[ -e $out/$name.done ]] &&
        echo "== $name: done before, in $out (FORCE=1 repeats it)" && return 0
    measure "$name" "$@" && touch "$out/$name.done"
}

tables() { # of all stages of this call, whole or not; at the end, and where a signal ends it
    trap - EXIT
    echo
    for stage in "${stages[@]}"; do
        local parts=$stage part head="$stage:"
        case $stage in
            train) parts="train classic fast fast_run" ;;
            decode) parts="decode sample" ;;
            long) parts=windows ;;
            bytes) parts=bytes/bytes ;;
        esac
        for part in $parts; do
            [[ -s $out/$part.txt ]] || continue
            echo "${head:+$head$'\n'}$(< "$out/$part.txt")" && echo
            head=
        done
    done
}

stage_tests() {
    step tests tests/benchmarks/test_gpu.py --out="$out" ${force:+--force}
}

stage_train() { # ours beside the peer; where a step's time goes, of the classic and the fast; a run's
    local sizes=124M,355M modes=compiled config=config/fast_gpt2.py micro=16 status=0
    local model=(--batch_size=32 --block_size=1024 --bias=False --vocab_size=50304 --real_data=False)
    [[ -n $toy ]] && sizes=toy modes=eager micro=2
    [[ -n $toy ]] && model=(--n_layer=1 --n_head=1 --n_embd=32 --block_size=32 --vocab_size=99
        --batch_size=2 --steps=2 --warmup=1 --real_data=False)
    step train benchmarks/train.py --out="$out" --sizes=$sizes --modes=$modes \
        ${toy:+--repeats=2} ${peer:+--peer="$peer"} ${force:+--force} || status=1
    bench classic "${model[@]}" --profile || status=1
    bench fast $config "${model[@]}" --profile || status=1
    bench fast_run $config "${model[@]}" --micro_batches=$micro --steps=5 --warmup=2 || status=1
    return $status
}

bench() { # a row of stage_train: bench.py with these options; NAME.txt has what counts of its log
    local name=$1 status found
    shift
    step "$name" bench.py "$@" --out_dir="$out/$name" --json="$out/$name.json"
    status=$?
    found=$(sed -n '/^tokens\/s/,$p' "$out/$name.log" 2> /dev/null)
    [[ $found ]] && printf '%s:\n%s\n' "$name" "$found" > "$out/$name.txt"
    return $status
}

stage_decode() { # one text and 64, compiled ones left out, as they take minutes; whole programs
    local options=(--sizes=124M --prompt=100 --tokens=300) tiny=() status=0
    options+=("--kinds=bfloat16;bfloat16, graphs;int8, graphs")
    [[ -n $toy ]] && options=(--sizes=toy --prompt=10 --tokens=30 --repeats=2
        "--kinds=float32;int8, float32")
    [[ -n $toy ]] && tiny=(--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --repeats=1
        "--options=--num_samples=2 --max_new_tokens=9")
    step decode benchmarks/decode.py --out="$out" "${options[@]}" ${peer:+--peer="$peer"} ||
        status=1
    step sample benchmarks/sample.py --out="$out" "${tiny[@]}" ${peer:+--peer="$peer"} \
        ${force:+--force} || status=1
    return $status
}

stage_long() { # what local attention saves
    local options=(--lengths=1024,4096,16384 --n_head=12 --n_embd=768)
    [[ -n $toy ]] && options=(--lengths=64,128 --n_layer=2 --n_embd=32 --window=16)
    step windows benchmarks/windows.py --out="$out" "${options[@]}" ${force:+--force}
}

stage_race() { # a run and its evaluation take up to a minute: none is begun in the last one
    local options=(--out="$out" ${TOKENS:+--tokens="$TOKENS"}) tokenizer=gpt2 data=race_text
    local last endings name minutes=0.0001
    if [[ -n $toy ]]; then
        local tiny="--device=cpu --dtype=float32 --compile=False --n_layer=1 --n_head=1 --n_embd=32"
        tokenizer=byte text=$out/toy.txt.xz data=race_toy
        cat docs/*.md | xz -0 > "$text"
        options+=(--tokens=512 --block_size=64 --shipped=2x2 --batches=2x1 --rates=1e-3,2e-3
            --theirs="$tiny --block_size=64"
            --ours="$tiny --block_size=64 --batch_size=2 --gradient_accumulation_steps=1")
    fi
    if [[ -e data/$data/meta.json ]]; then
        [[ -z $text ]] || echo "data/$data has been prepared: TEXT is not read"
    else
        [[ -n $text ]] ||
            { echo "no text: set TEXT to a file or folder of some hundred MB" && return 1; }
        endings=.c,.h,.py,.md name=${text##*/}
        [[ -f $text && $name == *.* ]] && endings+=,.${name##*.} # a packed one is no known kind
        measure prepare data/custom/prepare.py --input="$text" --endings=$endings \
            --name="$data" --tokenizer=$tokenizer --val_fraction=0.005 || return 1
    fi
    last=$(($(left) - 60))
    [[ $last -gt 0 ]] && minutes=$(printf %d.%02d $((last / 60)) $((last % 60 * 100 / 60)))
    step race benchmarks/race_gpu.py "${options[@]}" --dataset="$data" ${peer:+--peer="$peer"} \
        --minutes="$minutes"
}

stage_bytes() { # byte models at equal FLOPs
    local scale=gpu
    [[ -n $toy ]] && scale=toy
    [[ -n $force ]] && rm -rf "$out/bytes"
    [[ -e data/python_stdlib/meta.json ]] ||
        measure prepare data/python_stdlib/prepare.py || return 1
    step bytes benchmarks/bytes.py --quick --scale=$scale --out="$out/bytes"
}

cd "$root" || exit 1
failed=0 stages=("$@") child= watch=
stop() {
    trap '' INT TERM HUP
    [[ -n $child ]] && { kill -- -$watch 2> /dev/null; end $child; }
    exit "$1"
}
trap tables EXIT
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP
for stage in "$@"; do
    echo "== $stage"
    begin=$SECONDS
    if "stage_$stage"; then
        echo "== $stage: done in $((SECONDS - begin)) s"
    else
        echo "== $stage: NOT done after $((SECONDS - begin)) s; the same command goes on with it"
        failed=1
    fi
done
exit $failed
