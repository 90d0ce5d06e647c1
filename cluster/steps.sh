# shellcheck shell=bash
# Shell functions that quickstart.sh and test.sh share: numbered steps with times, quiet commands, the build.
# Sourced by them from the root of the repository, with `set -euo pipefail`.

total_steps=0
current_step=0
step_begin=0
# shellcheck disable=SC2034  # for the script that sources this
script_begin=$SECONDS

minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# step TEXT: begins the next step, and says how long the one before took.
step() {
  end_step
  current_step=$((current_step + 1))
  step_begin=$SECONDS
  printf '\n[%d/%d] %s\n' "$current_step" "$total_steps" "$1"
}
end_step() {
  if [ "$current_step" -gt 0 ] && [ $((SECONDS - step_begin)) -ge 1 ]; then
    printf '      took %s\n' "$(minutes $((SECONDS - step_begin)))"
  fi
}

# quietly LOG COMMAND...: output goes to LOG; when the command fails, its end is shown.
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 30 "$log" >&2
    printf '\nThis failed: %s\nAll of its output is in %s\n' "$*" "$log" >&2
    return 1
  fi
}

# Fails when the cmake on PATH is older than the one that CMakeLists.txt asks for: CMake itself would complain about presets.
require_cmake() {
  local version major minor
  read -r _ _ version < <(cmake --version 2>/dev/null) || true
  IFS=. read -r major minor _ <<<"${version:-}"
  if [[ ! "$major.$minor" =~ ^[0-9]+\.[0-9]+$ ]] || [ "$((major * 1000 + minor))" -lt 3025 ]; then
    echo "build: CMake 3.25 or newer is needed, found is ${version:-none} ($(command -v cmake || echo "no cmake on PATH"));" \
      "Debian 12, Ubuntu 24.04 and newer have it" >&2
    return 1
  fi
}

# build PRESET CMAKE_OPTION... -- TARGET...: configures and builds. On a terminal Ninja's line shows how far it is.
build() {
  local preset=$1 options=() targets=()
  shift
  require_cmake
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  for target in "$@"; do targets+=(--target "$target"); done
  quietly "build/$preset/configure.log" cmake --preset "$preset" "${options[@]}"
  local command=(cmake --build --preset "$preset" --parallel "$(nproc)" "${targets[@]}")
  if [ -t 1 ]; then "${command[@]}"; else quietly "build/$preset/build.log" "${command[@]}"; fi
}
