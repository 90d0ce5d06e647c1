// Any bytes as a tokenizer.json: an Error, or a tokenizer that gives a text back.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/text/tokenizer.h"
#include "data/text/tokenizer_model.h"

namespace {

constexpr std::string_view kText = "Hello  world's 1234 \xC3\xA9 e\xCC\x81\r\n\xFF<|endoftext|>ab";

void check(const lockstep::Tokenizer& tokenizer) {
  std::vector<std::uint32_t> ids;
  tokenizer.encode(kText, ids, lockstep::SpecialTokens::kRecognized);
  const std::string decoded = tokenizer.decode(ids);
  const lockstep::TokenizerDefinition& definition = tokenizer.model().definition;
  if (!definition.nfc && !definition.sentencepiece && decoded != kText) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(lockstep::Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "fuzzed"));
  } catch (const lockstep::Error&) {
    return 0;
  }
  return 0;
}
