# shellcheck shell=bash
# Sourced by slurm.sbatch and tpu_pod.sh: whether an end of `stce train` is worth running it again.
#
# 0 is done. 1 to 5 (a fault of the program, config, data, checkpoint, divergence) would only come again. 75 is a run
# that saved its state or lost a process. Above 128 a signal ended it: a broken machine, or memory that ran out, which
# does come again. The code does not tell these apart, so what is tried again must also get somewhere: MAX_FRUITLESS
# attempts in a row that end at the same checkpoint end it all.
MAX_FRUITLESS=${MAX_FRUITLESS:-5}

is_worth_retrying() { # STATUS
  [ "$1" -eq 75 ] || [ "$1" -gt 128 ]
}

# The step of the newest checkpoint in a workdir, or "none".
last_saved() { # WORKDIR
  local listing step
  case $1 in
    # A bucket that cannot be asked counts as progress: a run is not given up for that.
    gs://*)
      listing=$(gcloud storage ls "$1/checkpoints/" 2>&1) || [[ $listing == *"matched no objects"* ]] ||
        listing=$(date +%s)
      ;;
    *) listing=$(ls "$1/checkpoints" 2>/dev/null) || true ;;
  esac
  step=$(sed -nE 's#^(.*/)?([0-9]+)/?$#\2#p' <<< "$listing" | sort -n | tail -n 1)
  echo "${step:-none}"
}

# Notes in FILE where an attempt ended; fails once the last MAX_FRUITLESS ended at the same checkpoint.
gets_somewhere() { # FILE WORKDIR
  last_saved "$2" >> "$1"
  if [ "$(wc -l < "$1")" -ge "$MAX_FRUITLESS" ] && [ "$(tail -n "$MAX_FRUITLESS" "$1" | uniq | wc -l)" -eq 1 ]; then
    echo "given up: the last $MAX_FRUITLESS attempts ended at the same checkpoint ($(tail -n 1 "$1"))" >&2
    return 1
  fi
}

# The value of --workdir among the words for `stce train`; the last one counts, as it does there.
workdir_of() { # WORDS...
  local word workdir=''
  for word in "$@"; do
    case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
  done
  workdir=${workdir/#\~\//$HOME/} # as stce_jax reads it; a shell leaves it as it is after --workdir=
  echo "${workdir%/}"
}
