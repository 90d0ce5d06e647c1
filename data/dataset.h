// A packed dataset: a folder of dataset.json, tokenizer.json and HDF5 shards, as docs/dataset-format.md specifies it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace lockstep {

// What the stream consists of: documents that follow each other without end, or conversations, some of whose tokens are
// trained on; in pairs, two conversations follow one another that end in a better and in a worse answer.
enum class DatasetKind : std::uint8_t { kText, kChat, kPairs };

// What dataset.json says about the tokenizer that made the tokens; the tokenizer itself is tokenizer.json beside it.
struct DatasetTokenizer {
  std::string name;         // "bytes", "bpe:4096", or a file's name: for people
  std::string fingerprint;  // equal exactly when two tokenizers give the same ids
  std::int64_t vocabulary_size = 0;
  std::int64_t end_of_text = 0;  // the id after each document

  friend bool operator==(const DatasetTokenizer&, const DatasetTokenizer&) = default;
};

struct DatasetFile {
  std::string name;  // in the dataset's folder: no path
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;  // that begin in this file
  std::uint64_t size_bytes = 0;
  std::string xxh3_128;  // of the whole file, 32 hexadecimal digits

  friend bool operator==(const DatasetFile&, const DatasetFile&) = default;
};

// The contents of dataset.json.
struct DatasetInfo {
  static constexpr int kVersion = 1;

  DatasetKind kind = DatasetKind::kText;
  DatasetTokenizer tokenizer;
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;
  std::string chat_template;  // of conversations: the name of what they were written with
  std::vector<DatasetFile> files;

  // kU16 for vocabularies up to 65536, otherwise kU32.
  [[nodiscard]] DType token_dtype() const;

  friend bool operator==(const DatasetInfo&, const DatasetInfo&) = default;
};

[[nodiscard]] std::string_view name_of(DatasetKind kind);  // "text", "chat", "pairs"
// Conversations, in pairs or not: some of their tokens are trained on.
[[nodiscard]] constexpr bool has_conversations(DatasetKind kind) { return kind != DatasetKind::kText; }

// Throws Error(kCorrupt) for anything that the format does not allow, totals that do not add up included. `where` names
// the text in messages.
[[nodiscard]] DatasetInfo parse_dataset_json(std::string_view text, std::string_view where);
[[nodiscard]] std::string to_dataset_json(const DatasetInfo& info);

// A dataset open for reading: the tokens of all shards as one stream. Used by one thread at a time; each reader opens
// its own. At most a few dozen shards are held open.
class Dataset {
 public:
  // Reads dataset.json and checks every shard: there, of the recorded size, HDF5, with the recorded counts and dtype.
  // Throws Error(kUsage) when the folder is not a dataset and Error(kCorrupt) when a part of it is not what
  // dataset.json says; messages name the file, what was found and what was expected.
  [[nodiscard]] static Dataset open(const std::filesystem::path& folder);

  Dataset(Dataset&&) noexcept;
  Dataset& operator=(Dataset&&) noexcept;
  ~Dataset();

  [[nodiscard]] const DatasetInfo& info() const;
  [[nodiscard]] const std::filesystem::path& folder() const;
  // folder()/tokenizer.json, to be copied into checkpoints.
  [[nodiscard]] std::filesystem::path tokenizer_path() const;

  // Fills `tokens` with the tokens from `begin` on. Throws Error(kUsage) beyond the end and Error(kCorrupt) for an id
  // outside the vocabulary.
  void read(std::uint64_t begin, std::span<std::int32_t> tokens);

  // Of conversations: fills `trained` with 1 for each token from `begin` on that is trained on, and with 0 for the
  // others. Throws as read() does.
  void read_trained(std::uint64_t begin, std::span<std::uint8_t> trained);

  // The positions in the stream where documents begin, in order.
  [[nodiscard]] std::vector<std::uint64_t> document_offsets();
  // Of conversations: how many tokens of each document are trained on. Throws Error(kCorrupt) where a document has
  // none.
  [[nodiscard]] std::vector<std::uint32_t> document_targets();

  // Reads every file and compares its checksum with dataset.json. Throws Error(kCorrupt) naming the first that differs.
  void verify() const;

 private:
  struct State;
  explicit Dataset(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
