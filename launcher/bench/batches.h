// What a benchmark trains on.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "data/batch_loader.h"
#include "launcher/bench/measure.h"

namespace lockstep {

// The micro-batches of one rank: out of data.train where that is a dataset, otherwise the same random tokens again and
// again.
class Batches {
 public:
  Batches(const BenchModel& model, const Communicator& communicator);

  // As BatchLoader::next().
  [[nodiscard]] const TokenBatch& next() { return loader_ ? loader_->next() : batch_; }
  // That next() has waited since the last call.
  [[nodiscard]] double take_blocked_ms() { return loader_ ? loader_->take_blocked_ms() : 0; }

 private:
  TokenBatch batch_;
  std::unique_ptr<BatchLoader> loader_;
};

}  // namespace lockstep
