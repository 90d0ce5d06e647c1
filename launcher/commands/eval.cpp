// lockstep eval: the loss of a trained model on a dataset, or how like a dataset's answers are to its own.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "base/writable_folder.h"
#include "comm/communicator.h"
#include "data/dataset.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/commands/model_options.h"
#include "launcher/output.h"
#include "trainer/agreement.h"
#include "trainer/device.h"
#include "trainer/evaluate.h"
#include "trainer/evaluate_answers.h"
#include "trainer/text_scores.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::string data;
  std::int64_t sequence = 0;
  std::int64_t batch_size = 8;
  std::uint64_t batches = 0;
  bool generates = false;
  GenerateOptions generate{.max_tokens = 512, .sampling = {.temperature = 0}};
  std::uint64_t samples = 0;
  std::string predictions;
  bool json = false;
};

// What both kinds of evaluation compute with.
struct Setting {
  const Options& options;
  CommandContext& context;
  Communicator& communicator;
  const LoadedModel& model;
  Arena& arena;

  [[nodiscard]] bool is_first() const { return communicator.rank() == 0; }
};

std::int64_t sequence_of(const LoadedModel& model, const Options& options) {
  return options.sequence > 0 ? options.sequence : model.replica.model().architecture().context;
}

void check_samples(const Dataset& dataset, const LoadedModel& model, const Options& options) {
  const std::int64_t sequence = sequence_of(model, options);
  require(sequence <= model.replica.model().architecture().context,
          "--sequence is {}; expected at most the model's context, {}", sequence,
          model.replica.model().architecture().context);
  require(dataset.info().kind != DatasetKind::kPairs, "{} holds pairs of answers; expected text or conversations",
          options.data);
  require(has_conversations(dataset.info().kind) || dataset.info().tokens > static_cast<std::uint64_t>(sequence),
          "{} holds {} tokens; a sample of {} needs {}, see --sequence", options.data, dataset.info().tokens, sequence,
          sequence + 1);
}

void check_data(const LoadedModel& model, const Options& options) {
  const Dataset dataset = Dataset::open(options.data);
  if (!options.generates) {  // generate_answers() checks what it takes
    check_samples(dataset, model, options);
  }
  check_tokenizer(dataset, model);
}

std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

// Shows progress on rank 0 for as long as it lives.
class ProgressOfRanks {
 public:
  ProgressOfRanks(const Setting& setting, std::string unit) : setting_(setting), unit_(std::move(unit)) {}

  // Empty on the other ranks.
  [[nodiscard]] std::function<void(std::uint64_t, std::uint64_t)> callback() {
    if (!setting_.is_first()) {
      return {};
    }
    return [this](std::uint64_t done, std::uint64_t total) {
      if (!progress_) {
        progress_ = std::make_unique<Progress>(setting_.context.log,
                                               ProgressOptions{.what = "eval", .unit = unit_, .total = total});
      }
      progress_->update(done);
    };
  }

 private:
  const Setting& setting_;
  std::string unit_;
  std::unique_ptr<Progress> progress_;
};

EvaluationResult loss_of(const Setting& setting) {
  EvaluationOptions evaluation;
  evaluation.dataset = setting.options.data;
  evaluation.sequence = sequence_of(setting.model, setting.options);
  evaluation.batch_size = setting.options.batch_size;
  evaluation.max_batches = setting.options.batches;
  ProgressOfRanks progress(setting, "batch");
  return *evaluate(setting.model.replica, setting.arena, setting.communicator, evaluation,
                   {.progress = progress.callback()});
}

std::string report_loss(const Setting& setting) {
  const EvaluationResult result = loss_of(setting);
  if (setting.options.json) {
    return line_of({{"model", setting.model.folder.string()},
                    {"data", setting.options.data},
                    {"loss", result.loss},
                    {"perplexity", result.perplexity()},
                    {"accuracy", result.accuracy()},
                    {"tokens", result.tokens}});
  }
  return fmt::format("loss {:.4f}, perplexity {:.2f}, accuracy {:.2f} %, over {} tokens\n", result.loss,
                     result.perplexity(), 100 * result.accuracy(), result.tokens);
}

std::vector<Answer> answers_of(const Setting& setting) {
  ProgressOfRanks progress(setting, "answer");
  return generate_answers(
      setting.model, setting.arena, setting.communicator,
      {.dataset = setting.options.data, .max_samples = setting.options.samples, .generate = setting.options.generate},
      progress.callback());
}

// Before hours are spent on what could not be written.
void check_predictions(const fs::path& path) {
  const fs::path folder = fs::absolute(place_of_file("--predictions", path)).parent_path();
  require(fs::is_directory(folder), "--predictions: there is no folder {}", folder.string());
  require_writable_folder(folder);
}

void write_predictions(const std::string& path, const std::vector<Answer>& answers) {
  std::string lines;
  for (const Answer& answer : answers) {
    lines += line_of({{"prompt", answer.prompt},
                      {"reference", answer.text.reference},
                      {"prediction", answer.text.prediction},
                      {"exact", is_exact_match(answer.text)}});
  }
  write_file_atomic(place_of_file("--predictions", path), lines);
}

