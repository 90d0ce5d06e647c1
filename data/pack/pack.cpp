#include "data/pack/pack.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/writable_folder.h"
#include "data/dataset.h"
#include "data/pack/document_reader.h"
#include "data/pack/plan.h"
#include "data/pack/together.h"
#include "data/pack/unit_packer.h"
#include "data/pack/word_counter.h"
#include "data/pack/work_folder.h"
#include "data/text/bpe_trainer.h"
#include "data/text/encoder.h"
#include "data/text/tokenizer.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::string_view kBpePrefix = "bpe:";
constexpr const char* kTrainedName = "tokenizer.json";  // in the work folder: the vocabulary of bpe:SIZE
constexpr const char* kStopped = "stop";                // a rank's result of a round in which it was asked to stop

// SIZE of "bpe:SIZE"; nothing for other tokenizers.
std::optional<std::uint32_t> bpe_size_of(const std::string& tokenizer) {
  if (!tokenizer.starts_with(kBpePrefix)) {
    return std::nullopt;
  }
  const std::string digits = tokenizer.substr(kBpePrefix.size());
  std::uint32_t size = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
  require(error == std::errc() && end == digits.data() + digits.size() && size >= 257 && size <= (1U << 24),
          "--tokenizer {}: expected bpe:SIZE with a size from 257 to 16777216", tokenizer);
  return size;
}

void require_mib(std::string_view option, std::uint64_t mib) {
  constexpr std::uint64_t kMaxMib = std::uint64_t{1} << 20;
  require(mib >= 1 && mib <= kMaxMib, "{} is {}, expected 1 to {} MiB", option, mib, kMaxMib);
}

void check_options(const PackOptions& options) {
  require(!options.tokenizer.empty(),
          "no --tokenizer given: bytes, bpe:SIZE, or a tokenizer.json, tokenizer.model or GGUF file");
  require(!options.out.empty(), "no --out given");
  require_mib("--memory", options.memory_mib);
  require_mib("--shard-mib", options.shard_mib);
  require_mib("--bpe-sample-mib", options.bpe_sample_mib);
  require(options.format != PackFormat::kTokens || !bpe_size_of(options.tokenizer),
          "--format tokens needs the tokenizer that made the tokens, not {}", options.tokenizer);
  require(options.end_of_text.empty() || (options.tokenizer != "bytes" && !bpe_size_of(options.tokenizer)),
          "--end-of-text is for a tokenizer that is read from a file, not for {}", options.tokenizer);
  static_cast<void>(checked_shares(options.split));
  const bool is_chat = has_conversations(options.format);
  require(!is_chat || !options.chat_template.empty(), "--format {} needs a --template: {}, or {}, the model's",
          name_of(options.format), fmt::join(ChatTemplate::names(), ", "), kOwnTemplateName);
  require(is_chat || options.chat_sources.empty(),
          "--dataset and --weights are for --format chat or pairs, --max-samples for those and jsonl");
  require(options.most == 0 || options.format == PackFormat::kJsonl,
          "--max-samples is for --format jsonl, chat or pairs");
  for (const ChatSource& source : options.chat_sources) {
    require(source.weight > 0 && source.weight <= 1000, "--weights holds {}, expected numbers above 0, at most 1000",
            source.weight);
  }
  require(is_chat || (options.chat_template.empty() && options.max_tokens == 0),
          "--template and --max-tokens are for --format chat or pairs");
  require(!is_chat || !bpe_size_of(options.tokenizer),
          "--format {} needs the tokenizer of the model that is to be trained, not {}", name_of(options.format),
          options.tokenizer);
  for (const ChatSource& source : options.chat_sources) {
    require(source.format.is_pairs == (options.format == PackFormat::kPairs), "--format is {}, and a dataset holds {}",
            name_of(options.format),
            source.format.is_pairs ? "pairs of answers (ranking)" : "conversations without a second answer");
  }
  require(!options.drop_long || options.max_tokens > 0, "--drop-long needs --max-tokens");
}

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

// All that makes a difference to what is packed.
std::string description_of(const ChatSource& source) {
  const ChatFormat& format = source.format;
  return fmt::format(
      "{} most, weight {}, form {}, {}", source.most, source.weight, static_cast<int>(format.form),
      fmt::join({format.prompt, format.query, format.response, format.history, format.messages, format.role,
                 format.content, format.user, format.assistant, format.observation, format.function, format.system_role,
                 format.system, format.tools, format.chosen, format.rejected},
                " "));
}

// The run on one rank, stage by stage. Every rank makes the same calls in the same order.
class PackRun {
 public:
  PackRun(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks)
      : options_(options), peers_(peers), hooks_(hooks), shares_(checked_shares(options.split)) {}

