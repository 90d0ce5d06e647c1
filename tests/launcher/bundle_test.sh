#!/usr/bin/env bash
# The program away from its build: installed, and in cluster/bundle.sh's archive, it takes the module of the mpi backend that came along.
#
#   bundle_test.sh ROOT PROGRAM
set -euo pipefail
root=$1
program=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# sums_with MODULE MPIRUN PROGRAM: two ranks sum, and the loader says that they opened MODULE. (The build's own would be found last.)
sums_with() {
  local module=$1 launcher=$2
  shift 2
  rm -f "$folder"/loader.*
  PATH=$(dirname "$launcher"):$PATH LD_DEBUG=files LD_DEBUG_OUTPUT=$folder/loader \
    "$root/tests/support/mpirun.sh" 2 "$@" bench allreduce --max-mib 1 --rounds 1 >"$folder/output" 2>&1 ||
    { cat "$folder/output"; return 1; }
  if ! grep -q '^allreduce: 2 ranks (mpi: ' "$folder/output" || [ "$(grep -l "calling init: $module\$" "$folder"/loader.* | wc -l)" != 2 ]; then
    echo "FAILED: $* did not sum through $module:"
    cat "$folder/output"
    grep -h liblockstep_mpi "$folder"/loader.* || true
    return 1
  fi
}

cmake --install "$(dirname "$program")" --prefix "$folder/prefix" >"$folder/install.log" || { cat "$folder/install.log"; exit 1; }
sums_with "$folder/prefix/lib/lockstep/liblockstep_mpi.so" "$(command -v mpirun)" "$folder/prefix/bin/lockstep"

"$root/cluster/bundle.sh" "$program" "$folder/bundle.tar.gz" >/dev/null
tar -C "$folder" -xzf "$folder/bundle.tar.gz"
bundle=$folder/lockstep-bundle
sums_with "$bundle/libexec/liblockstep_mpi.so" "$bundle/bin/mpirun" "$bundle/bin/lockstep"
