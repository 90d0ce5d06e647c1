#!/usr/bin/env bash
# cluster/train.sbatch with a stand-in for srun, mpirun and scontrol: what it passes on, and when it requeues.
#
#   sbatch_test.sh PATH/TO/train.sbatch
set -euo pipefail
script=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin"

# The stand-in notes its arguments, waits for SIGUSR1 when told to, and ends with the code it is told.
cat >"$folder/bin/srun" <<'EOF'
#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$NOTES"
if [ "$WAIT_FOR_SIGNAL" = yes ]; then
  trap 'echo "got USR1" >>"$NOTES"; exit "$CODE"' USR1
  for _ in $(seq 200); do sleep 0.05; done
fi
exit "$CODE"
EOF
cp "$folder/bin/srun" "$folder/bin/mpirun"
cat >"$folder/bin/scontrol" <<'EOF'
#!/bin/sh
echo "scontrol $*" >>"$NOTES"
EOF
chmod +x "$folder/bin/"*
export PATH="$folder/bin:$PATH" NOTES="$folder/notes" SLURM_JOB_ID=42 SLURM_NTASKS=4 LOCKSTEP=lockstep

failures=0
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}
# run CODE WAIT_FOR_SIGNAL [SIGNAL]: leaves the exit code in `code` and the notes in one line in `notes`.
run() {
  : >"$NOTES"
  CODE=$1 WAIT_FOR_SIGNAL=$2 bash "$script" cfg.yaml --set train.steps=3 >"$folder/out" 2>&1 &
  local pid=$!
  if [ -n "${3:-}" ]; then
    until grep -q cfg.yaml "$NOTES"; do sleep 0.05; done
    sleep 0.2
    kill "-$3" "$pid"
  fi
  code=0
  wait "$pid" || code=$?
  notes=$(tr '\n' '|' <"$NOTES")
}

command="srun --mpi=pmix --cpu-bind=none lockstep train cfg.yaml --set train.steps=3|"
run 0 no
expect "a run that is done ends the job" "$code $notes" "0 $command"
run 1 no
expect "a run that failed is not requeued" "$code $notes" "1 $command"
run 75 yes USR1
expect "SIGUSR1 is passed on, and exit code 75 requeues" "$code $notes" "75 ${command}got USR1|scontrol requeue 42|"
run 75 yes TERM
expect "a preemption's SIGTERM saves too" "$code $notes" "75 ${command}got USR1|scontrol requeue 42|"
export LOCKSTEP_STARTER=mpirun
run 75 yes USR1
expect "mpirun in srun's place" "$code $notes" \
  "75 mpirun --bind-to none -np 4 lockstep train cfg.yaml --set train.steps=3|got USR1|scontrol requeue 42|"
code=0
bash "$script" >"$folder/out" 2>&1 || code=$?
expect "no configuration is bad usage" "$code" 2

[ "$failures" -eq 0 ] && echo "train.sbatch: as expected"
exit "$((failures > 0))"
