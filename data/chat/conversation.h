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
  bool is_trained = true;  // of the assistant's: false where its "weight" is 0

  friend bool operator==(const Turn&, const Turn&) = default;
};

// The turns of a user, or of a tool that gives its result, and those of the assistant take turns; the first is not the
// assistant's and the last one is.
struct Conversation {
  std::string system;  // empty: none
  std::vector<Turn> turns;
  std::string rejected = {};  // of a pair: what the assistant had better not said last; else empty

  friend bool operator==(const Conversation&, const Conversation&) = default;
};

// Where the parts of a conversation stand in a JSON object. The defaults are those of LLaMA-Factory's
// dataset_info.json, whose "columns" and "tags" name others; an empty name of a key is none.
struct ChatFormat {
  // kAny: the keys of an object tell which of the forms below it has, and the names are the usual ones.
  enum class Form : std::uint8_t { kAny, kAlpaca, kMessages } form = Form::kAny;
  // kAlpaca
  std::string prompt = "instruction";
  std::string query = "input";
  std::string response = "output";
  std::string history = "history";
  // kMessages
  std::string messages = "conversations";
  std::string role = "from";
  std::string content = "value";
  std::string user = "human";
  std::string assistant = "gpt";
  std::string observation = "observation";
  std::string function = "function_call";
  std::string system_role = "system";
  // Both
  std::string system = "system";
  std::string tools = "tools";
  // Pairs of answers: what is said last stands under two keys, as a text, a message or a list of them.
  bool is_pairs = false;
  std::string chosen = "chosen";
  std::string rejected = "rejected";

  friend bool operator==(const ChatFormat&, const ChatFormat&) = default;
};

// Reads one JSON object of one of these forms, which with Form::kAny its keys tell apart:
//   alpaca    {"instruction", "input", "output", "system", "history": [[user, assistant], ...]}; the user says the
//             instruction and, on a line of its own, the input
//   sharegpt  {"conversations": [{"from": human|gpt|system|observation|function_call, "value"}], "system"}
//   OpenAI    {"messages": [{"role": user|assistant|system|developer|tool, "content"}]}; content is a text, or a list
//             of {"type": "text", "text"}
// A message's "weight" says whether an answer is trained on (1, as without it) or only read (0). What templates cannot
// show is refused: "tools" and "functions", calls of them beside a message's text, and pictures, films and sounds that
// the text speaks of; where they are empty they are none.
// Of pairs, with "chosen" and "rejected" beside them, alpaca's has no "output" and the lists end with the user; and
//   TRL       {"prompt", "chosen", "rejected"}: texts, or lists of messages; where "prompt" is missing, the lists begin
//             with the same messages
// Nothing when it is none, with what is wrong in `problem`: `turn 3 is the user's, expected the assistant's`.
[[nodiscard]] std::optional<Conversation> parse_conversation(std::string_view json, const ChatFormat& format,
                                                             std::string& problem);

}  // namespace lockstep
