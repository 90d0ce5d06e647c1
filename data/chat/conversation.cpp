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
std::string optional_text(const json& object, const std::string& key) {
  const auto found = key.empty() ? object.end() : object.find(key);
  if (found == object.end() || found->is_null()) {
    return {};
  }
  expect(found->is_string(), "\"{}\" is not a text", key);
  return found->get<std::string>();
}
std::string required_text(const json& object, const std::string& key) {
  const auto found = object.find(key);
  expect(found != object.end(), "\"{}\" is missing", key);
  expect(found->is_string(), "\"{}\" is not a text", key);
  return found->get<std::string>();
}

// Whether there is nothing in a value, or in the JSON that some keep in a text: "[]".
bool is_nothing(const json& value) {
  if (!value.is_string()) {
    return value.is_null() || (value.is_structured() && value.empty());
  }
  const auto& text = value.get_ref<const std::string&>();
  const json inner = json::parse(text, nullptr, false);
  return text.find_first_not_of(" \t\r\n") == std::string::npos ||
         (!inner.is_discarded() && (inner.is_null() || (inner.is_structured() && inner.empty())));
}
bool has_something(const json& object, const std::string& key) {
  const auto found = object.find(key);
  return found != object.end() && !is_nothing(*found);
}

// Where there is a key for them.
void refuse_tools(const json& object, const std::string& key) {
  if (key.empty()) {
    return;
  }
  for (const std::string& name : {key, std::string("functions")}) {
    expect(!has_something(object, name), "\"{}\" describes functions, which templates do not show yet", name);
  }
}

void refuse_calls(const json& message, std::size_t number) {
  for (const char* key : {"tool_calls", "function_call"}) {
    expect(!has_something(message, key), "turn {}: \"{}\" calls functions, which templates do not show yet", number,
           key);
  }
}

// What stands in the text for what is kept under another key.
struct Medium {
  const char* key;
  const char* placeholder;
};
constexpr Medium kMedia[] = {{"images", "<image>"}, {"videos", "<video>"}, {"audios", "<audio>"}};

void refuse_media(const json& object, const Conversation& conversation) {
  for (const auto& [key, placeholder] : kMedia) {
    if (!has_something(object, key)) {
      continue;
    }
    for (std::size_t i = 0; i < conversation.turns.size(); ++i) {
      expect(conversation.turns[i].text.find(placeholder) == std::string::npos,
             "turn {} speaks of \"{}\" ({}), which models here do not take", i + 1, key, placeholder);
    }
  }
}

