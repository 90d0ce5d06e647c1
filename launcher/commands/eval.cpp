// lockstep eval: the loss of a trained model on a dataset.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "comm/communicator.h"
#include "data/dataset.h"
#include "launcher/commands/command.h"
#include "launcher/commands/model_options.h"
#include "launcher/output.h"
#include "trainer/agreement.h"
#include "trainer/device.h"
#include "trainer/evaluate.h"

namespace lockstep {
namespace {

struct Options {
  ModelOptions model;
  std::string data;
  std::int64_t sequence = 0;
  std::int64_t batch_size = 8;
  std::uint64_t batches = 0;
  bool json = false;
};

std::int64_t sequence_of(const LoadedModel& model, const Options& options) {
  return options.sequence > 0 ? options.sequence : model.replica.model().architecture().context;
}

void check_data(const LoadedModel& model, const Options& options) {
  const Dataset dataset = Dataset::open(options.data);
  const std::int64_t sequence = sequence_of(model, options);
  require(sequence <= model.replica.model().architecture().context,
          "--sequence is {}; expected at most the model's context, {}", sequence,
          model.replica.model().architecture().context);
  require(dataset.info().kind != DatasetKind::kPairs, "{} holds pairs of answers; expected text or conversations",
          options.data);
  require(has_conversations(dataset.info().kind) || dataset.info().tokens > static_cast<std::uint64_t>(sequence),
          "{} holds {} tokens; a sample of {} needs {}, see --sequence", options.data, dataset.info().tokens, sequence,
          sequence + 1);
  check_tokenizer(dataset, model);
}

void print_result(const Options& options, const LoadedModel& model, const EvaluationResult& result) {
  const std::string text = options.json
                               ? nlohmann::ordered_json{{"model", model.folder.string()},
                                                        {"data", options.data},
                                                        {"loss", result.loss},
                                                        {"perplexity", result.perplexity()},
                                                        {"accuracy", result.accuracy()},
                                                        {"tokens", result.tokens}}
                                     .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                               : fmt::format("loss {:.4f}, perplexity {:.2f}, accuracy {:.2f} %, over {} tokens",
                                             result.loss, result.perplexity(), 100 * result.accuracy(), result.tokens);
  print(text + "\n");
}

int run_eval(const Options& options, CommandContext& context) {
  const auto communicator = make_communicator({});
  const int threads = options.model.threads > 0
                          ? options.model.threads
                          : std::max(1, options.model.threads_or_all() / communicator->node_size());
  const auto backend = make_backend(choose_device(options.model.device(), *communicator).device, threads);
  std::unique_ptr<LoadedModel> model;
  run_agreed(*communicator, [&] {
    Log* const log = communicator->rank() == 0 ? &context.log : nullptr;
    model = std::make_unique<LoadedModel>(load_model(options.model, *backend, log));
    check_data(*model, options);
  });
  EvaluationOptions evaluation;
  evaluation.dataset = options.data;
  evaluation.sequence = sequence_of(*model, options);
  evaluation.batch_size = options.batch_size;
  evaluation.max_batches = options.batches;
  Arena arena([&](std::size_t size_bytes) { return backend->allocate(size_bytes); });
  std::unique_ptr<Progress> progress;
  EvaluationHooks hooks;
  hooks.progress = [&](std::uint64_t done, std::uint64_t total) {
    if (!progress) {
      progress =
          std::make_unique<Progress>(context.log, ProgressOptions{.what = "eval", .unit = "batch", .total = total});
    }
    progress->update(done);
  };
  if (communicator->rank() != 0) {
    hooks.progress = {};
  }
  const EvaluationResult result = *evaluate(model->replica, arena, *communicator, evaluation, hooks);
  progress.reset();
  if (communicator->rank() == 0) {
    print_result(options, *model, result);
  }
  communicator->close();
  return kExitDone;
}

}  // namespace

void add_eval(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "Loss, perplexity and accuracy of a trained model on a dataset");
  add_model_options(*command, options->model);
  command->add_option("--data", options->data, "A packed dataset, for example data/shakespeare/valid")
      ->required()
      ->type_name("DIR");
  command->add_option("--sequence", options->sequence, "Tokens in a sample; 0: the model's context")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--batch-size", options->batch_size, "Samples computed at once")->check(CLI::PositiveNumber);
  command->add_option("--batches", options->batches, "Evaluate the first so many batches; 0: every whole sample")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", options->json, "Print one JSON object");
  for (CLI::Option* option : command->get_options()) {
    option->capture_default_str();
  }
  command->footer(
      "Runs alone or under mpirun, with the same result. Samples follow one another without overlap; up to\n"
      "--sequence - 1 tokens at the dataset's end fill no sample and are left out.\n"
      "Example: lockstep eval --model runs/shakespeare --data data/shakespeare/valid");
  command->callback([options, &context] { context.run = [options, &context] { return run_eval(*options, context); }; });
}

}  // namespace lockstep
