#include "data/text/gguf_vocab.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "data/text/gguf_reader.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::uint64_t kMaxKeys = std::uint64_t{1} << 16;
constexpr std::size_t kMaxNameBytes = std::size_t{1} << 16;
constexpr std::size_t kMaxTokenBytes = std::size_t{1} << 16;

// The token types of llama.cpp.
constexpr std::uint32_t kControl = 3;
constexpr std::uint32_t kUserDefined = 4;

struct Metadata {
  std::string model;
  std::string pre;
  std::vector<std::string> tokens;
  std::vector<std::uint32_t> token_types;
  std::vector<std::string> merges;
  std::vector<float> scores;
  std::optional<bool> adds_space;
  std::optional<std::uint32_t> unknown;
  std::optional<std::uint32_t> end_of_text;
  std::optional<std::uint32_t> beginning_of_text;
  std::optional<bool> adds_beginning;
};

void expect_type(const GgufReader& reader, std::string_view key, bool as_expected, std::string_view expected) {
  if (!as_expected) {
    fail(ErrorCode::kCorrupt, "{}: {} before byte {} has another type than expected: {}", reader.name(), key,
         reader.position(), expected);
  }
}

// The head of an array of at most `limit` elements.
std::size_t array_of(GgufReader& reader, GgufType type, std::string_view key, GgufType element, std::uint64_t limit) {
  expect_type(reader, key, type == GgufType::kArray, "an array");
  const GgufReader::Array head = reader.array(key);
  expect_type(reader, key, head.type == element,
              element == GgufType::kString ? "an array of strings"
              : element == GgufType::kF32  ? "an array of f32"
                                           : "an array of i32");
  if (head.count > limit) {
    fail(ErrorCode::kCorrupt, "{}: {} has {} elements, expected at most {}", reader.name(), key, head.count, limit);
  }
  return static_cast<std::size_t>(head.count);
}

std::vector<std::string> strings(GgufReader& reader, GgufType type, std::string_view key, std::uint64_t limit) {
  std::vector<std::string> all(array_of(reader, type, key, GgufType::kString, limit));
  for (std::string& text : all) {
    text = reader.string(key, kMaxTokenBytes);
  }
  return all;
}

void read_value(GgufReader& reader, const std::string& key, Metadata& metadata) {
  const GgufType type = reader.type(key);
  const auto text = [&] {
    expect_type(reader, key, type == GgufType::kString, "a string");
    return reader.string(key, kMaxNameBytes);
  };
  const auto id = [&] {
    expect_type(reader, key, type == GgufType::kU32 || type == GgufType::kI32, "u32");
    return reader.u32(key);
  };
  const auto flag = [&] {
    expect_type(reader, key, type == GgufType::kBool, "bool");
    return reader.boolean(key);
  };
  if (key == "tokenizer.ggml.model") {
    metadata.model = text();
  } else if (key == "tokenizer.ggml.pre") {
    metadata.pre = text();
  } else if (key == "tokenizer.ggml.tokens") {
    metadata.tokens = strings(reader, type, key, kMaxVocabSize);
  } else if (key == "tokenizer.ggml.merges") {
    metadata.merges = strings(reader, type, key, std::uint64_t{4} * kMaxVocabSize);
  } else if (key == "tokenizer.ggml.token_type") {
    metadata.token_types.resize(array_of(reader, type, key, GgufType::kI32, kMaxVocabSize));
    std::generate(metadata.token_types.begin(), metadata.token_types.end(), [&] { return reader.u32(key); });
  } else if (key == "tokenizer.ggml.scores") {
    metadata.scores.resize(array_of(reader, type, key, GgufType::kF32, kMaxVocabSize));
    std::generate(metadata.scores.begin(), metadata.scores.end(),
                  [&] { return std::bit_cast<float>(reader.u32(key)); });
  } else if (key == "tokenizer.ggml.add_space_prefix") {
    metadata.adds_space = flag();
  } else if (key == "tokenizer.ggml.unknown_token_id") {
    metadata.unknown = id();
  } else if (key == "tokenizer.ggml.eos_token_id") {
    metadata.end_of_text = id();
  } else if (key == "tokenizer.ggml.bos_token_id") {
    metadata.beginning_of_text = id();
  } else if (key == "tokenizer.ggml.add_bos_token") {
    metadata.adds_beginning = flag();
  } else {
    reader.skip(type, key);
  }
}

