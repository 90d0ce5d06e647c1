#include "data/chat/own_template.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "data/text/json_fields.h"

namespace lockstep {
namespace {

using jinja::Text;
using jinja::TextView;
using Json = nlohmann::json;
using Marker = std::pair<std::size_t, std::size_t>;  // begin and end among the characters of a rendering

constexpr const char* kTemplateFile = "chat_template.jinja";
constexpr const char* kConfigFile = "tokenizer_config.json";
constexpr std::array<const char*, 6> kTokens = {"bos_token", "eos_token", "unk_token",
                                                "pad_token", "sep_token", "cls_token"};
constexpr std::size_t kNoTurn = ~std::size_t{0};

// Turns that stand side by side differ; the system is 1.
unsigned speaker_of_turn(std::size_t turn) { return 2 + static_cast<unsigned>(turn % (jinja::kMaxSpeaker - 1)); }

std::string_view name_of(Role role) {
  return role == Role::kUser ? "user" : role == Role::kAssistant ? "assistant" : "tool";
}

Json config_in(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kConfigFile;
  return std::filesystem::is_regular_file(path) ? parse_json(read_file(path), path.string()) : Json::object();
}

// A text, or the one of a list that is named "default".
std::string source_of(const Json& config, const std::string& name) {
  const JsonField field = JsonField(config, name).at("chat_template");
  if (field.is_null() || field.value().is_string()) {
    return field.is_null() ? std::string() : field.text();
  }
  for (const JsonField& entry : field.elements()) {
    if (entry.at("name").text() == "default") {
      return entry.at("template").text();
    }
  }
  field.wrong("a text, or a list with a template that is named \"default\"");
}

// The last character before `end` that somebody said; kNoTurn where nobody did.
std::size_t last_said(const Text& text, std::size_t end) {
  while (end > 0 && jinja::speaker_of(text[end - 1]) == 0) {
    --end;
  }
  return end == 0 ? kNoTurn : end - 1;
}

TextView behind(const Text& text, std::size_t place) { return TextView(text).substr(place == kNoTurn ? 0 : place + 1); }

std::size_t common_beginning(TextView a, TextView b) {
  const auto both = std::mismatch(a.begin(), a.end(), b.begin(), b.end(), &jinja::MarkedTraits::eq);
  return static_cast<std::size_t>(both.first - a.begin());
}

// Where in the rendering what a speaker said begins and ends.
struct Said {
  std::size_t first = kNoTurn;
  std::size_t last = kNoTurn;
};
Said said_by(const Text& text, unsigned speaker, std::size_t from) {
  Said said;
  for (std::size_t i = from; i < text.size(); ++i) {
    const unsigned of = jinja::speaker_of(text[i]);
    if (of == speaker) {
      said.first = said.first == kNoTurn ? i : said.first;
      said.last = i;
    } else if (of != 0 && said.first != kNoTurn) {
      break;
    }
  }
  return said;
}

std::vector<Marker> markers_in(const Text& text, const OwnTemplate::FindMarker& find_marker) {
  std::vector<Marker> markers;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin;
    while (end < text.size() && jinja::speaker_of(text[end]) == 0) {
      ++end;
    }
    const std::string written = jinja::to_utf8(TextView(text).substr(begin, end - begin));
    const auto characters = [&](std::size_t from, std::size_t to) {
      return jinja::to_text(std::string_view(written).substr(from, to - from)).size();
    };
    std::size_t place = begin;  // of the byte `from`, among the characters
    std::size_t from = 0;
    while (const auto found = find_marker(written, from)) {
      place += characters(from, found->first);
      const std::size_t size = characters(found->first, found->second);
      markers.emplace_back(place, place + size);
      place += size;
      from = found->second;
    }
    begin = std::max(end, begin + 1);
  }
  return markers;
}

}  // namespace

