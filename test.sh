#!/usr/bin/env bash
# Installs what is missing, builds everything, and runs every test.
#
#   ./test.sh                              the release build
#   ./test.sh --preset asan                another preset of CMakePresets.json: debug, asan, tsan
#   ./test.sh [--preset P] -- CTEST_ARG... for example -- -R base_test --verbose
set -euo pipefail
cd "$(dirname "$0")"
. cluster/steps.sh

preset=release
while [ $# -gt 0 ]; do
  case "$1" in
    --preset)
      [ $# -ge 2 ] || { echo "test: --preset needs a name" >&2; exit 2; }
      preset=$2
      shift 2
      ;;
    --)
      shift
      break
      ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
      exit 0
      ;;
    *)
      echo "test: unknown option $1; expected --preset NAME, --help or -- CTEST_ARG..." >&2
      exit 2
      ;;
  esac
done
total_steps=3

step "Dependencies"
cluster/install-deps.sh --tests

step "Build ($preset)"
build "$preset" -DLOCKSTEP_WITH_TESTS=ON -- all

step "Tests"
# Four tests at a time at most: many of them start several ranks, and many wait.
cores=$(nproc)
status=0
ctest --test-dir "build/$preset" --output-on-failure --parallel $((cores < 2 ? 1 : 4)) "$@" </dev/null || status=$?
end_step

echo
if [ "$status" -eq 0 ]; then
  echo "All tests passed ($preset, $(minutes $((SECONDS - script_begin))) in all)."
else
  echo "Tests FAILED ($preset). Again, only those: ./test.sh --preset $preset -- --rerun-failed --verbose" >&2
fi
exit "$status"
