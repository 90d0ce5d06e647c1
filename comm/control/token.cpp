#include "comm/control/token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/error.h"

namespace lockstep::control {
namespace {

constexpr std::string_view kDigits = "0123456789abcdef";

}  // namespace

bool equal(const Digest& a, const Digest& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

Digest random_challenge() {
  Digest bytes;
  std::size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t count = getrandom(bytes.data() + filled, bytes.size() - filled, 0);
    if (count < 0 && errno != EINTR) {
      fail_errno("control: random numbers from the system");
    }
    filled += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
  }
  return bytes;
}

JobToken JobToken::random() { return JobToken(random_challenge()); }

JobToken JobToken::from_hex(std::string_view text) {
  Digest key;
  require(text.size() == 2 * key.size(), "control: a job's token has {} characters, expected {} hexadecimal digits",
          text.size(), 2 * key.size());
  for (std::size_t i = 0; i < key.size(); ++i) {
    const std::size_t high = kDigits.find(text[2 * i]);
    const std::size_t low = kDigits.find(text[2 * i + 1]);
    require(high != std::string_view::npos && low != std::string_view::npos,
            "control: a job's token has a character that is no hexadecimal digit");
    key[i] = static_cast<std::byte>(high * 16 + low);
  }
  return JobToken(key);
}

std::string JobToken::hex() const {
  std::string text;
  for (const std::byte byte : key_) {
    text += kDigits[std::to_integer<std::size_t>(byte) / 16];
    text += kDigits[std::to_integer<std::size_t>(byte) % 16];
  }
  return text;
}

Digest JobToken::sign(std::initializer_list<std::span<const std::byte>> parts) const {
  std::vector<unsigned char> message;
  for (const std::span<const std::byte> part : parts) {
    const auto* const begin = reinterpret_cast<const unsigned char*>(part.data());
    message.insert(message.end(), begin, begin + part.size());
  }
  Digest code;
  unsigned int size = 0;
  const unsigned char* const result = HMAC(EVP_sha256(), key_.data(), static_cast<int>(key_.size()), message.data(),
                                           message.size(), reinterpret_cast<unsigned char*>(code.data()), &size);
  if (result == nullptr || size != code.size()) {
    fail(ErrorCode::kUnsupported, "control: this machine's libcrypto does not compute HMAC-SHA256");
  }
  return code;
}

JobToken JobToken::derive(std::initializer_list<std::span<const std::byte>> parts) const {
  return JobToken(sign(parts));
}

}  // namespace lockstep::control
