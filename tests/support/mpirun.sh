#!/bin/sh
# mpirun.sh RANKS PROGRAM [ARGUMENT...]: starts a test on this machine, with more ranks than cores if need be, also as root.
#
# Everything is said through variables, since the command lines of Open MPI 4.1 and 5.0 differ. The OMPI_MCA_ ones of the
# runtime are read by 4.1, the PRTE_ ones by 5.0. No binding: ranks of two tests at a time would all sit on the first cores.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: mpirun.sh RANKS PROGRAM [ARGUMENT...]" >&2
  exit 2
fi
ranks=$1
shift

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1
# For builds with sanitizers, which do not see MPI's own code: where its locks are concerned they see half of what happens, and
# its leaks cannot be told by name, since it has unloaded its modules when they are counted.
export TSAN_OPTIONS="report_mutex_bugs=0 detect_deadlocks=0 ${TSAN_OPTIONS-}"
export ASAN_OPTIONS="detect_leaks=0 ${ASAN_OPTIONS-}"

exec mpirun -np "$ranks" "$@"
