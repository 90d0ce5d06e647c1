// What tests/golden/text/check_written_tokenizer.py asks of our side:
//   tokenizer_program write TOKENIZER OUT        TOKENIZER ("bytes" or a file) as a tokenizer.json
//   tokenizer_program train CORPUS SIZE OUT      a vocabulary trained on a file, as a tokenizer.json
//   tokenizer_program encode TOKENIZER [special] reads a JSON list of texts, prints a JSON list of ids for each
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/text/bpe_trainer.h"
#include "data/text/encoder.h"

namespace lockstep {
namespace {

Tokenizer open(const std::string& what) { return what == "bytes" ? Tokenizer::bytes() : Tokenizer::load(what); }

void write(const Tokenizer& tokenizer, const std::string& path) {
  write_file_atomic(path, tokenizer.to_json());
  std::cout << tokenizer.fingerprint() << '\n';
}

void encode(const Tokenizer& tokenizer, SpecialTokens special_tokens) {
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  Encoder encoder(tokenizer);
  for (const auto& text : nlohmann::json::parse(input)) {
    std::vector<std::uint32_t> ids;
    encoder.encode(text.get<std::string>(), ids, special_tokens);
    std::cout << nlohmann::json(ids).dump() << '\n';
  }
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() == 3 && arguments[0] == "write") {
    write(open(arguments[1]), arguments[2]);
  } else if (arguments.size() == 4 && arguments[0] == "train") {
    WordCounts counts;
    counts.add(read_file(arguments[1]));
    write(train_bpe(counts, {.vocab_size = static_cast<std::uint32_t>(std::stoul(arguments[2])), .on_progress = {}}),
          arguments[3]);
  } else if (arguments.size() >= 2 && arguments[0] == "encode") {
    encode(open(arguments[1]), arguments.size() > 2 ? SpecialTokens::kRecognized : SpecialTokens::kAsText);
  } else {
    std::cerr << "see the head of tokenizer_program.cpp\n";
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  try {
    return lockstep::run({argv + 1, argv + argc});
  } catch (const lockstep::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
