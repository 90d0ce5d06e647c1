#include "data/text/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "data/text/byte_alphabet.h"
#include "data/text/json_fields.h"
#include "data/text/tokenizer_json_sentencepiece.h"

namespace lockstep {
namespace {

constexpr std::string_view kKnownSteps = "known are Sequence, Split, Digits and ByteLevel";

void read_normalizer(const JsonField& normalizer, TokenizerDefinition& definition) {
  if (normalizer.is_null()) {
    return;
  }
  const JsonField type = normalizer.at("type");
  if (type.text() == "NFC") {
    definition.nfc = true;
  } else if (type.text() == "Sequence") {
    for (const JsonField& part : normalizer.at("normalizers").elements()) {
      // One level: no file nests them, and a hostile one could nest them without end.
      if (part.at("type").text() != "NFC") {
        part.at("type").unsupported("known in a sequence is NFC");
      }
      definition.nfc = true;
    }
  } else {
    type.unsupported("known are NFC and Sequence");
  }
}

SplitBehavior read_behavior(const JsonField& behavior, bool invert) {
  const std::string& name = behavior.text();
  if (name == "Isolated") {
    return SplitBehavior::kIsolated;
  }
  if (name == "MergedWithPrevious") {
    return SplitBehavior::kMergedWithPrevious;
  }
  if (name == "MergedWithNext") {
    return SplitBehavior::kMergedWithNext;
  }
  if (name == "Contiguous") {
    return SplitBehavior::kContiguous;
  }
  if (name == "Removed" && invert) {
    // Removes what lies between the matches. The patterns written so match everything; where one does not, the text is
    // kept.
    return SplitBehavior::kIsolated;
  }
  behavior.unsupported("known are Isolated, MergedWithPrevious, MergedWithNext, Contiguous, and Removed if inverted");
}

SplitStep read_split(const JsonField& split) {
  SplitStep step;
  const JsonField pattern = split.at("pattern");
  if (pattern.value().is_object() && pattern.value().contains("String")) {
    step.literal = true;
    step.pattern = pattern.at("String").text();
  } else {
    step.pattern = pattern.at("Regex").text();
  }
  if (step.pattern.empty()) {
    pattern.wrong("a pattern that is not empty");
  }
  step.invert = split.at("invert").flag(false);
  step.behavior = read_behavior(split.at("behavior"), step.invert);
  if (step.behavior == SplitBehavior::kIsolated) {
    step.invert = false;  // both kinds of places become pieces: the same either way
  }
  return step;
}

// Adds the steps of one component; returns whether it was ByteLevel, which has to come last: what follows would see the
// byte alphabet instead of the text.
bool read_split_component(const JsonField& component, TokenizerDefinition& definition) {
  const JsonField type = component.at("type");
  if (type.text() == "Split") {
    definition.split_steps.push_back(read_split(component));
    return false;
  }
  if (type.text() == "Digits") {
    const bool each = component.at("individual_digits").flag(false);
    definition.split_steps.push_back(SplitStep{.pattern = each ? R"(\p{N})" : R"(\p{N}+)"});
    return false;
  }
  if (type.text() == "ByteLevel") {
    if (component.at("add_prefix_space").flag(true)) {
      component.at("add_prefix_space").unsupported("only false is: decoding has to give the text back");
    }
    if (component.at("use_regex").flag(true)) {
      definition.split_steps.push_back(step_of(KnownPattern::kGpt2));
    }
    return true;
  }
  type.unsupported(kKnownSteps);
}

void read_pre_tokenizer(const JsonField& pre_tokenizer, TokenizerDefinition& definition) {
  if (pre_tokenizer.is_null()) {
    pre_tokenizer.unsupported("only byte-level BPE is: one with the component ByteLevel");
  }
  std::vector<JsonField> components = {pre_tokenizer};
  if (pre_tokenizer.at("type").text() == "Sequence") {
    components = pre_tokenizer.at("pretokenizers").elements();
  }
  bool has_byte_level = false;
  for (const JsonField& component : components) {
    if (has_byte_level) {
      component.unsupported("nothing can follow ByteLevel");
    }
    has_byte_level = read_split_component(component, definition);
  }
  if (!has_byte_level) {
    pre_tokenizer.unsupported("only byte-level BPE is: ByteLevel has to be the last component");
  }
}

void check_decoder(const JsonField& decoder) {
  if (decoder.is_null()) {
    return;
  }
  const bool sequence = decoder.at("type").text() == "Sequence";
  for (const JsonField& part : sequence ? decoder.at("decoders").elements() : std::vector<JsonField>{decoder}) {
    if (part.at("type").text() != "ByteLevel") {
      part.at("type").unsupported("known is ByteLevel");
    }
  }
}

// Options of BPE that would change ids.
void check_model_options(const JsonField& model) {
  if (!model.at("type").is_null() && model.at("type").text() != "BPE") {
    model.at("type").unsupported("known is BPE");
  }
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.at(affix).is_null() && !model.at(affix).text().empty()) {
      model.at(affix).unsupported("only none is");
    }
  }
  const JsonField dropout = model.at("dropout");
  if (!dropout.is_null() && !(dropout.value().is_number() && dropout.value().get<double>() == 0.0)) {
    dropout.unsupported("only none is: encoding has to be repeatable");
  }
}