// OpenAI's.
bool is_trained(const json& message, std::size_t number) {
  const auto weight = message.find("weight");
  if (weight == message.end() || weight->is_null()) {
    return true;
  }
  expect(weight->is_number() && (*weight == 0 || *weight == 1), "turn {}: \"weight\" is {}, expected 0 or 1", number,
         weight->dump(-1, ' ', false, json::error_handler_t::replace));
  return *weight == 1;
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

Conversation parse_alpaca(const json& object, const ChatFormat& format) {
  Conversation conversation;
  conversation.system = optional_text(object, format.system);
  const auto history = format.history.empty() ? object.end() : object.find(format.history);
  if (history != object.end() && !history->is_null()) {
    expect(history->is_array(), "\"{}\" is not a list", format.history);
    for (const json& pair : *history) {
      expect(pair.is_array() && pair.size() == 2 && pair[0].is_string() && pair[1].is_string(),
             "\"{}\" holds something else than pairs of texts", format.history);
      conversation.turns.push_back({Role::kUser, pair[0].get<std::string>()});
      conversation.turns.push_back({Role::kAssistant, pair[1].get<std::string>()});
    }
  }
  std::string question = format.prompt.empty() ? "" : required_text(object, format.prompt);
  if (const std::string input = optional_text(object, format.query); !input.empty()) {
    question += (question.empty() ? "" : "\n") + input;
  }
  conversation.turns.push_back({Role::kUser, std::move(question)});
  conversation.turns.push_back({Role::kAssistant, required_text(object, format.response)});
  return conversation;
}

// A text, or the texts in a list of parts.
std::string text_of(const json& message, const std::string& key, std::size_t number) {
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

enum class Speaker { kNobody, kSystem, kUser, kAssistant, kTool };

// Where no names are given, those of sharegpt and of OpenAI's messages.
Speaker speaker_of(const std::string& name, const ChatFormat& format) {
  const bool any = format.form == ChatFormat::Form::kAny;
  if (name == format.system_role || (any && name == "developer")) {
    return Speaker::kSystem;
  }
  if (name == format.user || (any && name == "user")) {
    return Speaker::kUser;
  }
  if (name == format.assistant || name == format.function || (any && name == "assistant")) {
    return Speaker::kAssistant;
  }
  return name == format.observation || (any && name == "tool") ? Speaker::kTool : Speaker::kNobody;
}

std::string speakers(const ChatFormat& format) {
  return format.form == ChatFormat::Form::kAny
             ? "system, user, assistant, tool or sharegpt's human, gpt, observation, function_call"
             : fmt::format("{}, {}, {}, {} or {}", format.system_role, format.user, format.assistant,
                           format.observation, format.function);
}

Conversation parse_messages(const json& object, const json& messages, const ChatFormat& format) {
  Conversation conversation;
  conversation.system = optional_text(object, format.system);
  std::size_t number = 0;
  for (const json& message : messages) {
    ++number;
    expect(message.is_object(), "turn {} is not an object", number);
    const auto role = message.find(format.role);
    expect(role != message.end() && role->is_string(), "turn {}: \"{}\" is missing", number, format.role);
    refuse_calls(message, number);
    const bool trained = is_trained(message, number);
    std::string text = text_of(message, format.content, number);
    switch (speaker_of(role->get<std::string>(), format)) {
      case Speaker::kSystem:
        expect(number == 1, "turn {} is the system's, which stands at the beginning alone", number);
        conversation.system = std::move(text);
        break;
      case Speaker::kUser:
        conversation.turns.push_back({Role::kUser, std::move(text)});
        break;
      case Speaker::kAssistant:
        conversation.turns.push_back({Role::kAssistant, std::move(text), trained});
        break;
      case Speaker::kTool:
        conversation.turns.push_back({Role::kTool, std::move(text)});
        break;
      case Speaker::kNobody:
        throw Problem{fmt::format("turn {}: \"{}\" is {}, expected {}", number, format.role,
                                  role->dump(-1, ' ', false, json::error_handler_t::replace), speakers(format))};
    }
  }
  return conversation;
}

// The format of an object whose keys tell what it is.
ChatFormat format_of(const json& object, const ChatFormat& usual) {
  ChatFormat format = usual;
  format.form = ChatFormat::Form::kAny;
  const bool is_trl = usual.is_pairs && object.contains("prompt");
  for (const char* list : {"conversations", "messages", "prompt"}) {
    const auto found = object.find(list);
    if (found == object.end() || (list == std::string_view("prompt") && !(is_trl && found->is_array()))) {
      continue;
    }
    format.messages = list;
    // Some keep OpenAI's messages under the other name.
    if (list != std::string_view("conversations") ||
        (found->is_array() && !found->empty() && found->front().is_object() && found->front().contains("role"))) {
      format.role = "role";
      format.content = "content";
      format.assistant = "assistant";
      format.user = "user";
    }
    return format;
  }
  format.messages.clear();
  if (is_trl) {
    format.prompt = "prompt";
    return format;
  }
  if (usual.is_pairs && object.contains(usual.chosen) && object[usual.chosen].is_array()) {
    format.messages = "messages";  // which "chosen" and "rejected" begin with
    format.role = "role";
    format.content = "content";
    return format;
  }
  expect(object.contains("instruction"), "neither \"messages\" nor \"conversations\" nor \"instruction\" is there");
  return format;
}

bool has_messages(const ChatFormat& format) {
  return format.form == ChatFormat::Form::kAny ? !format.messages.empty() : format.form == ChatFormat::Form::kMessages;
}

Conversation parse_turns(const json& object, const ChatFormat& format) {
  if (!has_messages(format)) {
    return parse_alpaca(object, format);
  }
  const auto found = object.find(format.messages);
  expect(found != object.end(), "\"{}\" is missing", format.messages);
  expect(found->is_array(), "\"{}\" is not a list", format.messages);
  return parse_messages(object, *found, format);
}

Conversation parse_as(const json& object, const ChatFormat& format) {
  Conversation conversation = parse_turns(object, format);
  refuse_media(object, conversation);
  check(conversation);
  return conversation;
}

// The conversation that ends with what stands under `key`.
Conversation parse_ending(json object, const std::string& key, const ChatFormat& format) {
  const auto found = object.find(key);
  expect(found != object.end(), "\"{}\" is missing", key);
  const json answer = *found;
  if (!has_messages(format)) {
    expect(answer.is_string(), "\"{}\" is not a text", key);
    object[format.response] = answer;
    return parse_as(object, format);
  }
  json& messages = object[format.messages];
  messages = messages.is_null() ? json::array() : messages;
  expect(messages.is_array(), "\"{}\" is not a list", format.messages);
  if (answer.is_array()) {
    messages.insert(messages.end(), answer.begin(), answer.end());
  } else if (answer.is_object()) {
    messages.push_back(answer);
  } else {
    expect(answer.is_string(), "\"{}\" is neither a text nor a message nor a list of them", key);
    messages.push_back({{format.role, format.assistant}, {format.content, answer}});
  }
  return parse_as(object, format);
}

Conversation parse_pair(const json& object, const ChatFormat& format) {
  Conversation pair = parse_ending(object, format.chosen, format);
  Conversation other = parse_ending(object, format.rejected, format);
  expect(pair.turns.back().is_trained && other.turns.back().is_trained,
         "\"weight\" is 0 in an answer of a pair, both of which count");
  pair.rejected = std::move(other.turns.back().text);
  other.turns.back().text = pair.turns.back().text;
  expect(pair == Conversation{other.system, other.turns, pair.rejected},
         "\"{}\" and \"{}\" answer different conversations", format.chosen, format.rejected);
  expect(pair.rejected != pair.turns.back().text, "\"{}\" and \"{}\" are the same", format.chosen, format.rejected);
  return pair;
}

Conversation parse(std::string_view text, const ChatFormat& usual) {
  const json object = json::parse(text);
  expect(object.is_object(), "not a JSON object");
  refuse_tools(object, usual.tools);
  const ChatFormat format = usual.form == ChatFormat::Form::kAny ? format_of(object, usual) : usual;
  if (format.is_pairs) {
    return parse_pair(object, format);
  }
  return parse_as(object, format);
}

}  // namespace

std::optional<Conversation> parse_conversation(std::string_view text, const ChatFormat& format, std::string& problem) {
  try {
    return parse(text, format);
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
