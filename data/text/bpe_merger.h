// BpeMerger turns one piece of text into token ids by the merges of a model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/text/tokenizer_model.h"

namespace lockstep {

// Of all pairs of neighbours the one whose merge comes first in the model's list is merged, the leftmost of equals;
// until no pair has a merge. Short pieces look through all pairs each time, long ones keep them in a heap: n log n, for
// a file that is one line of a million letters. Both give the same. One per thread.
class BpeMerger {
 public:
  // Appends the ids of `piece`, which is not empty.
  void merge(const TokenizerModel& model, std::string_view piece, std::vector<std::uint32_t>& ids);

 private:
  struct Symbol {
    std::uint32_t id = 0;
    std::uint32_t rank = 0;    // of the merge with the next symbol
    std::uint32_t result = 0;  // its result
  };
  struct Node {
    std::uint32_t id = 0;
    std::uint32_t previous = 0;
    std::uint32_t next = 0;
  };
  struct Candidate {
    std::uint32_t rank = 0;
    std::uint32_t left = 0;  // the node that begins the pair
    std::uint32_t left_id = 0;
    std::uint32_t right_id = 0;
    std::uint32_t result = 0;
  };

  // Fill symbols_.
  void start_with_bytes(const TokenizerModel& model, std::string_view piece);
  void start_with_characters(const TokenizerModel& model, std::string_view piece);
  void merge_short(const TokenizerModel& model, std::vector<std::uint32_t>& ids);
  void merge_long(const TokenizerModel& model, std::vector<std::uint32_t>& ids);
  void push_candidate(const TokenizerModel& model, std::uint32_t left);

  std::vector<Symbol> symbols_;
  std::vector<Node> nodes_;
  std::vector<Candidate> heap_;
};

}  // namespace lockstep
