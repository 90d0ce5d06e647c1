// lockstep generate: text from a trained model.
#include "trainer/generate.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "launcher/commands/command.h"
#include "launcher/commands/model_options.h"

namespace lockstep {
namespace {

struct Options {
  ModelOptions model;
  std::string prompt;
  GenerateOptions generate;
  bool echo = true;
};

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int run_generate(const Options& options, CommandContext& context) {
  const auto backend = make_cpu_backend(options.model.threads_or_all());
  const LoadedModel model = load_model(options.model, *backend, &context.log);
  std::vector<std::uint32_t> ids;
  model.tokenizer.encode(options.prompt, ids, SpecialTokens::kRecognized);
  std::vector<std::int32_t> prompt(ids.begin(), ids.end());
  GenerateOptions generate_options = options.generate;
  if (const auto end = model.tokenizer.end_of_text()) {
    generate_options.stop_token = static_cast<std::int32_t>(*end);
  }
  if (prompt.empty()) {
    require(generate_options.stop_token.has_value(),
            "the prompt is empty, and the tokenizer has no end-of-text token to start from");
    prompt.push_back(*generate_options.stop_token);
  }

  if (options.echo) {
    print(options.prompt);
  }
  Arena arena;
  generate(model.replica, arena, prompt, generate_options, [&](std::int32_t token) {
    const auto id = static_cast<std::uint32_t>(token);
    if (model.tokenizer.has_token(id) && !model.tokenizer.is_special(id)) {
      print(model.tokenizer.token_bytes(id));
    }
    return !context.stop.requested();
  });
  print("\n");
  return kExitDone;
}

}  // namespace

void add_generate(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a trained model");
  add_model_options(*command, options->model);
  command->add_option("--prompt", options->prompt, "Text to continue; empty: the model starts a document")
      ->type_name("TEXT");
  command->add_option("--max-tokens", options->generate.max_tokens, "Tokens to make at most")
      ->check(CLI::PositiveNumber);
  SamplingOptions& sampling = options->generate.sampling;
  command->add_option("--temperature", sampling.temperature, "0: always the likeliest token; 1: as the model says")
      ->check(CLI::Range(0.0, 100.0));
  command->add_option("--top-k", sampling.top_k, "Draw among the K likeliest tokens; 0: among all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-p", sampling.top_p, "Draw among the likeliest tokens that make up probability P")
      ->check(CLI::Range(1e-6, 1.0));
  command->add_option("--seed", sampling.seed, "The same seed and options give the same text");
  command->add_flag("!--no-echo", options->echo, "Print the continuation without the prompt");
  for (CLI::Option* option : command->get_options()) {
    option->capture_default_str();
  }
  command->footer("Example: lockstep generate --model runs/quickstart --prompt '#include <' --max-tokens 200");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_generate(*options, context); }; });
}

}  // namespace lockstep