// The token `id`, which must not be taken yet; the vocabulary grows to hold it.
Token& new_token(TokenizerDefinition& definition, std::uint32_t id, std::string_view text) {
  if (id >= definition.tokens.size()) {
    definition.tokens.resize(id + 1);
  }
  Token& token = definition.tokens[id];
  if (token.kind != TokenKind::kHole) {
    fail(ErrorCode::kCorrupt, "{}: {} and {} both have the id {}", definition.name, in_quotes(token.bytes),
         in_quotes(text), id);
  }
  return token;
}

TokenIds read_vocabulary(const JsonField& vocabulary, TokenizerDefinition& definition) {
  TokenIds ids;
  if (!vocabulary.value().is_object()) {
    vocabulary.wrong("an object of tokens and their ids");
  }
  for (const auto& [text, value] : vocabulary.value().items()) {
    const JsonField field(value, definition.name, fmt::format("model.vocab[{}]", in_quotes(text)));
    const std::uint32_t id = field.index_below(kMaxVocabSize);
    new_token(definition, id, text) =
        definition.sentencepiece ? token_of_piece(text, *definition.sentencepiece) : token_of_characters(text);
    ids.emplace(text, id);
  }
  return ids;
}

void read_merges(const JsonField& merges, const TokenIds& ids, TokenizerDefinition& definition) {
  if (!merges.value().is_array()) {
    merges.wrong("an array");
  }
  std::size_t number = 0;
  for (const auto& value : merges.value()) {
    if (value.is_string()) {
      const auto& text = value.get_ref<const std::string&>();
      const std::size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        JsonField(value, definition.name, fmt::format("model.merges[{}]", number))
            .wrong("two tokens with a space between");
      }
      add_merge(definition, ids, std::string_view(text).substr(0, space), std::string_view(text).substr(space + 1),
                number);
    } else if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
      add_merge(definition, ids, value[0].get_ref<const std::string&>(), value[1].get_ref<const std::string&>(),
                number);
    } else {
      JsonField(value, definition.name, fmt::format("model.merges[{}]", number)).wrong("two tokens");
    }
    ++number;
  }
}

void read_unknown_token(const JsonField& unknown, const TokenIds& ids, TokenizerDefinition& definition) {
  if (unknown.is_null()) {
    return;
  }
  const auto found = ids.find(unknown.text());
  if (found == ids.end()) {
    unknown.wrong("a token of model.vocab");
  }
  definition.sentencepiece->unknown = found->second;
}

// The scores of a SentencePiece model, which make the merges, and its user-defined tokens: this program's own addition
// to the format.
void read_scores(const JsonField& model, TokenizerDefinition& definition) {
  const JsonField scores = model.at("scores");
  const std::vector<JsonField> elements = scores.elements();
  if (elements.size() != definition.tokens.size()) {
    scores.wrong(fmt::format("one number for each of the {} ids", definition.tokens.size()));
  }
  for (const JsonField& element : elements) {
    if (!element.value().is_number() || !std::isfinite(element.value().get<float>())) {
      element.wrong("a number");
    }
    definition.sentencepiece->scores.push_back(element.value().get<float>());
  }
  if (const JsonField tokens = model.at("user_defined"); !tokens.is_null()) {
    for (const JsonField& id : tokens.elements()) {
      Token& token = definition.tokens[id.index_below(static_cast<std::uint32_t>(definition.tokens.size()))];
      if (token.kind != TokenKind::kAdded) {
        id.wrong("the id of an added token that is not special");
      }
      token.normalized = true;
    }
  }
  add_scored_merges(definition);
}

void read_added_token(const JsonField& entry, std::uint32_t id, const TokenIds& vocabulary,
                      TokenizerDefinition& definition) {
  const std::string text = entry.at("content").text();
  for (const std::string_view option : {"single_word", "lstrip", "rstrip"}) {
    if (entry.at(option).flag(false)) {
      entry.at(option).unsupported(fmt::format("only false is (token {})", in_quotes(text)));
    }
  }
  const auto known = vocabulary.find(text);
  if (known != vocabulary.end() && known->second != id) {
    fail(ErrorCode::kCorrupt, "{}: the added token {} has the id {}, but {} in model.vocab", definition.name,
         in_quotes(text), id, known->second);
  }
  Token& token = known != vocabulary.end() ? definition.tokens[id] : new_token(definition, id, text);
  token.bytes = text;
  token.kind = entry.at("special").flag(false) ? TokenKind::kSpecial : TokenKind::kAdded;
  token.normalized = entry.at("normalized").flag(token.kind == TokenKind::kAdded);
}

