// A conversation's tokens, and which of them are trained on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/chat/own_template.h"
#include "data/text/encoder.h"

namespace lockstep {

enum class TrainedTurns : std::uint8_t { kAll, kLast };

struct EncodedChat {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint8_t> trained;  // as many: 1 for a token whose loss counts

  [[nodiscard]] std::size_t targets() const;  // tokens that are trained on
};

// Markers are tokens of their own; what was said is text, even where it looks like a marker. The answers are encoded
// apart from what stands before them, as they are when a model writes them.
class ChatEncoder {
 public:
  // Throws Error(kUsage) where the template has a marker that the vocabulary lacks, and for a tokenizer that does not
  // say what ends a text.
  ChatEncoder(ChatTemplate chat_template, const Tokenizer& tokenizer, TrainedTurns trained_turns);
  // The model's own template: added tokens of the vocabulary are markers where the template writes their texts.
  ChatEncoder(OwnTemplate own_template, const Tokenizer& tokenizer, TrainedTurns trained_turns);

  // The token that ends an answer, and the one before a text, where the template and the vocabulary have one.
  [[nodiscard]] std::uint32_t end_of_answer() const;
  [[nodiscard]] std::optional<std::uint32_t> beginning_of_text() const { return beginning_; }
  // ChatTemplate::to_jinja() for this vocabulary, or the model's own template as it is.
  [[nodiscard]] std::string to_jinja() const;

  // `encoder` is the tokenizer's. Throws Error(kUsage) that says which turn has no place in the template.
  void encode(const Conversation& conversation, Encoder& encoder, EncodedChat& chat) const;

 private:
  [[nodiscard]] std::string template_name() const;
  [[nodiscard]] std::uint32_t marker(const std::string& text) const;
  [[nodiscard]] std::vector<ChatPiece> render(const Conversation& conversation) const;
  [[nodiscard]] std::optional<std::uint32_t> own_end_of_answer() const;

  std::variant<ChatTemplate, OwnTemplate> template_;
  Tokenizer tokenizer_;
  TrainedTurns trained_turns_;
  std::optional<std::uint32_t> beginning_;
  std::uint32_t end_ = 0;
};

}  // namespace lockstep
