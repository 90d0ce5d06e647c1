#!/usr/bin/env bash
# Installs the distribution's packages that Lockstep is built from and runs with. The only place that names them.
#
#   cluster/install-deps.sh            what building and running needs
#   cluster/install-deps.sh --tests    and what the tests need
#   cluster/install-deps.sh --list     prints the names, installs nothing
#
# Installs only what is missing, and waits while another package manager is at work. Exit code 0: everything is there; 1: it
# is not, and the message says what to ask for.
set -euo pipefail

# Package and what it is for.
build_packages=(
  "g++|the compiler"
  "cmake|configures the build"
  "ninja-build|runs the build"
  "pkg-config|finds libraries"
  "libopenmpi-dev|MPI: ranks talk to each other"
  "openmpi-bin|mpirun, which starts the ranks"
  "libhdf5-dev|HDF5: datasets"
  "libdnnl-dev|oneDNN: matrix products on CPUs"
  "libhwy-dev|Highway: vector code for the other CPU kernels"
  "libfmt-dev|text formatting"
  "libyaml-cpp-dev|reads configurations"
  "libcli11-dev|reads command lines"
  "nlohmann-json3-dev|reads and writes JSON"
  "libpcre2-dev|patterns of tokenizers"
  "libutf8proc-dev|Unicode normalisation of tokenizers"
  "libxxhash-dev|checksums"
  "libboost-dev|Boost.Asio: the control channel between a job's processes"
  "libssl-dev|OpenSSL: they prove to each other that they belong together, and encrypt"
)
# (Of Slurm's and munge's services the system itself starts munge at most: Slurm's want an /etc/slurm/slurm.conf first.)
test_packages=(
  "libgtest-dev|GoogleTest"
  "libgmock-dev|GoogleTest's matchers"
  "libboost-context-dev|fibers, which are the threads of emulated GPUs"
  "python3|checks that read the sources"
  "slurmctld|Slurm's controller, for jobs on the hosts of cluster/testbed.sh"
  "slurmd|Slurm on each host, with its plugin for PMIx"
  "slurm-client|srun, sbatch, scontrol"
  "munge|by which Slurm's programs know each other"
  "iproute2|network links of those hosts"
  "clang-format|checks their layout (version 14 does, Debian 12's)"
)

say() { printf '%s\n' "$*"; }
complain() { printf 'install-deps: %s\n' "$*" >&2; }

packages=("${build_packages[@]}")
list_only=false
for argument in "$@"; do
  case "$argument" in
    --tests) packages+=("${test_packages[@]}") ;;
    --list) list_only=true ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
      exit 0
      ;;
    *)
      complain "unknown option $argument; expected --tests, --list or --help"
      exit 2
      ;;
  esac
done

if $list_only; then
  printf '%s\n' "${packages[@]%%|*}"
  exit 0
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  complain "this machine has no apt; install what these Debian packages hold by its own means: ${packages[*]%%|*}"
  exit 1
fi

is_installed() {
  local state
  state=$(dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null) && grep -qx installed <<<"$state"
}

missing=()
for entry in "${packages[@]}"; do
  if ! is_installed "${entry%%|*}"; then
    if [ ${#missing[@]} -eq 0 ]; then say "Missing from this machine:"; fi
    printf '  %-20s %s\n' "${entry%%|*}" "${entry#*|}"
    missing+=("${entry%%|*}")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  say "All ${#packages[@]} packages are installed."
  exit 0
fi

# Sudo may need no password, or have a terminal to ask for one on; and then still not serve this account.
may_sudo() {
  command -v sudo >/dev/null || return 1
  if sudo -n true 2>/dev/null; then return 0; fi
  [ -t 0 ] || return 1
  say "They are installed with sudo, which may ask for your password."
  sudo -v
}
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! may_sudo; then
    complain "installing packages needs root, or a sudo that serves this account here. There is neither. Ask for:"
    complain "  apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  as_root=(sudo)
fi

lock_timeout_s=600
log=$(mktemp)
trap 'rm -f "$log"' EXIT
is_locked() { grep -q 'Could not get lock' "$log"; }
# apt-get itself waits for dpkg's lock, but not for that of the package lists, which a fresh machine's timers hold as well.
apt() {
  local deadline=$((SECONDS + lock_timeout_s))
  until "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get --quiet --yes \
    -o Dpkg::Use-Pty=0 -o "DPkg::Lock::Timeout=$lock_timeout_s" "$@" >"$log" 2>&1 </dev/null; do
    if ! is_locked || [ "$SECONDS" -ge "$deadline" ]; then return 1; fi
    sleep 1
  done
}
give_up() {
  tail -n 20 "$log" >&2
  if is_locked; then complain "another package manager is still at work; start again when it is done"; fi
  complain "$1"
  exit 1
}

# apt's lists may be absent (fresh containers) or older than the mirror's packages: fetched when absent, and once more when
# an installation fails with the lists that are there.
install_missing() { apt install --no-install-recommends "${missing[@]}"; }
say "Installing ${#missing[@]} packages${as_root[*]:+ with ${as_root[*]}}."
say "(While another package manager is at work this waits, for up to $((lock_timeout_s / 60)) minutes.)"
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
  say "Reading the package lists ..."
  apt update || give_up "apt-get update failed: is there a network, and do /etc/apt's sources answer?"
fi
if ! install_missing; then
  if is_locked; then give_up "apt-get could not install: ${missing[*]}"; fi
  say "Once more, with fresh package lists ..."
  apt update || true
  install_missing || give_up "apt-get could not install: ${missing[*]}"
fi
say "Installed."
