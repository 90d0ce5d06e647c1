#include "data/text/tokenizer_json_sentencepiece.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/text/json_fields.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

// A component, or those of a sequence of them.
std::vector<JsonField> parts_of(const JsonField& component, std::string_view list) {
  if (component.is_null()) {
    return {};
  }
  return component.at("type").text() == "Sequence" ? component.at(list).elements() : std::vector<JsonField>{component};
}

bool is_of_type(const JsonField& component, std::string_view type) { return component.at("type").text() == type; }

void expect(const JsonField& field, const std::string& value) {
  if (!field.value().is_string() || field.text() != value) {
    field.unsupported("expected \"" + value + "\"");
  }
}

struct Normalizer {
  bool prepends = false;
  bool replaces = false;
};

Normalizer read_normalizer(const JsonField& normalizer) {
  Normalizer result;
  for (const JsonField& part : parts_of(normalizer, "normalizers")) {
    if (is_of_type(part, "Prepend")) {
      expect(part.at("prepend"), std::string(kSpaceMark));
      result.prepends = true;
    } else if (is_of_type(part, "Replace")) {
      expect(part.at("pattern").at("String"), " ");
      expect(part.at("content"), std::string(kSpaceMark));
      result.replaces = true;
    } else {
      part.at("type").unsupported("known for SentencePiece are Prepend and Replace");
    }
  }
  if (result.prepends && !result.replaces) {
    normalizer.unsupported("with Prepend, Replace is expected");
  }
  return result;
}

PrefixSpace read_prefix_scheme(const JsonField& metaspace) {
  const JsonField scheme = metaspace.at("prepend_scheme");
  if (scheme.is_null()) {
    return metaspace.at("add_prefix_space").flag(true) ? PrefixSpace::kEveryPart : PrefixSpace::kNone;
  }
  if (scheme.text() == "always") {
    return PrefixSpace::kEveryPart;
  }
  if (scheme.text() == "first") {
    return PrefixSpace::kTextStart;
  }
  if (scheme.text() != "never") {
    scheme.unsupported("known are always, first and never");
  }
  return PrefixSpace::kNone;
}

void read_pre_tokenizer(const JsonField& pre_tokenizer, SentencePieceForm& form) {
  if (pre_tokenizer.is_null()) {
    return;
  }
  const JsonField type = pre_tokenizer.at("type");
  if (type.text() == "Split" && form.normalizes_first) {
    expect(pre_tokenizer.at("pattern").at("String"), " ");  // of which there are none any more
  } else if (type.text() == "Metaspace" && !form.normalizes_first) {
    expect(pre_tokenizer.at("replacement"), std::string(kSpaceMark));
    form.prefix = read_prefix_scheme(pre_tokenizer);
    form.splits_words = pre_tokenizer.at("split").flag(true);
  } else {
    type.unsupported("known for SentencePiece are Metaspace, without a normalizer, and none");
  }
}

bool read_decoder(const JsonField& decoder, bool has_prefix) {
  if (decoder.is_null()) {
    return has_prefix;
  }
  bool drops_prefix = false;
  for (const JsonField& part : parts_of(decoder, "decoders")) {
    if (is_of_type(part, "Replace")) {
      expect(part.at("pattern").at("String"), std::string(kSpaceMark));
      expect(part.at("content"), " ");
    } else if (is_of_type(part, "Strip")) {
      expect(part.at("content"), " ");
      drops_prefix = part.at("start").index_below(2) == 1;
      static_cast<void>(part.at("stop").index_below(1));
    } else if (is_of_type(part, "Metaspace")) {
      drops_prefix = read_prefix_scheme(part) != PrefixSpace::kNone;
    } else if (!is_of_type(part, "ByteFallback") && !is_of_type(part, "Fuse")) {
      part.at("type").unsupported("known for SentencePiece are Replace, ByteFallback, Fuse, Strip and Metaspace");
    }
  }
  return drops_prefix;
}

}  // namespace

bool is_sentencepiece(const JsonField& root) {
  const JsonField pre_tokenizer = root.at("pre_tokenizer");
  if (!pre_tokenizer.is_null() && is_of_type(pre_tokenizer, "Metaspace")) {
    return true;
  }
  const std::vector<JsonField> normalizers = parts_of(root.at("normalizer"), "normalizers");
  return std::any_of(normalizers.begin(), normalizers.end(),
                     [](const JsonField& part) { return is_of_type(part, "Prepend") || is_of_type(part, "Replace"); });
}

SentencePieceForm read_sentencepiece_form(const JsonField& root) {
  SentencePieceForm form;
  const Normalizer normalizer = read_normalizer(root.at("normalizer"));
  form.normalizes_first = normalizer.replaces;
  form.prefix = normalizer.prepends ? PrefixSpace::kEveryPart : PrefixSpace::kNone;
  form.prefix_before_space = normalizer.prepends;
  read_pre_tokenizer(root.at("pre_tokenizer"), form);
  form.drops_prefix = read_decoder(root.at("decoder"), form.prefix != PrefixSpace::kNone);
  const JsonField model = root.at("model");
  form.byte_fallback = model.at("byte_fallback").flag(false);
  form.fuses_unknown = model.at("fuse_unk").flag(false);
  if (model.at("ignore_merges").flag(false)) {
    model.at("ignore_merges").unsupported("only false is, for SentencePiece");
  }
  return form;
}

Json normalizer_of(const SentencePieceForm& form) {
  if (!form.normalizes_first) {
    return nullptr;
  }
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
  if (form.prefix == PrefixSpace::kNone) {
    return replace;
  }
  return {{"type", "Sequence"},
          {"normalizers", Json::array({Json{{"type", "Prepend"}, {"prepend", kSpaceMark}}, replace})}};
}

Json pre_tokenizer_of(const SentencePieceForm& form) {
  if (form.normalizes_first) {
    return nullptr;
  }
  const char* const scheme = form.prefix == PrefixSpace::kEveryPart   ? "always"
                             : form.prefix == PrefixSpace::kTextStart ? "first"
                                                                      : "never";
  return {{"type", "Metaspace"}, {"replacement", kSpaceMark}, {"prepend_scheme", scheme}, {"split", form.splits_words}};
}

Json decoder_of(const SentencePieceForm& form) {
  Json parts = Json::array();
  parts.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}});
  parts.push_back({{"type", "ByteFallback"}});
  parts.push_back({{"type", "Fuse"}});
  if (form.drops_prefix) {
    parts.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return {{"type", "Sequence"}, {"decoders", parts}};
}

}  // namespace lockstep
