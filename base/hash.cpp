#include "base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>
#if LOCKSTEP_XXHASH_CHOOSES
#include <xxh_x86dispatch.h>  // the same functions with the instructions that this processor has: 3 to 5 times as fast
#endif

#include <vector>

#include "base/file.h"

namespace lockstep {

struct Hasher::State {
  std::unique_ptr<XXH3_state_t, void (*)(XXH3_state_t*)> xxh3{XXH3_createState(),
                                                              [](XXH3_state_t* s) { XXH3_freeState(s); }};
};

std::string Hash128::hex() const { return fmt::format("{:016x}{:016x}", high, low); }

Hasher::Hasher() : state_(std::make_unique<State>()) { XXH3_128bits_reset(state_->xxh3.get()); }
Hasher::~Hasher() = default;

void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_->xxh3.get(), bytes.data(), bytes.size());
}
void Hasher::update(std::string_view text) { update(std::as_bytes(std::span(text))); }

Hash128 Hasher::finish() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->xxh3.get());
  return {hash.low64, hash.high64};
}

Hash128 hash_of(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.low64, hash.high64};
}
Hash128 hash_of(std::span<const std::byte> bytes, std::uint64_t seed) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {hash.low64, hash.high64};
}
Hash128 hash_of(std::string_view text) { return hash_of(std::as_bytes(std::span(text))); }

Hash128 hash_of_file(const std::filesystem::path& path) {
  const File file = File::open_to_read(path);
  Hasher hasher;
  std::vector<std::byte> piece(std::size_t{1} << 20);
  for (std::uint64_t offset = 0;;) {
    const std::size_t n = file.read_some(offset, piece);
    if (n == 0) {
      return hasher.finish();
    }
    hasher.update(std::span(piece).first(n));
    offset += n;
  }
}

}  // namespace lockstep
