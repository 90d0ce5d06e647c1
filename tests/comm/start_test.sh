#!/bin/bash
# start_test.sh PROGRAM: the program must refuse to be one of N single-rank jobs, and must not refuse anything else.
set -eu
program=$1
status=0
# For builds with sanitizers: MPI's own leaks cannot be told by name, since it has unloaded its modules when they are counted.
export ASAN_OPTIONS="detect_leaks=0 ${ASAN_OPTIONS-}"

# expect CODE TEXT COMMAND...: the command ends with CODE and prints TEXT.
expect() {
  local code=$1 text=$2 output actual=0
  shift 2
  output=$(env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$@" 2>&1) || actual=$?
  if [ "$actual" != "$code" ] || [[ $output != *"$text"* ]]; then
    echo "FAILED: $*: expected exit code $code and \"$text\", found $actual and \"$output\""
    status=1
  fi
}

expect 0 'self: 1 rank' "$program"
expect 0 'self: 1 rank' "$program" self
expect 0 'mpi: 1 rank' "$program" mpi
expect 0 'self: 1 rank' SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 "$program"
expect 2 'srun started 4 tasks but gave them no PMIx' SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=1 "$program"
expect 2 'the launcher started 4 ranks, but MPI sees 1 rank(s)' PMI_RANK=1 PMI_SIZE=4 "$program"
expect 2 '4 ranks were started' PMI_RANK=1 PMI_SIZE=4 "$program" self
expect 2 'found "gloo", expected auto, self, mpi, nccl or server' "$program" gloo
exit "$status"
