// Conversations to be fine-tuned on, from the JSON that people keep them in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

enum class Role : std::uint8_t { kUser, kAssistant, kTool };

struct Turn {
  Role role = Role::kUser;
  std::string text;

  friend bool operator==(const Turn&, const Turn&) = default;
};

// The turns of a user, or of a tool that gives its result, and those of the assistant take turns; the first is not the
// assistant's and the last one is.
struct Conversation {
  std::string system;  // empty: none
  std::vector<Turn> turns;

  friend bool operator==(const Conversation&, const Conversation&) = default;
};

// Reads one JSON object of one of these forms, which its keys tell apart:
//   alpaca    {"instruction", "input", "output", "system", "history": [[user, assistant], ...]}; the user says the
//             instruction and, on a line of its own, the input
//   sharegpt  {"conversations": [{"from": human|gpt|system|observation|function_call, "value"}], "system"}
//   OpenAI    {"messages": [{"role": user|assistant|system|developer|tool, "content"}]}; content is a text, or a list
//             of {"type": "text", "text"}
// Nothing when it is none, with what is wrong in `problem`: `turn 3 is the user's, expected the assistant's`.
[[nodiscard]] std::optional<Conversation> parse_conversation(std::string_view json, std::string& problem);

}  // namespace lockstep
