// Writes one shard of a dataset.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "data/dataset.h"
#include "data/hdf5_file.h"

namespace lockstep {

// Buffers at most one chunk of each array. Destroyed without close(), it leaves a file that is no shard.
class ShardWriter {
 public:
  // Elements in a chunk of /tokens; a shorter array is one chunk of its own length.
  static constexpr std::uint64_t kTokenChunk = 262'144;
  static constexpr std::uint64_t kOffsetChunk = 16'384;

  // `dtype`: kU16 or kU32. Throws Error(kIo, kNoSpace), as every function here.
  ShardWriter(const std::filesystem::path& path, DType dtype, DatasetKind kind = DatasetKind::kText);

  // A document begins at the next token.
  void begin_document();
  // Ids fit the dtype.
  void append(std::span<const std::uint32_t> tokens);
  // Of conversations: a whole one, and for each of its tokens 1 when it is trained on, else 0.
  void append_chat(std::span<const std::uint32_t> tokens, std::span<const std::uint8_t> trained);
  // Returns when the file is on the disk.
  void close();

  [[nodiscard]] std::uint64_t tokens() const { return tokens_; }
  [[nodiscard]] std::uint64_t documents() const { return documents_; }
  [[nodiscard]] std::uint64_t targets() const { return targets_; }

 private:
  void write_tokens();
  void write_offsets();
  void write_trained();

  Hdf5File file_;
  DType dtype_;
  std::uint64_t tokens_ = 0;
  std::uint64_t documents_ = 0;
  std::uint64_t targets_ = 0;
  bool has_tokens_array_ = false;
  bool has_offsets_array_ = false;
  std::vector<std::uint32_t> token_buffer_;
  std::vector<std::uint16_t> narrow_buffer_;
  std::vector<std::uint64_t> offset_buffer_;
  DatasetKind kind_;
  bool has_trained_array_ = false;
  std::vector<std::uint8_t> trained_buffer_;
  std::vector<std::uint32_t> target_buffer_;  // of documents whose offsets are in the offset buffer
};

}  // namespace lockstep