  PackResult run() {
    find_files();
    load_tokenizer();
    make_the_plan();
    WorkFolder work(options_.out, settings(), shares_);
    if (is_complete(work)) {
      PackResult result = published(work);
      result.was_complete = true;
      return result;
    }
    begin(work);
    bool is_packed = false;
    try {
      check_room(work);
      is_packed = train_tokenizer(work) && pack_units(work);
      if (is_packed) {
        publish(work);
      }
    } catch (const Error& error) {
      // The input or the options will have to change, so nothing of this can be used again.
      const bool is_final = error.code() == ErrorCode::kUsage || error.code() == ErrorCode::kCorrupt ||
                            error.code() == ErrorCode::kUnsupported;
      if (peers_.rank == 0 && is_final) {
        work.discard();
      }
      throw;
    }
    if (!is_packed) {
      PackResult stopped;
      stopped.was_stopped = true;
      return stopped;
    }
    return published(work);
  }

 private:
  void find_files();
  void load_tokenizer();
  void make_the_plan();
  [[nodiscard]] PackSettings settings() const;
  [[nodiscard]] bool is_complete(const WorkFolder& work) const;
  void begin(WorkFolder& work);
  void check_room(const WorkFolder& work) const;
  [[nodiscard]] std::uint64_t least_shard_bytes(std::uint64_t input_bytes) const;
  [[nodiscard]] bool train_tokenizer(const WorkFolder& work);
  [[nodiscard]] std::optional<WordCounts> count_corpus();
  [[nodiscard]] bool pack_units(const WorkFolder& work);
  void take_records(const std::vector<std::string>& records);
  void publish(WorkFolder& work);
  [[nodiscard]] PackResult published(const WorkFolder& work) const;

  void report(std::string_view stage, std::uint64_t done_bytes) const {
    if (peers_.rank == 0) {
      hooks_.progress(stage, done_bytes, plan_.bytes);
    }
  }
  void set_tokenizer(Tokenizer tokenizer);
  [[nodiscard]] ReaderOptions reader_options() const {
    return {options_.field, options_.memory_mib * kMiB, end_of_text_, tokenizer_ ? tokenizer_->vocab_size() : 0};
  }

  const PackOptions& options_;
  const PackPeers& peers_;
  const PackHooks& hooks_;
  Shares shares_;
  std::vector<InputFile> files_;
  std::string input_fingerprint_;
  std::optional<Tokenizer> tokenizer_;  // empty until a bpe:SIZE is trained
  std::uint32_t end_of_text_ = 0;
  std::string own_template_;  // OwnTemplate::to_json(), empty: one of ours
  std::optional<ChatEncoder> chat_;
  Plan plan_;
  std::vector<std::optional<UnitRecord>> records_;  // of finished units
};

void PackRun::find_files() {
  const auto fingerprints = gather_together(peers_, [&] {
    files_ = find_inputs(options_);
    return fingerprint_of(files_);
  });
  const auto other = std::find_if(fingerprints.begin(), fingerprints.end(),
                                  [&](const std::string& f) { return f != fingerprints.front(); });
  require(other == fingerprints.end(),
          "rank {} sees other input files than rank 0; they must lie on a file system that all nodes share",
          other - fingerprints.begin());
  input_fingerprint_ = fingerprints.front();
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

void PackRun::make_the_plan() {
  together(peers_, [&] { plan_ = make_plan(options_, std::move(files_), end_of_text_); });
  records_.resize(plan_.units.size());
}

PackSettings PackRun::settings() const {
  PackSettings settings = {{"format", std::string(name_of(options_.format))}};
  if (options_.format == PackFormat::kJsonl) {
    settings.emplace_back("field", options_.field);
    if (options_.most > 0) {
      settings.emplace_back("most", std::to_string(options_.most));
    }
  }
  if (has_conversations(options_.format)) {
    settings.emplace_back("template", own_template_.empty()
                                          ? options_.chat_template
                                          : fmt::format("{} {}", options_.chat_template, hash_of(own_template_).hex()));
    settings.emplace_back("train-on", options_.trained_turns == TrainedTurns::kAll ? "all" : "last");
    settings.emplace_back("max-tokens",
                          fmt::format("{}{}", options_.max_tokens, options_.drop_long ? ", drop longer" : ""));
    for (std::size_t i = 0; i < options_.chat_sources.size(); ++i) {
      settings.emplace_back(fmt::format("source {}", i + 1), description_of(options_.chat_sources[i]));
    }
  }
  if (tokenizer_) {
    settings.emplace_back("tokenizer", tokenizer_->name() + " " + tokenizer_->fingerprint());
    settings.emplace_back("end-of-text", std::to_string(end_of_text_));
  } else {
    settings.emplace_back("tokenizer", fmt::format("{} on {} MiB", options_.tokenizer, options_.bpe_sample_mib));
  }
  settings.emplace_back("split", fmt::format("{},{},{}", shares_[0], shares_[1], shares_[2]));
  settings.emplace_back("seed", std::to_string(options_.seed));
  settings.emplace_back("shard-mib", std::to_string(options_.shard_mib));
  settings.emplace_back("input",
                        fmt::format("{} files of {} bytes, {}", plan_.files.size(), plan_.bytes, input_fingerprint_));
  return settings;
}

bool PackRun::is_complete(const WorkFolder& work) const {
  std::string damage;
  const std::string answer =
      on_first_rank(peers_, [&] { return std::string(work.is_complete(options_.overwrite, damage) ? "yes" : "no"); });
  if (!damage.empty()) {
    hooks_.message(fmt::format("packing again what is in {}: {}", options_.out.string(), damage));
  }
  return answer == "yes";
}

void PackRun::begin(WorkFolder& work) {
  const std::string finished = on_first_rank(peers_, [&] {
    work.begin();
    std::string lines;
    for (const UnitRecord& record : work.finished_units(plan_.units.size())) {
      lines += to_json(record);
    }
    return lines;
  });
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < finished.size();) {
    const std::size_t end = finished.find('\n', begin) + 1;
    lines.push_back(finished.substr(begin, end - begin));
    begin = end;
  }
  take_records(lines);
  if (peers_.rank == 0 && !lines.empty()) {
    hooks_.message(fmt::format("going on in {}: {} of {} parts were finished before", options_.out.string(),
                               lines.size(), plan_.units.size()));
  }
}

