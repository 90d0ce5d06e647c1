#include "base/hash.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

// Expected values: printf TEXT | xxhsum -H2
constexpr const char* kHashOfNothing = "99aa06d3014798d86001c324468d497f";
constexpr const char* kHashOfLockstep = "b4ead11c934f0a1e75345b2b871d8c38";

TEST(HashTest, AgreesWithXxhsum) {
  EXPECT_EQ(hash_of("").hex(), kHashOfNothing);
  EXPECT_EQ(hash_of("lockstep").hex(), kHashOfLockstep);
}

TEST(HashTest, DoesNotDependOnHowTheBytesAreCutIntoPieces) {
  std::string text;
  for (int i = 0; i < 10000; ++i) {
    text += static_cast<char>(i * 31);
  }
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{240}, std::size_t{4096}}) {
    Hasher hasher;
    for (std::size_t i = 0; i < text.size(); i += piece) {
      hasher.update(std::string_view(text).substr(i, piece));
    }
    EXPECT_EQ(hasher.finish(), hash_of(text)) << piece;
  }
}

TEST(HashTest, HashesFilesOfSeveralPieces) {
  const TemporaryFolder folder;
  const std::string text((std::size_t{2} << 20) + 17, 'x');
  write_file_atomic(folder / "big", text);
  write_file_atomic(folder / "empty", "");
  EXPECT_EQ(hash_of_file(folder / "big"), hash_of(text));
  EXPECT_EQ(hash_of_file(folder / "empty").hex(), kHashOfNothing);
}

}  // namespace
}  // namespace lockstep
