#!/usr/bin/env bash
# Installs stce_jax with PyTorch, timm, transformers, ONNX Runtime and jax2onnx into .venv-interop, and runs the tests
# that compare with them, those of tests/interop. Apart from .venv: no other test needs these packages.
#
#   bash launch/interop.sh                    all of them
#   bash launch/interop.sh -k onnx            arguments of pytest
#
# Packages come from where pip is set up to look; PyTorch's build for CPUs suffices. Environment: VENV, PYTHON as in
# install.sh; STCE_TEST_DATA, a folder with golden vectors and real images, without which some tests are skipped.
set -euo pipefail
VENV=${VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv-interop}
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

converter=jax2onnx==0.17.1
install_stce interop
# Without its dependencies: see the extra `onnx` in pyproject.toml.
if [ "$("$python" -m pip freeze 2>/dev/null | grep -i '^jax2onnx==')" != "$converter" ]; then
  "$python" -P -m pip install --quiet --disable-pip-version-check --no-deps "$converter"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "$python" -m pytest tests/interop -n 0 "$@"
