#!/usr/bin/env bash
# benchmarks/gpu.py with its stages as words and its settings from the environment:
#
#   PEER=../nanoGPT TOTAL=285 benchmarks/gpu.sh tests train parts decode long
#   python benchmarks/gpu.py --stages=tests,train,parts,decode,long --peer=../nanoGPT --total=285
#
# are the same. OUT, PEER, TEXT, TOTAL, LIMIT, TOKENS, FORCE=1 and TOY=1 are settings of gpu.py, which
# its --help explains; PYTHON is the Python that runs gpu.py and all programs that it starts.
python=${PYTHON:-python}
command -v "$python" > /dev/null || { echo "error: there is no $python: set PYTHON" >&2; exit 1; }
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" --stages="$(IFS=,; echo "$*")" \
    --python="$python" ${OUT:+--out="$OUT"} ${PEER:+--peer="$PEER"} ${TEXT:+--text="$TEXT"} \
    ${TOTAL:+--total="$TOTAL"} ${LIMIT:+--limit="$LIMIT"} ${TOKENS:+--tokens="$TOKENS"} \
    ${FORCE:+--force="$FORCE"} ${TOY:+--toy="$TOY"}
