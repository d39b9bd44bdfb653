#!/usr/bin/env bash
# Runs a command so that it outlives the connection over which it was started; started again while it runs, the same
# command is only followed. Its output is added to DIR/log and shown from here on; its exit code is passed on, but
# for 1, which becomes 70: 1 is what gcloud ends with when itself fails.
#
#   bash launch/detached.sh DIR COMMAND...
set -euo pipefail
directory=$1
shift
mkdir -p "$directory"
printf -v command '%q ' "$@"

# The command holds this lock as long as any process of it lives; a reboot frees it, as no file with a number would be.
exec 9>> "$directory/lock"
if flock --nonblock 9; then
  echo "$command" > "$directory/command"
  rm -f "$directory/status"
  touch "$directory/log"
  from=+$(($(stat -c %s "$directory/log") + 1))
  # shellcheck disable=SC2016  # expanded by the inner shell
  setsid bash -c '"${@:2}"; echo $? > "$1/status"' detached "$directory" "$@" < /dev/null >> "$directory/log" 2>&1 &
  pid=$!
  echo "$pid" > "$directory/pid"
elif [ "$(cat "$directory/command")" = "$command" ]; then
  pid=$(cat "$directory/pid")
  from=2000
  echo "it runs here already (process $pid); following it"
else
  echo "something else runs here already: $(cat "$directory/command")" >&2
  exit 2
fi
exec 9>&-
tail --pid="$pid" --follow --bytes="$from" "$directory/log"
status=$(cat "$directory/status" 2>/dev/null || echo 137) # none is left if it was killed
if [ "$status" -eq 1 ]; then status=70; fi
exit "$status"
