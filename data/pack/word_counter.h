// Counts the words that a vocabulary for the corpus is trained from.
#pragma once

#include <functional>

#include "data/pack/document_reader.h"
#include "data/text/word_counts.h"

namespace lockstep {

// The words of a unit's first `max_bytes` bytes of training documents.
[[nodiscard]] WordCounts count_words(const Plan& plan, const Unit& unit, const ReaderOptions& options,
                                     std::uint64_t max_bytes, const std::function<bool()>& stop_requested);

}  // namespace lockstep
