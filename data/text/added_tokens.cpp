#include "data/text/added_tokens.h"

#include <cassert>

namespace lockstep {
namespace {

std::uint64_t edge(std::size_t node, char byte) { return std::uint64_t{node} * 256 + static_cast<unsigned char>(byte); }

}  // namespace

void AddedTokens::add(std::string_view text, std::uint32_t id, bool special) {
  assert(!text.empty());
  std::size_t node = 0;
  for (const char byte : text) {
    std::uint32_t& child = children_[edge(node, byte)];
    if (child == 0) {
      child = static_cast<std::uint32_t>(nodes_.size());
      nodes_.emplace_back();
    }
    node = child;
  }
  nodes_[node] = {id, special};
  (special ? starts_special_ : starts_)[static_cast<unsigned char>(text.front())] = true;
}

std::optional<AddedTokens::Found> AddedTokens::find(std::string_view text, std::size_t from, bool with_special) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    const auto first = static_cast<unsigned char>(text[begin]);
    if (starts_[first] || (with_special && starts_special_[first])) {
      if (const std::optional<Found> found = longest_at(text, begin, with_special)) {
        return found;
      }
    }
  }
  return std::nullopt;
}

std::optional<AddedTokens::Found> AddedTokens::longest_at(std::string_view text, std::size_t begin,
                                                          bool with_special) const {
  std::optional<Found> found;
  std::size_t node = 0;
  for (std::size_t at = begin; at < text.size(); ++at) {
    const std::uint32_t* const child = children_.find(edge(node, text[at]));
    if (child == nullptr) {
      break;
    }
    node = *child;
    if (nodes_[node].id != kNone && (with_special || !nodes_[node].special)) {
      found = Found{begin, at + 1, nodes_[node].id};
    }
  }
  return found;
}

}  // namespace lockstep
