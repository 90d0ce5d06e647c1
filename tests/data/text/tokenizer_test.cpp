#include "data/text/tokenizer.h"

#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "base/error.h"
#include "data/text/encoder.h"
#include "data/text/tokenizer_model.h"
#include "tests/data/text/golden_text.h"
#include "tests/data/text/random_text.h"

namespace lockstep {
namespace {

using Ids = std::vector<std::uint32_t>;

std::vector<Tokenizer> all_tokenizers() {
  return {Tokenizer::bytes(),         golden_tokenizer("gpt2"),  golden_tokenizer("llama3"),
          golden_tokenizer("smollm"), golden_tokenizer("o200k"), golden_tokenizer("splits")};
}

// BPE as its definition says it, without any cleverness: merge the leftmost of the pairs with the lowest rank, and look
// again.
Ids reference_merge(const TokenizerDefinition& definition, std::string_view piece) {
  std::map<std::string, std::uint32_t> byte_ids;
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    if (definition.tokens[id].kind == TokenKind::kNormal) {
      byte_ids[definition.tokens[id].bytes] = id;
    }
  }
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> ranks;
  for (std::size_t rank = 0; rank < definition.merges.size(); ++rank) {
    ranks[{definition.merges[rank].left, definition.merges[rank].right}] = rank;
  }
  Ids ids;
  for (const char byte : piece) {
    ids.push_back(byte_ids.at(std::string(1, byte)));
  }
  while (true) {
    std::size_t best_rank = definition.merges.size();
    std::size_t best = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best_rank == definition.merges.size()) {
      return ids;
    }
    ids[best] = definition.merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(BytesTokenizer, GivesEachByteItsOwnValue) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(encoded(tokenizer, std::string_view("A\0\xFF<", 4)), (Ids{65, 0, 255, 60}));
  EXPECT_EQ(tokenizer.vocab_size(), 257U);
  EXPECT_EQ(tokenizer.end_of_text(), 256U);
  EXPECT_EQ(tokenizer.name(), "bytes");
  EXPECT_TRUE(tokenizer.is_special(256));
  EXPECT_EQ(tokenizer.token_bytes(256), "<|endoftext|>");
}

TEST(BytesTokenizer, RecognizesItsSpecialTokenOnlyWhenAsked) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(encoded(tokenizer, "a<|endoftext|>b", SpecialTokens::kRecognized), (Ids{'a', 256, 'b'}));
  EXPECT_EQ(encoded(tokenizer, "<|endoftext|>").size(), 13U);
}

TEST(BytesTokenizer, IsTheSameAfterItsOwnJson) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const Tokenizer read = Tokenizer::from_json(tokenizer.to_json(), "bytes.json");
  EXPECT_EQ(read.fingerprint(), tokenizer.fingerprint());
  EXPECT_EQ(read.end_of_text(), 256U);
  EXPECT_EQ(read.name(), "bytes.json");
}

TEST(Tokenizer, GivesBackAnyBytes) {
  for (const Tokenizer& tokenizer : all_tokenizers()) {
    Encoder encoder(tokenizer);
    RandomText random(1);
    for (int i = 0; i < 300; ++i) {
      const std::string text = i % 3 == 0   ? random.bytes(random.below(40))
                               : i % 3 == 1 ? random.snippets(random.below(20)) + random.bytes(random.below(3)) + "x"
                                            : random.code_points(random.below(20));
      Ids ids;
      encoder.encode(text, ids, i % 2 == 0 ? SpecialTokens::kAsText : SpecialTokens::kRecognized);
      ASSERT_EQ(tokenizer.decode(ids), text) << tokenizer.name();
    }
  }
}

TEST(Tokenizer, GivesBackEveryPrefixOfATextWithAllKindsOfCharacters) {
  const std::string text =
      "Hi, y'all 12\u00BD \u6211\u60F3 e\u0301 \U0001F680\r\n\t \xC3(\xF0\x9F \xED\xA0\x80 end <|endoftext|>";
  for (const Tokenizer& tokenizer : all_tokenizers()) {
    for (std::size_t length = 0; length <= text.size(); ++length) {
      const std::string_view prefix = std::string_view(text).substr(0, length);
      ASSERT_EQ(tokenizer.decode(encoded(tokenizer, prefix)), prefix) << tokenizer.name();
    }
  }
}

TEST(Tokenizer, TreatsBytesThatAreNotUtf8AsTheEndOfATextAndTheStartOfAnother) {
  const Tokenizer tokenizer = golden_tokenizer("gpt2");
  Ids expected = encoded(tokenizer, "Hello  ");
  const Ids invalid = encoded(tokenizer, "\xFF\xFE");
  const Ids rest = encoded(tokenizer, " Hello");
  expected.insert(expected.end(), invalid.begin(), invalid.end());
  expected.insert(expected.end(), rest.begin(), rest.end());
  EXPECT_EQ(encoded(tokenizer, "Hello  \xFF\xFE Hello"), expected);
}

TEST(Tokenizer, KeepsBytesThatAreNotUtf8WhileNormalizingTheRest) {
  const Tokenizer tokenizer = golden_tokenizer("qwen2");
  EXPECT_EQ(tokenizer.decode(encoded(tokenizer, "e\u0301\xFF\x80n\u0303")), "\u00E9\xFF\x80\u00F1");
}

