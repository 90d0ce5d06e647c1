// What a tuned model's files say of texts, over what those of its base say: it may have learnt another end of an
// answer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "data/text/tokenizer.h"

namespace lockstep {

// tokenizer_config.json's eos_token, with which a run that is tuned on conversations ends its answers. Nothing where
// `folder` names none that `tokenizer` knows.
[[nodiscard]] std::optional<std::int32_t> trained_end(const std::filesystem::path& folder, const Tokenizer& tokenizer);

// config.json or generation_config.json with `end` as the first of its eos_token_id, before those that it had.
[[nodiscard]] std::string with_end(const std::string& config, std::int32_t end);

// A tuned model's tokenizer_config.json with the bos_token, unk_token and pad_token that its base has.
[[nodiscard]] std::string with_tokens_of_base(const std::string& tuned, const std::string& base);

}  // namespace lockstep
