// SentencePiece BPE against the ids that the packages `sentencepiece`, `tokenizers` and transformers give;
// tests/golden/text/make_sentencepiece.py is the script.
#include "data/text/sentencepiece.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "data/text/encoder.h"
#include "data/text/tokenizer_model.h"
#include "data/text/unicode.h"
#include "tests/data/text/golden_text.h"
#include "tests/data/text/random_text.h"

namespace lockstep {
namespace {

using Ids = std::vector<std::uint32_t>;
using nlohmann::json;

const json& cases() {
  static const json all = json::parse(read_file(golden_text_path("sentencepiece_cases.json")));
  return all;
}

json document_of(const std::string& form) {
  json document = json::parse(read_file(golden_text_path("sentencepiece.json")));
  document.merge_patch(cases().at("forms").at(form));
  return document;
}

Tokenizer form(const std::string& name) { return Tokenizer::from_json(document_of(name).dump(), name); }

class SentencePieceFormTest : public testing::TestWithParam<const char*> {
 protected:
  Tokenizer tokenizer_ = form(GetParam());
};

TEST_P(SentencePieceFormTest, GivesTheIdsOfTheTokenizersLibrary) {
  Encoder encoder(tokenizer_);
  for (const auto& test_case : cases().at("cases")) {
    const auto& expected = test_case.at("forms").at(GetParam());
    const auto text = test_case.at("text").get<std::string>();
    Ids as_text;
    encoder.encode(text, as_text);
    EXPECT_EQ(json(as_text), expected.at("as_text")) << test_case.at("text");
    Ids recognized;
    encoder.encode(text, recognized, SpecialTokens::kRecognized);
    EXPECT_EQ(json(recognized), expected.at(expected.contains("recognized") ? "recognized" : "as_text"))
        << test_case.at("text");
  }
}

TEST_P(SentencePieceFormTest, DecodesToTheTextOrToWhatTheTokenizersLibrarySays) {
  if (std::string_view(GetParam()) == "never") {
    return;  // its decoder Metaspace leaves "<0x0A>" as text
  }
  for (const auto& test_case : cases().at("cases")) {
    const auto& expected = test_case.at("forms").at(GetParam());
    const auto ids = expected.at("as_text").get<Ids>();
    EXPECT_EQ(tokenizer_.decode(ids), expected.value("decoded", test_case.at("text").get<std::string>()));
  }
}

TEST_P(SentencePieceFormTest, WritesItselfSoThatReadingGivesTheSameTokenizer) {
  TokenizerDefinition definition = tokenizer_.model().definition;
  definition.json.clear();  // so that to_json() has to write
  const Tokenizer rewritten(build_model(definition, "rewritten"));
  const Tokenizer read = Tokenizer::from_json(rewritten.to_json(), "rewritten");
  EXPECT_EQ(read.fingerprint(), tokenizer_.fingerprint());
  EXPECT_EQ(read.end_of_text(), tokenizer_.end_of_text());
}

TEST_P(SentencePieceFormTest, GivesTheSameIdsPartByPart) {
  RandomText random(7);
  Encoder encoder(tokenizer_);
  std::size_t parts = 0;
  for (int i = 0; i < 300; ++i) {
    const std::string text = random.snippets(random.below(60)) + (random.below(4) == 0 ? "<tool> the captain" : " a");
    Ids whole;
    encoder.encode(text, whole);
    Ids joined;
    std::string pending;
    bool at_start = true;
    const auto put = [&](std::size_t size) {
      encoder.encode(std::string_view(pending).substr(0, size), joined, SpecialTokens::kAsText,
                     at_start ? TextPlace::kStart : TextPlace::kInside);
      pending.erase(0, size);
      at_start = at_start && size == 0;
      parts += size > 0 ? 1 : 0;
    };
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = std::min<std::size_t>(1 + random.below(20), text.size() - at);
      pending += text.substr(at, size);
      at += size;
      put(tokenizer_.safe_prefix(pending));
    }
    put(pending.size());
    EXPECT_EQ(joined, whole) << in_quotes(text);
  }
  EXPECT_GT(parts, 400U) << "texts should be cut";
}

INSTANTIATE_TEST_SUITE_P(Forms, SentencePieceFormTest,
                         testing::Values("always", "first", "legacy", "gemma", "words", "never", "unknown",
                                         "unknown_each", "normalized"),
                         [](const auto& name) { return std::string(name.param); });

// The merges by their definition, over all characters of a text at once.
Ids reference_ids(const Tokenizer& tokenizer, const std::string& text) {
  const TokenizerModel& model = tokenizer.model();
  Ids ids;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = std::max(decode_utf8(text, at).length, 1U);
    const std::uint32_t id = model.pieces->id_of(decode_utf8(text, at).value);
    if (id != SentencePieceTables::kUnknown) {
      ids.push_back(id);
    } else {
      for (std::size_t i = at; i < at + size; ++i) {
        ids.push_back(model.byte_ids[static_cast<unsigned char>(text[i])]);
      }
    }
    at += size;
  }
  while (true) {
    std::size_t best = ids.size();
    std::uint32_t best_rank = ~0U;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto* const pair = model.pairs.find(std::uint64_t{ids[i]} << 32 | ids[i + 1]);
      if (pair != nullptr && pair->rank < best_rank) {
        best = i;
        best_rank = pair->rank;
      }
    }
    if (best == ids.size()) {
      return ids;
    }
    ids[best] = model.pairs.find(std::uint64_t{ids[best]} << 32 | ids[best + 1])->result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(SentencePiece, CutsTextsOnlyWhereNoMergeCouldReachAcross) {
  const Tokenizer tokenizer = form("legacy");
  RandomText random(11);
  Encoder encoder(tokenizer);
  for (int i = 0; i < 400; ++i) {
    const std::string text =
        i % 2 == 0 ? random.snippets(1 + random.below(80)) : random.code_points(1 + random.below(40));
    Ids ids;
    encoder.encode(text, ids);
    EXPECT_EQ(ids, reference_ids(tokenizer, " " + text)) << in_quotes(text);
  }
}

TEST(SentencePiece, GivesEveryTextBackByteForByte) {
  for (const char* const name : {"legacy", "gemma"}) {
    const Tokenizer tokenizer = form(name);
    RandomText random(13);
    Encoder encoder(tokenizer);
    for (int i = 0; i < 600; ++i) {
      const std::string text = i % 3 == 0   ? random.snippets(random.below(50))
                               : i % 3 == 1 ? random.bytes(random.below(50))
                                            : random.code_points(random.below(50));
      Ids ids;
      encoder.encode(text, ids);
      EXPECT_EQ(tokenizer.decode(ids), text) << name;
    }
  }
}

TEST(SentencePiece, TurnsBytesThatAreNotUtf8IntoByteTokens) {
  const Tokenizer tokenizer = form("legacy");
  // Byte tokens begin behind <unk>, <s>, </s> and <tool>.
  const std::uint32_t space = tokenizer.model().pieces->id_of(U' ');
  EXPECT_EQ(encoded(tokenizer, "\xFF\xC3"), (Ids{space, 4 + 0xFF, 4 + 0xC3}));
  EXPECT_EQ(encoded(tokenizer, "\xE2\x96"), (Ids{space, 4 + 0xE2, 4 + 0x96}));
}

TEST(SentencePiece, StreamsTokensAsBytesWithSpaces) {
  const Tokenizer tokenizer = form("legacy");
  std::string streamed;
  for (const std::uint32_t id : encoded(tokenizer, "the captain\n\u0590")) {
    streamed += tokenizer.token_bytes(id);
  }
  EXPECT_EQ(streamed, " the captain\n\u0590");
  EXPECT_EQ(tokenizer.decode(encoded(tokenizer, "the captain\n\u0590")), "the captain\n\u0590");
  EXPECT_EQ(tokenizer.token_bytes(4 + 0x0A), "\n");
}

TEST(SentencePiece, NamesItsSpecialTokens) {
  const Tokenizer tokenizer = form("legacy");
  EXPECT_EQ(tokenizer.vocab_size(), 800U);
  EXPECT_EQ(tokenizer.end_of_text(), 2U);
  EXPECT_EQ(tokenizer.beginning_of_text(), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_TRUE(tokenizer.is_special(1));
  EXPECT_FALSE(tokenizer.is_special(3)) << "user-defined";
  EXPECT_FALSE(tokenizer.is_special(4)) << "a byte";

  json document = document_of("legacy");
  document["post_processor"]["single"] =
      json::parse(R"([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}])");
  EXPECT_EQ(Tokenizer::from_json(document.dump(), "t.json").beginning_of_text(), 1U);
}

TEST(SentencePiece, PutsTheSpaceWhereTheFormSays) {
  const auto ids_at = [](const Tokenizer& tokenizer, TextPlace place) {
    Ids ids;
    tokenizer.encode("the", ids, SpecialTokens::kAsText, place);
    return ids;
  };
  const Tokenizer every = form("legacy");
  EXPECT_EQ(ids_at(every, TextPlace::kAfterToken), ids_at(every, TextPlace::kStart));
  EXPECT_NE(ids_at(every, TextPlace::kInside), ids_at(every, TextPlace::kStart));
  const Tokenizer first = form("first");
  EXPECT_EQ(ids_at(first, TextPlace::kStart), ids_at(every, TextPlace::kStart));
  EXPECT_EQ(ids_at(first, TextPlace::kAfterToken), ids_at(every, TextPlace::kInside));
  EXPECT_EQ(ids_at(first, TextPlace::kInside), ids_at(every, TextPlace::kInside));
}

// A megabyte without a place to cut: minutes if the time grew with the square.
TEST(SentencePiece, MergesALongPieceInAMoment) {
  const Tokenizer tokenizer = form("legacy");
  const std::string text(std::size_t{1} << 20, '=');
  const Ids ids = encoded(tokenizer, text);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_LT(ids.size(), text.size() / 2);
}

struct BadForm {
  const char* name;
  const char* patch;  // RFC 7396, applied to the form "legacy"
  ErrorCode code;
  const char* message;
};

class BadSentencePieceJsonTest : public testing::TestWithParam<BadForm> {};

TEST_P(BadSentencePieceJsonTest, IsAnErrorThatNamesFilePlaceAndExpectation) {
  json document = document_of("legacy");
  document.merge_patch(json::parse(GetParam().patch));
  try {
    static_cast<void>(Tokenizer::from_json(document.dump(), "t.json"));
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), GetParam().code);
    EXPECT_STREQ(error.what(), GetParam().message);
  }
}

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

