// lockstep verify: what exports have lost of the model that they were made of.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "comm/self_communicator.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/commands/model_options.h"
#include "launcher/output.h"
#include "trainer/compare_logits.h"
#include "trainer/device.h"
#include "trainer/formats/gguf_file.h"
#include "trainer/formats/hf_weights.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kOwnText =
    "The lighthouse keeper wrote three lines every evening: the wind, the height of the sea, and one thing that had "
    "surprised her. On the 14th of March 1926 it was a letter. \"Dear Ada,\" it began, \"do you still count the "
    "ships?\" She did not answer at once; she trimmed the lamp, boiled water for tea, and went up the 212 steps "
    "again.\n\n"
    "From there one could see both harbours. If n ships leave each of them every hour and none comes back, she "
    "thought, then after t hours 2 * n * t are at sea - unless it rains, in which case nobody leaves at all.\n\n"
    "int at_sea(int n, int t, bool rains) {\n  return rains ? 0 : 2 * n * t;\n}\n\n"
    "Why does a light that turns seem to stand still from far away? Because the beam, sweeping across the water, "
    "reaches every ship for only a moment, and between two moments there is nothing but the dark, which looks the same "
    "from everywhere. In the morning she wrote her answer on the back of the envelope: \"Yes. Yesterday there were "
    "nine, and one of them was yours.\"\n";

struct Options {
  ModelOptions model;
  std::vector<std::string> exports;
  std::string text;
  std::string data;
  std::int64_t sequence = 0;
  std::int64_t tokens = 512;
  std::optional<double> max_kl;
  bool json = false;
};

// Where weights lie, and as what.
struct WeightFacts {
  std::string kind;
  std::string type;  // of most of the bytes
  std::uint64_t bytes = 0;
};

std::string largest_of(const std::map<std::string, std::uint64_t>& bytes_by_type) {
  const auto found = std::ranges::max_element(bytes_by_type, {}, [](const auto& entry) { return entry.second; });
  return found == bytes_by_type.end() ? "" : found->first;
}

WeightFacts facts_of(const ModelSource& source) {
  std::map<std::string, std::uint64_t> bytes_by_type;
  if (source.is_gguf && !source.tuned) {
    const GgufFile file(source.folder);
    for (const GgufFileTensor& tensor : file.tensors()) {
      bytes_by_type[std::string(tensor.type.name)] += tensor.bytes;
    }
    return {"gguf", largest_of(bytes_by_type), fs::file_size(source.folder)};
  }
  WeightFacts facts;
  facts.kind = source.tuned ? "adapter" : fs::exists(source.folder / kManifestName) ? "checkpoint" : "safetensors";
  for (const fs::path& path : source.tuned ? std::vector{source.tuned->weights} : hf_weight_files(source.folder)) {
    facts.bytes += fs::file_size(path);
    const SafetensorsFile file(path);
    for (const SafetensorsTensor& tensor : file.header().tensors) {
      bytes_by_type[std::string(name_of(tensor.type))] += tensor.end - tensor.begin;
    }
  }
  facts.type = largest_of(bytes_by_type);
  return facts;
}

// What is compared with, without the weights: those make room for the next model's.
struct Reference {
  std::string name;
  Tokenizer tokenizer;
  std::int64_t vocab = 0;
  std::string text;
  std::vector<TokenWindow> windows;
  std::vector<std::vector<float>> logits;  // by window
};

std::int64_t window_of(const LoadedModel& model, const Options& options) {
  const std::int64_t context = model.replica.model().architecture().context;
  require(options.sequence <= context, "--sequence is {}; expected at most the model's context, {}", options.sequence,
          context);
  return options.sequence > 0 ? options.sequence : std::min({context, std::int64_t{512}, options.tokens});
}

std::vector<TokenWindow> windows_of_text(const LoadedModel& model, const std::string& text, const Options& options) {
  std::vector<std::uint32_t> ids;
  model.tokenizer.encode(text, ids);
  require(ids.size() >= 2, "the text has {} tokens, expected at least 2", ids.size());
  const auto count = std::min(ids.size() - 1, static_cast<std::size_t>(options.tokens));
  const auto most = static_cast<std::size_t>(window_of(model, options));
  std::vector<TokenWindow> windows;
  for (std::size_t next = 0; next < count;) {
    TokenWindow& window = windows.emplace_back();
    if (model.beginning_of_text && most > 1) {
      window.inputs.push_back(*model.beginning_of_text);
      window.targets.push_back(static_cast<std::int32_t>(ids[next]));
    }
    for (; next < count && window.inputs.size() < most; ++next) {
      window.inputs.push_back(static_cast<std::int32_t>(ids[next]));
      window.targets.push_back(static_cast<std::int32_t>(ids[next + 1]));
    }
  }
  return windows;
}

