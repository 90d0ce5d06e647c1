// The files that tests/golden/text/make_tokenizers.py wrote.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/text/tokenizer.h"

namespace lockstep {

inline std::filesystem::path golden_text_path(const std::string& file) {
  return std::filesystem::path(LOCKSTEP_GOLDEN_TEXT) / file;
}

inline Tokenizer golden_tokenizer(const std::string& form) { return Tokenizer::load(golden_text_path(form + ".json")); }

inline const nlohmann::json& golden_cases() {
  static const nlohmann::json cases = nlohmann::json::parse(read_file(golden_text_path("cases.json")));
  return cases;
}

inline std::vector<std::uint32_t> encoded(const Tokenizer& tokenizer, std::string_view text,
                                          SpecialTokens special_tokens = SpecialTokens::kAsText) {
  std::vector<std::uint32_t> ids;
  tokenizer.encode(text, ids, special_tokens);
  return ids;
}

}  // namespace lockstep
