#!/usr/bin/env bash
# Installs stce_jax into .venv and trains: the digits by default, anything else by the arguments of `stce train`.
#
#   bash launch/local.sh
#   bash launch/local.sh --config=configs/small_folder.py --data_dir=DIR --workdir=runs/small --config.seed=1
set -euo pipefail
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

accelerator=$(accelerator_extra)
install_stce ${accelerator:+"$accelerator"}

config=digits workdir=
for word in "$@"; do
  case $word in
    --config=*) config=${word#--config=} ;;
    --workdir=*) workdir=${word#--workdir=} ;;
  esac
done
name=$(basename "${config%.py}")
exec "$python" -m stce_jax train --config="$config" --workdir="${workdir:-runs/${name/:/_}}" "$@"
