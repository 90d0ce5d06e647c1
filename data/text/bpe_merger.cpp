#include "data/text/bpe_merger.h"

#include <algorithm>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr std::uint32_t kNoRank = ~std::uint32_t{0};
constexpr std::uint32_t kNoNode = ~std::uint32_t{0};
constexpr std::size_t kLongPieceBytes = 96;

const TokenizerModel::PairValue* find_merge(const TokenizerModel& model, std::uint32_t left, std::uint32_t right) {
  return model.pairs.find(std::uint64_t{left} << 32 | right);
}

}  // namespace

void BpeMerger::merge(const TokenizerModel& model, std::string_view piece, std::vector<std::uint32_t>& ids) {
  if (model.definition.ignore_merges) {
    if (const auto whole = model.whole_pieces.find(piece); whole != model.whole_pieces.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  if (piece.size() < kLongPieceBytes) {
    merge_short(model, piece, ids);
  } else {
    merge_long(model, piece, ids);
  }
}

void BpeMerger::merge_short(const TokenizerModel& model, std::string_view piece, std::vector<std::uint32_t>& ids) {
  symbols_.resize(piece.size());
  for (std::size_t i = 0; i < piece.size(); ++i) {
    symbols_[i].id = model.byte_ids[static_cast<unsigned char>(piece[i])];
  }
  std::size_t count = piece.size();
  const auto look_up = [&](std::size_t i) {
    const auto* const found = i + 1 < count ? find_merge(model, symbols_[i].id, symbols_[i + 1].id) : nullptr;
    symbols_[i].rank = found != nullptr ? found->rank : kNoRank;
    symbols_[i].result = found != nullptr ? found->result : 0;
  };
  for (std::size_t i = 0; i < count; ++i) {
    look_up(i);
  }
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      best = symbols_[i].rank < symbols_[best].rank ? i : best;
    }
    if (symbols_[best].rank == kNoRank) {
      break;
    }
    symbols_[best].id = symbols_[best].result;
    std::copy(symbols_.begin() + static_cast<std::ptrdiff_t>(best) + 2,
              symbols_.begin() + static_cast<std::ptrdiff_t>(count),
              symbols_.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    --count;
    look_up(best);
    if (best > 0) {
      look_up(best - 1);
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    ids.push_back(symbols_[i].id);
  }
}

void BpeMerger::push_candidate(const TokenizerModel& model, std::uint32_t left) {
  if (left == kNoNode || nodes_[left].next == kNoNode) {
    return;
  }
  const std::uint32_t left_id = nodes_[left].id;
  const std::uint32_t right_id = nodes_[nodes_[left].next].id;
  if (const auto* const found = find_merge(model, left_id, right_id)) {
    heap_.push_back({found->rank, left, left_id, right_id, found->result});
  }
}

void BpeMerger::merge_long(const TokenizerModel& model, std::string_view piece, std::vector<std::uint32_t>& ids) {
  require(piece.size() < kNoNode, "encode: a piece of {} bytes without a break; at most 4 GiB are supported",
          piece.size());
  const auto count = static_cast<std::uint32_t>(piece.size());
  nodes_.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {model.byte_ids[static_cast<unsigned char>(piece[i])], i == 0 ? kNoNode : i - 1,
                 i + 1 == count ? kNoNode : i + 1};
  }
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  heap_.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    push_candidate(model, i);
  }
  std::make_heap(heap_.begin(), heap_.end(), later);
  const auto push = [&](std::uint32_t left) {
    const std::size_t before = heap_.size();
    push_candidate(model, left);
    if (heap_.size() > before) {
      std::push_heap(heap_.begin(), heap_.end(), later);
    }
  };
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const Candidate candidate = heap_.back();
    heap_.pop_back();
    Node& left = nodes_[candidate.left];
    const std::uint32_t right = left.next;
    // Merges since may have taken one of the two away; a node that is gone has the id kNoRank.
    if (left.id != candidate.left_id || right == kNoNode || nodes_[right].id != candidate.right_id) {
      continue;
    }
    left.id = candidate.result;
    left.next = nodes_[right].next;
    nodes_[right].id = kNoRank;
    if (left.next != kNoNode) {
      nodes_[left.next].previous = candidate.left;
    }
    push(left.previous);
    push(candidate.left);
  }
  for (std::uint32_t i = 0; i != kNoNode; i = nodes_[i].next) {
    ids.push_back(nodes_[i].id);
  }
}

}  // namespace lockstep