std::vector<TokenWindow> windows_of_data(const LoadedModel& model, const Options& options) {
  check_tokenizer(Dataset::open(options.data), model);
  EvaluationBatches batches({.dataset = options.data, .sequence = window_of(model, options)});
  std::vector<TokenWindow> windows;
  std::int64_t tokens = 0;
  for (std::uint64_t i = 0; i < batches.count() && tokens < options.tokens; ++i) {
    const TokenBatch& batch = batches.read(i);
    windows.push_back({batch.inputs, batch.targets});
    tokens += batch.row_tokens;
  }
  require(tokens > 0, "{} holds no whole sample, see --sequence", options.data);
  return windows;
}

// The same ids have to mean the same, and the text has to give the same ids.
void check_same_vocabulary(const Reference& reference, const LoadedModel& other) {
  const std::string name = other.folder.string();
  const std::int64_t vocab = other.replica.model().architecture().vocab;
  require(vocab == reference.vocab, "{} has a vocabulary of {}, the model {} one of {}", name, vocab, reference.name,
          reference.vocab);
  const Tokenizer& mine = reference.tokenizer;
  const Tokenizer& its = other.tokenizer;
  if (mine.fingerprint() == its.fingerprint()) {
    return;
  }
  if (const auto id = first_difference(mine, its)) {
    fail(ErrorCode::kUsage,
         "{} has another tokenizer than the model {}: its fingerprint is {}, expected {}; token {} differs", name,
         reference.name, its.fingerprint(), mine.fingerprint(), *id);
  }
  std::vector<std::uint32_t> expected;
  std::vector<std::uint32_t> found;
  mine.encode(reference.text, expected);
  its.encode(reference.text, found);
  require(found == expected,
          "{} has another tokenizer than the model {}: its fingerprint is {}, expected {}; it cuts the text otherwise",
          name, reference.name, its.fingerprint(), mine.fingerprint());
}

// A row of the table.
struct Row {
  std::string name;
  WeightFacts facts;
  TextLoss loss;
  std::optional<LogitsDifference> difference;  // none: the model itself
};

Json json_of(const Row& row) {
  Json json = {{"name", row.name},
               {"kind", row.facts.kind},
               {"type", row.facts.type},
               {"bytes", row.facts.bytes},
               {"perplexity", row.loss.perplexity()}};
  if (const auto& difference = row.difference) {
    json["max_difference"] = difference->largest();
    json["relative_difference"] = difference->relative();
    json["mean_kl"] = difference->mean_kl();
    json["max_kl"] = difference->largest_kl();
    json["same_top"] = difference->same_top();
  }
  return json;
}

std::string table_of(const std::vector<Row>& rows) {
  std::size_t width = 5;
  for (const Row& row : rows) {
    width = std::max(width, row.name.size());
  }
  const auto line = [width](const std::string& name, const auto&... fields) {
    std::string text =
        fmt::format("{:<{}}  {:<11}  {:<5}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>7}  {:>10}", name, width, fields...);
    return text + "\n";
  };
  std::string text =
      line("model", "kind", "type", "size", "max diff", "relative", "mean KL", "max KL", "top-1", "perplexity");
  for (const Row& row : rows) {
    const auto figure = [&](double (LogitsDifference::*get)() const) {
      return row.difference ? fmt::format("{:.2g}", ((*row.difference).*get)()) : std::string();
    };
    text += line(row.name, row.facts.kind, row.facts.type, format_bytes(row.facts.bytes),
                 figure(&LogitsDifference::largest), figure(&LogitsDifference::relative),
                 figure(&LogitsDifference::mean_kl), figure(&LogitsDifference::largest_kl),
                 row.difference ? fmt::format("{:.1f} %", 100 * row.difference->same_top()) : std::string(),
                 fmt::format("{:.4g}", row.loss.perplexity()));
  }
  return text;
}

class Verification {
 public:
  Verification(const Options& options, CommandContext& context)
      : options_(options),
        context_(context),
        backend_(make_backend(choose_device(options.model.device(), options.model.precision(), alone_),
                              options.model.threads_or_all())),
        arena_([this](std::size_t size_bytes) { return backend_->allocate(size_bytes); }) {}

  int run() {
    const ModelSource source = find(options_.model.path, options_.model.adapter);
    std::vector<ModelSource> exports;
    for (const std::string& path : options_.exports) {
      exports.push_back(find(path, {}));
    }
    read_reference(source);
    if (source.tuned) {
      compare("base without the adapter", find(source.folder, {}));
    }
    for (std::size_t i = 0; i < exports.size(); ++i) {
      compare(options_.exports[i], exports[i]);
    }
    print_result();
    return judge(exports.size());
  }

 private:
  ModelSource find(const fs::path& path, const fs::path& adapter) {
    return find_model(path, adapter, [this](const DamagedCheckpoint& damaged) {
      context_.log.warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
    });
  }

