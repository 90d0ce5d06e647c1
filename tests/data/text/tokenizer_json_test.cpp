#include "data/text/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "tests/data/text/golden_text.h"

namespace lockstep {
namespace {

using nlohmann::json;

// A folder that goes when the test ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lockstep-text-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

std::string message_of(const std::string& text, ErrorCode expected) {
  try {
    static_cast<void>(Tokenizer::from_json(text, "t.json"));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
    return error.what();
  }
  return "no error";
}

// The byte tokenizer's document with some merges, to be spoilt.
json small_document() {
  json document = json::parse(Tokenizer::bytes().to_json());
  document["model"]["vocab"]["ab"] = 257;
  document["model"]["vocab"]["abc"] = 258;
  document["model"]["merges"] = {"a b", "ab c"};
  return document;
}

struct BadDocument {
  const char* name;
  const char* patch;  // RFC 7396, applied to small_document()
  ErrorCode code;
  const char* message;
};

class BadTokenizerJsonTest : public testing::TestWithParam<BadDocument> {};

TEST_P(BadTokenizerJsonTest, IsAnErrorThatNamesFilePlaceAndExpectation) {
  json document = small_document();
  document.merge_patch(json::parse(GetParam().patch));
  EXPECT_EQ(message_of(document.dump(), GetParam().code), GetParam().message);
}

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

INSTANTIATE_TEST_SUITE_P(
    Contradictions, BadTokenizerJsonTest,
    testing::Values(
        BadDocument{"NoModel", R"({"model": null})", kCorrupt,
                    "t.json: model is missing, expected an object: is this a tokenizer.json?"},
        BadDocument{"ModelIsAList", R"({"model": [1]})", kCorrupt,
                    "t.json: model is an array of 1, expected an object"},
        BadDocument{"NoVocabulary", R"({"model": {"vocab": null}})", kCorrupt,
                    "t.json: model.vocab is missing, expected an object of tokens and their ids"},
        BadDocument{"VocabularyIsAList", R"({"model": {"vocab": ["a"]}})", kCorrupt,
                    "t.json: model.vocab is an array of 1, expected an object of tokens and their ids"},
        BadDocument{"IdIsText", R"({"model": {"vocab": {"ab": "1"}}})", kCorrupt,
                    "t.json: model.vocab[\"ab\"] is \"1\", expected an integer from 0 to 2097151"},
        BadDocument{"IdIsNegative", R"({"model": {"vocab": {"ab": -1}}})", kCorrupt,
                    "t.json: model.vocab[\"ab\"] is -1, expected an integer from 0 to 2097151"},
        BadDocument{"IdIsHuge", R"({"model": {"vocab": {"ab": 4294967296}}})", kCorrupt,
                    "t.json: model.vocab[\"ab\"] is 4294967296, expected an integer from 0 to 2097151"},
        BadDocument{"IdIsAFraction", R"({"model": {"vocab": {"ab": 1.5}}})", kCorrupt,
                    "t.json: model.vocab[\"ab\"] is 1.5, expected an integer from 0 to 2097151"},
        BadDocument{"IdTwice", R"({"model": {"vocab": {"ab": 97}}})", kCorrupt,
                    "t.json: \"a\" and \"ab\" both have the id 97"},
        BadDocument{"NoMerges", R"({"model": {"merges": null}})", kCorrupt,
                    "t.json: model.merges is missing, expected an array"},
        BadDocument{"MergeIsANumber", R"({"model": {"merges": ["a b", 7]}})", kCorrupt,
                    "t.json: model.merges[1] is 7, expected two tokens"},
        BadDocument{"MergeOfThree", R"({"model": {"merges": [["a", "b", "c"]]}})", kCorrupt,
                    "t.json: model.merges[0] is an array of 3, expected two tokens"},
        BadDocument{"MergeWithoutSpace", R"({"model": {"merges": ["ab"]}})", kCorrupt,
                    "t.json: model.merges[0] is \"ab\", expected two tokens with a space between"},
        BadDocument{"MergeOfUnknownLeft", R"({"model": {"merges": ["a b", "xy c"]}})", kCorrupt,
                    "t.json: merge 1 (\"xy\" with \"c\"): the left token \"xy\" is not in the vocabulary"},
        BadDocument{"MergeOfUnknownRight", R"({"model": {"merges": [["a", "xy"]]}})", kCorrupt,
                    "t.json: merge 0 (\"a\" with \"xy\"): the right token \"xy\" is not in the vocabulary"},
        BadDocument{"MergeIntoUnknown", R"({"model": {"merges": ["b a"]}})", kCorrupt,
                    "t.json: merge 0 (\"b\" with \"a\"): their result \"ba\" is not in the vocabulary"},
        BadDocument{"AddedTokenWithoutText", R"({"added_tokens": [{"id": 300}]})", kCorrupt,
                    "t.json: added_tokens[0].content is missing, expected a string"},
        BadDocument{"AddedTokenWithoutId", R"({"added_tokens": [{"content": "<x>"}]})", kCorrupt,
                    "t.json: added_tokens[0].id is missing, expected an integer from 0 to 2097151"},
        BadDocument{"AddedTokenIsEmpty", R"({"added_tokens": [{"id": 300, "content": ""}]})", kCorrupt,
                    "t.json: the added token 300 is empty"},
        BadDocument{"AddedTokenTakesAnId", R"({"added_tokens": [{"id": 97, "content": "<x>"}]})", kCorrupt,
                    "t.json: \"a\" and \"<x>\" both have the id 97"},
        BadDocument{"AddedTokenHasTwoIds", R"({"added_tokens": [{"id": 300, "content": "ab"}]})", kCorrupt,
                    "t.json: the added token \"ab\" has the id 300, but 257 in model.vocab"},
        BadDocument{"SpecialIsANumber", R"({"added_tokens": [{"id": 300, "content": "<x>", "special": 1}]})", kCorrupt,
                    "t.json: added_tokens[0].special is 1, expected true or false"},
        BadDocument{"NormalizerWithoutType", R"({"normalizer": {}})", kCorrupt,
                    "t.json: normalizer.type is missing, expected a string"},
        BadDocument{"SplitWithoutPattern", R"({"pre_tokenizer": {"type": "Split"}})", kCorrupt,
                    "t.json: pre_tokenizer.pattern is missing, expected an object"},
        BadDocument{"SplitByNothing", R"({"pre_tokenizer": {"type": "Split", "pattern": {"String": ""}}})", kCorrupt,
                    "t.json: pre_tokenizer.pattern is an object of 1, expected a pattern that is not empty"}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(
    UnknownComponents, BadTokenizerJsonTest,
    testing::Values(
        BadDocument{"Unigram", R"({"model": {"type": "Unigram"}})", kUnsupported,
                    "t.json: model.type is \"Unigram\", which is not supported; known is BPE"},
        BadDocument{"ByteFallback", R"({"model": {"byte_fallback": true}})", kUnsupported,
                    "t.json: model.byte_fallback is true, which is not supported; only byte-level BPE, which needs no "
                    "fallback, and SentencePiece's are"},
        BadDocument{
            "Dropout", R"({"model": {"dropout": 0.1}})", kUnsupported,
            "t.json: model.dropout is 0.1, which is not supported; only none is: encoding has to be repeatable"},
        BadDocument{"Suffix", R"({"model": {"end_of_word_suffix": "</w>"}})", kUnsupported,
                    "t.json: model.end_of_word_suffix is \"</w>\", which is not supported; only none is"},
        BadDocument{"Lowercase", R"({"normalizer": {"type": "Lowercase"}})", kUnsupported,
                    "t.json: normalizer.type is \"Lowercase\", which is not supported; known are NFC and Sequence"},
        BadDocument{
            "SequenceOfNormalizers", R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}})",
            kUnsupported,
            "t.json: normalizer.normalizers[0].type is \"NFKC\", which is not supported; known in a sequence is "
            "NFC"},
        BadDocument{"NoPreTokenizer", R"({"pre_tokenizer": null})", kUnsupported,
                    "t.json: pre_tokenizer is missing, which is not supported; only byte-level BPE is: one with the "
                    "component ByteLevel"},
        BadDocument{"Whitespace", R"({"pre_tokenizer": {"type": "Whitespace"}})", kUnsupported,
                    "t.json: pre_tokenizer.type is \"Whitespace\", which is not supported; known are Sequence, Split, "
                    "Digits and ByteLevel"},
        BadDocument{
            "PrefixSpace", R"({"pre_tokenizer": {"add_prefix_space": true}})", kUnsupported,
            "t.json: pre_tokenizer.add_prefix_space is true, which is not supported; only false is: decoding has "
            "to give the text back"},
        BadDocument{
            "NothingAfterByteLevel",
            R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                        {"type": "ByteLevel", "add_prefix_space": false}, {"type": "Digits"}]}})",
            kUnsupported,
            "t.json: pre_tokenizer.pretokenizers[1] is an object of 1, which is not supported; nothing can follow "
            "ByteLevel"},
        BadDocument{
            "NoByteLevel", R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}})",
            kUnsupported,
            "t.json: pre_tokenizer is an object of 5, which is not supported; only byte-level BPE is: ByteLevel has "
            "to be the last component"},
        BadDocument{"RemovedText",
                    R"({"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"}})",
                    kUnsupported,
                    "t.json: pre_tokenizer.behavior is \"Removed\", which is not supported; known are Isolated, "
                    "MergedWithPrevious, MergedWithNext, Contiguous, and Removed if inverted"},
        BadDocument{"Decoder", R"({"decoder": {"type": "WordPiece"}})", kUnsupported,
                    "t.json: decoder.type is \"WordPiece\", which is not supported; known is ByteLevel"},
        BadDocument{"PostProcessor", R"({"post_processor": {"type": "Magic"}})", kUnsupported,
                    "t.json: post_processor.type is \"Magic\", which is not supported; known are ByteLevel, "
                    "TemplateProcessing, RobertaProcessing and BertProcessing"},
        BadDocument{"StrippingToken", R"({"added_tokens": [{"id": 300, "content": "<x>", "lstrip": true}]})",
                    kUnsupported,
                    "t.json: added_tokens[0].lstrip is true, which is not supported; only false is (token \"<x>\")"},
        BadDocument{"ByteWithoutToken", R"({"model": {"vocab": {"!": null}}})", kUnsupported,
                    "t.json: byte 0x21 has no token; only byte-level BPE, with a token for each byte, is supported"},
        // U+00C3 and U+00A9 stand for the bytes of e with an acute accent, but as an added token for themselves.
        BadDocument{"MergeIntoOtherText",
                    R"({"model": {"vocab": {"\u00c3\u00a9": 300}, "merges": ["\u00c3 \u00a9"]},
                        "added_tokens": [{"id": 300, "content": "\u00c3\u00a9"}]})",
                    kUnsupported, "t.json: merge 0 of tokens 195 and 169 makes token 300, whose text is another"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(TokenizerJson, TakesMergesAsStringsAndAsPairs) {
  json document = small_document();
  const std::string as_strings = Tokenizer::from_json(document.dump(), "t.json").fingerprint();
  document["model"]["merges"] = json::parse(R"([["a", "b"], ["ab", "c"]])");
  const Tokenizer tokenizer = Tokenizer::from_json(document.dump(), "t.json");
  EXPECT_EQ(tokenizer.fingerprint(), as_strings);
  EXPECT_EQ(encoded(tokenizer, "abcab"), (std::vector<std::uint32_t>{258, 257}));
}

