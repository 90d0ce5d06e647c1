// A file that is written once, from its first byte to its last, and hashed on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

#include "base/file.h"
#include "base/hash.h"

namespace lockstep {

class HashingFileWriter {
 public:
  // Bytes go to the file in pieces of this size at most.
  static constexpr std::size_t kPieceBytes = std::size_t{4} << 20;
  // Called with the size of each piece before it is written: for rate limits and cancelling. What it throws passes
  // through.
  using BeforeWrite = std::function<void(std::size_t bytes)>;

  // Creates or empties the file. This and the calls below throw Error(kIo, kNoSpace).
  explicit HashingFileWriter(const std::filesystem::path& path, BeforeWrite before_write = {});

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Returns when the contents are on the disk.
  void sync() { file_.sync(); }

  [[nodiscard]] std::uint64_t size() const { return offset_; }
  [[nodiscard]] Hash128 hash() const { return hasher_.finish(); }

 private:
  File file_;
  Hasher hasher_;
  BeforeWrite before_write_;
  // The disk works while the next bytes are hashed, instead of all at once in sync().
  static constexpr std::uint64_t kWritebackBytes = std::uint64_t{16} << 20;

  std::uint64_t offset_ = 0;
  std::uint64_t writeback_started_ = 0;
};

}  // namespace lockstep
