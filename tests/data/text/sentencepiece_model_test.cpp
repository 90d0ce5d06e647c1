// SentencePiece models against the ids that `sentencepiece` gives; tests/golden/text/make_sentencepiece.py is the
// script.
#include "data/text/sentencepiece_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

#include "base/error.h"
#include "data/text/encoder.h"
#include "tests/data/text/golden_text.h"
#include "tests/data/text/proto_builder.h"

namespace lockstep {
namespace {

using Ids = std::vector<std::uint32_t>;
using nlohmann::json;

constexpr std::uint64_t kNormal = 1;
constexpr std::uint64_t kUnknown = 2;
constexpr std::uint64_t kControl = 3;
constexpr std::uint64_t kUserDefined = 4;
constexpr std::uint64_t kUnused = 5;
constexpr std::uint64_t kByte = 6;

Tokenizer tokenizer_of(const std::string& bytes) {
  return Tokenizer(build_model(read_sentencepiece_model(bytes, "t.model"), "t.model"));
}

std::string trainer_spec(std::uint64_t model_type) { return ProtoBuilder().integer(3, model_type).bytes(); }
std::string normalizer_spec() { return ProtoBuilder().text(1, "identity").integer(3, 1).integer(4, 0).bytes(); }

ProtoBuilder small_model() {
  ProtoBuilder model;
  model.piece("<unk>", 0, kUnknown).piece("<s>", 0, kControl).piece("</s>", 0, kControl);
  for (const char* const letter : {"\u2581", "a", "b", "c"}) {
    model.piece(letter, -100, kNormal);
  }
  return model;
}

std::string with_specs(ProtoBuilder pieces) {
  return pieces.text(2, trainer_spec(2)).text(3, normalizer_spec()).bytes();
}

class SentencePieceModelTest : public testing::TestWithParam<const char*> {
 protected:
  Tokenizer tokenizer_ = Tokenizer::load(golden_text_path(std::string(GetParam()) + ".model"));
};

TEST_P(SentencePieceModelTest, GivesTheIdsOfSentencePiece) {
  const json cases = json::parse(read_file(golden_text_path("sentencepiece_cases.json")));
  Encoder encoder(tokenizer_);
  for (const auto& test_case : cases.at("cases")) {
    Ids ids;
    encoder.encode(test_case.at("text").get<std::string>(), ids);
    EXPECT_EQ(json(ids), test_case.at("models").at(GetParam())) << test_case.at("text");
  }
}

TEST_P(SentencePieceModelTest, BecomesATokenizerJsonThatMeansTheSame) {
  const Tokenizer read = Tokenizer::from_json(tokenizer_.to_json(), "t.json");
  EXPECT_EQ(read.fingerprint(), tokenizer_.fingerprint());
  EXPECT_EQ(read.end_of_text(), 2U);
  EXPECT_EQ(read.beginning_of_text(), 1U);
}

INSTANTIATE_TEST_SUITE_P(Models, SentencePieceModelTest, testing::Values("sentencepiece", "sentencepiece_plain"),
                         [](const auto& name) { return std::string(name.param); });

TEST(SentencePieceModel, TakesTheHighestScoreAndTheLeftmostAmongEquals) {
  const auto ids_of = [](float score_of_ab, float score_of_bc) {
    ProtoBuilder model = small_model();
    model.piece("ab", score_of_ab, kNormal).piece("bc", score_of_bc, kNormal).piece("\u2581a", -9, kNormal);
    return encoded(tokenizer_of(with_specs(model)), "abcbc");
  };
  EXPECT_EQ(ids_of(-1, -2), (Ids{3, 7, 6, 8})) << "_ ab c bc";
  EXPECT_EQ(ids_of(-2, -1), (Ids{9, 8, 8})) << "_a bc bc";
  EXPECT_EQ(ids_of(-1, -1), (Ids{3, 7, 6, 8})) << "equal: the left one";
}

TEST(SentencePieceModel, KeepsUserDefinedPiecesWholeAndBehindTheOneSpace) {
  ProtoBuilder model = small_model();
  model.piece("ab", -1, kNormal).piece("bca", 0, kUserDefined).piece("\u2581b", -1, kNormal);
  const Tokenizer tokenizer = tokenizer_of(with_specs(model));
  EXPECT_EQ(encoded(tokenizer, "abcab"), (Ids{3, 4, 8, 5})) << "_ a bca b";
  EXPECT_EQ(encoded(tokenizer, "bcab"), (Ids{3, 8, 5}));
  EXPECT_EQ(tokenizer.decode(encoded(tokenizer, "abcab")), "abcab");
}

TEST(SentencePieceModel, NeverMakesUnusedPieces) {
  ProtoBuilder model = small_model();
  model.piece("xy", -1, kUnused).piece("ab", -1, kNormal);
  const Tokenizer tokenizer = tokenizer_of(with_specs(model));
  EXPECT_EQ(encoded(tokenizer, "xyab"), (Ids{3, 0, 8}));
  EXPECT_EQ(tokenizer.token_bytes(7), "xy");
}

TEST(SentencePieceModel, HasNoSpaceBeforeATextWithoutADummyPrefix) {
  ProtoBuilder model = small_model();
  model.text(2, trainer_spec(2)).text(3, ProtoBuilder().integer(3, 0).integer(4, 0).bytes());
  const Tokenizer tokenizer = tokenizer_of(model.bytes());
  EXPECT_EQ(encoded(tokenizer, " ab"), (Ids{3, 4, 5}));
  EXPECT_EQ(tokenizer.decode(Ids{3, 4, 5}), " ab");
}

std::string message_of(const std::string& bytes, ErrorCode expected) {
  try {
    static_cast<void>(tokenizer_of(bytes));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
    return error.what();
  }
  return "no error";
}

TEST(SentencePieceModel, RefusesWhatItDoesNotKnow) {
  const auto of_type = [](std::uint64_t type) {
    return message_of(small_model().text(2, trainer_spec(type)).bytes(), ErrorCode::kUnsupported);
  };
  EXPECT_EQ(of_type(1), "t.model: a SentencePiece model of the type Unigram, which is not supported; known is BPE");
  EXPECT_EQ(of_type(4), "t.model: a SentencePiece model of the type Char, which is not supported; known is BPE");
  EXPECT_EQ(of_type(9), "t.model: a SentencePiece model of the type unknown, which is not supported; known is BPE");
  const auto normalized = [](const ProtoBuilder& spec) {
    return message_of(small_model().text(2, trainer_spec(2)).text(3, spec.bytes()).bytes(), ErrorCode::kUnsupported);
  };
  EXPECT_EQ(normalized(ProtoBuilder().text(1, "nmt_nfkc").text(2, "xyz")),
            "t.model: the normalisation \"nmt_nfkc\", which is not supported; known is identity");
  EXPECT_EQ(normalized(ProtoBuilder()),
            "t.model: normalizer_spec.remove_extra_whitespaces is true, which is not supported; only false is");
  EXPECT_EQ(normalized(ProtoBuilder().integer(4, 0).integer(5, 0)),
            "t.model: normalizer_spec.escape_whitespaces is false, which is not supported; only true is");
  EXPECT_EQ(message_of(with_specs(small_model().piece("ab", -1, kUnused)), ErrorCode::kUnsupported),
            "t.model: the unused piece \"ab\" can be made of others, which is not supported");
  const std::string byte_fallback = ProtoBuilder().integer(3, 2).integer(35, 1).bytes();
  EXPECT_EQ(
      message_of(small_model().piece("<0x00>", 0, kByte).text(2, byte_fallback).text(3, normalizer_spec()).bytes(),
                 ErrorCode::kUnsupported),
      "t.model: the vocabulary falls back to bytes, but has no token <0x01>");
}

TEST(SentencePieceModel, RefusesContradictions) {
  const auto with = [](std::string_view piece, float score, std::uint64_t type) {
    return message_of(with_specs(small_model().piece(piece, score, type)), ErrorCode::kCorrupt);
  };
  EXPECT_EQ(with("a", -1, kNormal), "t.model: the pieces 4 and 7 are both \"a\"");
  EXPECT_EQ(with("", -1, kNormal), "t.model: piece 7 is empty, expected text in UTF-8");
  EXPECT_EQ(with("\xFF", -1, kNormal), "t.model: piece 7 is \"\\xFF\", expected text in UTF-8");
  EXPECT_EQ(with("x", std::numeric_limits<float>::quiet_NaN(), kNormal), "t.model: piece 7 has the score nan");
  EXPECT_EQ(with("x", 0, kUnknown), "t.model: the pieces 0 and 7 are both marked as unknown");
  EXPECT_EQ(with("x", 0, 7), "t.model: piece 7 has the type 7, expected 1 to 6");
  EXPECT_EQ(with("x", 0, kByte),
            "t.model: the piece \"x\" is marked as a byte, but trainer_spec.byte_fallback is false");
  EXPECT_EQ(with("<0x41>", 0, kNormal), "t.model: the piece \"<0x41>\" is not marked as a byte");
  EXPECT_EQ(message_of(with_specs(ProtoBuilder().piece("a", 0, kNormal)), ErrorCode::kCorrupt),
            "t.model: no piece is marked as unknown");
  EXPECT_EQ(message_of("", ErrorCode::kCorrupt), "t.model: no pieces: is this a SentencePiece model?");
}

TEST(SentencePieceModel, RefusesWhatIsNotSuchAMessage) {
  const auto message = [](const ProtoBuilder& bytes) { return message_of(bytes.bytes(), ErrorCode::kCorrupt); };
  EXPECT_EQ(message(ProtoBuilder().varint(1 << 3 | 2).varint(1000)),
            "t.model: field 1 before byte 3 has 1000 bytes, but there are 0 more");
  EXPECT_EQ(message(ProtoBuilder().varint(1 << 3 | 2).varint(~std::uint64_t{0})),
            "t.model: field 1 before byte 11 has 18446744073709551615 bytes, but there are 0 more");
  EXPECT_EQ(message(ProtoBuilder().integer(1, 5)),
            "t.model: not a SentencePiece model: field 1 before byte 1 has the type 0, expected a string or a message");
  EXPECT_EQ(message(ProtoBuilder().text(1, ProtoBuilder().text(2, "score").bytes())),
            "t.model: not a SentencePiece model: field 2 before byte 3 has the type 2, expected a float");
  EXPECT_EQ(message(ProtoBuilder().varint(9 << 3 | 3)),
            "t.model: not a SentencePiece model: field 9 before byte 1 has the type 3");
  EXPECT_EQ(message(ProtoBuilder().text(1, std::string(12, '\xFF'))),
            "t.model: not a SentencePiece model: the number before byte 12 has no end");
}

TEST(SentencePieceModel, NamesThePlaceWhereItIsCutOff) {
  const std::string whole = read_file(golden_text_path("sentencepiece.model"));
  for (std::size_t size = 0; size < whole.size(); size += 13) {
    try {
      static_cast<void>(tokenizer_of(whole.substr(0, size)));
      FAIL() << size;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("t.model: ")) << size;
    }
  }
}

// Inputs for the fuzzer: an Error or a tokenizer, nothing else.
TEST(SentencePieceModel, TakesOrRefusesEveryFuzzedInput) {
  std::size_t read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOCKSTEP_FUZZ_CORPUS "/sentencepiece")) {
    try {
      const Tokenizer tokenizer = tokenizer_of(read_file(entry.path()));
      EXPECT_EQ(Tokenizer::from_json(tokenizer.to_json(), "t.json").fingerprint(), tokenizer.fingerprint());
      ++read;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("t.model: ")) << entry.path();
    }
  }
  EXPECT_EQ(read, 2U);
}

