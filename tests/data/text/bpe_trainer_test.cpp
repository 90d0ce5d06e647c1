#include "data/text/bpe_trainer.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "data/text/tokenizer_model.h"
#include "tests/data/text/golden_text.h"
#include "tests/data/text/random_text.h"

namespace lockstep {
namespace {

// The tokens that merging made.
std::vector<std::string> learned(const Tokenizer& tokenizer) {
  std::vector<std::string> tokens;
  for (std::uint32_t id = 257; id < tokenizer.vocab_size(); ++id) {
    tokens.emplace_back(tokenizer.token_bytes(id));
  }
  return tokens;
}

TEST(BpeTrainer, GivesTheVocabularyOfHuggingFacesTrainer) {
  WordCounts counts;
  counts.add(read_file(golden_text_path("corpus.txt")));
  const Tokenizer trained = train_bpe(counts, {.vocab_size = 1000, .min_count = 2, .on_progress = {}});
  const Tokenizer expected = golden_tokenizer("gpt2");
  EXPECT_EQ(learned(trained), learned(expected));
  EXPECT_EQ(trained.fingerprint(), expected.fingerprint());
  EXPECT_EQ(trained.name(), "bpe:1000");
  EXPECT_EQ(trained.end_of_text(), 0U);
}

TEST(BpeTrainer, MergesTheMostFrequentPairFirst) {
  WordCounts counts;
  counts.add_word("abab", 3);
  counts.add_word("cd", 5);
  // ab occurs 6 times, cd 5, abab 3, ba 3 until ab is merged.
  EXPECT_EQ(learned(train_bpe(counts, {.vocab_size = 300, .min_count = 2, .on_progress = {}})),
            (std::vector<std::string>{"ab", "cd", "abab"}));
}

TEST(BpeTrainer, BreaksTiesByTheSmallerIds) {
  WordCounts counts;
  counts.add_word("xy", 4);
  counts.add_word("ab", 4);
  counts.add_word("ac", 4);
  counts.add_word("b ", 4);  // the id of a space is above those of letters
  EXPECT_EQ(learned(train_bpe(counts, {.vocab_size = 300, .min_count = 1, .on_progress = {}})),
            (std::vector<std::string>{"ab", "ac", "b ", "xy"}));
}

TEST(BpeTrainer, MergesOverlappingPairsFromTheLeft) {
  WordCounts counts;
  counts.add_word("aaaaa", 10);
  const Tokenizer tokenizer = train_bpe(counts, {.vocab_size = 300, .min_count = 1, .on_progress = {}});
  // aa aa a: then the pair aa-a has the smaller right id.
  EXPECT_EQ(learned(tokenizer), (std::vector<std::string>{"aa", "aaa", "aaaaa"}));
  EXPECT_EQ(encoded(tokenizer, "aaaaa"), (std::vector<std::uint32_t>{259}));
}

TEST(BpeTrainer, StopsAtTheSizeAndAtRarePairs) {
  WordCounts counts;
  counts.add_word("abcdefgh", 3);
  counts.add_word("xyz", 2);
  EXPECT_EQ(train_bpe(counts, {.vocab_size = 257, .on_progress = {}}).vocab_size(), 257U);
  EXPECT_EQ(train_bpe(counts, {.vocab_size = 260, .on_progress = {}}).vocab_size(), 260U);
  EXPECT_EQ(train_bpe(counts, {.vocab_size = 999, .min_count = 3, .on_progress = {}}).vocab_size(), 264U);
  EXPECT_EQ(train_bpe(counts, {.vocab_size = 999, .min_count = 2, .on_progress = {}}).vocab_size(), 266U);
}

TEST(BpeTrainer, DependsOnTheCountsAloneAndEncodesWhatItLearned) {
  RandomText random(1);
  WordCounts forward;
  std::vector<std::string> texts;
  for (int i = 0; i < 300; ++i) {
    texts.push_back(random.snippets(15) + random.bytes(3));
    forward.add(texts.back());
  }
  WordCounts backward;
  for (auto text = texts.rbegin(); text != texts.rend(); ++text) {
    backward.add(*text);
  }
  const Tokenizer a = train_bpe(forward, {.vocab_size = 500, .on_progress = {}});
  const Tokenizer b = train_bpe(backward, {.vocab_size = 500, .on_progress = {}});
  EXPECT_EQ(a.to_json(), b.to_json());
  EXPECT_EQ(Tokenizer::from_json(a.to_json(), "read").fingerprint(), a.fingerprint());
  for (const std::string& text : texts) {
    ASSERT_EQ(a.decode(encoded(a, text)), text);
  }
}

TEST(BpeTrainer, ReportsItsProgress) {
  WordCounts counts;
  counts.add(read_file(golden_text_path("corpus.txt")));
  std::vector<std::uint32_t> sizes;
  static_cast<void>(train_bpe(
      counts, {.vocab_size = 600, .min_count = 2, .on_progress = [&](std::uint32_t size) { sizes.push_back(size); }}));
  EXPECT_EQ(sizes, (std::vector<std::uint32_t>{129, 257, 385, 513}));
}

TEST(BpeTrainer, RefusesImpossibleSizesAndAnEmptyCorpus) {
  const auto message = [](const WordCounts& counts, std::uint32_t size) -> std::string {
    try {
      static_cast<void>(train_bpe(counts, {.vocab_size = size, .on_progress = {}}));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "no error";
  };
  WordCounts counts;
  EXPECT_EQ(message(counts, 300), "bpe: no text to train a vocabulary from");
  counts.add("text");
  EXPECT_EQ(message(counts, 256),
            "bpe: a vocabulary of 256 tokens, expected 257 (the bytes and <|endoftext|>) to 2097152");
}

}  // namespace
}  // namespace lockstep
