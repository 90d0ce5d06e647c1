#!/usr/bin/env bash
# Installs the distribution's packages that Lockstep is built from and runs with. The only place that names them.
#
#   cluster/install-deps.sh            what building and running needs
#   cluster/install-deps.sh --tests    and what the tests need
#   cluster/install-deps.sh --list     prints the names, installs nothing
#
# Installs only what is missing. Exit code 0: everything is there; 1: it is not, and the message says what to ask for.
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
)
test_packages=(
  "libgtest-dev|GoogleTest"
  "libgmock-dev|GoogleTest's matchers"
  "python3|checks that read the sources"
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

# As root, or with a sudo that either needs no password or has a terminal to ask for one on.
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; then
    as_root=(sudo)
    say "Installing them with sudo."
  else
    complain "installing packages needs root or sudo, and this account may use neither. Ask for:"
    complain "  apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get --quiet --yes \
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600 "$@" >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    return 1
  fi
}

# apt's lists may be absent (fresh containers) or older than the mirror's packages: fetched when absent, and once more when
# an installation fails with the lists that are there.
install_missing() { apt install --no-install-recommends "${missing[@]}"; }
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
  say "Reading the package lists ..."
  apt update || { complain "apt-get update failed: is there a network, and do /etc/apt's sources answer?"; exit 1; }
fi
# A fresh machine may be updating itself: then apt waits, up to ten minutes.
say "Installing ${#missing[@]} packages (after any other installation that is under way) ..."
if ! install_missing 2>/dev/null; then
  say "Once more, with fresh package lists ..."
  apt update || true
  if ! install_missing; then
    complain "apt-get could not install: ${missing[*]}"
    exit 1
  fi
fi
say "Installed."
