#!/usr/bin/env bash
# Installs stce_jax with wandb, trackio and mlflow into .venv-loggers, and runs the tests that train with them offline,
# those of tests/loggers. Apart from .venv: no other test needs these packages.
#
#   bash launch/loggers.sh                    all of them
#   bash launch/loggers.sh -k mlflow          arguments of pytest
#
# Packages come from where pip is set up to look. Environment: VENV, PYTHON as in install.sh.
set -euo pipefail
VENV=${VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv-loggers}
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

install_stce loggers
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "$python" -m pytest tests/loggers -n 0 "$@"
