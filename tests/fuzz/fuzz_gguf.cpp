// Any bytes as a GGUF file: an Error, or a tokenizer that gives a text back and whose tokenizer.json means the same.
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/text/gguf_vocab.h"
#include "data/text/tokenizer.h"

namespace {

constexpr std::string_view kText = "Hello  world's 1234 \xC3\xA9 e\xCC\x81\r\n\xFF<e>ab";

void check(const lockstep::Tokenizer& tokenizer) {
  std::vector<std::uint32_t> ids;
  tokenizer.encode(kText, ids, lockstep::SpecialTokens::kRecognized);
  if (!tokenizer.model().definition.sentencepiece && tokenizer.decode(ids) != kText) {
    std::abort();
  }
  if (lockstep::Tokenizer::from_json(tokenizer.to_json(), "written").fingerprint() != tokenizer.fingerprint()) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(lockstep::Tokenizer(lockstep::build_model(
        lockstep::read_gguf_vocabulary(std::string_view(reinterpret_cast<const char*>(data), size), "fuzzed"),
        "fuzzed")));
  } catch (const lockstep::Error&) {
    return 0;
  }
  return 0;
}
