// The chat template that a model brings along, in Jinja.
#pragma once

#include <cstddef>
#include <ctime>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/chat/conversation.h"
#include "data/chat/jinja/jinja_template.h"

namespace lockstep {

// The name that stands for it among the names of our own.
inline constexpr std::string_view kOwnTemplateName = "own";

// Renders conversations as transformers does, and tells which parts of the text are what was said, which are answers,
// and which are tokens' texts. Cheap to copy.
//
// An answer begins where a model that is asked for it would go on: behind what the template writes between the turn
// before and the answer when it asks (add_generation_prompt). Where the finished conversation shows something else
// there, it begins with what the assistant said. It ends with the first marker behind what he said, or, where there is
// none, with all that the template writes behind an answer that stands last. Where the template has {% generation %}
// blocks, they are the answers.
class OwnTemplate {
 public:
  // From chat_template.jinja, or else "chat_template" in tokenizer_config.json: a text, or the one that is named
  // "default" in a list of "name" and "template". Nothing where the folder has none. Throws Error(kIo), and
  // Error(kCorrupt) naming file and place.
  [[nodiscard]] static std::optional<OwnTemplate> find(const std::filesystem::path& folder);
  // What to_json() gave, or a tokenizer_config.json; `name` stands for it in messages.
  [[nodiscard]] static std::optional<OwnTemplate> from_json(std::string_view json, const std::string& name);

  // The template alone, as it stands there; empty where there is none.
  [[nodiscard]] static std::string source_in(const std::filesystem::path& folder);

  // What of tokenizer_config.json matters to the template, for folders of its datasets.
  [[nodiscard]] std::string to_json() const;
  [[nodiscard]] const std::string& source() const { return source_; }
  // The texts of the tokens before and after a text, empty where none is named.
  [[nodiscard]] std::string beginning() const { return token("bos_token"); }
  [[nodiscard]] std::string end() const { return token("eos_token"); }

  // The time that templates may ask for. Without this it is 26 July 2024, for datasets that are the same on any day.
  [[nodiscard]] OwnTemplate at(std::time_t now) const;

  // The first token's text in `text` from a place on: where it begins and ends.
  using FindMarker =
      std::function<std::optional<std::pair<std::size_t, std::size_t>>(std::string_view text, std::size_t from)>;
  // Markers are looked for in what the template writes alone: kText and kMarker pieces. Of a conversation that the
  // assistant does not end: up to where his answer begins. Throws Error(kUsage) where the template refuses the
  // conversation or shows none of the answers.
  [[nodiscard]] std::vector<ChatPiece> render(const Conversation& conversation, const FindMarker& find_marker) const;

 private:
  OwnTemplate(JinjaTemplate parsed, std::string source) : template_(std::move(parsed)), source_(std::move(source)) {}
  [[nodiscard]] std::string token(std::string_view name) const;
  // Of the first `turns` turns.
  [[nodiscard]] jinja::Text rendered(const Conversation& conversation, std::size_t turns, bool asks) const;
  [[nodiscard]] std::vector<std::size_t> answers_in(
      const jinja::Text& text, const Conversation& conversation,
      const std::vector<std::pair<std::size_t, std::size_t>>& markers) const;

  JinjaTemplate template_;
  std::string source_;
  std::vector<std::pair<std::string, std::string>> tokens_;  // "bos_token" and its like, with their texts
  std::time_t now_ = 1'721'995'200;
};

}  // namespace lockstep
