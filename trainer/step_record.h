// What the ranks tell each other once a step, in one exchange: losses, wishes and the state of a save.
//
// Every rank acts on the gathered records alone, so all decide the same at the same step: what the loss was, whether to
// stop, when a checkpoint is complete.
#pragma once

#include <span>
#include <vector>

#include "comm/communicator.h"
#include "trainer/checkpoint/writer.h"

namespace lockstep {

struct GatheredRecords {
  std::vector<double> micro_batch_losses;  // sums over the target tokens, in the order of the micro-batches
  std::vector<SaveReport> save_reports;    // in the order of the ranks
  bool stop_requested = false;             // by any rank
  bool save_requested = false;             // by any rank
};

class StepRecordExchange {
 public:
  // `local_micro_batches`: of each rank in a step.
  StepRecordExchange(Communicator& communicator, std::size_t local_micro_batches);

  struct Mine {
    bool stop_requested = false;
    bool save_requested = false;
    SaveReport save_report;
    std::span<const double> micro_batch_losses;  // local_micro_batches, or empty between steps
  };
  // Collective. The result is valid until the next call.
  [[nodiscard]] const GatheredRecords& exchange(const Mine& mine);

 private:
  Communicator& communicator_;
  std::size_t local_micro_batches_;
  std::size_t record_bytes_;
  std::vector<std::byte> mine_;
  std::vector<std::byte> all_;
  GatheredRecords gathered_;
};

}  // namespace lockstep
