#include "data/chat/chat_template.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr std::string_view kOpen = "⟨";
constexpr std::string_view kClose = "⟩";
constexpr std::string_view kSaid = "{}";
constexpr std::string_view kBeginning = "<bos>";
constexpr std::string_view kEnd = "<eos>";

using Named = std::pair<std::string_view, ChatTemplate::Parts>;

constexpr ChatTemplate::Parts kChatml = {
    .prefix = "",
    .system = "⟨<|im_start|>⟩system\n{}⟨<|im_end|>⟩\n",
    .user = "⟨<|im_start|>⟩user\n{}⟨<|im_end|>⟩\n",
    .opener = "⟨<|im_start|>⟩assistant\n",
    .assistant = "{}⟨<|im_end|>⟩",
    .after = "\n",
    .tool = "⟨<|im_start|>⟩tool\n{}⟨<|im_end|>⟩\n",
    .default_system = "",
};

constexpr ChatTemplate::Parts kQwen = [] {
  ChatTemplate::Parts parts = kChatml;
  parts.tool = "⟨<|im_start|>⟩user\n<tool_response>\n{}\n</tool_response>⟨<|im_end|>⟩\n";
  parts.default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
  return parts;
}();

constexpr std::array kTemplates = {
    Named{"alpaca",
          {.prefix = "",
           .system = "{}",
           .user = "### Instruction:\n{}\n\n",
           .opener = "### Response:\n",
           .assistant = "{}<eos>",
           .after = "\n\n",
           .tool = "",
           .default_system = "Below is an instruction that describes a task. "
                             "Write a response that appropriately completes the request.\n\n"}},
    Named{"chatml", kChatml},
    Named{"default",
          {.prefix = "",
           .system = "System: {}<eos>\n",
           .user = "Human: {}<eos>\n",
           .opener = "Assistant:",
           .assistant = "{}<eos>",
           .after = "\n",
           .tool = "",
           .default_system = ""}},
    Named{"gemma",
          {.prefix = "<bos>",
           .system = "{}\n\n",
           .user = "⟨<start_of_turn>⟩user\n{}⟨<end_of_turn>⟩\n",
           .opener = "⟨<start_of_turn>⟩model\n",
           .assistant = "{}⟨<end_of_turn>⟩",
           .after = "\n",
           .tool = "",
           .default_system = "",
           .system_in_user = true}},
    Named{"llama2",
          {.prefix = "",
           .system = "<<SYS>>\n{}\n<</SYS>>\n\n",
           .user = "<bos>[INST] {} [/INST]",
           .opener = "",
           .assistant = "{}<eos>",
           .after = "",
           .tool = "",
           .default_system = "",
           .system_in_user = true}},
    Named{"llama3",
          {.prefix = "<bos>",
           .system = "⟨<|start_header_id|>⟩system⟨<|end_header_id|>⟩\n\n{}⟨<|eot_id|>⟩",
           .user = "⟨<|start_header_id|>⟩user⟨<|end_header_id|>⟩\n\n{}⟨<|eot_id|>⟩",
           .opener = "⟨<|start_header_id|>⟩assistant⟨<|end_header_id|>⟩\n\n",
           .assistant = "{}⟨<|eot_id|>⟩",
           .after = "",
           .tool = "⟨<|start_header_id|>⟩ipython⟨<|end_header_id|>⟩\n\n{}⟨<|eot_id|>⟩",
           .default_system = ""}},
    Named{"mistral",
          {.prefix = "<bos>",
           .system = "{}\n\n",
           .user = "[INST] {}[/INST]",
           .opener = "",
           .assistant = " {}<eos>",
           .after = "",
           .tool = "",
           .default_system = "",
           .system_in_user = true}},
    Named{"qwen", kQwen},
};

// Appends a part of a template with `said` in its place. Text that follows text is one piece, as it is one text to the
// tokenizer.
class Writer {
 public:
  void add(std::string_view part, std::string_view said) {
    while (!part.empty()) {
      if (part.starts_with(kSaid)) {
        text(said);
        part.remove_prefix(kSaid.size());
      } else if (part.starts_with(kBeginning)) {
        token(ChatPiece::Kind::kBeginning, "");
        part.remove_prefix(kBeginning.size());
      } else if (part.starts_with(kEnd)) {
        token(ChatPiece::Kind::kEnd, "");
        part.remove_prefix(kEnd.size());
      } else if (part.starts_with(kOpen)) {
        const std::size_t close = part.find(kClose);
        token(ChatPiece::Kind::kMarker, part.substr(kOpen.size(), close - kOpen.size()));
        part.remove_prefix(close + kClose.size());
      } else {
        text(part.substr(0, 1));
        part.remove_prefix(1);
      }
    }
  }
  void set_answer(bool is_answer, std::size_t turn) {
    is_answer_ = is_answer;
    turn_ = is_answer ? turn : 0;
  }
  [[nodiscard]] std::vector<ChatPiece> take() { return std::move(pieces_); }

 private:
  void text(std::string_view more) {
    if (more.empty()) {
      return;
    }
    const bool goes_on = !pieces_.empty() && pieces_.back().kind == ChatPiece::Kind::kText &&
                         pieces_.back().is_answer == is_answer_ && pieces_.back().turn == turn_;
    if (!goes_on) {
      token(ChatPiece::Kind::kText, "");
    }
    pieces_.back().text += more;
  }
  void token(ChatPiece::Kind kind, std::string_view text) {
    pieces_.push_back({kind, std::string(text), is_answer_, turn_});
  }