class FolderTest : public testing::Test {
 protected:
  FolderTest() {
    std::string name = (std::filesystem::temp_directory_path() / "lockstep-text-XXXXXX").string();
    path_ = mkdtemp(name.data());
    write_file_atomic(path_ / "tokenizer.model", read_file(golden_text_path("sentencepiece.model")));
  }
  ~FolderTest() override { std::filesystem::remove_all(path_); }

  std::filesystem::path path_;
};

TEST_F(FolderTest, IsReadFromItsModelUnlessThereIsATokenizerJson) {
  EXPECT_EQ(Tokenizer::load(path_).name(), "tokenizer.model");
  write_file_atomic(path_ / "tokenizer.json", Tokenizer::bytes().to_json());
  EXPECT_EQ(Tokenizer::load(path_).fingerprint(), Tokenizer::bytes().fingerprint());
}

TEST_F(FolderTest, AddsTheTokensOfTheConfiguration) {
  write_file_atomic(path_ / "tokenizer_config.json", R"({"add_bos_token": false, "added_tokens_decoder": {
      "2": {"content": "</s>", "special": true, "normalized": false},
      "3": {"content": "<tool>", "special": false, "normalized": false},
      "800": {"content": "<|im_start|>", "special": true, "normalized": false},
      "801": {"content": "<x>", "special": false, "normalized": false}}})");
  const Tokenizer tokenizer = Tokenizer::load(path_);
  EXPECT_EQ(tokenizer.vocab_size(), 802U);
  EXPECT_EQ(tokenizer.added_token("<|im_start|>"), 800U);
  EXPECT_TRUE(tokenizer.is_special(800));
  EXPECT_EQ(encoded(tokenizer, "<x>"), (Ids{801}));
  EXPECT_EQ(tokenizer.beginning_of_text(), std::nullopt);
  EXPECT_EQ(Tokenizer::from_json(tokenizer.to_json(), "t.json").fingerprint(), tokenizer.fingerprint());
}

TEST_F(FolderTest, RefusesAConfigurationThatContradictsTheModel) {
  const auto message = [&](const std::string& added) -> std::string {
    write_file_atomic(path_ / "tokenizer_config.json", R"({"added_tokens_decoder": )" + added + "}");
    try {
      static_cast<void>(Tokenizer::load(path_));
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message(R"({"1": {"content": "<x>"}})"), testing::EndsWith("\"<s>\" and \"<x>\" both have the id 1"));
  EXPECT_THAT(message(R"({"9": {"content": "<s>"}})"),
              testing::EndsWith("the added token \"<s>\" has the id 9, but 1 in model.vocab"));
  EXPECT_THAT(
      message(R"({"1x": {"content": "<x>"}})"),
      testing::EndsWith("added_tokens_decoder[\"1x\"] is an object of 1, expected an id from 0 to 2097151 as its "
                        "key"));
  EXPECT_THAT(message("[]"),
              testing::EndsWith("added_tokens_decoder is an array of 0, expected an object of ids and their tokens"));
}

}  // namespace
}  // namespace lockstep
