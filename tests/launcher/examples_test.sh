#!/usr/bin/env bash
# Every configuration in examples/, from text to text, in a shortened form: its corpus is a few lines, its model is narrowed
# where it is large, and it takes three steps, the last of them after a resume.
#
#   examples_test.sh ROOT PROGRAM
set -euo pipefail
root=$1
lockstep=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

for i in $(seq 60); do
  mkdir -p corpus
  for j in $(seq 30); do echo "Document $i says in line $j that $((i * j)) is $i times $j."; done >"corpus/$i.txt"
done
"$lockstep" pack --format text --tokenizer bytes --split 0.8,0.2,0 --out data corpus >pack.log 2>&1 || {
  cat pack.log
  exit 1
}

# What fine-tuning begins with: a model, conversations and pairs.
for i in $(seq 60); do
  echo "{\"prompt\": \"$i + 1\", \"chosen\": \"$((i + 1))\", \"rejected\": \"$((i + 2))\"}" >>pairs.jsonl
  echo "{\"instruction\": \"$i + 1\", \"output\": \"$((i + 1))\"}" >>chats.jsonl
done
{
  for format in chat pairs; do
    input=$([ $format = chat ] && echo chats.jsonl || echo pairs.jsonl)
    "$lockstep" pack --format $format --template default --tokenizer bytes --split 0.8,0.2 --out $format "$input"
  done
  "$lockstep" train "$root/examples/llama-small/llama-small.yaml" --set data.train=data/train --set data.valid=data/valid \
    --set run.name=model --set model.context=64 --set data.sequence=64 --set model.width=48 --set model.layers=2 \
    --set train.steps=2 --set train.micro_batches=2 --set train.micro_batch_size=2 --set evaluate.batches=1 --set train.threads=1 \
    --set schedule.warmup_steps=1 --set schedule.decay_steps=1
} >model.log 2>&1 || {
  cat model.log
  exit 1
}

tested=0
for config in "$root"/examples/*/*.yaml; do
  name=$(basename "$config" .yaml)
  small=(--set data.train=data/train --set data.valid=data/valid --set run.dir=runs --set run.name="$name"
    --set model.context=64 --set data.sequence=64 --set model.width=48 --set model.layers=2
    --set train.micro_batches=2 --set train.micro_batch_size=2
    --set evaluate.batches=1 --set evaluate.every_steps=2 --set checkpoint.every_steps=2 --set train.threads=1)
  if [[ $config == */fine-tuning/* ]]; then
    data=$([ "$name" = dpo ] && echo pairs || echo chat)
    small=(--set "data.train=$data/train" --set "data.valid=$data/valid" --set run.dir=runs --set run.name="$name"
      --set model.from=runs/model/checkpoints/step-00000002 --set data.sequence=64 --set tune.rank=2
      --set train.micro_batches=2 --set train.micro_batch_size=2
      --set evaluate.batches=1 --set evaluate.every_steps=2 --set checkpoint.every_steps=2 --set train.threads=1)
  fi
  if grep -q decay_steps "$config"; then small+=(--set schedule.warmup_steps=1 --set schedule.decay_steps=1); fi
  {
    "$lockstep" train "$config" "${small[@]}" --set train.steps=2
    "$lockstep" train "$config" "${small[@]}" --set train.steps=3
    "$lockstep" inspect "runs/$name" --verify
    "$lockstep" eval --model "runs/$name" --data data/valid --batches 1
    "$lockstep" generate --model "runs/$name" --prompt "Document" --max-tokens 5 --seed 1
  } >"$name.log" 2>&1 || {
    echo "$name failed:"
    cat "$name.log"
    exit 1
  }
  if [ "$(wc -l <"runs/$name/metrics.jsonl")" -lt 3 ] || [ ! -e "runs/$name/checkpoints/step-00000003/manifest.json" ]; then
    echo "$name: expected three steps and a checkpoint of step 3"
    cat "$name.log"
    exit 1
  fi
  tested=$((tested + 1))
done
echo "$tested examples: as expected"
[ "$tested" -ge 6 ]