Metadata read_metadata(GgufReader& reader) {
  if (reader.u32("the magic") != 0x46554747U) {
    fail(ErrorCode::kCorrupt, "{}: not a GGUF file: it does not begin with GGUF", reader.name());
  }
  const std::uint32_t version = reader.u32("the version");
  if (version != 2 && version != 3) {
    fail(ErrorCode::kUnsupported, "{}: GGUF version {}, expected 2 or 3 (little-endian)", reader.name(), version);
  }
  static_cast<void>(reader.u64("the number of tensors"));
  const std::uint64_t keys = reader.u64("the number of keys");
  if (keys > kMaxKeys) {
    fail(ErrorCode::kCorrupt, "{}: {} keys, expected at most {}", reader.name(), keys, kMaxKeys);
  }
  Metadata metadata;
  for (std::uint64_t i = 0; i < keys; ++i) {
    const std::string key = reader.string(fmt::format("key {}", i), kMaxNameBytes);
    read_value(reader, key, metadata);
  }
  return metadata;
}

// How a tokenizer.ggml.pre splits text. The names are llama.cpp's.
void apply_pre(const std::string& pre, TokenizerDefinition& definition) {
  const auto is_one_of = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), pre) != names.end();
  };
  if (is_one_of({"gpt-2", "phi-2", "mpt", "olmo", "jais"})) {
    definition.split_steps = {step_of(KnownPattern::kGpt2)};
  } else if (is_one_of({"llama-bpe", "llama3", "llama-v3"})) {
    definition.split_steps = {step_of(KnownPattern::kLlama3)};
    definition.ignore_merges = true;
  } else if (is_one_of({"qwen2", "deepseek-r1-qwen", "stablelm2"})) {
    definition.split_steps = {step_of(KnownPattern::kQwen2)};
  } else if (is_one_of({"smollm", "starcoder", "refact", "command-r", "codeshell"})) {
    definition.split_steps = {SplitStep{.pattern = R"(\p{N})"}, step_of(KnownPattern::kGpt2)};
  } else {
    fail(ErrorCode::kUnsupported,
         "{}: tokenizer.ggml.pre is {}, which is not supported; known are gpt-2, llama-bpe, qwen2, smollm and their "
         "like",
         definition.name, pre.empty() ? "missing" : in_quotes(pre));
  }
}

// llama.cpp puts a space before each part of a text between special tokens and merges by score. Throws unless the file
// has a score and a type for each token.
void add_form(const Metadata& metadata, TokenizerDefinition& definition) {
  if (metadata.scores.size() != metadata.tokens.size() || metadata.token_types.empty()) {
    fail(ErrorCode::kCorrupt,
         "{}: {} entries in tokenizer.ggml.scores and {} in tokenizer.ggml.token_type for {} tokens", definition.name,
         metadata.scores.size(), metadata.token_types.size(), metadata.tokens.size());
  }
  const auto has_type = [](PieceType wanted) {
    return [wanted](std::uint32_t type) { return type == static_cast<std::uint32_t>(wanted); };
  };
  const std::vector<std::uint32_t>& types = metadata.token_types;
  SentencePieceForm& form = definition.sentencepiece.emplace();
  form.prefix = metadata.adds_space.value_or(true) ? PrefixSpace::kEveryPart : PrefixSpace::kNone;
  form.prefix_before_space = form.prefix != PrefixSpace::kNone;
  form.normalizes_first = true;
  form.drops_prefix = form.prefix != PrefixSpace::kNone;
  form.byte_fallback = std::any_of(types.begin(), types.end(), has_type(PieceType::kByte));
  form.unknown = metadata.unknown;
  if (const auto found = std::find_if(types.begin(), types.end(), has_type(PieceType::kUnknown));
      !form.unknown && found != types.end()) {
    form.unknown = static_cast<std::uint32_t>(found - types.begin());
  }
  form.scores = metadata.scores;
  if (!std::all_of(form.scores.begin(), form.scores.end(), [](float score) { return std::isfinite(score); })) {
    fail(ErrorCode::kCorrupt, "{}: tokenizer.ggml.scores has a value that is not a number", definition.name);
  }
}

Token token_of(const Metadata& metadata, std::uint32_t id, const TokenizerDefinition& definition) {
  const std::string& text = metadata.tokens[id];
  const std::uint32_t type = metadata.token_types.empty() ? 0 : metadata.token_types[id];
  if (definition.sentencepiece) {
    if (type < 1 || type > 6 || text.empty()) {
      fail(ErrorCode::kCorrupt, "{}: token {} is {} with the type {}, expected some text and a type from 1 to 6",
           definition.name, id, in_quotes(text), type);
    }
    return token_of_model_piece(text, static_cast<PieceType>(type), true, definition.name);
  }
  if (type == kControl || type == kUserDefined) {
    return {text, type == kControl ? TokenKind::kSpecial : TokenKind::kAdded};
  }
  return token_of_characters(text);
}

