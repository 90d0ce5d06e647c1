// Encoder encodes many texts with one Tokenizer, fast: it remembers the words it has seen.
//
// One per thread. The ids are the same with and without the cache, whose size is fixed when the Encoder is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "data/text/tokenizer.h"

namespace lockstep {

struct EncoderOptions {
  // Words remembered, rounded up to a power of two; 64 bytes each. 0: none.
  std::size_t cache_words = std::size_t{1} << 15;
};

class Encoder {
 public:
  explicit Encoder(Tokenizer tokenizer, EncoderOptions options = {});
  ~Encoder();
  Encoder(Encoder&&) noexcept;
  Encoder& operator=(Encoder&&) noexcept;
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  // Appends the ids of `text`, which stands at `place`, to `ids`.
  // Throws Error(kUnsupported) when a pattern of the tokenizer gives up on the text (too much backtracking).
  void encode(std::string_view text, std::vector<std::uint32_t>& ids,
              SpecialTokens special_tokens = SpecialTokens::kAsText, TextPlace place = TextPlace::kStart);

  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  struct State;
  Tokenizer tokenizer_;
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
