#!/usr/bin/env bash
# Installs stce_jax into .venv and trains: the digits by default, anything else by the arguments of `stce train`.
# One process drives every GPU that it sees. Besides those arguments:
#   --gpus=0,1   only these GPUs (as CUDA_VISIBLE_DEVICES=0,1 does); --gpus=all, the default, leaves that variable alone
#   --dry-run    prints the commands and runs none
#
#   bash launch/local.sh
#   bash launch/local.sh --gpus=0 --config=configs/small_folder.py --data_dir=DIR --workdir=runs/small --config.seed=1
set -euo pipefail
# shellcheck source=SCRIPTDIR/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

config=digits workdir='' dry_run='' gpus=all words=()
for word in "$@"; do
  case $word in
    --dry-run) dry_run=yes; continue ;;
    --gpus=*) gpus=${word#--gpus=}; continue ;;
    --config=*) config=${word#--config=} ;;
    --workdir=*) workdir=${word#--workdir=} ;;
  esac
  words+=("$word")
done
devices=()
if [ "$gpus" != all ]; then
  if [[ ! $gpus =~ ^[0-9]+(,[0-9]+)*$ ]]; then
    echo "--gpus is '$gpus'; it must be all, or numbers of nvidia-smi's list: --gpus=0 or --gpus=0,1" >&2
    exit 2
  fi
  devices=(env "CUDA_VISIBLE_DEVICES=$gpus")
fi

accelerator=$(accelerator_extra) storage=$(storage_extra "$@")
install_stce ${accelerator:+"$accelerator"} ${storage:+"$storage"}
name=$(basename "${config%.py}")
train=("${devices[@]}" "$python" -P -m stce_jax train \
  --config="$config" --workdir="${workdir:-runs/${name/:/_}}" "${words[@]}")
if [ -n "$dry_run" ]; then show "${train[@]}"; else exec "${train[@]}"; fi
