#!/usr/bin/env bash
# From a fresh machine to a trained model: installs what is missing, builds, packs this machine's C++ headers, trains a
# small GPT on them on 2 ranks, and lets it write. Run it again and it goes on where it was.
#
#   ./quickstart.sh              everything
#   ./quickstart.sh --steps N    trains N steps instead of the configuration's number, as a run of its own
set -euo pipefail
cd "$(dirname "$0")"
. cluster/steps.sh

config=examples/cpp-headers/cpp-headers.yaml
data="data-packed/cpp-headers"
name=cpp-headers
lockstep=build/release/lockstep
overrides=()
total_steps=6

while [ $# -gt 0 ]; do
  case "$1" in
    --steps)
      [[ "${2:-}" =~ ^[1-9][0-9]{0,11}$ ]] || { echo "quickstart: --steps needs a number from 1" >&2; exit 2; }
      # With other steps each step has another learning rate: such a run goes on with none of the configuration's.
      name=cpp-headers-$2
      overrides=(--set "train.steps=$2")
      shift 2
      ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
      exit 0
      ;;
    *)
      echo "quickstart: unknown option $1; expected --steps N or --help" >&2
      exit 2
      ;;
  esac
done
run=runs/$name

# tests/documented_commands.py checks these commands.
try_next() {
  local steps=${overrides[*]:+ ${overrides[*]}}
  cat <<EOF
What to try next:
  $lockstep inspect $run
  $lockstep generate --model $run --prompt "template <typename" --temperature 0.7
  $lockstep train $config --set run.name=$name-alone$steps
  $lockstep inspect runs/$name-alone
      the same run on one rank, and the same digest
  cluster/mpirun.sh -np 2 $lockstep train $config --set run.name=longer --set train.steps=8000
  examples/ has more: Shakespeare, a Llama, GPT-2 124M
EOF
}

echo "Lockstep: a small GPT, trained on this machine's own C++ headers."

step "Dependencies"
cluster/install-deps.sh

step "Build"
build release -DLOCKSTEP_WITH_TESTS=OFF -- lockstep
echo "      $lockstep"

step "Dataset: headers from /usr/include"
if [ -e "$data/train/dataset.json" ] && [ -e "$data/valid/dataset.json" ]; then
  echo "      $data is there already"
else
  pack=("$lockstep" pack --format text --tokenizer bpe:2048 --split "0.95,0.05,0" --skip-binary --out "$data")
  status=0
  "${pack[@]}" /usr/include || status=$?
  # What an interrupted packing left is refused once packages were installed or removed: other headers, another dataset.
  if [ "$status" -eq 2 ] && { [ -e "$data/.pack/pack.json" ] || [ -e "$data/pack.json" ]; }; then
    echo "      again with --overwrite, in place of what an interrupted packing left"
    status=0
    "${pack[@]}" --overwrite /usr/include || status=$?
  fi
  if [ "$status" -ne 0 ]; then exit "$status"; fi
fi

step "Training on 2 ranks (about two minutes on two cores; Ctrl-C saves and stops)"
if [ "$(id -u)" -eq 0 ]; then
  echo "      (as root: cluster/mpirun.sh tells Open MPI that this is meant)"
fi
status=0
cluster/mpirun.sh -np 2 "$lockstep" train "$config" --set "run.name=$name" "${overrides[@]}" || status=$?
if [ "$status" -eq 75 ]; then
  printf '\nStopped and saved in %s. The same command goes on from there.\n' "$run"
  exit 0
elif [ "$status" -ne 0 ]; then
  printf '\nTraining failed (exit code %s). What was saved is in %s; the same command goes on from there.\n' \
    "$status" "$run" >&2
  exit 1
fi

step "Evaluation"
"$lockstep" eval --model "$run" --data "$data/valid" --batches 200

step "What it writes"
for prompt in "#include <" "template <typename" "namespace std {"; do
  printf '%s\n' "--- after: $prompt"
  "$lockstep" generate --model "$run" --prompt "$prompt" --max-tokens 100 --temperature 0.7 --top-p 0.9 --seed 1
done
end_step

cat <<EOF

Done in $(minutes $((SECONDS - script_begin))). What is where:
  $lockstep   the program; --help on every command
  $data   the dataset and its tokenizer
  $run   metrics.jsonl, and checkpoints that transformers loads as they are

EOF
try_next
