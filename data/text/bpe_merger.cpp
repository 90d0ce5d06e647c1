#include "data/text/bpe_merger.h"

#include <algorithm>

#include "base/error.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::uint32_t kNoRank = ~std::uint32_t{0};
constexpr std::uint32_t kNoNode = ~std::uint32_t{0};
constexpr std::size_t kLongPiece = 96;

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
  if (model.pieces) {
    start_with_characters(model, piece);
  } else {
    start_with_bytes(model, piece);
  }
  if (symbols_.size() < kLongPiece) {
    merge_short(model, ids);
  } else {
    merge_long(model, ids);
  }
}

void BpeMerger::start_with_bytes(const TokenizerModel& model, std::string_view piece) {
  symbols_.resize(piece.size());
  for (std::size_t i = 0; i < piece.size(); ++i) {
    symbols_[i].id = model.byte_ids[static_cast<unsigned char>(piece[i])];
  }
}

void BpeMerger::start_with_characters(const TokenizerModel& model, std::string_view piece) {
  const bool falls_back = model.definition.sentencepiece->byte_fallback;
  symbols_.clear();
  for (std::size_t at = 0; at < piece.size();) {
    const CodePoint c = decode_utf8(piece, at);
    const std::size_t size = std::max(c.length, 1U);
    const std::uint32_t id = size > 1 ? model.pieces->id_of(c.value) : SentencePieceTables::kUnknown;
    if (id != SentencePieceTables::kUnknown) {
      symbols_.push_back({.id = id});
    } else {
      for (std::size_t i = 0; i < (falls_back ? size : 1); ++i) {
        symbols_.push_back({.id = model.byte_ids[static_cast<unsigned char>(piece[at + i])]});
      }
    }
    at += size;
  }
}

void BpeMerger::merge_short(const TokenizerModel& model, std::vector<std::uint32_t>& ids) {
  std::size_t count = symbols_.size();
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

void BpeMerger::merge_long(const TokenizerModel& model, std::vector<std::uint32_t>& ids) {
  require(symbols_.size() < kNoNode, "encode: a piece of {} symbols without a break; at most 2^32 - 2 are supported",
          symbols_.size());
  const auto count = static_cast<std::uint32_t>(symbols_.size());
  nodes_.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {symbols_[i].id, i == 0 ? kNoNode : i - 1, i + 1 == count ? kNoNode : i + 1};
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
