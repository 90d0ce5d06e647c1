#include "data/chat/conversation.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lockstep {
namespace {

using nlohmann::json;

// What is wrong with a conversation; where it stands is the caller's to say.
struct Problem {
  std::string text;
};
template <typename... Args>
void expect(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) {
    throw Problem{fmt::format(format, std::forward<Args>(args)...)};
  }
}

// The text under `key`; empty where the key is missing or null.
std::string optional_text(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) {
    return {};
  }
  expect(found->is_string(), "\"{}\" is not a text", key);
  return found->get<std::string>();
}
std::string required_text(const json& object, const char* key) {
  const auto found = object.find(key);
  expect(found != object.end(), "\"{}\" is missing", key);
  expect(found->is_string(), "\"{}\" is not a text", key);
  return found->get<std::string>();
}

void refuse_tools(const json& object) {
  const auto found = object.find("tools");
  const bool has_tools = found != object.end() && !found->is_null() &&
                         !(found->is_string() && found->get<std::string>().empty()) &&
                         !(found->is_array() && found->empty());
  expect(!has_tools, "\"tools\" describes functions, which templates do not show yet");
}

std::string_view name_of(Role role) {
  switch (role) {
    case Role::kUser:
      return "the user's";
    case Role::kAssistant:
      return "the assistant's";
    case Role::kTool:
      return "a tool's";
  }
  return "";
}

// Roles that take turns, an answer at the end, and none that is empty.
void check(const Conversation& conversation) {
  expect(!conversation.turns.empty(), "there are no turns");
  for (std::size_t i = 0; i < conversation.turns.size(); ++i) {
    const Turn& turn = conversation.turns[i];
    const bool expects_assistant = i % 2 == 1;
    expect((turn.role == Role::kAssistant) == expects_assistant, "turn {} is {}, expected {}", i + 1,
           name_of(turn.role), expects_assistant ? "the assistant's" : "the user's or a tool's");
    expect(turn.role != Role::kAssistant || !turn.text.empty(), "turn {}, the assistant's, is empty", i + 1);
  }
  expect(conversation.turns.back().role == Role::kAssistant, "there is no answer after turn {}",
         conversation.turns.size());
}

Conversation parse_alpaca(const json& object) {
  Conversation conversation;
  conversation.system = optional_text(object, "system");
  if (const auto history = object.find("history"); history != object.end() && !history->is_null()) {
    expect(history->is_array(), "\"history\" is not a list");
    for (const json& pair : *history) {
      expect(pair.is_array() && pair.size() == 2 && pair[0].is_string() && pair[1].is_string(),
             "\"history\" holds something else than pairs of texts");
      conversation.turns.push_back({Role::kUser, pair[0].get<std::string>()});
      conversation.turns.push_back({Role::kAssistant, pair[1].get<std::string>()});
    }
  }
  std::string question = required_text(object, "instruction");
  if (const std::string input = optional_text(object, "input"); !input.empty()) {
    question += (question.empty() ? "" : "\n") + input;
  }
  conversation.turns.push_back({Role::kUser, std::move(question)});
  conversation.turns.push_back({Role::kAssistant, required_text(object, "output")});
  return conversation;
}

// A text, or the texts in a list of parts.
std::string text_of(const json& message, const char* key, std::size_t number) {
  const auto found = message.find(key);
  expect(found != message.end(), "turn {}: \"{}\" is missing", number, key);
  if (found->is_string()) {
    return found->get<std::string>();
  }
  expect(found->is_array(), "turn {}: \"{}\" is neither a text nor a list", number, key);
  std::string text;
  for (const json& part : *found) {
    expect(part.is_object() && part.value("type", json()) == "text" && part.value("text", json()).is_string(),
           "turn {}: \"{}\" holds a part that is not text", number, key);
    text += part["text"].get<std::string>();
  }
  return text;
}

struct Keys {
  const char* role;
  const char* text;
};

Conversation parse_messages(const json& object, const json& messages, const Keys& keys) {
  Conversation conversation;
  conversation.system = optional_text(object, "system");
  std::size_t number = 0;
  for (const json& message : messages) {
    ++number;
    expect(message.is_object(), "turn {} is not an object", number);
    const auto role = message.find(keys.role);
    expect(role != message.end() && role->is_string(), "turn {}: \"{}\" is missing", number, keys.role);
    const std::string name = role->get<std::string>();
    std::string text = text_of(message, keys.text, number);
    if (name == "system" || name == "developer") {
      expect(number == 1, "turn {} is the system's, which stands at the beginning alone", number);
      conversation.system = std::move(text);
    } else if (name == "user" || name == "human") {
      conversation.turns.push_back({Role::kUser, std::move(text)});
    } else if (name == "assistant" || name == "gpt" || name == "function_call") {
      conversation.turns.push_back({Role::kAssistant, std::move(text)});
    } else if (name == "tool" || name == "observation") {
      conversation.turns.push_back({Role::kTool, std::move(text)});
    } else {
      throw Problem{
          fmt::format("turn {}: \"{}\" is {}, expected system, user, assistant, tool or sharegpt's human, "
                      "gpt, observation, function_call",
                      number, keys.role, role->dump(-1, ' ', false, json::error_handler_t::replace))};
    }
  }
  return conversation;
}

Conversation parse(std::string_view text) {
  const json object = json::parse(text);
  expect(object.is_object(), "not a JSON object");
  refuse_tools(object);
  for (const Keys& keys : {Keys{"from", "value"}, Keys{"role", "content"}}) {
    const char* const list = keys.role == std::string_view("from") ? "conversations" : "messages";
    const auto found = object.find(list);
    if (found == object.end()) {
      continue;
    }
    expect(found->is_array(), "\"{}\" is not a list", list);
    // Some keep OpenAI's messages under the other name.
    const bool has_roles = !found->empty() && found->front().is_object() && found->front().contains("role");
    return parse_messages(object, *found, has_roles ? Keys{"role", "content"} : keys);
  }
  expect(object.contains("instruction"), "neither \"messages\" nor \"conversations\" nor \"instruction\" is there");
  return parse_alpaca(object);
}

}  // namespace

std::optional<Conversation> parse_conversation(std::string_view text, std::string& problem) {
  try {
    Conversation conversation = parse(text);
    check(conversation);
    return conversation;
  } catch (const Problem& found) {
    problem = found.text;
  } catch (const json::parse_error& error) {
    problem = fmt::format("not valid JSON at byte {}", error.byte);
  } catch (const json::out_of_range&) {
    problem = "a number that does not fit";
  }
  return std::nullopt;
}

}  // namespace lockstep
