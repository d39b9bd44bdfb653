#!/usr/bin/env bash
# Installs stce_jax with its test tools into .venv, checks the style and runs tests.
#
#   bash launch/test.sh                                     the quick tier: every module, no process but its own
#   bash launch/test.sh --all                               everything
#   bash launch/test.sh tests/models/ops -k golden          arguments of pytest: what they name, quick or slow
# Further arguments of --all go to pytest, too. Set STCE_TEST_DATA to a folder with golden vectors and real images;
# tests that need them are skipped without it.
set -euo pipefail
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

# A worker more than cores, for tests that wait; at least three, at most eight, each with eight devices of its own. The
# tests of one file run in one worker, in order, and share what the file prepares.
count=$(($(nproc) + 1))
count=$((count < 3 ? 3 : count > 8 ? 8 : count))
workers=(-n "$count" --dist loadfile --no-loadscope-reorder)
if [ $# = 0 ]; then
  set -- "${workers[@]}" -m 'not slow'
elif [ "$1" = --all ]; then
  shift
  set -- "${workers[@]}" "$@"
fi

install_stce dev
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