TEST(TokenizerJson, LetsAPieceThatIsATokenBeThatTokenWhenMergesAreIgnored) {
  json document = small_document();
  document["model"]["merges"] = {"a b"};
  EXPECT_EQ(encoded(Tokenizer::from_json(document.dump(), "t.json"), "abc"), (std::vector<std::uint32_t>{257, 'c'}));
  document["model"]["ignore_merges"] = true;
  EXPECT_EQ(encoded(Tokenizer::from_json(document.dump(), "t.json"), "abc"), (std::vector<std::uint32_t>{258}));
}

TEST(TokenizerJson, TakesTheLongestAddedTokenAndThoseOfDataEvenInData) {
  json document = small_document();
  document["added_tokens"] = json::parse(R"([
    {"id": 300, "content": "<a>", "special": true, "normalized": false},
    {"id": 301, "content": "<a>b", "special": true, "normalized": false},
    {"id": 302, "content": "<c>", "special": false, "normalized": false}])");
  const Tokenizer tokenizer = Tokenizer::from_json(document.dump(), "t.json");
  EXPECT_EQ(encoded(tokenizer, "<a><a>b<c>", SpecialTokens::kRecognized), (std::vector<std::uint32_t>{300, 301, 302}));
  EXPECT_EQ(encoded(tokenizer, "<a><c>"), (std::vector<std::uint32_t>{'<', 'a', '>', 302}));
  EXPECT_FALSE(tokenizer.has_token(299)) << "a hole";
  EXPECT_EQ(tokenizer.vocab_size(), 303U);
}

