// How a conversation becomes one text: the markers that a model was taught, around what was said.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/conversation.h"

namespace lockstep {

// A piece of the text.
struct ChatPiece {
  enum class Kind : std::uint8_t {
    kText,       // plain characters, whatever they look like
    kMarker,     // the text of a token that the vocabulary must have
    kBeginning,  // the token before a text, where the vocabulary has one
    kEnd,        // the token after a text
  };
  Kind kind = Kind::kText;
  std::string text;        // of kText and kMarker
  bool is_answer = false;  // said by the assistant, its closing marker included
  std::size_t turn = 0;    // of an answer

  friend bool operator==(const ChatPiece&, const ChatPiece&) = default;
};

// A named template, as LLaMA-Factory knows them: alpaca, chatml, default, gemma, llama2, llama3, mistral, qwen.
class ChatTemplate {
 public:
  // Throws Error(kUsage) that lists the names.
  [[nodiscard]] static ChatTemplate named(std::string_view name);
  [[nodiscard]] static std::vector<std::string_view> names();

  [[nodiscard]] const std::string& name() const { return name_; }
  // Of a conversation that the assistant does not end: up to where his answer begins. Throws Error(kUsage) for a tool's
  // turn where the template has no place for it.
  [[nodiscard]] std::vector<ChatPiece> render(const Conversation& conversation) const;
  // What ends an answer: kMarker or kEnd.
  [[nodiscard]] ChatPiece closing() const;

  // The template in Jinja, for tokenizer_config.json, as transformers and llama.cpp use it: a function of `messages`,
  // with the system's first if there is one, and `add_generation_prompt`. `beginning` and `end` are the texts of the
  // tokens before and after a text, empty where the vocabulary has none.
  [[nodiscard]] std::string to_jinja(std::string_view beginning, std::string_view end) const;

  // The parts of the table: "{}" stands for what was said, "<bos>" and "<eos>" for the tokens before and after a text,
  // and what is in "⟨⟩" is a marker.
  struct Parts {
    std::string_view prefix;  // of the whole text
    std::string_view system;
    std::string_view user;
    std::string_view opener;  // of an answer
    std::string_view assistant;
    std::string_view after;  // behind the assistant's closing marker: not trained
    std::string_view tool;   // empty: tools have no place
    std::string_view default_system;
    bool system_in_user = false;  // the system's text stands inside the first user's
  };

 private:
  ChatTemplate(std::string_view name, const Parts& parts) : name_(name), parts_(parts) {}
  std::string name_;
  Parts parts_;
};

}  // namespace lockstep
