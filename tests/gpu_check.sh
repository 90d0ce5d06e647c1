#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one: the tests of kernels, models and NCCL, and training runs whose digests must be
# equal. Takes a few minutes.
#
#   cmake --build build/release --target bundle_gpu_tests          where Lockstep is built
#   tests/gpu_check.sh build/release/lockstep-gpu-tests.tar.gz     on the machine with the GPU; only bash and tar are needed
#
# cuBLASLt, cuDNN and NCCL are found as docs/gpu.md says (LOCKSTEP_CUDA_LIBRARIES).
set -uo pipefail
if [ $# -ne 1 ]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$work" -xf "$1" || exit 2
PATH=$work/lockstep-bundle/bin:$PATH
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
failures=0

# check NAME COMMAND...: runs it, shows its last lines when it fails.
check() {
  local name=$1 begin=$SECONDS
  shift
  if "$@" >"$work/log" 2>&1; then
    echo "passed  $name ($((SECONDS - begin)) s)"
  else
    echo "FAILED  $name"
    grep -E "Failure|FAILED|error|lockstep:" "$work/log" | head -20
    tail -5 "$work/log"
    failures=$((failures + 1))
  fi
}

lockstep devices
check "kernels" ops_test '--gtest_filter=*cuda*'
check "models" model_test '--gtest_filter=*Gpu*'
check "NCCL, one rank" comm_nccl_test
gpus=$(lockstep devices | grep -c ': usable')
check "NCCL, ranks of their own on $gpus GPUs" mpirun -np "$gpus" --bind-to none comm_nccl_ranks_test

# A text of its own, so that nothing has to be brought.
for i in $(seq 1 20000); do
  echo "line $i holds $((i * i % 9973)) and $((i * 7919 % 104729)), which nobody has to remember"
done >"$work/text.txt"
lockstep pack --format text --tokenizer bytes --out "$work/data" --split 0.9,0.1,0 "$work/text.txt" >/dev/null 2>&1
# Conversations of many lengths.
for i in $(seq 1 400); do
  printf '{"instruction": "count to %d", "output": "%s"}\n' $((i % 9)) "$(seq -s ' ' 1 $((i % 97 + 1)))"
done >"$work/chats.jsonl"
lockstep pack --format chat --template default --tokenizer bytes --out "$work/chats" --split 0.9,0.1,0 "$work/chats.jsonl" >/dev/null 2>&1
chats="data.train=$work/chats/train data.valid=$work/chats/valid data.packing=true model.family=llama model.kv_heads=1"
cat >"$work/run.yaml" <<EOF
device: cuda
run: {dir: $work/runs, seed: 7}
model: {family: gpt2, layers: 2, heads: 2, width: 128, context: 128, dropout: 0.0}
data: {train: $work/data/train, valid: $work/data/valid, sequence: 128}
train: {steps: 20, micro_batches: 8, micro_batch_size: 2}
EOF
train() { lockstep train "$work/run.yaml" --set run.name="$1" "${@:2}"; }
shared() { mpirun -np "$2" --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 lockstep train "$work/run.yaml" --set run.name="$1" \
             --set device.share=true "${@:3}"; }
digest() { lockstep inspect "$work/runs/$1/checkpoints/step-00000020" | sed -n 's/^digest *//p'; }
has_bf16=$(lockstep devices | awk '/compute capability/ { sub(/.*compute capability /, ""); print ($1 + 0 >= 8) ? 1 : 0; exit }')
for options in "train.precision=fp32" "train.precision=bf16" "train.precision=bf16 model.family=llama model.kv_heads=1" \
               "train.precision=bf16 model.dropout=0.1 train.recompute=block" "train.precision=bf16 $chats" \
               "train.precision=bf16 $chats model.dropout=0.1" "train.precision=fp16 train.loss_scale_window=2" \
               "train.precision=fp16 $chats model.dropout=0.1 train.recompute=block"; do
  if [ "$has_bf16" = 0 ] && [[ $options == *bf16* ]]; then
    echo "left out  $options: this GPU has no bf16"
    continue
  fi
  set_options=()
  for option in $options; do
    set_options+=(--set "$option")
  done
  rm -rf "$work/runs"
  check "$options" train once "${set_options[@]}"
  check "  again" train again "${set_options[@]}"
  check "  with a checkpoint after 10 steps" train resumed "${set_options[@]}" --set checkpoint.every_steps=10
  rm -rf "$work/runs/resumed/checkpoints/step-00000020"
  check "  and resumed from it" train resumed "${set_options[@]}" --set checkpoint.every_steps=10
  check "  through NCCL" train nccl "${set_options[@]}" --set comm.backend=nccl
  check "  two ranks on one GPU" shared two 2 "${set_options[@]}"
  check "  four ranks on one GPU, comm.zero 1" shared four 4 "${set_options[@]}" --set comm.zero=1
  runs="again resumed nccl two four"
  if [ "$gpus" -ge 2 ]; then
    check "  through NCCL on two GPUs" mpirun -np 2 --bind-to none lockstep train "$work/run.yaml" --set run.name=nccl_two \
      "${set_options[@]}" --set comm.backend=nccl
    runs="$runs nccl_two"
  fi
  if [[ $options != *dropout* && $options != *chats* ]]; then
    check "  in CUDA graphs" train graph "${set_options[@]}" --set device.graph=true
    check "  in CUDA graphs, recomputed" train graph_again "${set_options[@]}" --set device.graph=true --set train.recompute=block
    check "  in CUDA graphs, through NCCL" train graph_nccl "${set_options[@]}" --set device.graph=true --set comm.backend=nccl
    check "  in CUDA graphs, two ranks on one GPU" shared graph_two 2 "${set_options[@]}" --set device.graph=true
    runs="$runs graph graph_again graph_nccl graph_two"
  fi
  expected=$(digest once)
  for run in $runs; do
    check "  digest of $run is $expected" test "$(digest $run)" = "$expected"
  done
done
if [ "$has_bf16" != 0 ]; then  # as do those that have TF32
  check "fp32 in TF32" train tf32 --set train.precision=fp32 --set device.tf32=true
  check "  again" train tf32_again --set train.precision=fp32 --set device.tf32=true
  check "  digest of tf32_again is that of tf32" test "$(digest tf32_again)" = "$(digest tf32)"
fi
check "sums of two ranks on one GPU" mpirun -np 2 --bind-to none --oversubscribe lockstep bench allreduce --device cuda --share --max-mib 64
if [ "$gpus" -ge 2 ]; then
  check "sums of $gpus GPUs" mpirun -np "$gpus" --bind-to none lockstep bench allreduce --device cuda --max-mib 64
fi
echo
if [ $failures -gt 0 ]; then
  echo "$failures checks failed"
  exit 1
fi
echo "all checks passed"