std::string OwnTemplate::source_in(const std::filesystem::path& folder) {
  if (std::filesystem::is_regular_file(folder / kTemplateFile)) {
    return read_file(folder / kTemplateFile);
  }
  return source_of(config_in(folder), (folder / kConfigFile).string());
}

std::optional<OwnTemplate> OwnTemplate::find(const std::filesystem::path& folder) {
  Json config = config_in(folder);
  std::string name = (folder / kConfigFile).string();
  if (std::filesystem::is_regular_file(folder / kTemplateFile)) {
    name = (folder / kTemplateFile).string();
    static_cast<void>(JsonField(config, name).at("chat_template"));  // an object, or an Error
    config["chat_template"] = read_file(folder / kTemplateFile);
  }
  return from_json(config.dump(-1, ' ', false, Json::error_handler_t::replace), name);
}

std::optional<OwnTemplate> OwnTemplate::from_json(std::string_view json, const std::string& name) {
  const Json config = parse_json(json, name);
  std::string source = source_of(config, name);
  if (source.empty()) {
    return std::nullopt;
  }
  OwnTemplate own(JinjaTemplate::parse(source, name), source);
  for (const char* key : kTokens) {
    // A text, or a token with its "content".
    const JsonField field = JsonField(config, name).at(key);
    if (!field.is_null()) {
      own.tokens_.emplace_back(key, field.value().is_object() ? field.at("content").text() : field.text());
    }
  }
  return own;
}

std::string OwnTemplate::to_json() const {
  nlohmann::ordered_json json = {{"chat_template", source_}};
  for (const auto& [name, text] : tokens_) {
    json[name] = text;
  }
  return json.dump(2) + "\n";
}

std::string OwnTemplate::token(std::string_view name) const {
  const auto found = std::ranges::find(tokens_, name, &std::pair<std::string, std::string>::first);
  return found == tokens_.end() ? std::string() : found->second;
}

OwnTemplate OwnTemplate::at(std::time_t now) const {
  OwnTemplate other = *this;
  other.now_ = now;
  return other;
}

Text OwnTemplate::rendered(const Conversation& conversation, std::size_t turns, bool asks) const {
  jinja::Values messages;
  const auto add = [&](std::string_view role, std::string_view text, unsigned speaker) {
    messages.push_back(
        JinjaValue::record({{"role", JinjaValue::text(role)}, {"content", JinjaValue::text(text, speaker)}}));
  };
  if (!conversation.system.empty()) {
    add("system", conversation.system, 1);
  }
  for (std::size_t i = 0; i < turns; ++i) {
    add(name_of(conversation.turns[i].role), conversation.turns[i].text, speaker_of_turn(i));
  }
  std::vector<std::pair<std::string_view, JinjaValue>> context = {{"messages", JinjaValue::list(std::move(messages))},
                                                                  {"tools", {}},
                                                                  {"documents", {}},
                                                                  {"add_generation_prompt", asks}};
  for (const auto& [name, text] : tokens_) {
    context.emplace_back(name, JinjaValue::text(text));
  }
  return template_.render_marked(JinjaValue::record(std::move(context)), {.now = now_});
}

namespace {

// Where the answer ends whose last said character stands before `from`; `written` is what the template writes behind an
// answer that stands last. What it writes may begin in the same way and go on otherwise when more turns follow.
std::size_t end_of_answer(const Text& text, std::size_t from, TextView written, const std::vector<Marker>& markers) {
  const std::size_t common = common_beginning(TextView(text).substr(from), written);
  const auto closing = std::ranges::find_if(markers, [&](const Marker& marker) { return marker.first >= from; });
  const bool is_closed =
      closing != markers.end() && !written.empty() && (closing->first == from || closing->first < from + common);
  return is_closed ? closing->second : common == written.size() ? from + common : from;
}

}  // namespace

