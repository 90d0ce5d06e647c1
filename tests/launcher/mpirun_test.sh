#!/usr/bin/env bash
# cluster/mpirun.sh with a stand-in for mpirun: what becomes of signals and exit codes.
#
#   mpirun_test.sh PATH/TO/mpirun.sh
set -euo pipefail
script=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/mpirun" <<'EOF'
#!/usr/bin/env bash
trap 'echo USR1 >>"$NOTES"; [ "$STUBBORN" = yes ] || exit 75' USR1
trap 'echo TERM >>"$NOTES"; exit 1' TERM
trap 'echo INT >>"$NOTES"; exit 1' INT
echo "$*" >>"$NOTES"
[ -z "$CODE" ] || exit "$CODE"
for _ in $(seq 200); do sleep 0.05; done
EOF
chmod +x "$folder/mpirun"
export PATH="$folder:$PATH" NOTES="$folder/notes"

failures=0
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}
# run CODE STUBBORN SIGNAL...: leaves the exit code in `code` and the notes in one line in `notes`.
run() {
  : >"$NOTES"
  CODE=$1 STUBBORN=$2 "$script" -np 2 program argument &
  local pid=$!
  shift 2
  until grep -q program "$NOTES"; do sleep 0.02; done
  for signal in "$@"; do
    sleep 0.3
    kill "-$signal" "$pid"
  done
  code=0
  wait "$pid" || code=$?
  notes=$(tr '\n' ' ' <"$NOTES")
}

run 0 no
expect "arguments and success go through" "$code $notes" "0 -np 2 program argument "
run 3 no
expect "the exit code is mpirun's" "$code $notes" "3 -np 2 program argument "
# (A background process of a script ignores SIGINT, so the terminal's Ctrl-C is tried as SIGTERM and SIGHUP.)
run "" no TERM
expect "the first signal asks for a save" "$code $notes" "75 -np 2 program argument USR1 "
run "" no HUP
expect "so does a terminal that goes away" "$code $notes" "75 -np 2 program argument USR1 "
run "" yes TERM TERM
expect "a second signal ends the run" "$code $notes" "1 -np 2 program argument USR1 TERM "

[ "$failures" -eq 0 ] && echo "mpirun.sh: as expected"
exit "$((failures > 0))"
