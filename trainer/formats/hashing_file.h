// A file that is written once, from its first byte to its last, and hashed on the way.
//
// Its bytes go to the disk in large blocks past the system's memory where that is possible: a checkpoint is not read
// again soon, and neither takes memory nor the time to copy it there from the steps beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

#include "base/buffer.h"
#include "base/file.h"
#include "base/hash.h"

namespace lockstep {

class HashingFileWriter {
 public:
  // Bytes go to the file in pieces of this size, but for the last.
  static constexpr std::size_t kPieceBytes = std::size_t{4} << 20;
  // Called with the size of each piece before it is written: for rate limits and cancelling. What it throws passes
  // through.
  using BeforeWrite = std::function<void(std::size_t bytes)>;

  // Creates or empties the file. This and the calls below throw Error(kIo, kNoSpace).
  explicit HashingFileWriter(const std::filesystem::path& path, BeforeWrite before_write = {});

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Returns when the contents are on the disk. Without it the last piece is missing.
  void sync();

  [[nodiscard]] std::uint64_t size() const { return written_ + block_used_; }
  // After sync().
  [[nodiscard]] Hash128 hash() const { return hasher_.finish(); }

 private:
  void write_block();

  File file_;
  Hasher hasher_;
  BeforeWrite before_write_;
  Buffer block_;
  std::size_t block_used_ = 0;
  std::uint64_t written_ = 0;
};

}  // namespace lockstep