// The turn whose answer each character belongs to, or kNoTurn.
std::vector<std::size_t> OwnTemplate::answers_in(const Text& text, const Conversation& conversation,
                                                 const std::vector<Marker>& markers) const {
  std::vector<std::size_t> answers(text.size(), kNoTurn);
  const auto& turns = conversation.turns;
  std::size_t from = 0;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const Said said = said_by(text, speaker_of_turn(i), from);
    if (said.first == kNoTurn) {
      continue;  // the template leaves the turn out
    }
    from = said.last + 1;
    if (turns[i].role != Role::kAssistant) {
      continue;
    }
    const Text prompt = rendered(conversation, i, true);
    const TextView asked = behind(prompt, last_said(prompt, prompt.size()));
    const std::size_t before = last_said(text, said.first);
    const std::size_t opening = before == kNoTurn ? 0 : before + 1;
    const bool is_asked_so = TextView(text).substr(opening, said.first - opening).starts_with(asked);
    const std::size_t begin = is_asked_so ? opening + asked.size() : said.first;

    const Text alone = i + 1 == turns.size() ? text : rendered(conversation, i + 1, false);
    const std::size_t end = end_of_answer(text, from, behind(alone, last_said(alone, alone.size())), markers);
    std::fill(answers.begin() + static_cast<std::ptrdiff_t>(begin), answers.begin() + static_cast<std::ptrdiff_t>(end),
              i);
  }
  return answers;
}

namespace {

// By the template's own marks. A stretch of them is of the turn that was said in it, or of the one before.
std::vector<std::size_t> generated_in(const Text& text, const Conversation& conversation) {
  std::vector<std::size_t> answers(text.size(), kNoTurn);
  std::size_t turn = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const unsigned speaker = jinja::speaker_of(text[i]);
    while (speaker >= 2 && turn + 1 < conversation.turns.size() && speaker_of_turn(turn) != speaker) {
      ++turn;
    }
    if ((text[i] & jinja::kGenerationMark) != 0) {
      answers[i] = turn;
    }
  }
  // What stands in a block before its first said character.
  for (std::size_t i = text.size(); i-- > 1;) {
    if (answers[i] != kNoTurn && answers[i - 1] != kNoTurn && jinja::speaker_of(text[i - 1]) == 0 &&
        conversation.turns[answers[i - 1]].role != Role::kAssistant) {
      answers[i - 1] = answers[i];
    }
  }
  return answers;
}

}  // namespace

std::vector<ChatPiece> OwnTemplate::render(const Conversation& conversation, const FindMarker& find_marker) const {
  const bool asks = conversation.turns.empty() || conversation.turns.back().role != Role::kAssistant;
  const Text text = rendered(conversation, conversation.turns.size(), asks);
  const std::vector<Marker> markers = markers_in(text, find_marker);
  const std::vector<std::size_t> answers =
      template_.marks_generation() ? generated_in(text, conversation) : answers_in(text, conversation, markers);
  require(asks || std::ranges::any_of(answers, [](std::size_t turn) { return turn != kNoTurn; }),
          "the template {} shows none of the answers", template_.name());

  std::vector<ChatPiece> pieces;
  auto marker = markers.begin();
  for (std::size_t begin = 0; begin < text.size();) {
    const bool is_marker = marker != markers.end() && marker->first == begin;
    const std::size_t limit = is_marker ? marker->second : marker != markers.end() ? marker->first : text.size();
    std::size_t end = begin + 1;
    while (end < limit && (is_marker || answers[end] == answers[begin])) {
      ++end;
    }
    const bool is_answer = answers[begin] != kNoTurn;
    pieces.push_back({is_marker ? ChatPiece::Kind::kMarker : ChatPiece::Kind::kText,
                      jinja::to_utf8(TextView(text).substr(begin, end - begin)), is_answer,
                      is_answer ? answers[begin] : 0});
    marker += is_marker ? 1 : 0;
    begin = end;
  }
  return pieces;
}

}  // namespace lockstep
