#include "trainer/step_record.h"

#include <cassert>
#include <cstring>

namespace lockstep {
namespace {

// A record is this header followed by the losses.
struct Header {
  std::uint32_t stop_requested = 0;
  std::uint32_t save_requested = 0;
  SaveReport save_report;
};

}  // namespace

StepRecordExchange::StepRecordExchange(Communicator& communicator, std::size_t local_micro_batches)
    : communicator_(communicator),
      local_micro_batches_(local_micro_batches),
      record_bytes_(sizeof(Header) + local_micro_batches * sizeof(double)),
      mine_(record_bytes_),
      all_(record_bytes_ * static_cast<std::size_t>(communicator.world_size())) {}

const GatheredRecords& StepRecordExchange::exchange(const Mine& mine) {
  assert(mine.micro_batch_losses.size() <= local_micro_batches_);
  const Header header{mine.stop_requested ? 1U : 0U, mine.save_requested ? 1U : 0U, mine.save_report};
  std::memcpy(mine_.data(), &header, sizeof(header));
  std::memset(mine_.data() + sizeof(header), 0, local_micro_batches_ * sizeof(double));
  if (!mine.micro_batch_losses.empty()) {
    std::memcpy(mine_.data() + sizeof(header), mine.micro_batch_losses.data(), mine.micro_batch_losses.size_bytes());
  }
  communicator_.all_gather(mine_, all_);

  gathered_.micro_batch_losses.clear();
  gathered_.save_reports.clear();
  gathered_.stop_requested = false;
  gathered_.save_requested = false;
  for (std::size_t begin = 0; begin < all_.size(); begin += record_bytes_) {
    Header other;
    std::memcpy(&other, all_.data() + begin, sizeof(other));
    gathered_.stop_requested |= other.stop_requested != 0;
    gathered_.save_requested |= other.save_requested != 0;
    gathered_.save_reports.push_back(other.save_report);
    for (std::size_t i = 0; i < local_micro_batches_; ++i) {
      double loss = 0;
      std::memcpy(&loss, all_.data() + begin + sizeof(other) + i * sizeof(double), sizeof(double));
      gathered_.micro_batch_losses.push_back(loss);
    }
  }
  return gathered_;
}

}  // namespace lockstep
