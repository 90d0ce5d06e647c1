// One token a line, ids ascending: readable, and two vocabularies can be compared with diff.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "data/text/byte_alphabet.h"
#include "data/text/tokenizer_json.h"
#include "data/text/tokenizer_json_sentencepiece.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

bool is_added(const Token& token) { return token.kind == TokenKind::kAdded || token.kind == TokenKind::kSpecial; }

std::string json_string(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string characters_of(const TokenizerDefinition& definition, std::uint32_t id) {
  const Token& token = definition.tokens[id];
  if (definition.sentencepiece) {
    return piece_of_token(token);
  }
  return token.kind == TokenKind::kNormal ? to_characters(token.bytes) : token.bytes;
}

// `tokenizers` gives added tokens that the vocabulary lacks the ids after it, in order. Only where these are not their
// ids do they have to stand in the vocabulary too.
bool added_tokens_come_last(const TokenizerDefinition& definition) {
  const auto first_added = std::find_if(definition.tokens.begin(), definition.tokens.end(), is_added);
  return std::all_of(first_added, definition.tokens.end(), is_added);
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json pre_tokenizer_of(const TokenizerDefinition& definition) {
  if (definition.split_steps.empty()) {
    return byte_level(false);
  }
  const bool ends_with_gpt2 = definition.split_steps.back() == step_of(KnownPattern::kGpt2);
  Json parts = Json::array();
  for (std::size_t i = 0; i + (ends_with_gpt2 ? 1 : 0) < definition.split_steps.size(); ++i) {
    const SplitStep& step = definition.split_steps[i];
    const char* const behavior = step.behavior == SplitBehavior::kMergedWithPrevious ? "MergedWithPrevious"
                                 : step.behavior == SplitBehavior::kMergedWithNext   ? "MergedWithNext"
                                 : step.behavior == SplitBehavior::kContiguous       ? "Contiguous"
                                                                                     : "Isolated";
    parts.push_back({{"type", "Split"},
                     {"pattern", {{step.literal ? "String" : "Regex", step.pattern}}},
                     {"behavior", behavior},
                     {"invert", step.invert}});
  }
  parts.push_back(byte_level(ends_with_gpt2));
  return parts.size() == 1 ? parts.front() : Json{{"type", "Sequence"}, {"pretokenizers", parts}};
}

// Such a token is found in the normalised text, which SentencePiece takes as it stands and `tokenizers` with a space in
// front. There it comes closer when it is looked for before.
bool is_user_defined(const TokenizerDefinition& definition, const Token& token) {
  return definition.sentencepiece && !definition.sentencepiece->scores.empty() && token.kind == TokenKind::kAdded &&
         token.normalized;
}

Json user_defined_of(const TokenizerDefinition& definition) {
  Json ids = Json::array();
  for (std::size_t id = 0; id < definition.tokens.size(); ++id) {
    if (is_user_defined(definition, definition.tokens[id])) {
      ids.push_back(id);
    }
  }
  return ids;
}

Json added_tokens_of(const TokenizerDefinition& definition) {
  Json all = Json::array();
  for (std::size_t id = 0; id < definition.tokens.size(); ++id) {
    const Token& token = definition.tokens[id];
    if (is_added(token)) {
      all.push_back({{"id", id},
                     {"content", token.bytes},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", token.normalized && !is_user_defined(definition, token)},
                     {"special", token.kind == TokenKind::kSpecial}});
    }
  }
  return all;
}

Json post_processor_of(const TokenizerDefinition& definition) {
  if (!definition.beginning_of_text) {
    return definition.sentencepiece ? Json(nullptr) : byte_level(true);
  }
  const std::uint32_t id = *definition.beginning_of_text;
  const std::string text = characters_of(definition, id);
  const Json begin = {{"SpecialToken", {{"id", text}, {"type_id", 0}}}};
  const auto sequence = [](const char* which, int type) -> Json {
    return {{"Sequence", {{"id", which}, {"type_id", type}}}};
  };
  const Json begin_second = {{"SpecialToken", {{"id", text}, {"type_id", 1}}}};
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({begin, sequence("A", 0)})},
          {"pair", Json::array({begin, sequence("A", 0), begin_second, sequence("B", 1)})},
          {"special_tokens", {{text, {{"id", text}, {"ids", Json::array({id})}, {"tokens", Json::array({text})}}}}}};
}

void write_vocabulary(const TokenizerDefinition& definition, std::string& out) {
  const bool without_added = added_tokens_come_last(definition);
  const char* separator = "";
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    const Token& token = definition.tokens[id];
    if (token.kind == TokenKind::kHole || (without_added && is_added(token))) {
      continue;
    }
    out += fmt::format("{}\n      {}: {}", separator, json_string(characters_of(definition, id)), id);
    separator = ",";
  }
}

void write_merges(const TokenizerDefinition& definition, std::string& out) {
  const char* separator = "";
  for (const MergeRule& merge : definition.merges) {
    // As one string, which every version of `tokenizers` reads: neither the byte alphabet nor a piece has a space.
    const std::string both = characters_of(definition, merge.left) + ' ' + characters_of(definition, merge.right);
    out += fmt::format("{}\n      {}", separator, json_string(both));
    separator = ",";
  }
}

}  // namespace

std::string write_tokenizer_json(const TokenizerDefinition& definition) {
  const std::optional<SentencePieceForm>& form = definition.sentencepiece;
  Json head = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", added_tokens_of(definition)},
               {"normalizer", form             ? normalizer_of(*form)
                              : definition.nfc ? Json{{"type", "NFC"}}
                                               : Json(nullptr)},
               {"pre_tokenizer", form ? pre_tokenizer_of(*form) : pre_tokenizer_of(definition)},
               {"post_processor", post_processor_of(definition)},
               {"decoder", form ? decoder_of(*form) : byte_level(true)}};
  std::string out = head.dump(2);
  out.resize(out.size() - 2);  // the closing "\n}": the model, too large for a tree, is written after it
  const bool has_unknown = form && form->unknown;
  const Json options = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", has_unknown ? Json(characters_of(definition, *form->unknown)) : Json(nullptr)},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", form && form->fuses_unknown},
                        {"byte_fallback", form && form->byte_fallback},
                        {"ignore_merges", definition.ignore_merges}};
  out += ",\n  \"model\": {";
  for (const auto& [key, value] : options.items()) {
    out += fmt::format("\n    \"{}\": {},", key, value.dump());
  }
  if (form && !form->scores.empty()) {
    out += fmt::format("\n    \"scores\": {},\n    \"user_defined\": {},", Json(form->scores).dump(),
                       user_defined_of(definition).dump());
  }
  out += "\n    \"vocab\": {";
  write_vocabulary(definition, out);
  out += "\n    },\n    \"merges\": [";
  write_merges(definition, out);
  out += "\n    ]\n  }\n}\n";
  return out;
}

}  // namespace lockstep
