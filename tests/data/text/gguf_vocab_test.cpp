#include "data/text/gguf_vocab.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "base/error.h"
#include "data/text/byte_alphabet.h"
#include "data/text/gguf_vocab_write.h"
#include "tests/data/text/gguf_builder.h"
#include "tests/data/text/golden_text.h"

namespace lockstep {
namespace {

// The vocabulary of a tokenizer in the form of GGUF's keys.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<std::uint32_t> types;
  std::vector<std::string> merges;
};

std::string characters_of(const Token& token) {
  return token.kind == TokenKind::kNormal ? to_characters(token.bytes) : token.bytes;
}

Vocabulary vocabulary_of(const Tokenizer& tokenizer) {
  const TokenizerDefinition& definition = tokenizer.model().definition;
  Vocabulary vocabulary;
  for (const Token& token : definition.tokens) {
    vocabulary.tokens.push_back(characters_of(token));
    vocabulary.types.push_back(token.kind == TokenKind::kSpecial ? 3 : token.kind == TokenKind::kAdded ? 4 : 1);
  }
  for (const MergeRule& merge : definition.merges) {
    vocabulary.merges.push_back(vocabulary.tokens[merge.left] + " " + vocabulary.tokens[merge.right]);
  }
  return vocabulary;
}

GgufBuilder file_with(const Vocabulary& vocabulary, std::string_view pre) {
  GgufBuilder file;
  file.string_key("general.architecture", "gpt2")
      .u32_key("gpt2.context_length", 1024)
      .array_key("some.floats", GgufType::kF32, 2)
      .u32(0)
      .u32(0)
      .strings_key("some.strings", {"a", "", "b"})
      .key("some.flag", GgufType::kBool)
      .u8(1)
      .string_key("tokenizer.ggml.model", "gpt2")
      .string_key("tokenizer.ggml.pre", pre)
      .strings_key("tokenizer.ggml.tokens", vocabulary.tokens)
      .i32s_key("tokenizer.ggml.token_type", vocabulary.types)
      .strings_key("tokenizer.ggml.merges", vocabulary.merges);
  return file;
}

Tokenizer read(const std::string& bytes) {
  return Tokenizer(build_model(read_gguf_vocabulary(bytes, "v.gguf"), "v.gguf"));
}

std::string message_of(const std::string& bytes, ErrorCode expected) {
  try {
    static_cast<void>(read(bytes));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
    return error.what();
  }
  return "no error";
}

TEST(GgufVocabulary, IsThatOfTheTokenizerJsonItWasMadeFrom) {
  for (const auto& [form, pre] :
       {std::pair("gpt2", "gpt-2"), std::pair("llama3", "llama-bpe"), std::pair("smollm", "smollm")}) {
    const Tokenizer expected = golden_tokenizer(form);
    EXPECT_EQ(read(file_with(vocabulary_of(expected), pre).bytes()).fingerprint(), expected.fingerprint()) << form;
  }
}

TEST(GgufVocabulary, IsReadFromAFileToo) {
  const Tokenizer expected = golden_tokenizer("gpt2");
  const auto path = std::filesystem::temp_directory_path() / fmt::format("lockstep-{}.gguf", ::getpid());
  // Longer than the reader's window, and with tensors' bytes behind.
  Vocabulary vocabulary = vocabulary_of(expected);
  std::string bytes =
      file_with(vocabulary, "gpt-2").string_key("tokenizer.chat_template", std::string(60'000, 'x')).bytes();
  bytes.append(1'000'000, '\xAB');
  write_file_atomic(path, bytes);
  const Tokenizer found = Tokenizer::load(path);
  std::filesystem::remove(path);
  EXPECT_EQ(found.fingerprint(), expected.fingerprint());
  EXPECT_EQ(found.name(), path.filename());
  EXPECT_EQ(Tokenizer::from_json(found.to_json(), "written").fingerprint(), expected.fingerprint());
}

TEST(GgufVocabulary, SaysWhichTokensBeginAndEndATextAsTheFileDoes) {
  const Vocabulary vocabulary = vocabulary_of(golden_tokenizer("llama3"));
  const Tokenizer plain = read(file_with(vocabulary, "llama-bpe").bytes());
  EXPECT_EQ(plain.end_of_text(), 901U) << "by its name";
  EXPECT_EQ(plain.beginning_of_text(), std::nullopt);

  GgufBuilder file = file_with(vocabulary, "llama-bpe");
  file.u32_key("tokenizer.ggml.eos_token_id", 902).u32_key("tokenizer.ggml.bos_token_id", 900);
  EXPECT_EQ(read(file.bytes()).end_of_text(), 902U);
  EXPECT_EQ(read(file.bytes()).beginning_of_text(), 900U);

  file.key("tokenizer.ggml.add_bos_token", GgufType::kBool).u8(0);
  EXPECT_EQ(read(file.bytes()).beginning_of_text(), std::nullopt);
}

TEST(GgufVocabulary, IsAnErrorWhereverTheFileIsCutOff) {
  const std::string bytes = file_with(vocabulary_of(Tokenizer::bytes()), "gpt-2").bytes();
  for (std::size_t length = 0; length < bytes.size(); length += length < 200 ? 1 : 37) {
    EXPECT_THAT(message_of(bytes.substr(0, length), ErrorCode::kCorrupt), testing::StartsWith("v.gguf: ")) << length;
  }
  EXPECT_EQ(message_of("GGUF", ErrorCode::kCorrupt),
            "v.gguf: the version at byte 4 needs 4 bytes, but the file has only 0 more");
}

TEST(GgufVocabulary, RefusesOtherFilesAndVersions) {
  EXPECT_EQ(message_of("GGML\3\0\0\0", ErrorCode::kCorrupt), "v.gguf: not a GGUF file: it does not begin with GGUF");
  EXPECT_EQ(message_of(GgufBuilder(1).bytes(), ErrorCode::kUnsupported),
            "v.gguf: GGUF version 1, expected 2 or 3 (little-endian)");
  EXPECT_EQ(message_of(GgufBuilder(0x03000000).bytes(), ErrorCode::kUnsupported),
            "v.gguf: GGUF version 50331648, expected 2 or 3 (little-endian)");
}

TEST(GgufVocabulary, ChecksLengthsBeforeTakingMemory) {
  EXPECT_EQ(message_of(GgufBuilder().array_key("a", GgufType::kU64, 1ULL << 61).bytes(), ErrorCode::kCorrupt),
            "v.gguf: a at byte 41 has 2305843009213693952 elements, but the file has only 0 more bytes");
  EXPECT_EQ(message_of(GgufBuilder().array_key("tokenizer.ggml.tokens", GgufType::kString, 1ULL << 40).bytes(),
                       ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.tokens at byte 61 has 1099511627776 elements, but the file has only 0 more bytes");
  EXPECT_EQ(message_of(GgufBuilder().key("a", GgufType::kString).u64(1ULL << 62).bytes(), ErrorCode::kCorrupt),
            "v.gguf: a at byte 45 needs 4611686018427387904 bytes, but the file has only 0 more");
  EXPECT_EQ(
      message_of(GgufBuilder().bytes(), ErrorCode::kUnsupported),
      "v.gguf: tokenizer.ggml.model is missing, which is not supported; known are gpt2 (byte-level BPE) and llama "
      "(SentencePiece BPE)");
  std::string many_keys = GgufBuilder().bytes();
  many_keys.replace(16, 8, std::string(8, '\x7F'));
  EXPECT_EQ(message_of(many_keys, ErrorCode::kCorrupt), "v.gguf: 9187201950435737471 keys, expected at most 65536");
  EXPECT_EQ(
      message_of(GgufBuilder().string_key("tokenizer.ggml.pre", std::string(70'000, 'x')).bytes(), ErrorCode::kCorrupt),
      "v.gguf: tokenizer.ggml.pre at byte 54 is 70000 bytes long, expected at most 65536");
}

TEST(GgufVocabulary, RefusesValuesOfTheWrongType) {
  EXPECT_EQ(message_of(GgufBuilder().u32_key("tokenizer.ggml.model", 1).bytes(), ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.model before byte 56 has another type than expected: a string");
  EXPECT_EQ(message_of(GgufBuilder().i32s_key("tokenizer.ggml.tokens", {1}).bytes(), ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.tokens before byte 69 has another type than expected: an array of strings");
  EXPECT_EQ(message_of(GgufBuilder().string_key("tokenizer.ggml.eos_token_id", "x").bytes(), ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.eos_token_id before byte 63 has another type than expected: u32");
  EXPECT_EQ(message_of(GgufBuilder().key("a", static_cast<GgufType>(13)).bytes(), ErrorCode::kCorrupt),
            "v.gguf: a at byte 33 has the type 13, expected 0 to 12");
  EXPECT_EQ(
      message_of(GgufBuilder().array_key("a", GgufType::kArray, 1).u32(0).u64(0).bytes(), ErrorCode::kUnsupported),
      "v.gguf: a at byte 49 is an array of arrays, which is not supported");
}

TEST(GgufVocabulary, NamesWhatIsWrongWithTheVocabulary) {
  const Vocabulary good = vocabulary_of(golden_tokenizer("gpt2"));
  const auto message = [](const Vocabulary& vocabulary, ErrorCode code, std::string_view pre = "gpt-2") {
    return message_of(file_with(vocabulary, pre).bytes(), code);
  };
  EXPECT_EQ(
      message(good, ErrorCode::kUnsupported, "deepseek-llm"),
      "v.gguf: tokenizer.ggml.pre is \"deepseek-llm\", which is not supported; known are gpt-2, llama-bpe, qwen2, "
      "smollm and their like");

  Vocabulary vocabulary = good;
  vocabulary.tokens[900] = vocabulary.tokens[800];
  EXPECT_THAT(message(vocabulary, ErrorCode::kCorrupt),
              testing::StartsWith("v.gguf: tokenizer.ggml.tokens: the tokens 800 and 900 are both "));
  vocabulary = good;
  vocabulary.tokens[900] = "<\xFF>";
  EXPECT_EQ(message(vocabulary, ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.tokens: token 900 is not UTF-8: \"<\\xFF>\"");
  vocabulary = good;
  vocabulary.types.pop_back();
  EXPECT_EQ(message(vocabulary, ErrorCode::kCorrupt),
            "v.gguf: 999 entries in tokenizer.ggml.token_type for 1000 tokens");
  vocabulary = good;
  vocabulary.merges[3] = "ab";
  EXPECT_EQ(message(vocabulary, ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.merges: entry 3 is \"ab\", expected two tokens with a space between");
  vocabulary.merges[3] = "";
  EXPECT_EQ(message(vocabulary, ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.merges: entry 3 is \"\", expected two tokens with a space between");
  vocabulary.merges[3] = "a ?z";
  EXPECT_EQ(message(vocabulary, ErrorCode::kCorrupt),
            "v.gguf: merge 3 (\"a\" with \"?z\"): the right token \"?z\" is not in the vocabulary");

  GgufBuilder file = file_with(good, "gpt-2");
  file.u32_key("tokenizer.ggml.eos_token_id", 1000);
  EXPECT_EQ(message_of(file.bytes(), ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.eos_token_id is 1000, expected less than the 1000 tokens");
  EXPECT_EQ(
      message_of(GgufBuilder().string_key("tokenizer.ggml.model", "bert").bytes(), ErrorCode::kUnsupported),
      "v.gguf: tokenizer.ggml.model is \"bert\", which is not supported; known are gpt2 (byte-level BPE) and llama "
      "(SentencePiece BPE)");
  EXPECT_EQ(message_of(GgufBuilder().string_key("tokenizer.ggml.model", "gpt2").bytes(), ErrorCode::kCorrupt),
            "v.gguf: tokenizer.ggml.tokens is missing or empty");
}

// What the exporter writes for a tokenizer.
GgufBuilder exported(const Tokenizer& tokenizer, std::int64_t size) {
  const GgufVocabulary vocabulary = gguf_vocabulary_of(tokenizer, size);
  GgufBuilder file;
  file.string_key("tokenizer.ggml.model", vocabulary.model)
      .string_key("tokenizer.ggml.pre", vocabulary.pre)
      .strings_key("tokenizer.ggml.tokens", vocabulary.tokens)
      .f32s_key("tokenizer.ggml.scores", vocabulary.scores)
      .i32s_key("tokenizer.ggml.token_type", {vocabulary.types.begin(), vocabulary.types.end()})
      .key("tokenizer.ggml.add_space_prefix", GgufType::kBool)
      .u8(vocabulary.add_space_prefix ? 1 : 0)
      .u32_key("tokenizer.ggml.bos_token_id", 1)
      .u32_key("tokenizer.ggml.eos_token_id", 2);
  return file;
}

TEST(GgufVocabulary, OfSentencePieceEncodesAsTheModelItWasMadeFrom) {
  const nlohmann::json cases = nlohmann::json::parse(read_file(golden_text_path("sentencepiece_cases.json")));
  for (const char* const name : {"sentencepiece.model", "sentencepiece.json"}) {
    const Tokenizer expected = Tokenizer::load(golden_text_path(name));
    const GgufVocabulary vocabulary = gguf_vocabulary_of(expected, 802);
    EXPECT_EQ(vocabulary.model, "llama");
    EXPECT_EQ(vocabulary.pre, "default");
    EXPECT_THAT(std::vector(vocabulary.types.begin(), vocabulary.types.begin() + 5),
                testing::ElementsAre(name == std::string_view("sentencepiece.json") ? 3 : 2, 3, 3, 4, 6));
    EXPECT_EQ(vocabulary.tokens[4], "<0x00>");
    EXPECT_EQ(vocabulary.tokens[801], "[PAD801]");
    EXPECT_EQ(vocabulary.types[801], 5);
    const Tokenizer found = read(exported(expected, 802).bytes());
    EXPECT_EQ(found.end_of_text(), 2U);
    EXPECT_EQ(found.beginning_of_text(), 1U);
    EXPECT_TRUE(found.is_special(0));
    for (const auto& test_case : cases.at("cases")) {
      const auto text = test_case.at("text").get<std::string>();
      if (text.find("<tool>") ==
          std::string::npos) {  // behind which llama.cpp puts a space, and sentencepiece does not
        EXPECT_EQ(nlohmann::json(encoded(found, text)), test_case.at("models").at("sentencepiece")) << text;
      }
    }
    EXPECT_EQ(Tokenizer::from_json(found.to_json(), "written").fingerprint(), found.fingerprint());
  }
}

TEST(GgufVocabulary, OfSentencePieceNeedsScoresAndTypes) {
  const auto file = [](const std::vector<float>& scores, const std::vector<std::uint32_t>& types) {
    return message_of(GgufBuilder()
                          .string_key("tokenizer.ggml.model", "llama")
                          .strings_key("tokenizer.ggml.tokens", {"<unk>", "a"})
                          .f32s_key("tokenizer.ggml.scores", scores)
                          .i32s_key("tokenizer.ggml.token_type", types)
                          .bytes(),
                      ErrorCode::kCorrupt);
  };
  EXPECT_EQ(file({0, -1}, {2, 1}), "no error");
  EXPECT_EQ(file({0}, {2, 1}),
            "v.gguf: 1 entries in tokenizer.ggml.scores and 2 in tokenizer.ggml.token_type for 2 tokens");
  EXPECT_EQ(file({0, -1}, {}),
            "v.gguf: 2 entries in tokenizer.ggml.scores and 0 in tokenizer.ggml.token_type for 2 tokens");
  EXPECT_EQ(file({0, INFINITY}, {2, 1}), "v.gguf: tokenizer.ggml.scores has a value that is not a number");
  EXPECT_EQ(file({0, -1}, {2, 7}),
            "v.gguf: token 1 is \"a\" with the type 7, expected some text and a type from 1 to 6");
  EXPECT_EQ(file({0, -1}, {2, 6}), "v.gguf: the piece \"a\" is marked as a byte");
}

// Inputs that a fuzzer found worth keeping: an Error or a tokenizer, nothing else.
TEST(GgufVocabulary, TakesOrRefusesEveryFuzzedInput) {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOCKSTEP_FUZZ_CORPUS "/gguf")) {
    ++files;
    try {
      static_cast<void>(read(read_file(entry.path())).to_json());
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("v.gguf: ")) << entry.path();
    }
  }
  EXPECT_GT(files, 0U);
}

}  // namespace
}  // namespace lockstep
