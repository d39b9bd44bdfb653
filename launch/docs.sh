#!/usr/bin/env bash
# Installs stce_jax with what builds its documents into .venv, and builds the site into site/; warnings are errors.
#
#   bash launch/docs.sh
#   bash launch/docs.sh DIR    # elsewhere
set -euo pipefail
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

target=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../site}")
install_stce docs
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "$python" -m sphinx -W --keep-going -b html docs "$target"
