#include "data/samples.h"

#include <algorithm>
#include <cassert>

#include "base/error.h"

namespace lockstep {

Samples::Samples(Dataset& dataset, std::int64_t sequence) : dataset_(dataset), sequence_(sequence) {
  require(sequence >= 1, "data: sequence {} must be at least 1", sequence);
  const DatasetInfo& info = dataset.info();
  if (info.kind == DatasetKind::kText) {
    require(info.tokens > static_cast<std::uint64_t>(sequence),
            "data: the dataset has {} tokens, a sample of sequence {} needs {}; lower data.sequence", info.tokens,
            sequence, sequence + 1);
    count_ = (info.tokens - 1) / static_cast<std::uint64_t>(sequence);
    return;
  }
  begins_ = dataset.document_offsets();
  targets_ = dataset.document_targets();
  count_ = begins_.size();
  if (begins_.empty() || begins_.front() != 0) {
    fail(ErrorCode::kCorrupt, "data: {} does not begin with a conversation", dataset.folder().string());
  }
  begins_.push_back(info.tokens);
  std::int64_t longest = 0;
  for (std::uint64_t sample = 0; sample < count_; ++sample) {
    longest = std::max(longest, inputs(sample) + 1);
  }
  require(longest <= sequence + 1,
          "data: {} has a conversation of {} tokens; data.sequence is {}: raise it, or pack with --max-tokens {}",
          dataset.folder().string(), longest, sequence, sequence + 1);
}

std::int64_t Samples::inputs(std::uint64_t sample) const {
  assert(sample < count_);
  return begins_.empty() ? sequence_ : static_cast<std::int64_t>(begins_[sample + 1] - begins_[sample]) - 1;
}

std::int64_t Samples::targets(std::uint64_t sample) const {
  assert(sample < count_);
  return targets_.empty() ? sequence_ : std::int64_t{targets_[sample]};
}

Hash128 Samples::read(std::uint64_t sample, std::span<std::int32_t> inputs_row, std::span<std::int32_t> targets_row) {
  const auto count = static_cast<std::size_t>(inputs(sample));
  assert(inputs_row.size() >= count && targets_row.size() >= count);
  tokens_.resize(count + 1);
  const std::uint64_t begin = begins_.empty() ? sample * static_cast<std::uint64_t>(sequence_) : begins_[sample];
  dataset_.read(begin, tokens_);
  std::copy(tokens_.begin(), tokens_.end() - 1, inputs_row.begin());
  std::copy(tokens_.begin() + 1, tokens_.end(), targets_row.begin());
  if (!begins_.empty()) {
    trained_.resize(count + 1);
    dataset_.read_trained(begin, trained_);
    std::int64_t found = trained_[0] != 0 ? 1 : 0;  // which nothing could predict
    for (std::size_t i = 0; i < count; ++i) {
      found += trained_[i + 1] != 0 ? 1 : 0;
      targets_row[i] = trained_[i + 1] != 0 ? targets_row[i] : -1;
    }
    if (found != targets(sample) || trained_[0] != 0) {
      fail(ErrorCode::kCorrupt, "data: conversation {} of {} has {} trained tokens{}, /document_targets says {}",
           sample, dataset_.folder().string(), found, trained_[0] != 0 ? ", its first among them" : "",
           targets(sample));
    }
  }
  return hash_of(std::as_bytes(std::span(tokens_)));
}

}  // namespace lockstep
