#!/usr/bin/env bash
# mpirun for ranks on this machine alone, with what such a machine needs: runs as root too (containers), takes more ranks
# than cores, binds no rank to a core, and lets Ctrl-C save.
#
#   cluster/mpirun.sh -np 2 build/release/lockstep train CONFIG.yaml
#
# On Ctrl-C or SIGTERM mpirun itself kills the ranks, after a second (Open MPI 4.1) or less (5.0), which can be too short for
# a save. SIGUSR1 it passes on and waits. So the first Ctrl-C, SIGTERM or SIGHUP becomes SIGUSR1 here, and only a second one
# reaches mpirun. The exit code is mpirun's: 75 after such a save.
set -uo pipefail

# Variables instead of options, because the command lines of Open MPI 4.1 (OMPI_) and 5.0 (PRTE_) differ.
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
# Ranks of one machine need no TCP; 5.0 warns about network interfaces that they would not use anyway.
export OMPI_MCA_btl=${OMPI_MCA_btl:-^tcp}
if [ "$(nproc)" -lt 2 ]; then export OMPI_MCA_mpi_yield_when_idle=1; fi

# A session of its own keeps the terminal's Ctrl-C away from mpirun.
setsid mpirun "$@" </dev/null &
mpirun=$!

requests=0
# shellcheck disable=SC2317  # called by the trap
on_signal() {
  requests=$((requests + 1))
  if [ "$requests" -eq 1 ]; then
    kill -USR1 "$mpirun"
  else
    kill -TERM "$mpirun"
  fi
}
trap on_signal INT TERM HUP USR1

# `wait` returns early when a trap ran, and is called again until it returns because mpirun has ended.
while true; do
  before=$requests
  wait "$mpirun"
  code=$?
  if [ "$requests" -eq "$before" ]; then break; fi
done
exit "$code"
