#!/usr/bin/env bash
# A real small cluster inside this machine, for tests: hosts with a name, an address, a network link, /tmp and /dev/shm of
# their own, and Slurm on them. Needs root.
#
#   cluster/testbed.sh up DIR [--hosts 4] [--no-slurm] [--cpus 2] [--grace 10] [--requeue-delay 5] [--share PATH]...
#   cluster/testbed.sh exec DIR HOST COMMAND...     on that host; environment, streams and exit code go through
#   cluster/testbed.sh ssh DIR HOST COMMAND...      as `ssh HOST COMMAND...` would; 255 when there is no way to the host
#   cluster/testbed.sh link DIR HOST up|down        plugs the host's network cable in, pulls it
#   cluster/testbed.sh node DIR HOST up|down        starts the host again, cuts its power
#   cluster/testbed.sh pids DIR HOST [PATTERN]      its processes (whose command line matches); every host sees the same numbers
#   cluster/testbed.sh down DIR                     ends everything; may be called twice, and after an `up` that broke off
#
# Hosts are called n1, n2, ...; slurmctld runs on n1. Their file system is this machine's, but for /tmp and /dev/shm: of this
# machine's /tmp they see DIR and what --share names. DIR/ssh is the same as `testbed.sh ssh DIR`: an agent for mpirun.
# Partitions: "low" (the default one; its jobs are requeued --grace seconds after a job of the other wants their nodes) and
# "high". Every node has --cpus processors, whatever this machine has. A job that is requeued starts again one or two seconds
# after --requeue-delay.
#
# Exit codes: 2 for wrong usage, 77 where this machine cannot hold such a cluster (the line says why), 1 for what else fails.
#
# How: one network of namespaces for each DIR, with the bridge in one of its own. So nothing of it appears in this machine's
# list of network interfaces, its firewall is not asked, and two clusters may have the same names and addresses. Namespaces
# and mounts have no names either: they are gone when the last process in them is. There is no namespace for process
# numbers: what runs on one host could not start anything on another then.
set -euo pipefail

subnet=10.77.0
ssh_timeout_s=2
start_timeout_s=40
munge_folder=/tmp/munge # of each host's own /tmp
slurm_folder=/tmp/slurm

complain() { printf 'testbed: %s\n' "$*" >&2; }
wrong_usage() {
  complain "$*"
  exit 2
}
cannot() {
  complain "$*"
  exit 77
}

# ---------------------------------------------------------------------------------------------------- state of one testbed
# $state/HOST.pid    the keeper: a process in the host's namespaces that lives as long as the host
# $state/HOST.ns     "net:[..] mnt:[..]", by which all its processes are known
# $state/HOST.go     a pipe: a line in it tells the keeper that the host is plugged in
# $state/settings    shell variables
use_folder() {
  [ -n "${1:-}" ] || wrong_usage "no folder given; expected $command DIR ..., see --help"
  dir=$(realpath -m -- "$1")
  [[ $dir =~ ^/[A-Za-z0-9/._+-]+$ ]] || wrong_usage "folder $dir: Slurm takes only letters, digits and ._+- in a path"
  state=$dir/testbed
}
# shellcheck source=/dev/null
use_testbed() {
  use_folder "${1:-}"
  if [ ! -e "$state/settings" ]; then
    complain "no cluster in $dir; testbed.sh up $dir makes one"
    return 1
  fi
  . "$state/settings"
}
is_host() { [[ $1 =~ ^n[0-9]+$ ]] && [ "${1#n}" -ge 1 ] && [ "${1#n}" -le "$hosts" ]; }
use_host() {
  host=${1:-}
  is_host "$host" || wrong_usage "no host '$host'; expected n1 to n$hosts"
}