TEST(TokenizerJson, NamesThePlaceWhereItIsCutOff) {
  const std::string text = small_document().dump();
  EXPECT_EQ(message_of(text.substr(0, 1000), kCorrupt), "t.json: not valid JSON at byte 1001 of 1000");
  for (std::size_t length = 0; length < text.size(); length += 7) {
    EXPECT_THAT(message_of(text.substr(0, length), kCorrupt), testing::StartsWith("t.json: not valid JSON at byte "));
  }
}

TEST(TokenizerJson, RefusesWhatIsNotATokenizer) {
  EXPECT_EQ(message_of("[]", kCorrupt), "t.json: the document is an array of 0, expected an object");
  EXPECT_EQ(message_of("{}", kCorrupt), "t.json: model is missing, expected an object: is this a tokenizer.json?");
  EXPECT_EQ(message_of("{\"a\": 1e999}", kCorrupt), "t.json: not valid JSON: a number is out of range");
  EXPECT_EQ(message_of("{\"a\xFF\": 1}", kCorrupt), "t.json: not valid JSON at byte 4 of 9");
}

TEST(TokenizerJson, RefusesATokenThatStandsTwice) {
  std::string text = small_document().dump();
  text.insert(text.find("\"vocab\":{") + 9, "\"ab\":999,");
  EXPECT_EQ(message_of(text, kCorrupt), "t.json: the key \"ab\" stands twice in one object");
}

