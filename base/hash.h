// xxh3-128 checksums: what manifests and datasets store for each file, and what digests are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lockstep {

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  // 32 lower-case hexadecimal digits, high half first (as `xxhsum -H2` prints).
  [[nodiscard]] std::string hex() const;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  [[nodiscard]] Hash128 finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

[[nodiscard]] Hash128 hash_of(std::span<const std::byte> bytes);
[[nodiscard]] Hash128 hash_of(std::span<const std::byte> bytes, std::uint64_t seed);
[[nodiscard]] Hash128 hash_of(std::string_view text);

// Reads the whole file in pieces. Throws Error(kIo).
[[nodiscard]] Hash128 hash_of_file(const std::filesystem::path& path);

}  // namespace lockstep
