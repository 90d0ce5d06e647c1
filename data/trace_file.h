// The record of which samples a rank was given: what proves that an epoch held each of them once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "base/file.h"
#include "base/hash.h"

namespace lockstep {

struct TraceLine {
  std::uint64_t step = 0;
  std::int64_t micro_batch = 0;
  std::uint64_t sample = 0;
  Hash128 tokens;  // of the sample's T+1 tokens as little-endian int32
};

// Appends lines to a text file, "step micro_batch sample hash". A line cut off by a crash is ended first, so that every
// whole line stays readable.
class TraceFile {
 public:
  // Throws Error(kIo, kNoSpace).
  explicit TraceFile(const std::filesystem::path& path);

  // Hands the lines to the operating system in one write.
  void append(std::span<const TraceLine> lines);

  // "<trace>.rank<R>".
  [[nodiscard]] static std::filesystem::path path_of_rank(const std::filesystem::path& trace, int rank);

 private:
  File file_;
  std::uint64_t size_ = 0;
};

}  // namespace lockstep