// What is left to pack may well turn out larger than this.
void PackRun::check_room(const WorkFolder& work) const {
  std::uint64_t left_bytes = 0;
  bool has_units = false;
  for (std::size_t unit = 0; unit < plan_.units.size(); ++unit) {
    has_units = has_units || records_[unit].has_value();
    left_bytes += records_[unit] ? 0 : plan_.units[unit].bytes;
  }
  const std::uint64_t needed = least_shard_bytes(left_bytes);
  on_first_rank(peers_, [&] {
    const std::uint64_t room = room_at(options_.out).value_or(needed);
    if (room < needed) {
      // An error of the usage would cost what is finished.
      const bool is_begun = has_units || fs::exists(work.folder() / kTrainedName);
      fail(is_begun ? ErrorCode::kNoSpace : ErrorCode::kUsage,
           "{} has room for {} MiB; {} MiB of input are left to pack and take at least {} MiB", options_.out.string(),
           room / kMiB, left_bytes / kMiB, needed / kMiB + 1);
    }
    return std::string();
  });
}

std::uint64_t PackRun::least_shard_bytes(std::uint64_t input_bytes) const {
  constexpr std::uint64_t kBytesInAToken = 32;  // more than vocabularies reach on average, whatever the script
  switch (options_.format) {
    case PackFormat::kText:
      return options_.tokenizer == "bytes" ? 2 * input_bytes : 2 * (input_bytes / kBytesInAToken);
    case PackFormat::kTokens:
      return input_bytes / 2;  // ids of 4 bytes that fit 2
    case PackFormat::kJsonl:
    case PackFormat::kChat:
    case PackFormat::kPairs:
      return 0;  // the rest of the lines may be anything
  }
  return 0;
}

