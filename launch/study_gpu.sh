#!/usr/bin/env bash
# The clustering study on one GPU machine that has no network and little time: the deciding rows, a seed of all first,
# and more seeds until the time is used. docs/study.md is the protocol. Stopped runs resume, finished ones stay.
#
#   bash launch/study_gpu.sh pack BAG DATA_DIR     here: small images and wheels into the folder BAG, below 60 MB
#   bash launch/study_gpu.sh run BAG OUT           there: trains, and puts what is kept into OUT
#   python benchmarks/study.py --merge results/medium_128           here, OUT/results.tgz unpacked into results/
#
# A later `run` with that BAG, on the same machine or another, goes on with what is missing. Variables:
#   LIMIT=540        seconds of `run`, all in all          RESERVE=60      of these, to collect results
#   PARALLEL=5       runs at a time on the GPU             SEEDS=0,1,2,3,4
#   ROWS=patch,conv,stce,pooling,strided                   SCALE=medium_128       TABLE=clustering
#   QUALITY=45       of the JPEGs, 128 pixels              PYTHON=python3  with jax, flax, optax, orbax-checkpoint
#   WHEELS="..."     packages that machine lacks           FOR_PYTHON=3.12 there
#   WORK=/tmp/stce_study    workdir of the runs there
# To try it out anywhere in a minute: SCALE=smoke SEEDS=0 PARALLEL=2 LIMIT=120, with any images in the bag.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3} TABLE=${TABLE:-clustering} SCALE=${SCALE:-medium_128} SEEDS=${SEEDS:-0,1,2,3,4}
ROWS=${ROWS:-patch,conv,stce,pooling,strided} LIMIT=${LIMIT:-540} RESERVE=${RESERVE:-60} PARALLEL=${PARALLEL:-5}
QUALITY=${QUALITY:-45} WORK=${WORK:-${TMPDIR:-/tmp}/stce_study} FOR_PYTHON=${FOR_PYTHON:-3.12}
WHEELS=${WHEELS-ml_collections grain simplejpeg tensorboardX array_record portpicker importlib_resources}
MOST=$((60 * 1000 * 1000)) # bytes of a bag

say() { echo "study_gpu: $*" >&2; }

pack() { # BAG DATA_DIR
  local bag=$1 data=$2 tag bytes platforms=() abi="cp${FOR_PYTHON/./}"
  mkdir -p "$bag/wheels"
  [ -e "$bag/images.zip" ] || PYTHONPATH="$root" "$PYTHON" -P "$root/benchmarks/shrink_folder.py" \
    --data_dir "$data" --output "$bag/images.zip" --side 128 --quality "$QUALITY"
  # What a platform is called differs from package to package, and pip takes names as they are.
  for tag in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
  done
  if [ -n "$WHEELS" ]; then
    # shellcheck disable=SC2086
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --abi "$abi" --abi abi3 \
      --abi none --python-version "$FOR_PYTHON" "${platforms[@]}" -d "$bag/wheels" $WHEELS
  fi
  bytes=$(find "$bag" -type f -printf '%s\n' | awk '{ total += $1 } END { print total }')
  say "$bag has $bytes bytes"
  if [ "$bytes" -gt "$MOST" ]; then
    say "that is more than $MOST; take a lower QUALITY, and remove $bag/images.zip"
    exit 2
  fi
}

cell() { # NAME: one run, in the time that is left
  local name=$1 left=$((END - $(date +%s)))
  if [ "$left" -lt 5 ]; then return 0; fi
  local run=${name%_seed*} status=0
  timeout --signal=TERM --kill-after=30 "$left" "$PYTHON" -P -m stce_jax reproduce "$TABLE" --scale="$SCALE" \
    --seeds="${name##*_seed}" --runs="$run" --data_dir="$DATA" --workdir="$WORK" --cell="$name" || status=$?
  # 75 and 124: the time was used, the run is saved. Anything else is in OUT/logs.
  say "$name: exit code $status"
}

run() { # BAG OUT
  local bag=$1 out=$2 name status=0
  export END=$(($(date +%s) + LIMIT - RESERVE)) DATA=$WORK/images PYTHON TABLE SCALE WORK
  mkdir -p "$out" "$WORK" "$bag/results/$SCALE"
  if compgen -G "$bag/wheels/*.whl" > /dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$WORK/site" \
      "$bag"/wheels/*.whl
  fi
  # -P keeps the current directory out, and that of a script, too.
  export PYTHONPATH="$root:$root/benchmarks:$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
  # Several runs share the GPU: none may take all of its memory. Programs that a seed has compiled serve the next.
  export XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$WORK/compiled}
  if [ ! -d "$DATA" ]; then
    "$PYTHON" -P -m zipfile -e "$bag/images.zip" "$DATA.partial"
    mv "$DATA.partial" "$DATA"
  fi
  # In the order of the protocol: all rows of a seed before the next.
  "$PYTHON" -P -m stce_jax reproduce "$TABLE" --scale="$SCALE" --seeds="$SEEDS" --runs="$ROWS" --data_dir="$DATA" \
    --workdir="$WORK" --list=planned,stopped,failed > "$out/planned.txt"
  while read -r name; do
    [ -e "$bag/results/$SCALE/$name.json" ] || echo "$name"
  done < "$out/planned.txt" > "$out/missing.txt"
  say "$(wc -l < "$out/missing.txt") of $(wc -l < "$out/planned.txt") runs to do, $PARALLEL at a time"
  export -f cell say
  xargs -r -P "$PARALLEL" -I NAME bash -c 'cell NAME' < "$out/missing.txt"
  say "collecting"
  "$PYTHON" -P "$root/benchmarks/study.py" --table="$TABLE" --collect "$WORK" --data_dir "$DATA" \
    --results "$bag/results" --no_document > "$out/collect.txt" 2>&1 || status=$?
  [ "$status" -eq 0 ] || say "not collected: $(tail -n 1 "$out/collect.txt")"
  tar -czf "$out/results.tgz" -C "$bag/results" .
  (cd "$WORK" && find . -path './cells/*' \( -name log.txt -o -name cell.json -o -name metrics.jsonl \)) |
    tar -czf "$out/logs.tgz" -C "$WORK" -T -
  say "$(find "$bag/results/$SCALE" -name '*_seed*.json' | wc -l) runs are kept in $out/results.tgz"
  return "$status"
}

case "${1:-} $#" in
  "pack 3" | "run 3") "$@" ;;
  *) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
