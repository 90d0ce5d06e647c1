#!/usr/bin/env bash
# cluster/train.sbatch with a stand-in for lockstep: what it passes on, and that signals reach it. What lockstep launch does
# in a real Slurm is tests/faults/cluster_test.cpp's.
#
#   sbatch_test.sh PATH/TO/train.sbatch
set -euo pipefail
script=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/lockstep" <<'EOF'
#!/usr/bin/env bash
trap 'echo "got USR1" >>"$NOTES"; exit 75' USR1
echo "$*" >>"$NOTES"
[ "$WAIT" = no ] || for _ in $(seq 200); do sleep 0.05; done
EOF
chmod +x "$folder/lockstep"
export NOTES="$folder/notes" LOCKSTEP="$folder/lockstep"

failures=0
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}
: >"$NOTES"
code=0
WAIT=no bash "$script" cfg.yaml --set "run.name=a b" >"$folder/out" 2>&1 || code=$?
expect "it launches the configuration" "$code $(cat "$NOTES")" "0 launch cfg.yaml --set run.name=a b"

: >"$NOTES"
WAIT=yes bash "$script" cfg.yaml >"$folder/out" 2>&1 &
pid=$!
until grep -q cfg.yaml "$NOTES"; do sleep 0.05; done
kill -USR1 "$pid"
code=0
wait "$pid" || code=$?
expect "the batch shell's signal is lockstep's" "$code $(tr '\n' '|' <"$NOTES")" "75 launch cfg.yaml|got USR1|"

code=0
bash "$script" >"$folder/out" 2>&1 || code=$?
expect "no configuration is bad usage" "$code" 2
for option in --requeue --no-kill --signal=B:USR1@120; do
  expect "it asks Slurm for $option" "$(grep -c "^#SBATCH $option$" "$script")" 1
done

[ "$failures" -eq 0 ] && echo "train.sbatch: as expected"
exit "$((failures > 0))"