void PackRun::take_records(const std::vector<std::string>& records) {
  for (const std::string& text : records) {
    if (!text.empty() && text != kStopped) {
      UnitRecord record = parse_unit_record(text, "pack");
      records_.at(record.unit) = std::move(record);
    }
  }
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

// Returns false when stopped.
bool PackRun::pack_units(const WorkFolder& work) {
  std::vector<std::size_t> left;
  std::uint64_t done_bytes = 0;
  for (std::size_t unit = 0; unit < plan_.units.size(); ++unit) {
    if (records_[unit]) {
      done_bytes += plan_.units[unit].bytes;
    } else {
      left.push_back(unit);
    }
  }
  if (left.empty()) {
    return true;
  }
  report("pack", done_bytes);
  Encoder encoder(*tokenizer_);
  const ReaderOptions reader = reader_options();
  std::optional<ChatPacking> chat;
  if (chat_) {
    chat.emplace(ChatPacking{*chat_, options_.max_tokens, options_.drop_long});
  }
  const auto world = static_cast<std::size_t>(peers_.world);
  for (std::size_t first = 0; first < left.size(); first += world) {
    const std::size_t mine = first + static_cast<std::size_t>(peers_.rank);
    const auto results = gather_together(peers_, [&]() -> std::string {
      if (mine >= left.size()) {
        return {};
      }
      UnitRecord record;
      const UnitJob job{plan_, left[mine], work.folder(), chat ? &*chat : nullptr, reader, hooks_.stop_requested};
      if (!pack_unit(job, encoder, record)) {
        return kStopped;
      }
      work.write_record(record);
      return to_json(record);
    });
    take_records(results);
    if (std::find(results.begin(), results.end(), kStopped) != results.end()) {
      return false;
    }
    for (std::size_t i = first; i < std::min(first + world, left.size()); ++i) {
      done_bytes += plan_.units[left[i]].bytes;
    }
    report("pack", done_bytes);
  }
  return true;
}

void PackRun::publish(WorkFolder& work) {
  std::vector<UnitRecord> records;
  std::array<std::uint64_t, kSplits> tokens = {};
  std::uint64_t cut = 0;
  std::uint64_t dropped = 0;
  for (const std::optional<UnitRecord>& record : records_) {
    records.push_back(record.value());
    cut += record->cut;
    dropped += record->dropped;
    for (std::size_t s = 0; s < kSplits; ++s) {
      tokens[s] += record->shards[s].tokens;
    }
  }
  require(dropped == 0 || std::ranges::any_of(tokens, [](std::uint64_t count) { return count > 0; }),
          "nothing is left: all conversations ({}) are longer than --max-tokens {}, and so cut have no answer", dropped,
          options_.max_tokens);
  for (std::size_t s = 0; s < kSplits; ++s) {
    require(shares_[s] == 0 || tokens[s] > 0, "no document fell to {} (share {}); use another --seed or --split",
            kSplitNames[s], shares_[s]);
  }
  on_first_rank(peers_, [&] {
    work.publish(records,
                 {tokenizer_->name(), tokenizer_->fingerprint(), tokenizer_->vocab_size(), std::int64_t{end_of_text_}},
                 {.tokenizer_json = tokenizer_->to_json(),
                  .kind = dataset_kind(options_.format),
                  .chat_template = options_.chat_template,
                  .own_template = own_template_});
    if (cut + dropped > 0) {
      hooks_.message(fmt::format("too long: {} cut to {} tokens, {} left out", cut, options_.max_tokens, dropped));
    }
    return std::string();
  });
}

PackResult PackRun::published(const WorkFolder& work) const {
  PackResult result;
  for (std::size_t s = 0; s < kSplits; ++s) {
    if (shares_[s] == 0) {
      continue;
    }
    const fs::path path = work.split_folder(s) / "dataset.json";
    const std::string json = on_first_rank(peers_, [&] { return read_file(path); });
    const DatasetInfo info = parse_dataset_json(json, path.string());
    result.splits.push_back({.name = std::string(kSplitNames[s]),
                             .folder = work.split_folder(s),
                             .kind = info.kind,
                             .tokens = info.tokens,
                             .documents = info.documents,
                             .files = info.files.size()});
  }
  return result;
}

}  // namespace

PackFormat parse_pack_format(std::string_view name) {
  for (const PackFormat format :
       {PackFormat::kText, PackFormat::kJsonl, PackFormat::kTokens, PackFormat::kChat, PackFormat::kPairs}) {
    if (name == name_of(format)) {
      return format;
    }
  }
  fail(ErrorCode::kUsage, "--format is {}, expected text, jsonl, tokens, chat or pairs", name);
}

std::string_view name_of(PackFormat format) {
  switch (format) {
    case PackFormat::kText:
      return "text";
    case PackFormat::kJsonl:
      return "jsonl";
    case PackFormat::kTokens:
      return "tokens";
    case PackFormat::kChat:
      return "chat";
    case PackFormat::kPairs:
      return "pairs";
  }
  return "";
}

DatasetKind dataset_kind(PackFormat format) {
  switch (format) {
    case PackFormat::kText:
    case PackFormat::kJsonl:
    case PackFormat::kTokens:
      return DatasetKind::kText;
    case PackFormat::kChat:
      return DatasetKind::kChat;
    case PackFormat::kPairs:
      return DatasetKind::kPairs;
  }
  return DatasetKind::kText;
}

std::string PackedSplit::contents() const {
  switch (kind) {
    case DatasetKind::kText:
      return fmt::format("{} documents", documents);
    case DatasetKind::kChat:
      return fmt::format("{} conversations", documents);
    case DatasetKind::kPairs:
      return fmt::format("{} pairs", documents / 2);
  }
  return {};
}

PackResult pack(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks) {
  check_options(options);
  return PackRun(options, peers, hooks).run();
}

}  // namespace lockstep