void read_added_tokens(const JsonField& added, const TokenIds& vocabulary, TokenizerDefinition& definition) {
  if (added.is_null()) {
    return;
  }
  for (const JsonField& entry : added.elements()) {
    read_added_token(entry, entry.at("id").index_below(kMaxVocabSize), vocabulary, definition);
  }
}

// Finds what a post-processor puts before a single text; the post-processor is not applied otherwise.
void read_post_processor(const JsonField& processor, TokenizerDefinition& definition) {
  if (processor.is_null()) {
    return;
  }
  const bool sequence = processor.at("type").text() == "Sequence";
  for (const JsonField& part : sequence ? processor.at("processors").elements() : std::vector<JsonField>{processor}) {
    const std::string type = part.at("type").text();
    constexpr std::array<std::string_view, 4> kKnown = {"ByteLevel", "TemplateProcessing", "RobertaProcessing",
                                                        "BertProcessing"};
    if (std::find(kKnown.begin(), kKnown.end(), type) == kKnown.end()) {
      part.at("type").unsupported("known are ByteLevel, TemplateProcessing, RobertaProcessing and BertProcessing");
    }
    if (type != "TemplateProcessing" || part.at("single").elements().empty()) {
      continue;
    }
    const JsonField first = part.at("single").elements().front().at("SpecialToken");
    if (first.is_null()) {
      continue;
    }
    for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
      const Token& token = definition.tokens[id];
      if ((token.kind == TokenKind::kSpecial || token.kind == TokenKind::kAdded) &&
          token.bytes == first.at("id").text()) {
        definition.beginning_of_text = id;
      }
    }
  }
}

}  // namespace

TokenizerDefinition read_tokenizer_json(std::string_view text, std::string_view name) {
  if (text.size() > kMaxTokenizerJsonBytes) {
    fail(ErrorCode::kUnsupported, "{}: {} bytes, expected at most {}", name, text.size(), kMaxTokenizerJsonBytes);
  }
  const nlohmann::json document = parse_json(text, name);
  const JsonField root(document, name);
  const JsonField model = root.at("model");
  if (model.is_null()) {
    model.wrong("an object: is this a tokenizer.json?");
  }
  TokenizerDefinition definition;
  definition.name = name;
  check_model_options(model);
  definition.ignore_merges = model.at("ignore_merges").flag(false);
  if (is_sentencepiece(root)) {
    definition.sentencepiece = read_sentencepiece_form(root);
  } else {
    if (model.at("byte_fallback").flag(false)) {
      model.at("byte_fallback").unsupported("only byte-level BPE, which needs no fallback, and SentencePiece's are");
    }
    read_normalizer(root.at("normalizer"), definition);
    read_pre_tokenizer(root.at("pre_tokenizer"), definition);
    check_decoder(root.at("decoder"));
  }
  const TokenIds ids = read_vocabulary(model.at("vocab"), definition);
  if (definition.sentencepiece) {
    read_unknown_token(model.at("unk_token"), ids, definition);
  }
  const bool is_scored = definition.sentencepiece && !model.at("scores").is_null();
  if (!is_scored) {
    read_merges(model.at("merges"), ids, definition);
  }
  read_added_tokens(root.at("added_tokens"), ids, definition);
  if (is_scored) {
    read_scores(model, definition);
  }
  read_post_processor(root.at("post_processor"), definition);
  definition.end_of_text = usual_end_of_text(definition);
  definition.json = text;
  return definition;
}

void add_tokenizer_config(std::string_view text, std::string_view name, TokenizerDefinition& definition) {
  const nlohmann::json document = parse_json(text, name);
  const JsonField root(document, name);
  std::vector<std::string> pieces;
  for (const Token& token : definition.tokens) {
    pieces.push_back(piece_of_token(token));
  }
  TokenIds ids;
  for (std::uint32_t id = 0; id < pieces.size(); ++id) {
    ids.emplace(pieces[id], id);
  }
  if (const JsonField added = root.at("added_tokens_decoder"); !added.is_null()) {
    if (!added.value().is_object()) {
      added.wrong("an object of ids and their tokens");
    }
    for (const auto& [key, value] : added.value().items()) {
      const JsonField entry(value, name, fmt::format("added_tokens_decoder[{}]", in_quotes(key)));
      std::uint32_t id = kMaxVocabSize;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size() || id >= kMaxVocabSize) {
        entry.wrong(fmt::format("an id from 0 to {} as its key", kMaxVocabSize - 1));
      }
      const bool is_user_defined =
          id < pieces.size() && definition.tokens[id].kind == TokenKind::kAdded && definition.tokens[id].normalized;
      read_added_token(entry, id, ids, definition);
      definition.tokens[id].normalized = is_user_defined && definition.tokens[id].kind == TokenKind::kAdded;
    }
  }
  if (!root.at("add_bos_token").flag(true)) {
    definition.beginning_of_text.reset();
  }
  definition.sentencepiece->scores.resize(definition.tokens.size());
  definition.merges.clear();  // what is an added token now is not made by merges
  add_scored_merges(definition);
}

}  // namespace lockstep