std::string report_answers(const Setting& setting) {
  const Options& options = setting.options;
  const std::vector<Answer> answers = answers_of(setting);
  run_agreed(setting.communicator, [&] {
    if (setting.is_first() && !options.predictions.empty()) {
      write_predictions(options.predictions, answers);
    }
  });
  std::vector<TextPair> texts;
  for (const Answer& answer : answers) {
    texts.push_back(answer.text);
  }
  const TextScores scores = score_texts(texts);
  const auto unfinished = std::ranges::count(answers, false, &Answer::is_finished);
  if (options.json) {
    return line_of({{"model", setting.model.folder.string()},
                    {"data", options.data},
                    {"exact_match", scores.exact_match},
                    {"bleu", scores.bleu},
                    {"bleu_4", scores.bleu_4},
                    {"rouge_1", scores.rouge.rouge_1},
                    {"rouge_2", scores.rouge.rouge_2},
                    {"rouge_l", scores.rouge.rouge_l},
                    {"answers", answers.size()},
                    {"unfinished", unfinished}});
  }
  return fmt::format(
      "exact {:.2f} %, BLEU {:.2f}, BLEU-4 {:.2f}, ROUGE-1 {:.2f}, ROUGE-2 {:.2f}, ROUGE-L {:.2f}, over {} answers, {} "
      "unfinished\n",
      scores.exact_match, scores.bleu, scores.bleu_4, scores.rouge.rouge_1, scores.rouge.rouge_2, scores.rouge.rouge_l,
      answers.size(), unfinished);
}

int run_eval(const Options& options, CommandContext& context) {
  const auto communicator = make_communicator({});
  const int threads = options.model.threads > 0
                          ? options.model.threads
                          : std::max(1, options.model.threads_or_all() / communicator->node_size());
  const auto backend =
      make_backend(choose_device(options.model.device(), options.model.precision(), *communicator), threads);
  std::unique_ptr<LoadedModel> model;
  run_agreed(*communicator, [&] {
    if (communicator->rank() == 0 && !options.predictions.empty()) {
      check_predictions(options.predictions);
    }
    Log* const log = communicator->rank() == 0 ? &context.log : nullptr;
    model = std::make_unique<LoadedModel>(load_model(options.model, *backend, log));
    check_data(*model, options);
  });
  Arena arena([&](std::size_t size_bytes) { return backend->allocate(size_bytes); });
  const Setting setting{options, context, *communicator, *model, arena};
  const std::string report = options.generates ? report_answers(setting) : report_loss(setting);
  if (setting.is_first()) {
    print(report);
  }
  communicator->close();
  return kExitDone;
}

// What asks for one of the two kinds of evaluation.
void add_generate_options(CLI::App& command, Options& options, const std::vector<CLI::Option*>& of_loss) {
  CLI::Option* const flag =
      command.add_flag("--generate", options.generates,
                       "Instead of the loss: answer in each conversation, and compare with its last answer");
  for (CLI::Option* const option : of_loss) {
    option->excludes(flag);
  }
  const std::vector<CLI::Option*> before = command.get_options();
  command.add_option("--samples", options.samples, "Answer in the first so many conversations; 0: in all")
      ->check(CLI::NonNegativeNumber);
  add_sampling_options(command, options.generate);
  command
      .add_option("--predictions", options.predictions,
                  "Write what was asked, expected and answered, a JSON object a line")
      ->type_name("FILE");
  const std::vector<CLI::Option*> all = command.get_options();
  for (std::size_t i = before.size(); i < all.size(); ++i) {
    all[i]->needs(flag);
  }
}

}  // namespace

void add_eval(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "Loss, perplexity and accuracy of a trained model on a dataset");
  add_model_options(*command, options->model);
  command->add_option("--data", options->data, "A packed dataset, for example data/shakespeare/valid")
      ->required()
      ->type_name("DIR");
  const std::vector<CLI::Option*> of_loss = {
      command->add_option("--sequence", options->sequence, "Tokens in a sample; 0: the model's context")
          ->check(CLI::NonNegativeNumber),
      command->add_option("--batch-size", options->batch_size, "Samples computed at once")->check(above_zero()),
      command->add_option("--batches", options->batches, "Evaluate the first so many batches; 0: every whole sample")
          ->check(CLI::NonNegativeNumber)};
  add_generate_options(*command, *options, of_loss);
  command->add_flag("--json", options->json, "Print one JSON object");
  for (CLI::Option* option : command->get_options()) {
    option->capture_default_str();
  }
  command->footer(
      "Runs alone or under mpirun, with the same result. Samples of text follow one another without overlap; up to\n"
      "--sequence - 1 tokens at the dataset's end fill no sample and are left out. Accuracy is the share of tokens\n"
      "that the model finds the likeliest.\n"
      "With --generate, in percent: exact matches (but for white space at the ends); BLEU of the corpus as sacrebleu\n"
      "has it; BLEU-4 of characters and ROUGE F1, each the mean over the answers.\n"
      "Examples: lockstep eval --model runs/shakespeare --data data/shakespeare/valid\n"
      "          lockstep eval --model runs/chats --data data/chats/valid --generate --samples 100");
  command->callback([options, &context] { context.run = [options, &context] { return run_eval(*options, context); }; });
}

}  // namespace lockstep