INSTANTIATE_TEST_SUITE_P(
    Json, BadSentencePieceJsonTest,
    testing::Values(
        BadForm{"UnknownTokenIsNone", R"({"model": {"unk_token": "<none>"}})", kCorrupt,
                "t.json: model.unk_token is \"<none>\", expected a token of model.vocab"},
        BadForm{"NeitherUnknownNorBytes", R"({"model": {"unk_token": null, "byte_fallback": false}})", kUnsupported,
                "t.json: there is neither an unknown token nor a fallback to bytes: characters without a token would "
                "be lost"},
        BadForm{"ByteIsMissing", R"({"model": {"vocab": {"<0x0A>": null}}})", kUnsupported,
                "t.json: the vocabulary falls back to bytes, but has no token <0x0A>"},
        BadForm{"OtherNormalizer", R"({"normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, {"type": "NFKC"}]}})",
                kUnsupported,
                "t.json: normalizer.normalizers[1].type is \"NFKC\", which is not supported; known for SentencePiece "
                "are Prepend and Replace"},
        BadForm{"OtherReplacement",
                R"({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "_"}})", kUnsupported,
                "t.json: normalizer.content is \"_\", which is not supported; expected \"\u2581\""},
        BadForm{"ReplacesByPattern", R"({"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}}})", kUnsupported,
                "t.json: normalizer.pattern.String is missing, which is not supported; expected \" \""},
        BadForm{"PrependsOnly", R"({"normalizer": {"type": "Prepend", "prepend": "\u2581"}})", kUnsupported,
                "t.json: normalizer is an object of 3, which is not supported; with Prepend, Replace is expected"},
        BadForm{"SplitsByPattern", R"({"pre_tokenizer": {"type": "Digits"}})", kUnsupported,
                "t.json: pre_tokenizer.type is \"Digits\", which is not supported; known for SentencePiece are "
                "Metaspace, without a normalizer, and none"},
        BadForm{"OtherDecoder", R"({"decoder": {"type": "ByteLevel"}})", kUnsupported,
                "t.json: decoder.type is \"ByteLevel\", which is not supported; known for SentencePiece are Replace, "
                "ByteFallback, Fuse, Strip and Metaspace"},
        BadForm{"IgnoresMerges", R"({"model": {"ignore_merges": true}})", kUnsupported,
                "t.json: model.ignore_merges is true, which is not supported; only false is, for SentencePiece"},
        BadForm{"ScoresOfOthers", R"({"model": {"scores": [1, 2]}})", kCorrupt,
                "t.json: model.scores is an array of 2, expected one number for each of the 800 ids"}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace lockstep
