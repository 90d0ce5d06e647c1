#!/usr/bin/env bash
# server_scaling.sh LOCKSTEP LIMITED_LINKS [OPTION VALUE]...: how sums scale with the number of parameter servers, between
# machines whose network links are the limit.
#
#   --servers "1 2 4 8"   numbers of servers
#   --server-mbit 100     a server's link, in million bits a second each way
#   --worker-mbit 200     a worker's
#   --mib 16              the sum
#   --gloo PYTHON         gloo's time over the workers' links, too; a Python that has PyTorch
#
# Two workers and the servers are network namespaces. Prints how long a sum takes beside what the links need at least: a
# worker's link carries each byte once up and once down, a server's those of both workers. Needs root; exit code 77 where
# namespaces or interfaces cannot be made.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
lockstep=$(realpath "$1") links=$(realpath "$2")
shift 2
numbers="1 2 4 8" server_mbit=100 worker_mbit=200 mib=16 python=
while [ $# -ge 2 ]; do
  case $1 in
    --servers) numbers=$2 ;;
    --server-mbit) server_mbit=$2 ;;
    --worker-mbit) worker_mbit=$2 ;;
    --mib) mib=$2 ;;
    --gloo) python=$2 ;;
    *) break ;;
  esac
  shift 2
done
[ $# -eq 0 ] || { echo "server_scaling: unknown option $1" >&2; exit 2; }
most_servers=${numbers##* }
folder=$(mktemp -d)
started=()
finish() {
  kill "${started[@]}" 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT

network_of() { echo "/proc/$(cat "$folder/$1.pid")/ns/net"; }

ports=() number=0
hosts=(w1 w2)
for ((i = 1; i <= most_servers; i++)); do hosts+=("s$i"); done
cannot() {
  echo "server_scaling: $1"
  exit 77
}
unshare --net true 2>/dev/null || cannot "no network namespaces here"
[ -w /dev/net/tun ] || cannot "no /dev/net/tun here"
command -v ip >/dev/null || cannot "no ip here; Debian's package iproute2 has it"
for host in "${hosts[@]}"; do
  unshare --net sleep infinity &
  started+=($!)
  echo $! >"$folder/$host.pid"
  case $host in w*) ports+=("$host=$worker_mbit") ;; *) ports+=("$host=$server_mbit") ;; esac
done
for host in "${hosts[@]}"; do
  for ((i = 0; i < 100; i++)); do
    [ "$(readlink "/proc/$(cat "$folder/$host.pid")/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break
    sleep 0.05
  done
done
"$links" "$folder" "${ports[@]}" >"$folder/ready" &
started+=($!)
for ((i = 0; i < 100; i++)); do grep -q ready "$folder/ready" && break; sleep 0.1; done
grep -q ready "$folder/ready" || cannot "no interfaces can be made here"
declare -A address
for host in "${hosts[@]}"; do
  number=$((number + 1))
  address[$host]=10.78.0.$number
  nsenter --net="$(network_of "$host")" ip link set lo up
  nsenter --net="$(network_of "$host")" ip link set link0 mtu 9000 up
  nsenter --net="$(network_of "$host")" ip address add "${address[$host]}/24" dev link0
done

export LOCKSTEP_TOKEN_FILE=$folder/token
printf '%d MiB, 2 workers with %s Mbit/s, servers with %s Mbit/s\n' "$mib" "$worker_mbit" "$server_mbit"
printf '%-8s %10s %16s %8s\n' servers ms "links' least ms" ratio
for k in $numbers; do
  list= pids=()
  for ((i = 1; i <= k; i++)); do
    nsenter --net="$(network_of "s$i")" "$lockstep" serve --workers 2 --wait 0 --listen 0.0.0.0 --port 7070 --part "$i/$k" >"$folder/s$i.log" 2>&1 &
    pids+=($!)
    list+=${list:+,}${address[s$i]}:7070
    for ((j = 0; j < 100; j++)); do [ -e "$LOCKSTEP_TOKEN_FILE" ] && break; sleep 0.1; done
  done
  started+=("${pids[@]}")
  for host in w1 w2; do
    nsenter --net="$(network_of "$host")" "$lockstep" bench allreduce --backend server --servers "$list" --min-kib $((mib << 10)) \
      --max-mib "$mib" --rounds 3 >"$folder/$host.log" 2>&1 &
    pids+=($!)
  done
  wait "${pids[@]}" || true
  cat "$folder/w1.log" "$folder/w2.log" | awk -v bytes=$((mib << 20)) -v k="$k" -v s="$server_mbit" -v w="$worker_mbit" '
    $1 == bytes {
      least = bytes * 8 / 1e3 * (2 / (k * s) > 1 / w ? 2 / (k * s) : 1 / w)
      printf "%-8d %10.1f %16.1f %7.0f%%\n", k, $2 / 1e3, least, 100 * least * 1e3 / $2
      found = 1
    }
    END { if (!found) exit 1 }' || { cat "$folder/"*.log >&2; exit 1; }
done
if [ -n "$python" ]; then
  pids=()
  for rank in 0 1; do
    nsenter --net="$(network_of "w$((rank + 1))")" "$python" "$here/../../launcher/bench/gloo_all_reduce.py" --rank $rank --address "${address[w1]}" \
      --interface link0 --min-kib $((mib << 10)) --max-mib "$mib" --rounds 3 >"$folder/gloo$rank.log" 2>&1 &
    pids+=($!)
  done
  wait "${pids[@]}" || true
  cat "$folder"/gloo*.log
fi
