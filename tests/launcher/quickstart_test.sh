#!/usr/bin/env bash
# quickstart.sh with stand-ins for what it calls: what it packs, goes on with, gives up on and prints.
#
#   quickstart_test.sh ROOT
set -euo pipefail
root=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/cluster" "$folder/build/release" "$folder/bin"
cp "$root/quickstart.sh" "$folder"
cp "$root/cluster/steps.sh" "$folder/cluster"

# Notes its arguments. `pack` ends with the next of the codes in $PACK_CODES, `train` with $TRAIN_CODE.
cat >"$folder/build/release/lockstep" <<'END'
#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$1" in
  pack)
    read -r code rest <"$PACK_CODES"
    echo "$rest" >"$PACK_CODES"
    exit "$code"
    ;;
  train) exit "$TRAIN_CODE" ;;
esac
END
cat >"$folder/bin/cmake" <<'END'
#!/bin/sh
[ "$1" != --version ] || printf 'cmake version %s\n\nCMake suite\n' "${CMAKE_VERSION-3.25.1}"
END
printf '#!/bin/sh\n' >"$folder/cluster/install-deps.sh"
printf '#!/bin/sh\nshift 2\nexec "$@"\n' >"$folder/cluster/mpirun.sh"
chmod +x "$folder"/bin/cmake "$folder"/cluster/*.sh "$folder/build/release/lockstep"
export PATH="$folder/bin:$PATH" NOTES="$folder/notes" PACK_CODES="$folder/codes"

failures=0
expect() {
  if [ "$2" != "$3" ]; then
    printf '%s\n  expected: %s\n  found:    %s\n' "$1" "$3" "$2"
    failures=$((failures + 1))
  fi
}
# run PACK_CODES TRAIN_CODE ARGUMENT...: leaves the exit code in `code`, the commands' notes in $NOTES, the output in $folder/out.
run() {
  : >"$NOTES"
  echo "$1" >"$PACK_CODES"
  code=0
  TRAIN_CODE=$2 "$folder/quickstart.sh" "${@:3}" >"$folder/out" 2>&1 || code=$?
}
# The options of pack that matter here, a run a word, and whether training came to it.
packed() {
  sed -n 's/^pack .*--overwrite .*/overwrite/p;t;s/^pack .*/pack/p;s/^train .*/train/p' "$NOTES" | tr '\n' ' '
}

data="$folder/data-packed/cpp-headers"
run 0 0
expect "a first run packs and trains" "$code $(packed)" "0 pack train "
run 2 0
expect "a refusal that --overwrite cannot help is not tried twice" "$code $(packed)" "2 pack "
mkdir -p "$data/.pack"
touch "$data/.pack/pack.json"
run "0" 0
expect "an unfinished packing of the same headers is gone on with" "$code $(packed)" "0 pack train "
run "2 0" 0
expect "one of other headers is replaced" "$code $(packed)" "0 pack overwrite train "
run "2 2" 0
expect "refused again, it ends" "$code $(packed)" "2 pack overwrite "
run 1 0
expect "a failure is no refusal" "$code $(packed)" "1 pack "
run 75 0
expect "neither is an interruption" "$code $(packed)" "75 pack "
rm -r "$data/.pack"
mkdir -p "$data/train"
touch "$data/pack.json" "$data/train/dataset.json"
run "2 0" 0
expect "a dataset without its validation part is made again" "$code $(packed)" "0 pack overwrite train "
mkdir -p "$data/valid"
touch "$data/valid/dataset.json"
run 1 0
expect "a whole dataset stays" "$code $(packed)" "0 train "

for version in 3.22.1 2.8 "" odd; do
  CMAKE_VERSION=$version run 0 0
  expect "CMake '$version' is too old" "$code $(packed) $(grep -c '^build: CMake 3.25 or newer' "$folder/out")" "1  1"
done
for version in 3.25.0-rc1 3.31.6 4.0.1; do
  CMAKE_VERSION=$version run 0 0
  expect "CMake $version will do" "$code $(packed)" "0 train "
done

# What is promised in the end must hold for the run that was made: the same configuration, as a run of another name.
trained() { sed -n 's/^train examples.cpp-headers.cpp-headers.yaml //p' "$NOTES"; }
promised() { sed -n 's/.* train .*yaml \(--set run.name=cpp-headers.*\)/\1/p' "$folder/out"; }
run 0 0
expect "the run of the configuration" "$(trained)" "--set run.name=cpp-headers"
expect "and the same on one rank" "$(promised)" "--set run.name=cpp-headers-alone"
run 0 0 --steps 40
expect "a run of 40 steps" "$(trained)" "--set run.name=cpp-headers-40 --set train.steps=40"
expect "and the same on one rank, of 40 steps" "$(promised)" "--set run.name=cpp-headers-40-alone --set train.steps=40"
run 0 75
expect "a run that was stopped is a success" "$code $(grep -c 'goes on from there' "$folder/out")" "0 1"
run 0 1
expect "a run that failed is a failure" "$code" 1
for steps in 0 -1 4x "1 2" ""; do
  run 0 0 --steps "$steps"
  expect "--steps '$steps' is refused before anything is done" "$code $(trained)" "2 "
done

[ "$failures" -eq 0 ] && echo "quickstart.sh: as expected"
exit "$((failures > 0))"
