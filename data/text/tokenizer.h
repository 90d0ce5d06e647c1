// Tokenizer turns text into token ids and back.
//
// Every tokenizer here is a BPE, of one of two kinds. Byte-level BPE has a token for each of the 256 bytes: any byte
// string can be encoded, valid UTF-8 or not, and decode(encode(x)) == x. (The one exception is a tokenizer.json that
// asks for NFC normalisation, as Qwen's does: there the answer is the normalised text.) SentencePiece BPE (Llama 2,
// Mistral 7B) puts a space before a text, which decode() drops, and writes spaces as U+2581: decode(encode(x)) == x
// where x has no U+2581, unless docs/tokenizers.md says otherwise of the form.
//
// A Tokenizer is a cheap handle to something immutable: copy it freely, use it from any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lockstep {

struct TokenizerModel;

// What encode() does with a special token's text, such as "<|endoftext|>", where it stands in the input.
enum class SpecialTokens {
  kAsText,      // plain characters: right for data, where a document must not be able to end itself
  kRecognized,  // the special token's id: right for prompts and chat templates
};

// Where a text stands in a longer one that is encoded part by part. SentencePiece puts a space before some parts;
// byte-level BPE does not ask.
enum class TextPlace {
  kStart,       // at the beginning
  kAfterToken,  // directly behind a special token
  kInside,      // behind other text
};

class Tokenizer {
 public:
  // Ids 0..255 are the bytes, 256 is <|endoftext|>.
  [[nodiscard]] static Tokenizer bytes();

  // Reads a Hugging Face tokenizer.json, a SentencePiece model (with the tokenizer_config.json beside it, if there is
  // one), the vocabulary of a GGUF file, or what file_of() names in a folder; the content tells which. Throws
  // Error(kIo), Error(kCorrupt) naming file and place, Error(kUnsupported) naming the component it does not know.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path);

  // The file that load(path) reads: of a folder its tokenizer.json or, where there is none, its tokenizer.model.
  [[nodiscard]] static std::filesystem::path file_of(const std::filesystem::path& path);

  // Reads the text of a tokenizer.json; `name` stands for it in messages and in name(). Throws as load() does.
  [[nodiscard]] static Tokenizer from_json(std::string_view text, std::string_view name);

  // The same tokenizer with another token between documents: for one whose file does not name it, or not in a form that
  // to_json() keeps. Throws Error(kUsage) unless `id` is an added token, which data cannot contain.
  [[nodiscard]] Tokenizer with_end_of_text(std::uint32_t id) const;

  // Appends the ids of `text` to `ids`. For more than a few texts, keep an Encoder: it remembers words.
  void encode(std::string_view text, std::vector<std::uint32_t>& ids,
              SpecialTokens special_tokens = SpecialTokens::kAsText, TextPlace place = TextPlace::kStart) const;

  // The bytes that `ids` stand for, which begin a text: without the space that encode() put there. Throws Error(kUsage)
  // at an id without a token.
  [[nodiscard]] std::string decode(std::span<const std::uint32_t> ids) const;

  // The bytes of one token inside a text, for streaming: they may end inside a character. Lives as long as any copy of
  // the tokenizer. Throws Error(kUsage) at an id without a token.
  [[nodiscard]] std::string_view token_bytes(std::uint32_t id) const;

  // Whether decode() knows the id: a vocabulary may have holes, and models round their output layer up.
  [[nodiscard]] bool has_token(std::uint32_t id) const;

  // Whether the token is one of the special ones (end of text, chat markers), which generated text is shown without.
  [[nodiscard]] bool is_special(std::uint32_t id) const;

  // The largest id plus one.
  [[nodiscard]] std::uint32_t vocab_size() const;

  // The token that stands between documents: the eos of a GGUF file or a SentencePiece model; else the first of
  // <|endoftext|>, <|end_of_text|>,
  // </s>, <eos>, <|im_end|>, <|eot_id|> among the added tokens. With SpecialTokens::kAsText it is never recognised.
  [[nodiscard]] std::optional<std::uint32_t> end_of_text() const;

  // The token that the tokenizer's own post-processing puts before a text (Llama 3 has one). encode() never adds it.
  [[nodiscard]] std::optional<std::uint32_t> beginning_of_text() const;

  // The id of an added token by its text: added_token("<|im_start|>").
  [[nodiscard]] std::optional<std::uint32_t> added_token(std::string_view text) const;

  // Where the first added token's text stands in `text` from a place on, the longest of those that begin there.
  struct AddedTokenPlace {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::uint32_t id = 0;
  };
  [[nodiscard]] std::optional<AddedTokenPlace> find_added_token(std::string_view text, std::size_t from) const;

  // For people: "bytes", "bpe:16384", or the name of the file that it was read from.
  [[nodiscard]] const std::string& name() const;

  // 32 hexadecimal digits over everything that decides ids (tokens, merges, patterns), whatever file or form it came
  // from: equal fingerprints encode equally.
  [[nodiscard]] const std::string& fingerprint() const;

  // A tokenizer.json that from_json() and the Python library `tokenizers` read and that encodes the same
  // (docs/tokenizers.md gives the form). One that was read is returned as it was.
  [[nodiscard]] std::string to_json() const;

  // How long a prefix of `text` can be encoded now, whatever text follows: encode(prefix) followed by encode(rest +
  // more) with TextPlace::kInside gives the ids of encode(text + more). For streaming a document larger than memory. 0
  // when `text` has no such place; always 0 for a pattern that is not one of the well-known ones.
  [[nodiscard]] std::size_t safe_prefix(std::string_view text) const;

  // For this folder: tables built from a checked definition.
  explicit Tokenizer(std::shared_ptr<const TokenizerModel> model) : model_(std::move(model)) {}
  [[nodiscard]] const TokenizerModel& model() const { return *model_; }

 private:
  std::shared_ptr<const TokenizerModel> model_;
};

}  // namespace lockstep
