#include "data/text/word_counts.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/data/text/random_text.h"

namespace lockstep {
namespace {

using Words = std::vector<std::pair<std::string_view, std::uint64_t>>;

TEST(WordCounts, CountsThePiecesOfTheGpt2Pattern) {
  WordCounts counts;
  counts.add("it's a cat,  a cat");
  counts.add(" cat 12\n");
  EXPECT_EQ(counts.sorted(),
            (Words{{"\n", 1}, {" ", 1}, {" 12", 1}, {" a", 2}, {" cat", 3}, {"'s", 1}, {",", 1}, {"it", 1}}));
  EXPECT_EQ(counts.distinct(), 8U);
  EXPECT_EQ(counts.count_of(" cat"), 3U);
  EXPECT_EQ(counts.count_of("dog"), 0U);
  EXPECT_EQ(counts.forgotten(), 0U);
}

TEST(WordCounts, CountsBytesThatAreNotUtf8AsWordsOfTheirOwn) {
  WordCounts counts;
  counts.add("a\xFF\xFE b");
  EXPECT_EQ(counts.sorted(), (Words{{" b", 1}, {"a", 1}, {"\xFF\xFE", 1}}));
}

TEST(WordCounts, CutsOverlongWords) {
  WordCounts counts;
  counts.add(std::string(2500, 'a'));
  EXPECT_EQ(counts.count_of(std::string(1024, 'a')), 2U);
  EXPECT_EQ(counts.count_of(std::string(452, 'a')), 1U);
}

TEST(WordCounts, AddUpInAnyOrder) {
  RandomText random(1);
  WordCounts all;
  std::vector<WordCounts> parts(3);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random.snippets(20);
    all.add(text);
    parts[random.below(3)].add(text);
  }
  WordCounts forward;
  WordCounts backward;
  for (std::size_t i = 0; i < 3; ++i) {
    forward.merge(parts[i]);
    backward.merge(parts[2 - i]);
  }
  EXPECT_EQ(forward.serialize(), all.serialize());
  EXPECT_EQ(backward.serialize(), all.serialize());
}

TEST(WordCounts, ForgetTheRarestWordsWhenFull) {
  // Room for ten words of four bytes.
  WordCounts counts({.max_bytes = 680});
  counts.add_word("word", 5);
  for (int i = 0; i < 9; ++i) {
    counts.add_word("rar" + std::to_string(i), i == 8 ? 3 : 2);
  }
  EXPECT_EQ(counts.distinct(), 10U);
  counts.add_word("last", 1);
  // Half of the room: the two most frequent and, of those with the same count, the first.
  EXPECT_EQ(counts.sorted(), (Words{{"rar0", 2}, {"rar1", 2}, {"rar2", 2}, {"rar8", 3}, {"word", 5}}));
  EXPECT_EQ(counts.forgotten(), 11U);
}

TEST(WordCounts, AreTheSameForTheSameCallsEvenWhenFull) {
  std::vector<std::string> found;
  for (int run = 0; run < 2; ++run) {
    RandomText random(2);
    WordCounts counts({.max_bytes = 2000});
    for (int i = 0; i < 200; ++i) {
      counts.add(random.code_points(20));
    }
    WordCounts other({.max_bytes = 2000});
    other.add(random.code_points(100));
    counts.merge(other);
    EXPECT_GT(counts.forgotten(), 1000U);
    found.push_back(counts.serialize());
  }
  EXPECT_EQ(found[0], found[1]);
}

TEST(WordCounts, AreTheSameAfterSerializing) {
  RandomText random(3);
  WordCounts counts({.max_bytes = 5000});
  for (int i = 0; i < 100; ++i) {
    counts.add(random.snippets(20));
  }
  const WordCounts again = WordCounts::deserialize(counts.serialize(), "counts");
  EXPECT_EQ(again.sorted(), counts.sorted());
  EXPECT_EQ(again.forgotten(), counts.forgotten());
  EXPECT_EQ(WordCounts::deserialize(WordCounts().serialize(), "counts").distinct(), 0U);
}

std::string message_of(std::string_view bytes) {
  try {
    static_cast<void>(WordCounts::deserialize(bytes, "part-3"));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    return error.what();
  }
  return "no error";
}

TEST(WordCounts, RefuseBytesThatAreNoTable) {
  WordCounts counts;
  counts.add_word("ab", 2);
  counts.add_word("cd", 1);
  const std::string good = counts.serialize();
  EXPECT_EQ(good.size(), 52U);
  EXPECT_EQ(message_of("hello"), "part-3: not a table of word counts: it begins with \"hello\", expected \"LSWC0001\"");
  for (std::size_t length = 8; length < good.size(); ++length) {
    EXPECT_NE(message_of(good.substr(0, length)), "no error");
  }
  EXPECT_EQ(message_of(good.substr(0, 51)),
            "part-3: not a table of word counts: ends at byte 51, 1 more were expected");
  EXPECT_EQ(message_of(good + "x"), "part-3: not a table of word counts: 1 bytes follow its end");
  std::string bad = good;
  bad[50] = 'a';  // "ab" twice
  bad[51] = 'b';
  EXPECT_EQ(message_of(bad),
            "part-3: not a table of word counts: word 1 of 2 has 2 bytes and the count 1, expected 1 to 1024 bytes, "
            "ascending, and 1 to 281474976710656");
  bad = good;
  bad.replace(16, 8, std::string(8, '\x7F'));
  EXPECT_NE(message_of(bad), "no error");
}

}  // namespace
}  // namespace lockstep
