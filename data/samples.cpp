#include "data/samples.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <numeric>

#include "base/error.h"

namespace lockstep {

Samples::Samples(Dataset& dataset, std::int64_t sequence, bool packed) : dataset_(dataset), sequence_(sequence) {
  require(sequence >= 1, "data: sequence {} must be at least 1", sequence);
  const DatasetInfo& info = dataset.info();
  if (info.kind == DatasetKind::kText) {
    require(info.tokens > static_cast<std::uint64_t>(sequence),
            "data: the dataset has {} tokens, a sample of sequence {} needs {}; lower data.sequence", info.tokens,
            sequence, sequence + 1);
    count_ = (info.tokens - 1) / static_cast<std::uint64_t>(sequence);
    return;
  }
  together_ = info.kind == DatasetKind::kPairs ? 2 : 1;
  begins_ = dataset.document_offsets();
  targets_ = dataset.document_targets();
  begins_.push_back(info.tokens);
  check_conversations();
  if (packed) {
    pack();
  } else {
    one_in_each();
  }
  count_ = firsts_.size() - 1;
}

void Samples::check_conversations() const {
  const std::string folder = dataset_.folder().string();
  if (targets_.empty() || begins_.front() != 0) {
    fail(ErrorCode::kCorrupt, "data: {} does not begin with a conversation", folder);
  }
  if (targets_.size() % together_ != 0) {
    fail(ErrorCode::kCorrupt, "data: {} has {} conversations, expected pairs", folder, targets_.size());
  }
  std::int64_t longest = 0;
  for (std::uint64_t conversation = 0; conversation < targets_.size(); ++conversation) {
    longest = std::max(longest, length(conversation) + 1);
  }
  require(longest <= sequence_ + 1,
          "data: {} has a conversation of {} tokens; data.sequence is {}: raise it, or pack with --max-tokens {}",
          folder, longest, sequence_, sequence_ + 1);
}

void Samples::one_in_each() {
  members_.resize(targets_.size());
  std::iota(members_.begin(), members_.end(), std::uint64_t{0});
  for (std::uint64_t first = 0; first <= members_.size(); first += together_) {
    firsts_.push_back(first);
  }
}

// What is longer than a sample is one of its own: the two of a pair may be.
void Samples::pack() {
  const std::uint64_t units = targets_.size() / together_;
  std::vector<std::int64_t> sizes(units);
  for (std::uint64_t conversation = 0; conversation < targets_.size(); ++conversation) {
    sizes[conversation / together_] += length(conversation);
  }
  std::vector<std::uint64_t> order(units);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  std::ranges::stable_sort(order, [&](std::uint64_t a, std::uint64_t b) { return sizes[a] > sizes[b]; });

  std::vector<std::vector<std::uint64_t>> packs;
  std::multimap<std::int64_t, std::size_t> open;  // by the room that is left
  for (const std::uint64_t unit : order) {
    const auto fit = open.lower_bound(sizes[unit]);
    const std::size_t pack = fit == open.end() ? packs.size() : fit->second;
    const std::int64_t room = (fit == open.end() ? sequence_ : fit->first) - sizes[unit];
    if (fit == open.end()) {
      packs.emplace_back();
    } else {
      open.erase(fit);
    }
    packs[pack].push_back(unit);
    if (room > 0) {
      open.emplace(room, pack);
    }
  }
  firsts_.push_back(0);
  for (const std::vector<std::uint64_t>& pack : packs) {
    for (const std::uint64_t unit : pack) {
      for (std::uint64_t i = 0; i < together_; ++i) {
        members_.push_back(unit * together_ + i);
      }
    }
    firsts_.push_back(members_.size());
  }
}

std::span<const std::uint64_t> Samples::conversations_of(std::uint64_t sample) const {
  assert(sample < count_);
  return std::span(members_).subspan(firsts_[sample], firsts_[sample + 1] - firsts_[sample]);
}

std::int64_t Samples::length(std::uint64_t conversation) const {
  return static_cast<std::int64_t>(begins_[conversation + 1] - begins_[conversation]) - 1;
}

std::int64_t Samples::inputs(std::uint64_t sample) const {
  if (begins_.empty()) {
    return sequence_;
  }
  std::int64_t sum = 0;
  for (const std::uint64_t conversation : conversations_of(sample)) {
    sum += length(conversation);
  }
  return sum;
}

std::int64_t Samples::targets(std::uint64_t sample) const {
  if (begins_.empty()) {
    return sequence_;
  }
  std::int64_t sum = 0;
  for (const std::uint64_t conversation : conversations_of(sample)) {
    sum += targets_[conversation];
  }
  return sum;
}

std::int64_t Samples::pairs(std::uint64_t sample) const {
  return together_ == 1 ? 0 : static_cast<std::int64_t>(conversations_of(sample).size() / together_);
}

void Samples::append_lengths(std::uint64_t sample, std::vector<std::int64_t>& lengths) const {
  if (!begins_.empty()) {
    for (const std::uint64_t conversation : conversations_of(sample)) {
      lengths.push_back(length(conversation));
    }
  }
}

// `inputs_row` and `targets_row` have room for the conversation's inputs; tokens_ is left with its tokens.
void Samples::read_conversation(std::uint64_t conversation, std::span<std::int32_t> inputs_row,
                                std::span<std::int32_t> targets_row) {
  const std::size_t count = inputs_row.size();
  tokens_.resize(count + 1);
  trained_.resize(count + 1);
  dataset_.read(begins_[conversation], tokens_);
  dataset_.read_trained(begins_[conversation], trained_);
  std::copy(tokens_.begin(), tokens_.end() - 1, inputs_row.begin());
  std::int64_t found = trained_[0] != 0 ? 1 : 0;  // which nothing could predict
  for (std::size_t i = 0; i < count; ++i) {
    found += trained_[i + 1] != 0 ? 1 : 0;
    targets_row[i] = trained_[i + 1] != 0 ? tokens_[i + 1] : -1;
  }
  if (found != std::int64_t{targets_[conversation]} || trained_[0] != 0) {
    fail(ErrorCode::kCorrupt, "data: conversation {} of {} has {} trained tokens{}, /document_targets says {}",
         conversation, dataset_.folder().string(), found, trained_[0] != 0 ? ", its first among them" : "",
         targets_[conversation]);
  }
}

Hash128 Samples::read(std::uint64_t sample, std::span<std::int32_t> inputs_row, std::span<std::int32_t> targets_row) {
  assert(static_cast<std::int64_t>(inputs_row.size()) >= inputs(sample) && targets_row.size() >= inputs_row.size());
  if (begins_.empty()) {
    const auto count = static_cast<std::size_t>(sequence_);
    tokens_.resize(count + 1);
    dataset_.read(sample * static_cast<std::uint64_t>(sequence_), tokens_);
    std::copy(tokens_.begin(), tokens_.end() - 1, inputs_row.begin());
    std::copy(tokens_.begin() + 1, tokens_.end(), targets_row.begin());
    return hash_of(std::as_bytes(std::span(tokens_)));
  }
  Hasher hasher;
  std::size_t begin = 0;
  for (const std::uint64_t conversation : conversations_of(sample)) {
    const auto count = static_cast<std::size_t>(length(conversation));
    read_conversation(conversation, inputs_row.subspan(begin, count), targets_row.subspan(begin, count));
    hasher.update(std::as_bytes(std::span(tokens_)));
    begin += count;
  }
  return hasher.finish();
}

}  // namespace lockstep
