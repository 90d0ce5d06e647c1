#!/bin/bash
# fault_test.sh MPIRUN PROGRAM FAULT RANKS_PER_NODE [nccl]: four ranks, of which rank 2 is killed, stopped, asleep for longer
# than the timeout (1.5 s), leaves the group, or sums something else. The others have to say so, naming rank 2, in time. Over
# NCCL nobody knows who is late, and who comes too late may hear that the others are gone; a timeout, too, is an answer there.
#
# mpirun ends a job when one of its processes dies. So that the survivors can be heard, what mpirun starts and watches is a
# shell, which outlives the rank for as long as they may take.
set -eu
mpirun=$1 program=$2 fault=$3 ranks_per_node=$4 kind_of_sums=${5:-mpi}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$mpirun" 4 bash -c '"$0" "$@"; for i in {1..60}; do [ -e "${!#}/finished" ] && exit 0; sleep 0.1; done' \
  "$program" "$fault" "$ranks_per_node" "$folder" >"$folder/output" 2>&1 &
job=$!

case $fault in
  killed*)   innocent=peer_lost guilty=none within_ms=2000 ;;
  stopped*)  innocent=timeout   guilty=timeout within_ms=3000 ;;
  asleep*)   innocent=timeout   guilty=timeout within_ms=3000 ;;
  leaves*)   innocent=peer_lost guilty=own within_ms=2000 ;;
  mismatch) innocent='usage|peer_lost' guilty='usage|peer_lost' within_ms=3000 ;;
esac
if [ "$kind_of_sums" = nccl ]; then
  innocent="$innocent|timeout" guilty=${guilty/timeout/timeout|peer_lost} within_ms=10000
fi
expected='0 1 3'
[ "$guilty" = none ] || expected="$expected 2"

for _ in {1..150}; do
  missing=
  for rank in $expected; do [ -e "$folder/$rank" ] || missing="$missing $rank"; done
  [ -n "$missing" ] && kill -0 "$job" 2>/dev/null || break
  sleep 0.1
done
touch "$folder/finished"
wait "$job" || true

status=0
complain() { echo "FAILED: $*"; status=1; }
[ -z "$missing" ] || complain "no error on rank(s)$missing"
for rank in $expected; do
  [ -e "$folder/$rank" ] || continue
  read -r elapsed_ms kind message <"$folder/$rank"
  echo "rank $rank after $elapsed_ms ms: $kind: $message"
  if [ "$rank" = 2 ]; then
    [[ $kind =~ ^($guilty)$ ]] || complain "rank 2 has $kind, expected $guilty"
  else
    [[ $kind =~ ^($innocent)$ ]] || complain "rank $rank has $kind, expected $innocent"
    [ "$elapsed_ms" -le "$within_ms" ] || complain "rank $rank needed $elapsed_ms ms, expected $within_ms at most"
    # In a mismatch nobody knows who of the two is right: between nodes the message names the other one.
    [ "$fault" = mismatch ] || { [ "$kind" = timeout ] && [ "$kind_of_sums" = nccl ]; } || [[ $message == *"rank 2 (host "* ]] || complain "rank $rank does not name rank 2"
  fi
done
if [ "$status" != 0 ]; then
  sed 's/^/output: /' "$folder/output"
fi
exit "$status"
