#!/usr/bin/env bash
# The full recipe at 128 pixels on one GPU machine that has no network and little time: 20 and 80 epochs, a seed of both
# first, and more seeds until the time is used. docs/recipe.md says what for. Stopped runs resume, finished ones stay.
#
#   bash launch/recipe_gpu.sh pack BAG DATA_DIR    here: small images and wheels into the folder BAG, below 60 MB
#   bash launch/recipe_gpu.sh run BAG OUT          there: trains, and puts what is kept into OUT
#   python benchmarks/study.py --table=recipe_test --merge results/medium_128     here, OUT/results.tgz unpacked there
#
# It is study_gpu.sh with another table; all variables stand there. To try it out anywhere in some minutes:
#   SCALE=smoke ROWS=modern SEEDS=0 PARALLEL=1 LIMIT=240 bash launch/recipe_gpu.sh run BAG OUT
set -euo pipefail
export TABLE=recipe_test SCALE=${SCALE:-medium_128} SEEDS=${SEEDS:-0,1,2} ROWS=${ROWS:-modern_20,modern_80}
export PARALLEL=${PARALLEL:-3} QUALITY=${QUALITY:-60} WORK=${WORK:-${TMPDIR:-/tmp}/stce_recipe}
exec bash "$(dirname "${BASH_SOURCE[0]}")/study_gpu.sh" "$@"