  std::vector<ChatPiece> pieces_;
  bool is_answer_ = false;
  std::size_t turn_ = 0;
};

std::vector<ChatPiece> pieces_of(std::string_view part) {
  Writer writer;
  writer.add(part, "");
  return writer.take();
}

// A Jinja literal.
std::string jinja_text(std::string_view text) {
  std::string literal = "'";
  for (const char c : text) {
    literal += c == '\n' ? "\\n" : c == '\'' ? "\\'" : c == '\\' ? "\\\\" : std::string(1, c);
  }
  return literal + "'";
}

}  // namespace

std::vector<std::string_view> ChatTemplate::names() {
  std::vector<std::string_view> names;
  for (const Named& entry : kTemplates) {
    names.push_back(entry.first);
  }
  return names;
}

ChatTemplate ChatTemplate::named(std::string_view name) {
  const auto* const found = std::ranges::find_if(kTemplates, [&](const Named& entry) { return entry.first == name; });
  require(found != kTemplates.end(), "there is no template {}; expected one of {}", name, fmt::join(names(), ", "));
  return ChatTemplate(name, found->second);
}

std::vector<ChatPiece> ChatTemplate::render(const Conversation& conversation) const {
  const std::string_view system = conversation.system.empty() ? parts_.default_system : conversation.system;
  Writer writer;
  writer.add(parts_.prefix, "");
  std::string first_prefix;
  if (!system.empty() && parts_.system_in_user) {
    first_prefix = parts_.system;
    first_prefix.replace(first_prefix.find(kSaid), kSaid.size(), system);
  } else if (!system.empty()) {
    writer.add(parts_.system, system);
  }
  for (std::size_t i = 0; i < conversation.turns.size(); ++i) {
    const Turn& turn = conversation.turns[i];
    switch (turn.role) {
      case Role::kUser:
        writer.add(parts_.user, (i == 0 ? first_prefix : std::string()) + turn.text);
        break;
      case Role::kTool:
        require(!parts_.tool.empty(), "turn {} is a tool's, for which the template {} has no place", i + 1, name_);
        writer.add(parts_.tool, turn.text);
        break;
      case Role::kAssistant:
        writer.add(parts_.opener, "");
        writer.set_answer(true, i);
        writer.add(parts_.assistant, turn.text);
        writer.set_answer(false, i);
        writer.add(parts_.after, "");
        break;
    }
  }
  if (conversation.turns.back().role != Role::kAssistant) {
    writer.add(parts_.opener, "");
  }
  return writer.take();
}

ChatPiece ChatTemplate::closing() const {
  Writer writer;
  writer.add(parts_.assistant, "");
  return writer.take().back();
}

std::string ChatTemplate::to_jinja(std::string_view beginning, std::string_view end) const {
  const auto literal = [&](std::string_view part) {
    std::string text;
    for (const ChatPiece& piece : pieces_of(part)) {
      text += piece.kind == ChatPiece::Kind::kBeginning ? std::string(beginning)
              : piece.kind == ChatPiece::Kind::kEnd     ? std::string(end)
                                                        : piece.text;
    }
    return jinja_text(text);
  };
  // A part with `said` where it says "{}".
  const auto around = [&](std::string_view part, const std::string& said) {
    const std::size_t at = part.find(kSaid);
    const std::string before = literal(part.substr(0, at));
    const std::string after = literal(part.substr(at + kSaid.size()));
    return (before == "''" ? "" : before + " + ") + said + (after == "''" ? "" : " + " + after);
  };
  const std::string system = "{%- if system -%}{{- " + around(parts_.system, "system") + " -}}{%- endif -%}";
  const std::string in_user = "(" + around(parts_.system, "system") + " if loop.first and system else '') + ";
  std::string text =
      "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}"
      "{%- set turns = messages[1:] -%}{%- else -%}{%- set system = " +
      jinja_text(parts_.default_system) + " -%}{%- set turns = messages -%}{%- endif -%}";
  if (!parts_.prefix.empty()) {
    text += "{{- " + literal(parts_.prefix) + " -}}";
  }
  if (!parts_.system_in_user) {
    text += system;
  }
  const std::string content = "message['content']";
  text += "{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- " +
          around(parts_.user, parts_.system_in_user ? in_user + content : content) +
          " -}}{%- elif message['role'] == 'assistant' -%}{{- ";
  if (!parts_.opener.empty()) {
    text += literal(parts_.opener) + " + ";
  }
  text += around(parts_.assistant, content) + (parts_.after.empty() ? "" : " + " + literal(parts_.after)) + " -}}";
  if (!parts_.tool.empty()) {
    text += "{%- elif message['role'] == 'tool' -%}{{- " + around(parts_.tool, content) + " -}}";
  }
  text += "{%- endif -%}{%- endfor -%}";
  if (!parts_.opener.empty()) {
    text += "{%- if add_generation_prompt -%}{{- " + literal(parts_.opener) + " -}}{%- endif -%}";
  }
  return text;
}

}  // namespace lockstep
