#include "data/chat/chat_encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

// Where neither the tokenizer's post-processing nor its configuration says so: the usual names.
std::optional<std::uint32_t> beginning_of(const Tokenizer& tokenizer) {
  if (const auto found = tokenizer.beginning_of_text()) {
    return found;
  }
  for (const char* name : {"<|begin_of_text|>", "<s>", "<bos>"}) {
    if (const auto found = tokenizer.added_token(name)) {
      return found;
    }
  }
  return std::nullopt;
}

}  // namespace

std::size_t EncodedChat::targets() const {
  return static_cast<std::size_t>(std::count(trained.begin(), trained.end(), std::uint8_t{1}));
}

ChatEncoder::ChatEncoder(ChatTemplate chat_template, const Tokenizer& tokenizer, TrainedTurns trained_turns)
    : template_(std::move(chat_template)),
      tokenizer_(tokenizer),
      trained_turns_(trained_turns),
      beginning_(beginning_of(tokenizer)),
      end_(tokenizer.end_of_text().value_or(0)) {
  require(tokenizer.end_of_text().has_value(), "the tokenizer {} names no end-of-text token", tokenizer.name());
  const Conversation everything{"system", {{Role::kUser, "question"}, {Role::kAssistant, "answer"}}};
  for (const ChatPiece& piece : render(everything)) {
    if (piece.kind == ChatPiece::Kind::kMarker) {
      static_cast<void>(marker(piece.text));
    }
  }
}

ChatEncoder::ChatEncoder(OwnTemplate own_template, const Tokenizer& tokenizer, TrainedTurns trained_turns)
    : template_(std::move(own_template)),
      tokenizer_(tokenizer),
      trained_turns_(trained_turns),
      beginning_(tokenizer.added_token(std::get<OwnTemplate>(template_).beginning())),
      end_(tokenizer.end_of_text().value_or(0)) {
  const auto named = tokenizer.added_token(std::get<OwnTemplate>(template_).end());
  require(named.has_value() || tokenizer.end_of_text().has_value(), "the tokenizer {} names no end-of-text token",
          tokenizer.name());
  end_ = own_end_of_answer().value_or(named.value_or(end_));
}

std::uint32_t ChatEncoder::marker(const std::string& text) const {
  const auto id = tokenizer_.added_token(text);
  require(id.has_value(), "the template {} needs the token {}, which the tokenizer {} does not have", template_name(),
          text, tokenizer_.name());
  return *id;
}

std::string ChatEncoder::template_name() const {
  const ChatTemplate* const ours = std::get_if<ChatTemplate>(&template_);
  return ours != nullptr ? ours->name() : std::string(kOwnTemplateName);
}

std::vector<ChatPiece> ChatEncoder::render(const Conversation& conversation) const {
  if (const ChatTemplate* const ours = std::get_if<ChatTemplate>(&template_)) {
    return ours->render(conversation);
  }
  const auto find_marker = [this](std::string_view text,
                                  std::size_t from) -> std::optional<std::pair<std::size_t, std::size_t>> {
    const auto found = tokenizer_.find_added_token(text, from);
    return found ? std::optional(std::pair(found->begin, found->end)) : std::nullopt;
  };
  return std::get<OwnTemplate>(template_).render(conversation, find_marker);
}

// The marker that closes an answer to a question, if the template takes one and closes it with one.
std::optional<std::uint32_t> ChatEncoder::own_end_of_answer() const {
  try {
    const std::vector<ChatPiece> pieces = render({"", {{Role::kUser, "question"}, {Role::kAssistant, "answer"}}});
    const auto last = std::find_if(pieces.rbegin(), pieces.rend(), [](const ChatPiece& piece) {
      return piece.is_answer && piece.kind == ChatPiece::Kind::kMarker;
    });
    return last == pieces.rend() ? std::nullopt : tokenizer_.added_token(last->text);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUsage) {
      throw;
    }
    return std::nullopt;
  }
}

std::uint32_t ChatEncoder::end_of_answer() const {
  if (std::holds_alternative<OwnTemplate>(template_)) {
    return end_;
  }
  const ChatPiece closing = std::get<ChatTemplate>(template_).closing();
  return closing.kind == ChatPiece::Kind::kMarker ? marker(closing.text) : end_;
}

std::string ChatEncoder::to_jinja() const {
  if (const OwnTemplate* const own = std::get_if<OwnTemplate>(&template_)) {
    return own->source();
  }
  const std::string_view beginning = beginning_ ? tokenizer_.token_bytes(*beginning_) : std::string_view();
  return std::get<ChatTemplate>(template_).to_jinja(beginning, tokenizer_.token_bytes(end_));
}

void ChatEncoder::encode(const Conversation& conversation, Encoder& encoder, EncodedChat& chat) const {
  chat.ids.clear();
  chat.trained.clear();
  const std::size_t last = conversation.turns.size() - 1;
  TextPlace place = TextPlace::kStart;
  for (const ChatPiece& piece : render(conversation)) {
    switch (piece.kind) {
      case ChatPiece::Kind::kText:
        encoder.encode(piece.text, chat.ids, SpecialTokens::kAsText, place);
        break;
      case ChatPiece::Kind::kMarker:
        chat.ids.push_back(marker(piece.text));
        break;
      case ChatPiece::Kind::kBeginning:
        if (beginning_) {
          chat.ids.push_back(*beginning_);
        }
        break;
      case ChatPiece::Kind::kEnd:
        chat.ids.push_back(end_);
        break;
    }
    if (!chat.ids.empty()) {
      place = piece.kind == ChatPiece::Kind::kText ? TextPlace::kInside : TextPlace::kAfterToken;
    }
    const bool trained = piece.is_answer && (trained_turns_ == TrainedTurns::kAll || piece.turn == last) &&
                         conversation.turns[piece.turn].is_trained;
    chat.trained.resize(chat.ids.size(), trained ? 1 : 0);
  }
}

}  // namespace lockstep