  void read_reference(const ModelSource& source) {
    const LoadedModel model = load_model(source, options_.model.precision(), *backend_);
    const std::string text = options_.text.empty() ? kOwnText : read_file(options_.text);
    reference_ = std::make_unique<Reference>(
        Reference{source.name().string(), model.tokenizer, model.replica.model().architecture().vocab, text, {}, {}});
    reference_->windows =
        options_.data.empty() ? windows_of_text(model, text, options_) : windows_of_data(model, options_);
    const std::string& adapter = options_.model.adapter;
    Row row{options_.model.path + (adapter.empty() ? "" : " + " + adapter), facts_of(source), {}, {}};
    Tape tape(*backend_, arena_, nullptr);
    for (const TokenWindow& window : reference_->windows) {
      reference_->logits.push_back(logits_of(model.replica, tape, window));
      row.loss.add(reference_->logits.back(), window.targets);
    }
    rows_.push_back(std::move(row));
  }

  void compare(const std::string& name, const ModelSource& source) {
    const LoadedModel model = load_model(source, options_.model.precision(), *backend_);
    check_same_vocabulary(*reference_, model);
    Row row{name, facts_of(source), {}, LogitsDifference()};
    Progress progress(context_.log, {.what = "verify", .unit = "window", .total = reference_->windows.size()});
    Tape tape(*backend_, arena_, nullptr);
    for (std::size_t i = 0; i < reference_->windows.size(); ++i) {
      const TokenWindow& window = reference_->windows[i];
      const auto context = static_cast<std::size_t>(model.replica.model().architecture().context);
      require(window.inputs.size() <= context, "{} has a context of {}, the windows are of {}; see --sequence", name,
              context, window.inputs.size());
      const std::vector<float> logits = logits_of(model.replica, tape, window);
      row.loss.add(logits, window.targets);
      row.difference->add(reference_->logits[i], logits, reference_->vocab);
      progress.update(i + 1);
    }
    rows_.push_back(std::move(row));
  }

  void print_result() const {
    const std::int64_t positions = rows_.back().difference->positions();
    if (!options_.json) {
      print(fmt::format("{} tokens of {}, in {} {}\n", positions, text_name(), reference_->windows.size(),
                        reference_->windows.size() == 1 ? "window" : "windows") +
            table_of(rows_));
      return;
    }
    Json others = Json::array();
    for (std::size_t i = 1; i < rows_.size(); ++i) {
      others.push_back(json_of(rows_[i]));
    }
    const Json json = {
        {"text", text_name()}, {"positions", positions}, {"model", json_of(rows_.front())}, {"compared", others}};
    print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  [[nodiscard]] std::string text_name() const {
    return !options_.data.empty() ? options_.data : !options_.text.empty() ? options_.text : "the built-in text";
  }

  // The exports are the last rows.
  int judge(std::size_t exports) const {
    int exit_code = kExitDone;
    for (std::size_t i = rows_.size() - exports; i < rows_.size(); ++i) {
      const double kl = rows_[i].difference->mean_kl();
      if (options_.max_kl && !(kl <= *options_.max_kl)) {
        context_.log.error("verify: {}: the mean KL is {:.3g}, expected at most {:.3g} (--max-kl)", rows_[i].name, kl,
                           *options_.max_kl);
        exit_code = kExitFailed;
      }
    }
    return exit_code;
  }

  const Options& options_;
  CommandContext& context_;
  SelfCommunicator alone_;
  std::unique_ptr<Backend> backend_;
  Arena arena_;
  std::unique_ptr<Reference> reference_;
  std::vector<Row> rows_;  // the model's first
};

}  // namespace

void add_verify(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("verify", "Compare exports of a model with the model itself");
  add_model_options(*command, options->model);
  CLI::Option* const text =
      command->add_option("--text", options->text, "A file of text; not given: a text of its own");
  text->type_name("FILE");
  command->add_option("--data", options->data, "A packed dataset instead of a text")->type_name("DIR")->excludes(text);
  command->add_option("--sequence", options->sequence, "Tokens read at once; 0: the model's context, at most 512")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--tokens", options->tokens, "So many tokens are compared at most")->check(above_zero());
  command->add_option("--max-kl", options->max_kl, "Fail where the mean KL divergence of an export is larger")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", options->json, "Print one JSON object");
  for (CLI::Option* option : command->get_options()) {
    option->capture_default_str();
  }
  command
      ->add_option("EXPORT", options->exports,
                   "What is compared: GGUF files, Hugging Face folders, checkpoints, adapters")
      ->required()
      ->type_name("PATH");
  command->footer(
      "max diff is the largest difference of a logit, relative the same in units of the model's largest logit; KL is\n"
      "KL(model || export) of a token in nats; top-1 is the share of tokens with the same likeliest successor. Of a\n"
      "model with an adapter its base alone is shown as well. Exit code 1 where an export exceeds --max-kl.\n"
      "Example: lockstep verify runs/chats chats-q8.gguf chats-q4.gguf\n"
      "         lockstep verify --model models/llama --adapter runs/lora models/llama-tuned --max-kl 1e-6\n"
      "         lockstep verify runs/shakespeare shakespeare.gguf --data data/shakespeare/valid --json");
  command->callback(
      [options, &context] { context.run = [options, &context] { return Verification(*options, context).run(); }; });
}

}  // namespace lockstep
