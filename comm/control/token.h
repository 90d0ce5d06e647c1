// The secret that the processes of one job share, and what they prove with it.
//
// A token is never sent. Each side of a new connection sends a random challenge and answers the other's by a message
// authentication code (HMAC-SHA256, RFC 2104); later frames carry one as well (channel.h).
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace lockstep::control {

// What an authentication code and a challenge are made of.
using Digest = std::array<std::byte, 32>;

// Takes the same time wherever the two differ.
[[nodiscard]] bool equal(const Digest& a, const Digest& b);

[[nodiscard]] Digest random_challenge();

class JobToken {
 public:
  [[nodiscard]] static JobToken random();
  // Throws Error(kUsage) unless `text` is 64 hexadecimal digits.
  [[nodiscard]] static JobToken from_hex(std::string_view text);

  [[nodiscard]] std::string hex() const;
  // The code of all parts one after the other. Parts of variable length belong at the end.
  [[nodiscard]] Digest sign(std::initializer_list<std::span<const std::byte>> parts) const;
  // A key that only who knows this one can derive.
  [[nodiscard]] JobToken derive(std::initializer_list<std::span<const std::byte>> parts) const;

 private:
  explicit JobToken(const Digest& key) : key_(key) {}

  Digest key_;
};

}  // namespace lockstep::control
