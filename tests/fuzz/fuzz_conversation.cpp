// Any bytes as a conversation, a pair of answers, an entry of dataset_info.json and peft's adapter_config.json: an
// Error or a problem in one line, or something that takes turns.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "data/chat/conversation.h"
#include "data/chat/dataset_info.h"
#include "trainer/adapter_config.h"

namespace {

void check_conversation(std::string_view text, const lockstep::ChatFormat& format) {
  std::string problem;
  const auto conversation = lockstep::parse_conversation(text, format, problem);
  if (conversation ? conversation->turns.size() % 2 != 0 || conversation->turns.empty() ||
                         conversation->rejected.empty() == format.is_pairs
                   : problem.empty()) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  using Form = lockstep::ChatFormat::Form;
  for (const Form form : {Form::kAny, Form::kAlpaca, Form::kMessages}) {
    for (const bool is_pairs : {false, true}) {
      lockstep::ChatFormat format;
      format.form = form;
      format.is_pairs = is_pairs;
      check_conversation(text, format);
    }
  }
  try {
    check_conversation(text, lockstep::parse_named_dataset(text, "info.json", "data", "mine").format);
  } catch (const lockstep::Error&) {
  }
  try {
    static_cast<void>(lockstep::from_adapter_config(text, "adapter_config.json"));
  } catch (const lockstep::Error&) {
  }
  return 0;
}