TEST(TokenizerJson, SurvivesDeepNesting) {
  const std::string text = "{\"normalizer\": " + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  EXPECT_EQ(message_of(text, kCorrupt), "t.json: model is missing, expected an object: is this a tokenizer.json?");
}

TEST(LoadTokenizer, TellsAFileByItsContentAndTakesAFolder) {
  const TemporaryFolder folder;
  write_file_atomic(folder.path / "tokenizer.json", "\n " + small_document().dump());
  const Tokenizer from_folder = Tokenizer::load(folder.path);
  EXPECT_EQ(from_folder.name(), "tokenizer.json");
  EXPECT_EQ(from_folder.fingerprint(), Tokenizer::load(folder.path / "tokenizer.json").fingerprint());

  const auto other = folder.path / "other";
  for (const char* const content : {"", "  ", "hello", "GGU"}) {
    write_file_atomic(other, content);
    try {
      static_cast<void>(Tokenizer::load(other));
      FAIL() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), kCorrupt);
      EXPECT_EQ(error.what(), other.string() +
                                  ": neither a tokenizer.json (which starts with an open brace) nor a GGUF file (which "
                                  "starts with GGUF) nor a SentencePiece model (which starts with the byte 0x0A)");
    }
  }
}

TEST(LoadTokenizer, NamesAFileThatIsNotThere) {
  try {
    static_cast<void>(Tokenizer::load("/nowhere/tokenizer.json"));
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_THAT(error.what(), testing::HasSubstr("/nowhere/tokenizer.json"));
  }
}

// Inputs that a fuzzer found worth keeping: an Error or a tokenizer, nothing else.
TEST(TokenizerJson, TakesOrRefusesEveryFuzzedInput) {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOCKSTEP_FUZZ_CORPUS "/tokenizer_json")) {
    ++files;
    const std::string text = read_file(entry.path());
    try {
      const Tokenizer tokenizer = Tokenizer::from_json(text, "fuzzed");
      const Tokenizer again = Tokenizer::from_json(tokenizer.to_json(), "fuzzed");
      EXPECT_EQ(again.fingerprint(), tokenizer.fingerprint()) << entry.path();
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("fuzzed: ")) << entry.path();
    }
  }
  EXPECT_GT(files, 0U);
}

}  // namespace
}  // namespace lockstep
