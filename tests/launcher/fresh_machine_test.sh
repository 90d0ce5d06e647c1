#!/usr/bin/env bash
# tests/fresh_machine.sh as a judge: which outputs of quickstart.sh and test.sh pass.
#
#   fresh_machine_test.sh PATH/TO/fresh_machine.sh
set -euo pipefail
script=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

failures=0
# judged CASE EXPECTED_CODE EXPECTED_WORDS OPTION...: of the output in $folder/log.
judged() {
  local code=0 found
  found=$("$script" "${@:4}" "$folder/log" 2>&1) || code=$?
  if [ "$code" != "$2" ] || [[ $found != *"$3"* ]]; then
    printf '%s\n  expected: %s %s\n  found:    %s %s\n' "$1" "$2" "$3" "$code" "$found"
    failures=$((failures + 1))
  fi
}
# quickstart BUILD_TIME SAMPLE SAMPLE: its output in $folder/log.
quickstart() {
  cat >"$folder/log" <<END
[1/6] Dependencies
      took 9:59

[2/6] Build
      build/release/lockstep
      took $1

[6/6] What it writes
--- after: #include <
$2
--- after: namespace std {
$3
      took 0:02

Done in 7:38. What is where:
  const class
END
}

quickstart 4:04 "#include <bits/types.h>" "namespace std { template <class T>"
judged "C++ in a sample" 0 "clean build: 244 s" --check quickstart
judged "a build within the limit" 0 "" --limits --check quickstart
quickstart 5:00 "#include <a>" "namespace std { const int"
judged "a slow build where time does not count" 0 "clean build: 300 s" --check quickstart
judged "a slow build" 1 "the clean build took 300 s" --limits --check quickstart
quickstart 4:04 "#include <" "namespace std {"
judged "prompts alone are no sample" 1 "wrote no sample" --check quickstart
quickstart 4:04 "#include <e e e e" "namespace std { constant classes"
judged "prompts and what only looks like a word of C++" 1 "does not look like C++" --check quickstart
quickstart 4:04 "#include <e e
const int" "namespace std { e"
judged "C++ on a later line" 0 "" --check quickstart
quickstart "" "#include <a> const" ""
judged "a build without a time" 1 "nothing says how long" --check quickstart

echo "train: all 2000 steps are done already" >"$folder/log"
judged "a second run that has nothing to do" 0 "" --check again
echo "train: step 1 of 2000" >"$folder/log"
judged "a second run that starts over" 1 "trained once more" --check again

printf '[2/3] Build (release)\n      took 4:00\n\n[3/3] Tests\n      took 9:59\n' >"$folder/log"
judged "tests within the limit" 0 "test suite: 599 s" --limits --check test
printf '[2/3] Build (release)\n\n[3/3] Tests\n      took 10:00\n' >"$folder/log"
judged "slow tests" 1 "the test suite took 600 s" --limits --check test

[ "$failures" -eq 0 ] && echo "fresh_machine.sh: as expected"
exit "$((failures > 0))"