namespaces_of() { echo "$(readlink "/proc/$1/ns/net") $(readlink "/proc/$1/ns/mnt")"; }
# running NAME: leaves the keeper's process in `pid`. The number may be another's by now: its namespaces tell.
running() {
  pid=$(cat "$state/$1.pid" 2>/dev/null) && [ "$(namespaces_of "$pid" 2>/dev/null)" = "$(cat "$state/$1.ns")" ]
}
# processes NAME...: what runs in the namespaces of these hosts.
processes() {
  local name net found number patterns=()
  for name in "$@"; do
    read -r net _ <"$state/$name.ns" 2>/dev/null || continue
    patterns+=(-o -lname "net:\\[${net//[^0-9]/}\\]")
  done
  [ ${#patterns[@]} -gt 0 ] || return 0
  # Processes come and go meanwhile, about which find complains.
  { find /proc/[0-9]*/ns/net -maxdepth 0 \( -false "${patterns[@]}" \) 2>/dev/null || true; } |
    while IFS=/ read -r _ _ number _; do
      # Both must match, as a number of one that is gone is given again.
      found=$(namespaces_of "$number" 2>/dev/null) || continue
      for name in "$@"; do
        if [ "$found" = "$(cat "$state/$name.ns" 2>/dev/null)" ]; then echo "$number"; fi
      done
    done
}
kill_all() {
  local numbers deadline=$((SECONDS + 5))
  while numbers=$(processes "$@"); [ -n "$numbers" ]; do
    # shellcheck disable=SC2086  # one word each
    kill -KILL $numbers 2>/dev/null || true
    if [ "$SECONDS" -ge "$deadline" ]; then
      complain "processes of $* do not end: ${numbers//$'\n'/ }"
      return 1
    fi
    sleep 0.02
  done
}

# ------------------------------------------------------------------------------------------------------ needs of this machine
require() {
  local program missing=()
  [ "$(id -u)" -eq 0 ] || cannot "making network and mount namespaces needs root, this is user $(id -un); start it with sudo"
  local programs=(ip unshare nsenter setsid)
  if [ "$slurm" = yes ]; then programs+=(slurmctld slurmd munged srun sbatch scontrol); fi
  for program in "${programs[@]}"; do command -v "$program" >/dev/null || missing+=("$program"); done
  [ ${#missing[@]} -eq 0 ] || cannot "not on this machine: ${missing[*]}; cluster/install-deps.sh --tests installs what has them"
  if [ "$slurm" = yes ] && ! compgen -G '/usr/lib*/*/slurm*/mpi_pmix*.so' >/dev/null &&
    ! compgen -G '/usr/lib*/slurm*/mpi_pmix*.so' >/dev/null; then
    cannot "Slurm's plugin for PMIx (mpi_pmix*.so) is not on this machine; cluster/install-deps.sh --tests installs it"
  fi
  # It is mounted over, which takes a file.
  [ -e /etc/hosts ] || cannot "this machine has no /etc/hosts, where the hosts' names go; touch /etc/hosts makes one"
  # shellcheck disable=SC2016  # for the shell in there
  unshare --net --uts --mount sh -c 'mount -t tmpfs tmpfs /tmp && ip link add name br0 type bridge &&
    ip link add name n1 type veth peer name eth0' 2>/dev/null ||
    cannot "this machine does not let root make namespaces with a bridge in them (a container or a chroot?); use one with" \
      "CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged) or a virtual machine"
  # A root that is one only in a user namespace.
  if [ "$slurm" = yes ] && ! setpriv --clear-groups true 2>/dev/null; then
    cannot "Slurm's daemons may not set their groups here (rootless container?); use a machine's own root, or --no-slurm"
  fi
}

# ------------------------------------------------------------------------------------------------------------ one host's side
# Runs in new namespaces, and stays. Starts the host's daemons when its network is there.
keep_switch() {
  ip link add name br0 type bridge
  ip link set br0 up
  announce "$host"
  wait_forever
}
keep_host() {
  echo "$host" >/proc/sys/kernel/hostname
  mount --bind "$state/hosts" /etc/hosts
  own_folder /tmp
  own_folder /dev/shm
  unset TMPDIR
  cd /
  ip link set lo up
  announce "$host"
  # An `up` that broke off never tells.
  read -r -t 30 -u 3 _ || exit 1
  if [ "$slurm" = yes ]; then start_slurm; fi
  wait_forever
}
# A new tmpfs, in which the folders that all share are where they were.
own_folder() {
  local target=$1 staged=$state/$host.mount shared
  mkdir -p "$staged"
  mount -t tmpfs -o mode=1777 tmpfs "$staged"
  for shared in "$dir" "${shares[@]}"; do
    if [[ $shared/ = "$target"/* ]]; then
      mkdir -p "$staged${shared#"$target"}"
      mount --bind "$shared" "$staged${shared#"$target"}"
    fi
  done
  mount --move "$staged" "$target"
}
# This process is all that `down` needs to know, so it says so before it does anything else that lasts.
announce() {
  namespaces_of $$ >"$state/$1.ns"
  echo $$ >"$state/$1.pid.new"
  mv "$state/$1.pid.new" "$state/$1.pid"
}
# Without a process for it: nobody writes there any more.
wait_forever() {
  while true; do read -r -u 3 _ || true; done
}

answers() { (exec 4<>"/dev/tcp/$1/$2") 2>/dev/null; }
start_slurm() {
  mount --bind "$state/slurm" /etc/slurm
  # munged and PMIx are particular about who may write to their folders.
  (umask 022 && mkdir -p "$munge_folder" "$slurm_folder/spool" "$slurm_folder/state")
  install -m 0400 "$state/munge.key" "$munge_folder/key"
  munged --foreground --key-file="$munge_folder/key" --socket="$munge_folder/socket" --pid-file="$munge_folder/pid" \
    --seed-file="$munge_folder/seed" --log-file="$munge_folder/log" &
  until [ -S "$munge_folder/socket" ]; do sleep 0.02; done
  if [ "$host" = n1 ]; then slurmctld -D -c & fi
  # It would wait a second or more for its next try.
  until answers n1 6817; do sleep 0.05; done
  slurmd -D &
}

# ----------------------------------------------------------------------------------------------------------------- the cluster
write_slurm_configuration() {
  local last=$1 cgroups=cgroup/v1 version
  mkdir -p "$state/slurm"
  head -c 64 /dev/urandom >"$state/munge.key"
  chmod 0400 "$state/munge.key"
  # Processes are found without control groups, so that any machine will do. Versions before 23.02 cannot be told so, but
  # do nothing with those of version 1 before somebody asks.
  read -r _ version < <(slurmctld -V)
  if [[ $version =~ ^([0-9]+)\.([0-9]+) ]] && [ $((10#${BASH_REMATCH[1]} * 100 + 10#${BASH_REMATCH[2]})) -ge 2302 ]; then
    cgroups=disabled
  fi
  echo "CgroupPlugin=$cgroups" >"$state/slurm/cgroup.conf"
  cat >"$state/slurm/slurm.conf" <<END
ClusterName=testbed
SlurmctldHost=n1
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: one second longer than this, and until the next round of the
# scheduler. 120 seconds by default, and also when less than 5 are asked for.
AuthInfo=socket=$munge_folder/socket,cred_expire=$requeue_delay
StateSaveLocation=$slurm_folder/state
SlurmdSpoolDir=$slurm_folder/spool
SlurmctldPidFile=$slurm_folder/slurmctld.pid
SlurmdPidFile=$slurm_folder/slurmd.pid
SlurmctldLogFile=$state/log/slurmctld
SlurmdLogFile=$state/log/slurmd.%h
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
MessageTimeout=10
SlurmctldTimeout=15
SlurmdTimeout=15
InactiveLimit=0
NodeName=n[1-$last] NodeAddr=$subnet.[1-$last] CPUs=$cpus State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
END
}

# boot KIND NAME: starts a keeper.
boot() {
  rm -f "$state/$2.pid" "$state/$2.ns" "$state/$2.go"
  mkfifo "$state/$2.go"
  setsid unshare --net --uts --mount "$BASH" "$state/testbed.sh" "$1" "$dir" "$2" 3<>"$state/$2.go" </dev/null \
    >>"$state/log/$2" 2>&1 &
  disown
}
wait_for_boot() {
  local name deadline=$((SECONDS + 10))
  for name in "$@"; do
    until [ -s "$state/$name.pid" ]; do
      if [ "$SECONDS" -ge "$deadline" ]; then
        tail -n 20 "$state/log/$name" >&2
        complain "host $name did not start within 10 s"
        return 1
      fi
      sleep 0.01
    done
  done
}
in_switch() {
  running switch || { complain "the network of $dir is gone; testbed.sh down $dir, then up" && return 1; }
  nsenter --target "$pid" --net "$@"
}
# plug HOST...: their network, and then they may go on.
plug() {
  local name
  for name in "$@"; do
    echo "link add name $name type veth peer name eth0 netns $(cat "$state/$name.pid")"
    echo "link set $name master br0 up"
  done | in_switch ip -batch -
  for name in "$@"; do
    printf '%s\n' "addr add $subnet.${name#n}/24 dev eth0" "link set eth0 up" |
      nsenter --target "$(cat "$state/$name.pid")" --net ip -batch -
    echo go >"$state/$name.go"
  done
}
wait_for_nodes() {
  local deadline=$((SECONDS + start_timeout_s)) idle=""
  running n1
  until idle=$(nsenter --target "$pid" --net --uts --mount sinfo --noheader --Node --partition=low --states=idle \
    --format=%N 2>/dev/null) && [ "$(wc -w <<<"$idle")" -eq "$hosts" ]; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      tail -n 15 "$state"/log/n* >&2
      complain "Slurm's nodes idle after $start_timeout_s s: '${idle//$'\n'/ }', expected n1 to n$hosts;" \
        "logs are in $state/log"
      return 1
    fi
    sleep 0.1
  done
}

names() { seq -f 'n%g' "$hosts"; }
number() { # number OPTION VALUE LEAST MOST
  if [[ ! $2 =~ ^[0-9]{1,4}$ ]] || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
    wrong_usage "$1 $2: expected a number from $3 to $4"
  fi
}
up() {
  use_folder "${1:-}"
  shift
  hosts=4 slurm=yes cpus=2 grace=10 requeue_delay=5 shares=()
  while [ $# -gt 0 ]; do
    case "$1" in
      --no-slurm)
        slurm=no
        shift
        continue
        ;;
      --hosts | --cpus | --grace | --requeue-delay | --share) [ $# -ge 2 ] || wrong_usage "$1: its value is missing" ;;
      *) wrong_usage "up does not know $1; see --help" ;;
    esac
    case "$1" in
      --hosts) number "$1" "$2" 1 200 && hosts=$2 ;;
      --cpus) number "$1" "$2" 1 64 && cpus=$2 ;;
      --grace) number "$1" "$2" 0 3600 && grace=$2 ;;
      --requeue-delay) number "$1" "$2" 5 3600 && requeue_delay=$2 ;;
      --share)
        [ -d "$2" ] || wrong_usage "--share $2: no such folder"
        shares+=("$(realpath -- "$2")")
        ;;
    esac
    shift 2
  done
  require
  if [ -e "$state/settings" ]; then
    complain "there is a cluster in $dir already; testbed.sh down $dir ends it"
    exit 1
  fi
  mkdir -p "$state/log"
  trap 'down "$dir"' EXIT
  trap 'exit 1' INT TERM HUP
  # A copy, as the hosts may not see the original (/tmp).
  cp -- "$0" "$state/testbed.sh"
  printf '#!/bin/sh\nexec bash "%s" ssh "%s" "$@"\n' "$state/testbed.sh" "$dir" >"$dir/ssh"
  chmod +x "$dir/ssh"
  printf '%s\n' "hosts=$hosts" "slurm=$slurm" "shares=(${shares[*]@Q})" >"$state/settings"
  local all name
  mapfile -t all < <(names)
  {
    echo "127.0.0.1 localhost"
    for name in "${all[@]}"; do echo "$subnet.${name#n} $name"; done
  } >"$state/hosts"
  if [ "$slurm" = yes ]; then write_slurm_configuration "$hosts"; fi
  boot _switch switch
  for name in "${all[@]}"; do boot _host "$name"; done
  wait_for_boot switch "${all[@]}"
  plug "${all[@]}"
  if [ "$slurm" = yes ]; then wait_for_nodes; fi
  trap - EXIT INT TERM HUP
}
# Does not trust what `up` has written: it may have broken off anywhere.
down() {
  use_folder "${1:-}"
  [ -d "$state" ] || return 0
  local file name=() arguments
  for file in "$state"/*.ns; do
    if [ -s "$file" ]; then name+=("$(basename "$file" .ns)"); fi
  done
  if [ ${#name[@]} -gt 0 ]; then kill_all "${name[@]}"; fi
  # Keepers that had not come so far.
  for file in /proc/[0-9]*/cmdline; do
    mapfile -d '' -t arguments 2>/dev/null <"$file" || continue
    if [[ ${arguments[*]} = *" $state/testbed.sh _"*" $dir "* ]]; then
      file=${file%/cmdline}
      kill -KILL "${file#/proc/}" 2>/dev/null || true
    fi
  done
  # The logs stay.
  rm -rf "$state"/*.{pid,ns,go,mount} "$state"/{settings,hosts,munge.key,slurm,testbed.sh} "$dir/ssh"
}

# ------------------------------------------------------------------------------------------------------- commands on the hosts
on_host() {
  use_testbed "${1:-}"
  use_host "${2:-}"
  [ $# -ge 3 ] || wrong_usage "no command given; expected exec DIR HOST COMMAND..."
  running "$host" || { complain "host $host is down; testbed.sh node $dir $host up starts it" && exit 1; }
  shift 2
  # The folder that this was called from may not be there.
  # shellcheck disable=SC2016  # for the shell in there
  exec nsenter --target "$pid" --net --uts --mount env -u TMPDIR \
    sh -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$PWD" "$@"
}

is_plugged() { [[ $(nsenter --target "$1" --net ip -o link show dev eth0 2>/dev/null) = *LOWER_UP* ]]; }
# The way from where this process is to the host: its own host's cable (when it is on one), and the other's.
has_way_to() {
  local here name
  running "$1" || return 1
  here=$(readlink /proc/self/ns/net)
  for name in "$state"/n*.ns; do
    if [ "$(cut -d' ' -f1 "$name")" = "$here" ]; then
      [ "$(basename "$name" .ns)" != "$1" ] || return 0
      is_plugged $$ || return 1
    fi
  done
  is_plugged "$pid"
}
ssh_fails() {
  complain "$*"
  exit 255
}
as_ssh() {
  local no_input=false
  use_testbed "${1:-}" || exit 255
  shift
  while [[ ${1:-} = -* ]]; do
    case "$1" in
      -oConnectTimeout=*) ssh_timeout_s=${1#*=} ;;
      -n) no_input=true ;;
      -[bcDeEFiIJlLmoOpQRSwW])
        if [[ ${2:-} =~ ^ConnectTimeout=([0-9]+)$ ]]; then ssh_timeout_s=${BASH_REMATCH[1]}; fi
        shift
        ;;
    esac
    shift
  done
  host=${1:-}
  [ $# -ge 2 ] || ssh_fails "ssh without a host and a command; expected ssh DIR HOST COMMAND..."
  shift
  host=${host#*@}
  if [[ $host = "$subnet".* ]]; then host=n${host##*.}; fi
  is_host "$host" || ssh_fails "could not resolve hostname $host"
  local deadline=$(($(date +%s%3N) + ssh_timeout_s * 1000))
  until has_way_to "$host"; do
    if [ "$(date +%s%3N)" -ge "$deadline" ]; then ssh_fails "connect to host $host: connection timed out"; fi
    sleep 0.1
  done
  if $no_input; then exec </dev/null; fi
  # A process of its own, which lives on when this one is killed, as on the other side of an ssh.
  local account shell code=0
  account=$(id -un)
  shell=$(getent passwd "$account" | cut -d: -f7)
  nsenter --target "$pid" --net --uts --mount setsid env -i --default-signal=INT,QUIT HOME="$HOME" USER="$account" \
    LOGNAME="$account" SHELL="$shell" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$shell" -c "$*" <&0 &
  wait $! 2>/dev/null || code=$?
  # Killed: the host has lost its power, or the command was killed. ssh says 255 to both.
  if [ "$code" -eq 137 ]; then ssh_fails "connection to $host closed"; fi
  exit "$code"
}

set_link() {
  use_testbed "${1:-}"
  use_host "${2:-}"
  case "${3:-}" in up | down) ;; *) wrong_usage "link ${3:-}: expected up or down" ;; esac
  running "$host" || { complain "host $host is down; testbed.sh node $dir $host up starts it" && exit 1; }
  # At the other end of the cable: the host sees what it would see, a link without a signal.
  in_switch ip link set "$host" "$3"
}
set_node() {
  use_testbed "${1:-}"
  use_host "${2:-}"
  case "${3:-}" in
    down)
      # The cable first, or those it talks with would be told that its connections end.
      if running "$host"; then in_switch ip link del dev "$host"; fi
      kill_all "$host"
      ;;
    up)
      if running "$host"; then return; fi
      # The old cable may still be there: a dead host's connections keep its network for a minute.
      in_switch ip link del dev "$host" 2>/dev/null || true
      boot _host "$host"
      wait_for_boot "$host"
      plug "$host"
      ;;
    *) wrong_usage "node ${3:-}: expected up or down" ;;
  esac
}
list_pids() {
  use_testbed "${1:-}"
  use_host "${2:-}"
  local number found=1
  for number in $(processes "$host"); do
    if tr '\0' ' ' 2>/dev/null <"/proc/$number/cmdline" | grep -qEe "${3:-.}"; then
      echo "$number"
      found=0
    fi
  done
  return "$found"
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
  up) up "$@" ;;
  down) down "$@" ;;
  exec) on_host "$@" ;;
  ssh) as_ssh "$@" ;;
  link) set_link "$@" ;;
  node) set_node "$@" ;;
  pids) list_pids "$@" ;;
  _switch | _host)
    use_testbed "$1"
    host=$2
    "keep$command"
    ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" ;;
  *) wrong_usage "no command '$command'; expected up, exec, ssh, link, node, pids or down, see --help" ;;
esac
