// The patterns of the well-known tokenizers, matched by hand: many times the speed of a regular expression engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lockstep {

enum class KnownPattern : std::uint8_t { kGpt2, kLlama3, kQwen2 };

// The pattern as a tokenizer.json holds it. Llama 3 and Qwen differ only in how many digits a piece may have: 3 and 1.
[[nodiscard]] std::string_view expression_of(KnownPattern pattern);
[[nodiscard]] std::optional<KnownPattern> known_pattern(std::string_view expression);

// Where the piece that begins at `begin` ends. `text` is valid UTF-8 and longer than `begin`; pieces cover it without
// gaps.
[[nodiscard]] std::size_t piece_end(KnownPattern pattern, std::string_view text, std::size_t begin);

// The last place in `text`, valid or not, before which a piece ends whatever the text goes on with; 0 when there is
// none.
[[nodiscard]] std::size_t last_certain_cut(KnownPattern pattern, std::string_view text);

}  // namespace lockstep
