#!/usr/bin/env bash
# Installs stce_jax with its test tools into .venv and runs the tests; arguments go to pytest.
#
#   bash launch/test.sh
#   bash launch/test.sh tests/models/ops/test_supertoken.py -k golden
# STCE_TEST_DATA may name a folder with golden vectors and real images; tests that want them are skipped without it.
set -euo pipefail
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

install_stce dev
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
