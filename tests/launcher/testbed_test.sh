#!/usr/bin/env bash
# cluster/testbed.sh: its hosts are apart, MPI and Slurm work across them, and nothing is left of them.
#
#   testbed_test.sh PATH/TO/testbed.sh
set -euo pipefail
script=$1
folder=$(mktemp -d)
bed=$folder/bed
trap '"$script" down "$bed" && rm -rf "$folder"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1

failures=0
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}
on() { "$script" exec "$bed" "$@"; }
code_of() {
  local code=0
  "$@" >/dev/null 2>&1 </dev/null || code=$?
  echo "$code"
}
sorted() { sort | tr '\n' ' '; }
# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    if [ "$SECONDS" -ge "$deadline" ]; then return 1; fi
    sleep 0.1
  done
}
# What there is of a testbed among this machine's interfaces, names of namespaces and mounts. Others may change those, too.
machine() {
  ip -o link | grep -E '^[0-9]+: n[1-4][@:]' || true
  ip netns list | grep -w 'n[1-4]' || true
  grep -F "$folder" /proc/mounts || true
}
# Processes on the hosts, which have the folder mounted, and those that name it; but not the grep that looks for it.
leftovers() { grep -lsa "$folder/be[d]" /proc/[0-9]*/mountinfo /proc/[0-9]*/cmdline | grep -vw "$$/cmdline" || true; }

expect "no command is wrong usage" "$(code_of "$script")" 2
expect "nor are half hosts made" "$(code_of "$script" up "$bed" --hosts 2.5)" 2
expect "a cluster that is not there has no hosts" "$(code_of "$script" exec "$bed" n1 true)" 1
expect "and is not reached" "$(code_of "$script" ssh "$bed" n1 true)" 255

before=$(machine)
code=0
message=$("$script" up "$bed" --grace 3 2>&1) || code=$?
if [ "$code" -eq 77 ]; then
  echo "skipped: $message"
  exit 77
fi
expect "a cluster starts" "$code $message" "0 "
[ "$code" -eq 0 ] || exit 1
expect "it does not show among this machine's interfaces, namespaces and mounts" "$(machine)" "$before"
expect "a second one in the same folder is refused" "$(code_of "$script" up "$bed")" 1

# ---------------------------------------------------------------------------------------------------------------- hosts
found="" expected=""
for host in n1 n2 n3 n4; do
  # shellcheck disable=SC2016  # for the host's shell
  found+=$(on "$host" sh -c 'touch /tmp/mine-$0 /dev/shm/mine-$0
    echo $(uname -n) $(ip -o -4 addr show dev eth0 | grep -o "10[.0-9]*/24") $(ls -d /tmp/mine-* /dev/shm/mine-*)' "$host")$'\n'
  expected+="$host 10.77.0.${host#n}/24 /dev/shm/mine-$host /tmp/mine-$host"$'\n'
done
expect "hosts have their own name, address, /tmp and /dev/shm" "$found" "$expected"
expect "names resolve on them" "$(on n2 getent hosts n3 | tr -s ' ')" "10.77.0.3 n3"
expect "streams and exit codes go through exec" "$(on n2 sh -c 'cat; exit 7' <<<hello || echo $?)" $'hello\n7'
# shellcheck disable=SC2016  # for the host's shell
expect "ssh joins words, starts in / with the host's own variables, and knows options" \
  "$(SECRET=1 "$bed/ssh" -x -o ConnectTimeout=5 root@n2 echo '$(uname -n) $PWD' '"$SECRET"; exit 3' || echo $?)" $'n2 / \n3'
expect "from a host as well" "$(on n1 "$bed/ssh" n3 uname -n)" n3
"$script" exec "$bed" n3 sleep 1234 &
eventually 5 "$script" pids "$bed" n3 'sleep 1234' >/dev/null
kill "$("$script" pids "$bed" n3 'sleep 1234')"
code=0
wait $! 2>/dev/null || code=$?
expect "a process on a host can be found and ended from outside" "$code" 143

# -------------------------------------------------------------------------------------------------------- MPI and Slurm
cat >"$bed/sum.c" <<'END'
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int count, char** arguments) {
  int rank, sum;
  char host[64];
  MPI_Init(&count, &arguments);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  gethostname(host, sizeof host);
  printf("%s %d\n", host, sum);
  MPI_Finalize();
  return 0;
}
END
mpicc -o "$bed/sum" "$bed/sum.c"
all="n1 6 n2 6 n3 6 n4 6 "
# By a ring: see comm/mpi/runtime.cpp.
expect "srun starts ranks that find each other" \
       "$(on n1 env SLURM_PMIX_FENCE=ring srun -N4 -n4 --mpi=pmix --kill-on-bad-exit "$bed/sum" | sorted)" "$all"
