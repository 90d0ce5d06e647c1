// llama.cpp's texts for GPT-2's vocabulary, with the ids that they must have. LOCKSTEP_SHARED_DATA names the folder.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <sstream>

#include "base/file.h"
#include "data/text/encoder.h"

namespace lockstep {
namespace {

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end = text.find(separator); end != std::string::npos; end = text.find(separator, begin)) {
    parts.push_back(text.substr(begin, end - begin));
    begin = end + separator.size();
  }
  parts.push_back(text.substr(begin));
  return parts;
}

TEST(Gpt2Vocabulary, GivesLlamaCppsIdsForAllOfItsTexts) {
  const char* const folder = std::getenv("LOCKSTEP_SHARED_DATA");
  if (folder == nullptr) {
    GTEST_SKIP() << "LOCKSTEP_SHARED_DATA is not set";
  }
  const std::string vocabulary = (std::filesystem::path(folder) / "ggml-vocab-gpt-2.gguf").string();
  const Tokenizer from_gguf = Tokenizer::load(vocabulary);
  const Tokenizer from_json = Tokenizer::from_json(from_gguf.to_json(), "written");
  EXPECT_EQ(from_gguf.vocab_size(), 50257U);
  EXPECT_EQ(from_gguf.end_of_text(), 50256U);
  EXPECT_EQ(from_json.fingerprint(), from_gguf.fingerprint());

  // The separator ends the last text too, as the line break does the last line.
  auto texts = split(read_file(vocabulary + ".inp"), "\n__ggml_vocab_test__\n");
  auto lines = split(read_file(vocabulary + ".out"), "\n");
  texts.pop_back();
  lines.pop_back();
  ASSERT_EQ(texts.size(), 46U);
  ASSERT_EQ(lines.size(), 46U);
  for (const Tokenizer& tokenizer : {from_gguf, from_json}) {
    Encoder encoder(tokenizer);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      std::istringstream line(lines[i]);
      const std::vector<std::uint32_t> expected{std::istream_iterator<std::uint32_t>(line), {}};
      std::vector<std::uint32_t> ids;
      encoder.encode(texts[i], ids);
      EXPECT_EQ(ids, expected) << texts[i];
      EXPECT_EQ(tokenizer.decode(ids), texts[i]);
    }
  }
}

}  // namespace
}  // namespace lockstep
