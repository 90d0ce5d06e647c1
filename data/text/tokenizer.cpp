#include "data/text/tokenizer.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/file.h"
#include "data/text/encoder.h"
#include "data/text/gguf_vocab.h"
#include "data/text/sentencepiece_model.h"
#include "data/text/tokenizer_json.h"
#include "data/text/tokenizer_model.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

bool is_recognized_in_data(const Token& token) { return token.kind == TokenKind::kAdded; }

TokenizerDefinition read_with_config(std::string_view model, const std::filesystem::path& path) {
  TokenizerDefinition definition = read_sentencepiece_model(model, path.string());
  const std::filesystem::path config = path.parent_path() / "tokenizer_config.json";
  if (std::filesystem::is_regular_file(config)) {
    add_tokenizer_config(read_file(config), config.string(), definition);
  }
  return definition;
}

// Whether an added token ends `text`: the part of a text behind one may get a space put before it.
bool ends_with_added(const TokenizerModel& model, std::string_view text) {
  return std::any_of(model.added_ids.begin(), model.added_ids.end(), [&](const auto& added) {
    return text.ends_with(added.first) || text.ends_with(model.bytes_of(added.second));
  });
}

// The last space or line break behind another character that no token of a merge joins it to.
std::size_t safe_prefix_of_pieces(const TokenizerModel& model, std::string_view text) {
  const auto is_break = [&](std::size_t at) { return text[at] == ' ' || text[at] == '\n'; };
  const auto is_known = [&](std::size_t at) {  // two unknown characters can be one token
    return model.definition.sentencepiece->byte_fallback ||
           model.pieces->id_of(static_cast<char32_t>(text[at])) != SentencePieceTables::kUnknown;
  };
  for (std::size_t at = text.empty() ? 0 : text.size() - 1; at > 0; --at) {
    if (!is_break(at) || is_break(at - 1) || !is_known(at)) {
      continue;
    }
    std::size_t left = at - 1;
    while (left > 0 && (static_cast<unsigned char>(text[left]) & 0xC0) == 0x80) {
      --left;
    }
    const CodePoint c = decode_utf8(text, left);
    if (c.length == at - left && c.value != U'\u2581' &&
        !model.pieces->joins(c.value, static_cast<char32_t>(text[at])) && !ends_with_added(model, text.substr(0, at))) {
      return at;
    }
  }
  return 0;
}

}  // namespace

Tokenizer Tokenizer::bytes() {
  TokenizerDefinition definition;
  definition.name = "bytes";
  for (unsigned byte = 0; byte < 256; ++byte) {
    definition.tokens.push_back({std::string(1, static_cast<char>(byte)), TokenKind::kNormal});
  }
  definition.tokens.push_back({"<|endoftext|>", TokenKind::kSpecial});
  definition.end_of_text = 256;
  return Tokenizer(build_model(std::move(definition), "bytes"));
}

std::filesystem::path Tokenizer::file_of(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) {
    return path;
  }
  const bool has_only_model =
      !std::filesystem::exists(path / "tokenizer.json") && std::filesystem::exists(path / "tokenizer.model");
  return path / (has_only_model ? "tokenizer.model" : "tokenizer.json");
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  const std::filesystem::path file_path = file_of(path);
  const File file = File::open_to_read(file_path);
  // Messages have the whole path; the name that data sets keep must not depend on where the file lay.
  const auto named = [&](TokenizerDefinition definition) {
    definition.name = file_path.filename().string();
    return Tokenizer(build_model(std::move(definition), file_path.string()));
  };
  std::array<std::byte, 64> head{};
  const std::size_t found = file.read_some(0, head);
  const std::string_view start(reinterpret_cast<const char*>(head.data()), found);
  if (start.substr(0, 4) == "GGUF") {
    return named(read_gguf_vocabulary(file));
  }
  const std::size_t first = start.find_first_not_of(" \t\r\n");
  const bool is_json = first != std::string_view::npos && start[first] == '{';
  const bool is_sentencepiece = !is_json && start.starts_with('\n');  // field 1 of a protobuf message
  if (!is_json && !is_sentencepiece) {
    fail(
        ErrorCode::kCorrupt,
        "{}: neither a tokenizer.json (which starts with an open brace) nor a GGUF file (which starts with GGUF) nor a "
        "SentencePiece model (which starts with the byte 0x0A)",
        file_path.string());
  }
  if (file.size() > kMaxTokenizerJsonBytes) {
    fail(ErrorCode::kUnsupported, "{}: {} bytes, expected at most {}", file_path.string(), file.size(),
         kMaxTokenizerJsonBytes);
  }
  const std::string content = read_file(file_path);
  return named(is_json ? read_tokenizer_json(content, file_path.string()) : read_with_config(content, file_path));
}

