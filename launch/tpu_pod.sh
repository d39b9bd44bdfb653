#!/usr/bin/env bash
# Trains on a Cloud TPU, one process a worker: asks for it (a queued resource) or takes the one of that name, copies
# this checkout to all workers, trains there, and after a preemption asks again and goes on from the last checkpoint.
#
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-16 --version=v2-alpha-tpuv5-lite [OPTIONS] \
#     -- --config=stce_vit_s --workdir=gs://BUCKET/runs/stce --data_dir=gs://BUCKET/data
#
#   --project=PROJECT   other than gcloud's own            --spot      cheaper, and preempted at any time
#   --setup=COMMAND     run on each worker first; by default it installs Python 3.11 where there is none
#   --delete            removes the TPU once the run is over; without `-- ...`, only does that
#   --dry-run           prints the commands and runs none
#
# Once before: `ssh-add ~/.ssh/google_compute_engine` (gcloud needs it for several workers). The run does not depend on
# this script: after Ctrl-C or a lost connection it goes on, and the same command follows it again. See README.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=SCRIPTDIR/install.sh
source "$root/launch/install.sh"
# shellcheck source=SCRIPTDIR/retry.sh
source "$root/launch/retry.sh"

name='' zone='' type='' version='' project='' spot='' delete='' dry_run='' train=''
setup='command -v python3.13 python3.12 python3.11 > /dev/null || '
# A machine that has just started updates itself, and keeps others from it meanwhile.
setup+='{ for try in 1 2 3 4 5 6; do sudo apt-get -qq update && sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install '
setup+='python3.11-venv && break; sleep 20; done; }'
while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --type=* | --version=* | --project=* | --setup=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --spot) spot=--spot ;;
    --delete) delete=yes ;;
    --dry-run) dry_run=yes ;;
    --) train=yes; shift; break ;;
    *) echo "unknown argument $1; those of stce train come after --" >&2; exit 2 ;;
  esac
  shift
done
workdir=$(workdir_of "$@")
if [ -z "$name" ] || [ -z "$zone" ] || { [ -n "$train" ] && { [ -z "$type" ] || [ -z "$version" ]; }; } ||
  { [ -z "$train" ] && [ -z "$delete" ]; }; then
  echo "needs --name, --zone, --type, --version and -- ARGUMENTS OF stce train; see the first lines of $0" >&2
  exit 2
elif [ -n "$train" ] && [[ $workdir != gs://* ]]; then
  echo "--workdir is '$workdir'; it must be a gs:// path, for the workers' disks go when they are preempted" >&2
  exit 2
fi

tpus=(gcloud compute tpus)
where=(--zone="$zone" ${project:+--project="$project"})
list=("${tpus[@]}" queued-resources list "${where[@]}" --filter="name~/$name\$" --format='value(state.state)')
create=("${tpus[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
  --accelerator-type="$type" --runtime-version="$version" ${spot:+"$spot"})
remove=("${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet)

# What a worker runs: the code is unpacked anew, the environment beside it stays.
job=$(show bash launch/local.sh "$@")
job="set -e; rm -rf stce; mkdir stce; tar -xzf stce.tar.gz -C stce; $setup; cd stce; VENV=\$HOME/stce.venv exec $job"
job="tar -xzf stce.tar.gz launch/detached.sh && $(show bash launch/detached.sh stce.run bash -c "$job")"
archive=$(mktemp -d)/stce.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
pack=(tar -czf "$archive" -C "$root" --exclude=__pycache__ pyproject.toml requirements.txt README.md LICENSE \
  configs launch stce_jax)
copy=("${tpus[@]}" tpu-vm scp "$archive" "$name:stce.tar.gz" --worker=all "${where[@]}" --quiet)
# Without these options a connection to a worker that is gone would hang for ever.
work=("${tpus[@]}" tpu-vm ssh "$name" --worker=all "${where[@]}" --quiet --ssh-flag='-o ServerAliveInterval=30' \
  --ssh-flag='-o ConnectTimeout=10' --command="$job")

if [ -n "$dry_run" ]; then
  if [ -n "$train" ]; then
    show "${list[@]}"
    show "${create[@]}"
    show "${pack[@]}"
    show "${copy[@]}"
    show "${work[@]}"
    echo "# after a preemption, before it all begins anew${delete:+, and at the end}:"
  fi
  show "${remove[@]}"
  exit
fi

wait_until_active() {
  local state before=''
  while :; do
    state=$("${list[@]}") || state=UNKNOWN # gcloud has said why; the network may come back
    if [ "$state" != "$before" ]; then echo "$(date '+%F %T') $name: ${state:-not there}"; fi
    before=$state
    case $state in
      ACTIVE) return ;;
      '') "${create[@]}" ;;
      SUSPENDED) "${remove[@]}" ;; # preempted; what is left of it is in the way of a new one
      FAILED)
        echo "the request failed: gcloud compute tpus queued-resources describe $name says why; then --delete" >&2
        exit 1
        ;;
      *) sleep "${POLL_SECONDS:-30}" ;;
    esac
  done
}

status=0
if [ -n "$train" ]; then
  "${list[@]}" > /dev/null # stops here if gcloud has no account or the project no TPUs
  while :; do
    wait_until_active
    status=0
    { "${pack[@]}" && "${copy[@]}" && "${work[@]}"; } || status=$?
    # 1 is gcloud's own: a worker that is gone, or never was reached.
    if { [ "$status" -ne 1 ] && ! is_worth_retrying "$status"; } ||
      ! gets_somewhere "$(dirname "$archive")/attempts" "$workdir"; then
      break
    fi
    echo "$(date '+%F %T') ended with $status; trying again"
    sleep "${POLL_SECONDS:-30}"
  done
fi
if [ -n "$delete" ]; then
  "${remove[@]}"
else
  echo "$name is kept, and costs money, until: bash launch/tpu_pod.sh --name=$name --zone=$zone --delete"
fi
if [ "$status" -eq 70 ]; then status=1; fi # see detached.sh
exit "$status"