TEST(Tokenizer, MergesAsTheDefinitionOfBpeSays) {
  const Tokenizer tokenizer = golden_tokenizer("gpt2");
  RandomText random(2);
  // Around the length at which the algorithm changes, and well above it.
  for (const std::size_t length : {1, 2, 3, 50, 95, 96, 97, 400}) {
    for (int i = 0; i < 5; ++i) {
      std::string piece;
      while (piece.size() < length) {
        piece.push_back("thecapina"[random.below(9)]);
      }
      ASSERT_EQ(encoded(tokenizer, piece), reference_merge(tokenizer.model().definition, piece)) << piece;
    }
  }
}

TEST(Tokenizer, EncodesAMillionLettersWithoutABreakInNoTime) {
  const Tokenizer tokenizer = golden_tokenizer("gpt2");
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(tokenizer.decode(encoded(tokenizer, text)), text);
}

TEST(Tokenizer, GivesTheSameIdsWithAndWithoutACache) {
  for (const Tokenizer& tokenizer : all_tokenizers()) {
    Encoder without(tokenizer, {.cache_words = 0});
    Encoder tiny(tokenizer, {.cache_words = 2});
    Encoder usual(tokenizer);
    RandomText random(3);
    for (int i = 0; i < 200; ++i) {
      const std::string text = random.snippets(30);
      Ids a;
      Ids b;
      Ids c;
      without.encode(text, a);
      tiny.encode(text, b);
      usual.encode(text, c);
      ASSERT_EQ(a, b);
      ASSERT_EQ(a, c);
    }
  }
}

TEST(Tokenizer, EncodesFromSeveralThreadsAtOnce) {
  const Tokenizer tokenizer = golden_tokenizer("o200k");
  const std::string text = read_file(golden_text_path("corpus.txt"));
  const Ids expected = encoded(tokenizer, text);
  std::vector<Ids> found(4);
  std::vector<std::thread> threads;
  for (Ids& ids : found) {
    threads.emplace_back([&] { tokenizer.encode(text, ids); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(found, std::vector<Ids>(4, expected));
}

TEST(Tokenizer, AppendsToWhatIsThere) {
  Ids ids = {7};
  Tokenizer::bytes().encode("a", ids);
  EXPECT_EQ(ids, (Ids{7, 97}));
}

TEST(Tokenizer, RefusesIdsWithoutAToken) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_FALSE(tokenizer.has_token(257));
  try {
    static_cast<void>(tokenizer.decode(Ids{65, 257}));
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_STREQ(error.what(), "decode: bytes has no token with the id 257; its vocabulary has 257");
  }
}

TEST(Tokenizer, HasAFingerprintThatTellsTokenizersApartButNotTheirFiles) {
  std::vector<std::string> fingerprints;
  for (const Tokenizer& tokenizer : all_tokenizers()) {
    EXPECT_EQ(tokenizer.fingerprint().size(), 32U);
    EXPECT_EQ(std::count(fingerprints.begin(), fingerprints.end(), tokenizer.fingerprint()), 0);
    fingerprints.push_back(tokenizer.fingerprint());
  }
  const Tokenizer gpt2 = golden_tokenizer("gpt2");
  const auto indented = nlohmann::json::parse(gpt2.to_json()).dump(4);
  EXPECT_EQ(Tokenizer::from_json(indented, "another name").fingerprint(), gpt2.fingerprint());
}

// It must not change from release to release: a data set would be refused.
TEST(Tokenizer, KeepsTheFingerprintsThatDataSetsStore) {
  EXPECT_EQ(Tokenizer::bytes().fingerprint(), "b1a7c86eb15e4f099f232ee8ea63abb5");
}

TEST(SafePrefix, SplitsATextWithoutChangingItsIds) {
  for (const char* form : {"gpt2", "llama3", "qwen2", "smollm"}) {
    const Tokenizer tokenizer = golden_tokenizer(form);
    RandomText random(4);
    int found = 0;
    for (int i = 0; i < 500; ++i) {
      const std::string text =
          i % 2 == 0 ? random.snippets(12) : random.snippets(6) + random.bytes(2) + random.snippets(6);
      const std::size_t cut = tokenizer.safe_prefix(text);
      const std::string all = text + random.snippets(3);
      Ids parts = encoded(tokenizer, std::string_view(all).substr(0, cut));
      tokenizer.encode(std::string_view(all).substr(cut), parts);
      ASSERT_EQ(parts, encoded(tokenizer, all)) << form << " cut at " << cut << " of " << text;
      found += cut > 0 ? 1 : 0;
    }
    EXPECT_GT(found, 100) << form;
  }
}

TEST(SafePrefix, IsTheLastSpaceAfterAWord) {
  const Tokenizer tokenizer = golden_tokenizer("llama3");
  EXPECT_EQ(tokenizer.safe_prefix("one two thr"), 7U);
  EXPECT_EQ(tokenizer.safe_prefix("one two  "), 7U);
  EXPECT_EQ(tokenizer.safe_prefix("one!\n"), 0U) << "a line break belongs to the punctuation before it";
  EXPECT_EQ(golden_tokenizer("gpt2").safe_prefix("one!\n"), 4U);
  EXPECT_EQ(tokenizer.safe_prefix("one"), 0U);
}

TEST(SafePrefix, IsAllOfATextInBytesAndNothingForAnUnknownPattern) {
  EXPECT_EQ(Tokenizer::bytes().safe_prefix("abc\xC3"), 4U);
  EXPECT_EQ(golden_tokenizer("o200k").safe_prefix("one two three"), 0U);
}

}  // namespace
}  // namespace lockstep