agent=(--mca plm_rsh_agent)
if [[ $(mpirun --version) =~ \ ([5-9]|[1-9][0-9])\. ]]; then agent=(--prtemca plm_ssh_agent); fi
expect "so does mpirun, through DIR/ssh" \
  "$(on n1 mpirun --host n1,n2,n3,n4 "${agent[@]}" "$bed/ssh" "$bed/sum" | sorted)" "$all"

# Jobs that have nodes for themselves: one requeues itself, one is preempted. Slurm takes 15 seconds to do the latter, even
# when the grace is over before; so both run while links and machines are tried. (sbatch --wait would notice seconds late.)
cat >"$bed/requeue" <<END
#!/bin/bash
#SBATCH -N2 -n2 --exclusive -w n1,n2 --open-mode=append --output=$bed/requeue.log
mpirun "$bed/sum"
echo "restarts: \${SLURM_RESTART_COUNT:-0}"
[ -n "\${SLURM_RESTART_COUNT:-}" ] || { scontrol requeue "\$SLURM_JOB_ID"; sleep 60; }
END
# To a file of its own, as srun may not wait for the last words of what it ends.
cat >"$bed/task" <<'END'
#!/bin/bash
trap 'echo TERM >>"$1"; exit' TERM
echo "restarts: ${SLURM_RESTART_COUNT:-0}" >>"$1"
while [ -z "${SLURM_RESTART_COUNT:-}" ]; do sleep 0.1; done
END
cat >"$bed/low" <<END
#!/bin/bash
#SBATCH -N1 -n1 --exclusive -w n3 --output=/dev/null
srun bash "$bed/task" "$bed/low.log"
[ -n "\${SLURM_RESTART_COUNT:-}" ] || sleep 60
END
printf '#!/bin/sh\nexit 0\n' >"$bed/high"
on n1 sbatch "$bed/low" >/dev/null
on n1 sbatch "$bed/requeue" >/dev/null
eventually 20 grep -qs "restarts: 0" "$bed/low.log" || true
on n1 sbatch --partition=high -N1 --exclusive -w n3 --output=/dev/null "$bed/high" >/dev/null

# ---------------------------------------------------------------------------------------------------- links and machines
# n4 has no job. Slurm knows it as down only later, which is its own affair.
"$script" link "$bed" n4 down
expect "no cable, no ssh" "$(code_of "$bed/ssh" n4 true)" 255
expect "nor from that host" "$(code_of on n4 "$bed/ssh" n1 true)" 255
expect "but to itself" "$(on n4 "$bed/ssh" n4 uname -n)" n4
"$script" link "$bed" n4 up
expect "with the cable, ssh" "$("$bed/ssh" n4 uname -n)" n4
"$script" exec "$bed" n4 sleep 1235 &
eventually 5 "$script" pids "$bed" n4 'sleep 1235' >/dev/null
"$script" node "$bed" n4 down
code=0
wait $! 2>/dev/null || code=$?
expect "without power nothing runs on it" "$code" 137
expect "nor can be started on it" "$(code_of "$bed/ssh" n4 true)" 255
"$script" node "$bed" n4 up
expect "it comes back, empty" "$("$bed/ssh" n4 'uname -n; ls -d /tmp/mine-* 2>/dev/null')" n4

eventually 60 grep -qs "restarts: 1" "$bed/requeue.log" || true
expect "a job that requeues itself starts again, and mpirun works in jobs" \
  "$(grep -E '^(n[1-4] |restarts)' "$bed/requeue.log" | sorted)" "n1 1 n1 1 n2 1 n2 1 restarts: 0 restarts: 1 "
eventually 60 grep -qs "restarts: 1" "$bed/low.log" || true
expect "a job that is preempted gets SIGTERM, and starts again" "$(tr '\n' ' ' <"$bed/low.log")" "restarts: 0 TERM restarts: 1 "

# ------------------------------------------------------------------------------------------------------------------- end
"$script" down "$bed"
expect "nothing is left of it" "$(machine) $(leftovers)" "$before "
expect "it may be ended twice" "$(code_of "$script" down "$bed")" 0
# A cluster that is broken off at a bad time.
(timeout --signal=KILL 0.12 "$script" up "$bed" --no-slurm || true) 2>/dev/null
expect "what was broken off can be ended" "$(code_of "$script" down "$bed")" 0
expect "and leaves nothing" "$(machine) $(leftovers)" "$before "

[ "$failures" -eq 0 ] && echo "testbed.sh: as expected"
exit "$((failures > 0))"
