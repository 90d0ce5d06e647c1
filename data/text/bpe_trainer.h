// Training a byte-level BPE vocabulary from word counts.
#pragma once

#include <cstdint>
#include <functional>

#include "data/text/tokenizer.h"
#include "data/text/word_counts.h"

namespace lockstep {

struct BpeTrainerOptions {
  // Tokens in all: <|endoftext|>, the 256 bytes, and the merges. At least 257. A corpus that has nothing more to merge
  // gives fewer.
  std::uint32_t vocab_size = 16384;
  // A pair that occurs less often is not merged.
  std::uint64_t min_count = 2;
  // Called now and then with the number of tokens so far.
  std::function<void(std::uint32_t)> on_progress;
};

// The most frequent pair of neighbouring tokens becomes a token, again and again; among equally frequent pairs the one
// with the smaller left id, then the smaller right id (Sennrich et al., "Neural machine translation of rare words with
// subword units", ACL 2016). The result depends on the counts alone, and is that of Hugging Face's BpeTrainer with the
// byte-level alphabet, special tokens ["<|endoftext|>"] and the same min_frequency. The tokenizer is called
// "bpe:<vocab_size>" and splits text by the GPT-2 pattern. Throws Error(kUsage) when vocab_size is below 257 or above
// 2^24, or when there is no word at all.
[[nodiscard]] Tokenizer train_bpe(const WordCounts& counts, const BpeTrainerOptions& options);

}  // namespace lockstep
