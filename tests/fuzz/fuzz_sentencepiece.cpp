// Any bytes as a SentencePiece model: an Error, or a tokenizer whose tokenizer.json means the same and which gives a
// text back where it falls back to bytes.
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "data/text/sentencepiece_model.h"
#include "data/text/tokenizer.h"

namespace {

constexpr std::string_view kText = "Hello  world's 1234 \xC3\xA9 e\xCC\x81\r\n\xFF<s>ab";

void check(const lockstep::Tokenizer& tokenizer) {
  std::vector<std::uint32_t> ids;
  tokenizer.encode(kText, ids);
  if (tokenizer.model().definition.sentencepiece->byte_fallback && tokenizer.decode(ids) != kText) {
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
        lockstep::read_sentencepiece_model(std::string_view(reinterpret_cast<const char*>(data), size), "fuzzed"),
        "fuzzed")));
  } catch (const lockstep::Error&) {
    return 0;
  }
  return 0;
}
