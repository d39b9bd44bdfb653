# shellcheck shell=bash
# Sourced by the other scripts: `install_stce EXTRAS...` makes a virtual environment, installs this checkout into it,
# and leaves its interpreter in $python. Environment: VENV, where it goes (default .venv here); PYTHON, the
# interpreter to make it with (default: the newest of 3.13, 3.12, 3.11 on the PATH); LOCKED=1 for exactly the versions
# that were tested, those of requirements.lock, instead of the newest that fit.
# After `dry_run=yes` nothing is made: what would be run is printed.

# Prints a command so that it can be pasted into a shell.
show() {
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "${line# }"
}

# Runs a command, or shows it.
run() {
  if [ -n "${dry_run:-}" ]; then show "$@"; else "$@"; fi
}

find_python() {
  local candidate said version shim=''
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if said=$("$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>&1); then
      echo "$candidate"
      return
    fi
    # What pyenv has installed and not activated is on the PATH all the same, and lists the versions that have it.
    if [ -z "$shim" ] && [[ $said == "pyenv: "*" exists in these Python versions:"* ]]; then
      version=$(grep -oE '^ +3\.1[123]\.[0-9]+$' <<< "$said" | tail -n 1 | tr -d ' ') && shim=$candidate
    fi
  done
  if [ -n "$shim" ]; then
    echo "$shim is a shim of pyenv that is not active here; choose it: PYENV_VERSION=$version bash $0" >&2
    return 2
  fi
  echo "needs Python 3.11, 3.12 or 3.13 with venv; install one, or name it: PYTHON=/path/to/python3.13 bash $0" >&2
  return 2
}

# The build of jax for this machine: cuda12, cuda13, tpu, or nothing for the CPU's.
accelerator_extra() {
  local cuda vendor class
  if cuda=$(nvidia-smi 2>/dev/null | grep -oE 'CUDA (UMD )?Version: *[0-9]+' | grep -oE '[0-9]+$'); then
    if [ "$cuda" -ge 13 ]; then echo cuda13; else echo cuda12; fi
    return
  fi
  for vendor in /sys/bus/pci/devices/*/vendor; do
    # Google's PCI devices are TPUs, unless they are disks (class 01) or network cards (class 02).
    if [ "$(cat "$vendor" 2>/dev/null)" = 0x1ae0 ]; then
      class=$(cat "${vendor%vendor}class")
      case $class in 0x01* | 0x02*) ;; *) echo tpu; return ;; esac
    fi
  done
}

# What the words of a command need besides: gcs, if one of them is a gs:// path.
storage_extra() {
  case "$*" in *gs://*) echo gcs ;; esac
}

install_stce() {
  local root extras venv_root wanted lock
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  venv_root=${VENV:-$root/.venv}
  python=$venv_root/bin/python
  extras=$(IFS=,; echo "$*")
  # Installed once for each content of these files; the package itself is linked, not copied.
  lock=()
  if [ -n "${LOCKED:-}" ]; then lock=(--constraint "$root/requirements.lock"); fi
  wanted="$extras ${LOCKED:+locked }$(cat "$root/pyproject.toml" "$root/requirements.txt" "${lock[@]:1}" | cksum)"
  if [ "$(cat "$venv_root/installed" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if [ -n "${dry_run:-}" ]; then
    make_environment "$venv_root" "$root${extras:+[$extras]}"
    return
  fi
  # One at a time: a cluster may start many jobs of one checkout at once. The others then find it done.
  mkdir -p "$venv_root"
  (
    flock 9
    if [ "$(cat "$venv_root/installed" 2>/dev/null)" != "$wanted" ]; then
      echo "installing into $venv_root ${extras:+($extras)}"
      make_environment "$venv_root" "$root${extras:+[$extras]}"
      echo "$wanted" > "$venv_root/installed"
    fi
  ) 9> "$venv_root/lock"
}

make_environment() {
  local interpreter
  if [ ! -x "$python" ]; then
    interpreter=$(find_python)
    run "$interpreter" -P -m venv "$1"
  fi
  # pip shows its own progress on a terminal; elsewhere a line for each package, and the seconds so far.
  if [ -n "${dry_run:-}" ] || [ -t 1 ]; then
    run "$python" -P -m pip install --disable-pip-version-check "${lock[@]}" --editable "$2"
  else
    "$python" -P -m pip install --disable-pip-version-check --progress-bar=off "${lock[@]}" --editable "$2" | timed
  fi
}

# Of pip's lines those that say what it does, and when.
timed() {
  local line
  while IFS= read -r line; do
    case $line in
      Collecting* | Obtaining* | Building* | "  Building"* | Installing* | Successfully*)
        printf '%4d s  %.150s\n' "$SECONDS" "${line#  }" ;;
    esac
  done
}
