// A small model that computes the loss and the gradient of one random batch, on any device.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "comm/self_communicator.h"
#include "tests/trainer/small_models.h"
#include "trainer/grad_reducer.h"
#include "trainer/replica.h"
#include "trainer/staged_communicator.h"

namespace lockstep {

class Trainee {
 public:
  Trainee(const Architecture& architecture, Precision precision, std::unique_ptr<Backend> own)
      : backend(std::move(own)),
        arena([this](std::size_t size_bytes) { return backend->allocate(size_bytes); }),
        replica(architecture, precision, *backend),
        reducer(replica.layout(), *alone_, *backend, {}),
        tape_(*backend, arena, &reducer) {
    randomize(replica);
  }

  double compute_gradient(const Transformer::DropoutStream& dropout = {}, Recompute recompute = Recompute::kNone) {
    return compute_gradient_of({inputs, targets, kBatch, kSequence}, dropout, recompute);
  }
  double compute_gradient_of(const Transformer::Rows& rows, const Transformer::DropoutStream& dropout,
                             Recompute recompute) {
    const float scale = 1.0F / static_cast<float>(rows.batch * rows.sequence);
    const Loss loss = replica.model().loss(tape_, replica.weights(), rows, dropout, scale, recompute);
    tape_.backward(loss.value);
    reducer.end_micro_batch();
    reducer.finish();
    return loss.sum();
  }
  [[nodiscard]] std::vector<float> gradient() const {
    const std::span<const float> on_device = reducer.gradient();
    std::vector<float> values(on_device.size());
    backend->copy({const_cast<float*>(on_device.data()), values.size(), DType::kF32, backend->device()},
                  view_of(std::span(values)));
    return values;
  }

  static constexpr std::int64_t kBatch = 3;
  static constexpr std::int64_t kSequence = 17;
  std::vector<std::int32_t> inputs = random_tokens(kBatch * kSequence, 61, 1);
  std::vector<std::int32_t> targets = random_tokens(kBatch * kSequence, 61, 2);
  std::unique_ptr<Backend> backend;
  Arena arena;

 private:
  SelfCommunicator self_;
  std::unique_ptr<Communicator> alone_ = make_staged_communicator(self_, *backend);  // takes any device's memory

 public:
  Replica replica;
  GradReducer reducer;

 private:
  Tape tape_;
};

}  // namespace lockstep
