// AddedTokens finds whole tokens, such as "<|im_start|>", in a text, before anything else is done to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "data/text/flat_map.h"

namespace lockstep {

class AddedTokens {
 public:
  struct Found {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::uint32_t id = 0;
  };

  // `text` is not empty.
  void add(std::string_view text, std::uint32_t id, bool special);

  [[nodiscard]] bool empty() const { return nodes_.size() == 1; }

  // The leftmost token in text[from..), the longest of those that begin there. Special ones count when `with_special`.
  [[nodiscard]] std::optional<Found> find(std::string_view text, std::size_t from, bool with_special) const;

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Node {
    std::uint32_t id = kNone;
    bool special = false;
  };

  [[nodiscard]] std::optional<Found> longest_at(std::string_view text, std::size_t begin, bool with_special) const;

  // A trie: the child of node n by byte b is children_[n * 256 + b].
  std::vector<Node> nodes_{1};
  FlatMap<std::uint32_t> children_;
  bool starts_[256] = {};
  bool starts_special_[256] = {};
};

}  // namespace lockstep