Tokenizer Tokenizer::from_json(std::string_view text, std::string_view name) {
  return Tokenizer(build_model(read_tokenizer_json(text, name), name));
}

Tokenizer Tokenizer::with_end_of_text(std::uint32_t id) const {
  require(has_token(id) && added_token(model_->definition.tokens[id].bytes) == id,
          "{}: {} is not the id of an added token", name(), id);
  TokenizerDefinition definition = model_->definition;
  definition.end_of_text = id;
  return Tokenizer(build_model(std::move(definition), name()));
}

void Tokenizer::encode(std::string_view text, std::vector<std::uint32_t>& ids, SpecialTokens special_tokens,
                       TextPlace place) const {
  Encoder(*this, {.cache_words = 0}).encode(text, ids, special_tokens, place);
}

std::string Tokenizer::decode(std::span<const std::uint32_t> ids) const {
  std::string text;
  for (const std::uint32_t id : ids) {
    text += token_bytes(id);
  }
  const auto& form = model_->definition.sentencepiece;
  if (form && form->drops_prefix && text.starts_with(' ')) {
    text.erase(0, 1);
  }
  return text;
}

std::string_view Tokenizer::token_bytes(std::uint32_t id) const {
  require(has_token(id), "decode: {} has no token with the id {}; its vocabulary has {}", name(), id, vocab_size());
  return model_->bytes_of(id);
}

bool Tokenizer::has_token(std::uint32_t id) const {
  return id < vocab_size() && model_->definition.tokens[id].kind != TokenKind::kHole;
}

bool Tokenizer::is_special(std::uint32_t id) const {
  return id < vocab_size() && model_->definition.tokens[id].kind == TokenKind::kSpecial;
}

std::uint32_t Tokenizer::vocab_size() const { return static_cast<std::uint32_t>(model_->definition.tokens.size()); }

std::optional<std::uint32_t> Tokenizer::end_of_text() const { return model_->definition.end_of_text; }

std::optional<std::uint32_t> Tokenizer::beginning_of_text() const { return model_->definition.beginning_of_text; }

std::optional<std::uint32_t> Tokenizer::added_token(std::string_view text) const {
  const auto found = model_->added_ids.find(text);
  return found == model_->added_ids.end() ? std::nullopt : std::optional(found->second);
}

std::optional<Tokenizer::AddedTokenPlace> Tokenizer::find_added_token(std::string_view text, std::size_t from) const {
  std::optional<AddedTokenPlace> first;
  for (const AddedTokens* tokens : {&model_->added_before, &model_->added_after}) {
    const auto found = tokens->empty() ? std::nullopt : tokens->find(text, from, true);
    if (found && (!first || found->begin < first->begin || (found->begin == first->begin && found->end > first->end))) {
      first = {found->begin, found->end, found->id};
    }
  }
  return first;
}

const std::string& Tokenizer::name() const { return model_->definition.name; }

const std::string& Tokenizer::fingerprint() const { return model_->fingerprint; }

std::string Tokenizer::to_json() const {
  const TokenizerDefinition& definition = model_->definition;
  return definition.json.empty() ? write_tokenizer_json(definition) : definition.json;
}

std::size_t Tokenizer::safe_prefix(std::string_view text) const {
  const TokenizerDefinition& definition = model_->definition;
  if (!definition.sentencepiece && definition.merges.empty() && !definition.ignore_merges && !definition.nfc &&
      std::none_of(definition.tokens.begin(), definition.tokens.end(), is_recognized_in_data)) {
    return text.size();
  }
  if (model_->pieces) {
    return model_->added_contain_breaks ? 0 : safe_prefix_of_pieces(*model_, text);
  }
  return model_->added_contain_breaks ? 0 : model_->pretokenizer.safe_prefix(text);
}

}  // namespace lockstep
