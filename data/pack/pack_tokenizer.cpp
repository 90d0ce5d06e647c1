// The tokenizer of a pack run: of bytes, of a file, or trained on the corpus; and the template of its conversations.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "data/chat/own_template.h"
#include "data/pack/pack_impl.h"
#include "data/pack/together.h"
#include "data/pack/word_counter.h"
#include "data/text/bpe_trainer.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// The tokenizer of a file, with the end of text that is asked for.
Tokenizer load_file(const PackOptions& options) {
  std::error_code error;
  const fs::file_status status = fs::status(options.tokenizer, error);
  require(status.type() != fs::file_type::not_found,
          "--tokenizer {}: no such file; expected bytes, bpe:SIZE, or a tokenizer.json, tokenizer.model or GGUF file",
          options.tokenizer);
  const fs::path file = Tokenizer::file_of(options.tokenizer);
  if (!error && ::access(file.c_str(), R_OK) != 0) {
    error.assign(errno, std::generic_category());
  }
  require(!error, "--tokenizer: cannot read {}: {}", file.string(), error.message());
  Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  if (options.end_of_text.empty()) {
    require(tokenizer.end_of_text().has_value(),
            "the tokenizer {} names no end-of-text token to put between documents; choose one of its added tokens with "
            "--end-of-text",
            options.tokenizer);
    return tokenizer;
  }
  const auto id = tokenizer.added_token(options.end_of_text);
  require(id.has_value(), "--end-of-text {}: the tokenizer {} has no such added token", in_quotes(options.end_of_text),
          options.tokenizer);
  return tokenizer.with_end_of_text(*id);
}

bool has_own_template(const PackOptions& options) { return options.chat_template == kOwnTemplateName; }

// Of the folder in which the tokenizer lies.
OwnTemplate find_own_template(const PackOptions& options) {
  const fs::path tokenizer = options.tokenizer;
  const fs::path folder = fs::is_directory(tokenizer) ? tokenizer : fs::absolute(tokenizer).parent_path();
  const bool is_file = options.tokenizer != "bytes";
  std::optional<OwnTemplate> found = is_file ? OwnTemplate::find(folder) : std::nullopt;
  require(found.has_value(),
          "--template {}: no chat template lies beside the tokenizer {}; expected chat_template.jinja, or "
          "\"chat_template\" in tokenizer_config.json",
          kOwnTemplateName, options.tokenizer);
  return *found;
}

}  // namespace

// Rank 0 reads the file for all. A tokenizer.json cannot say what ends a text, so that goes before it, in a line.
void PackRun::load_tokenizer() {
  if (options_.tokenizer == "bytes") {
    set_tokenizer(Tokenizer::bytes());
  } else if (!bpe_size_of(options_.tokenizer)) {
    const std::string answer = on_first_rank(peers_, [&] {
      const Tokenizer tokenizer = load_file(options_);
      return fmt::format("{}\n{}", tokenizer.end_of_text().value(), tokenizer.to_json());
    });
    const std::string json = answer.substr(answer.find('\n') + 1);
    set_tokenizer(Tokenizer::from_json(json, fs::path(options_.tokenizer).filename().string())
                      .with_end_of_text(static_cast<std::uint32_t>(std::stoul(answer))));
  }
}

void PackRun::set_tokenizer(Tokenizer tokenizer) {
  end_of_text_ = tokenizer.end_of_text().value();
  if (has_conversations(options_.format)) {
    const TrainedTurns turns = options_.format == PackFormat::kPairs ? TrainedTurns::kLast : options_.trained_turns;
    if (has_own_template(options_)) {
      own_template_ = on_first_rank(peers_, [&] { return find_own_template(options_).to_json(); });
      chat_.emplace(OwnTemplate::from_json(own_template_, options_.tokenizer).value(), tokenizer, turns);
    } else {
      chat_.emplace(ChatTemplate::named(options_.chat_template), tokenizer, turns);
    }
  }
  tokenizer_ = std::move(tokenizer);
}

// Nothing when stopped; the counts are rank 0's.
std::optional<WordCounts> PackRun::count_corpus() {
  const double share =
      std::min(1.0, static_cast<double>(options_.bpe_sample_mib * kMiB) / static_cast<double>(plan_.bytes));
  const auto world = static_cast<std::size_t>(peers_.world);
  WordCounts all;
  std::uint64_t done_bytes = 0;
  report("count words", done_bytes);
  for (std::size_t first = 0; first < plan_.units.size(); first += world) {
    const std::size_t mine = first + static_cast<std::size_t>(peers_.rank);
    std::string counts;
    const auto results = gather_together(peers_, [&] {
      if (mine < plan_.units.size()) {
        const Unit& unit = plan_.units[mine];
        const auto max_bytes = static_cast<std::uint64_t>(static_cast<double>(unit.bytes) * share) + 1;
        counts = count_words(plan_, unit, reader_options(), max_bytes, hooks_.stop_requested).serialize();
      }
      return std::string(hooks_.stop_requested() ? kStopped : "");
    });
    if (std::find(results.begin(), results.end(), kStopped) != results.end()) {
      return std::nullopt;
    }
    // In the order of the units: what a full table forgets depends on it.
    for (std::size_t unit = first; unit < std::min(first + world, plan_.units.size()); ++unit) {
      const std::string bytes = peers_.broadcast(counts, static_cast<int>(unit - first));
      if (peers_.rank == 0) {
        all.merge(WordCounts::deserialize(bytes, "word counts of another rank"));
      }
      done_bytes += plan_.units[unit].bytes;
    }
    report("count words", done_bytes);
  }
  return all;
}

// Returns false when stopped.
bool PackRun::train_tokenizer(const WorkFolder& work) {
  if (tokenizer_) {
    return true;
  }
  const fs::path path = work.folder() / kTrainedName;
  std::string json = on_first_rank(peers_, [&] { return fs::exists(path) ? read_file(path) : std::string(); });
  if (json.empty()) {
    const std::optional<WordCounts> counts = count_corpus();
    if (!counts) {
      return false;
    }
    json = on_first_rank(peers_, [&] {
      hooks_.message(fmt::format("training {} on {} different words", options_.tokenizer, counts->distinct()));
      if (counts->forgotten() > 0) {
        hooks_.message(
            fmt::format("{} occurrences of rare words were left out: more different words than the table holds",
                        counts->forgotten()));
      }
      BpeTrainerOptions trainer;
      trainer.vocab_size = *bpe_size_of(options_.tokenizer);
      const Tokenizer trained = train_bpe(*counts, trainer);
      if (trained.vocab_size() < trainer.vocab_size) {
        hooks_.message(
            fmt::format("the corpus gives only {} tokens, not {}", trained.vocab_size(), trainer.vocab_size));
      }
      write_file_atomic(path, trained.to_json());
      return trained.to_json();
    });
  }
  set_tokenizer(Tokenizer::from_json(json, options_.tokenizer));
  return true;
}

}  // namespace lockstep
