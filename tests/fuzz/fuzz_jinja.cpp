// Any bytes as a chat template: an Error, or a rendering of a small conversation that ends and is UTF-8.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "data/chat/jinja/jinja_template.h"
#include "data/text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::string_view kContext = R"({"messages": [{"role": "user", "content": "häh? "}, {"role": "assistant",
      "content": "<think>a</think>b"}], "tools": [{"name": "f", "n": 1.5}], "bos_token": "<s>", "yes": true})";
  static const lockstep::JinjaValue kValues = lockstep::JinjaValue::from_json(kContext, "context");
  std::string text;
  try {
    text = lockstep::JinjaTemplate::parse(std::string_view(reinterpret_cast<const char*>(data), size), "fuzzed")
               .render(kValues, {.now = 1'700'000'000});
  } catch (const lockstep::Error&) {
    return 0;
  }
  if (lockstep::valid_utf8_end(text, 0) != text.size()) {
    std::abort();
  }
  return 0;
}