TokenIds add_tokens(const Metadata& metadata, TokenizerDefinition& definition) {
  TokenIds ids;
  ids.reserve(metadata.tokens.size());
  for (std::uint32_t id = 0; id < metadata.tokens.size(); ++id) {
    const std::string& text = metadata.tokens[id];
    // Strings of a GGUF file are UTF-8, and a tokenizer.json could not hold this one.
    if (valid_utf8_end(text, 0) != text.size()) {
      fail(ErrorCode::kCorrupt, "{}: tokenizer.ggml.tokens: token {} is not UTF-8: {}", definition.name, id,
           in_quotes(text));
    }
    const auto [other, is_new] = ids.emplace(text, id);
    if (!is_new) {
      fail(ErrorCode::kCorrupt, "{}: tokenizer.ggml.tokens: the tokens {} and {} are both {}", definition.name,
           other->second, id, in_quotes(text));
    }
    definition.tokens.push_back(token_of(metadata, id, definition));
  }
  return ids;
}

void add_listed_merges(const Metadata& metadata, const TokenIds& ids, TokenizerDefinition& definition) {
  for (std::size_t i = 0; i < metadata.merges.size(); ++i) {
    const std::string_view merge = metadata.merges[i];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) {
      fail(ErrorCode::kCorrupt, "{}: tokenizer.ggml.merges: entry {} is {}, expected two tokens with a space between",
           definition.name, i, in_quotes(merge));
    }
    add_merge(definition, ids, merge.substr(0, space), merge.substr(space + 1), i);
  }
}

TokenizerDefinition define(const Metadata& metadata, std::string_view name) {
  TokenizerDefinition definition;
  definition.name = name;
  const bool is_sentencepiece = metadata.model == "llama";
  if (metadata.model != "gpt2" && !is_sentencepiece) {
    fail(ErrorCode::kUnsupported,
         "{}: tokenizer.ggml.model is {}, which is not supported; known are gpt2 (byte-level BPE) and llama "
         "(SentencePiece BPE)",
         name, metadata.model.empty() ? "missing" : in_quotes(metadata.model));
  }
  if (metadata.tokens.empty()) {
    fail(ErrorCode::kCorrupt, "{}: tokenizer.ggml.tokens is missing or empty", name);
  }
  if (!metadata.token_types.empty() && metadata.token_types.size() != metadata.tokens.size()) {
    fail(ErrorCode::kCorrupt, "{}: {} entries in tokenizer.ggml.token_type for {} tokens", name,
         metadata.token_types.size(), metadata.tokens.size());
  }
  if (is_sentencepiece) {
    add_form(metadata, definition);
    static_cast<void>(add_tokens(metadata, definition));
    add_scored_merges(definition);
  } else {
    apply_pre(metadata.pre, definition);
    add_listed_merges(metadata, add_tokens(metadata, definition), definition);
  }
  const auto checked = [&](std::optional<std::uint32_t> id, std::string_view key) {
    if (id && *id >= metadata.tokens.size()) {
      fail(ErrorCode::kCorrupt, "{}: {} is {}, expected less than the {} tokens", name, key, *id,
           metadata.tokens.size());
    }
    return id;
  };
  definition.end_of_text = checked(metadata.end_of_text, "tokenizer.ggml.eos_token_id");
  if (!definition.end_of_text) {
    definition.end_of_text = usual_end_of_text(definition);
  }
  const auto beginning = checked(metadata.beginning_of_text, "tokenizer.ggml.bos_token_id");
  if (is_sentencepiece) {
    static_cast<void>(checked(definition.sentencepiece->unknown, "tokenizer.ggml.unknown_token_id"));
  }
  // Where the file does not say, llama.cpp adds the token for the Llama 3 pattern and for SentencePiece.
  if (metadata.adds_beginning.value_or(definition.ignore_merges || is_sentencepiece)) {
    definition.beginning_of_text = beginning;
  }
  return definition;
}

}  // namespace

TokenizerDefinition read_gguf_vocabulary(const File& file) {
  GgufReader reader([&](std::uint64_t offset, std::span<std::byte> bytes) { return file.read_some(offset, bytes); },
                    file.size(), file.path().string());
  return define(read_metadata(reader), reader.name());
}

TokenizerDefinition read_gguf_vocabulary(std::string_view bytes, std::string_view name) {
  GgufReader reader(
      [&](std::uint64_t offset, std::span<std::byte> wanted) {
        const std::size_t count = std::min<std::size_t>(wanted.size(), bytes.size() - offset);
        std::memcpy(wanted.data(), bytes.data() + offset, count);
        return count;
      },
      bytes.size(), name);
  return define(read_metadata(reader), name);
}

}  // namespace lockstep
