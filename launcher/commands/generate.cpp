// lockstep generate: text from a trained model.
#include "trainer/generate.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/self_communicator.h"
#include "launcher/commands/command.h"
#include "launcher/commands/model_options.h"
#include "launcher/output.h"
#include "trainer/device.h"

namespace lockstep {
namespace {

struct Options {
  ModelOptions model;
  std::string prompt;
  GenerateOptions generate;
  bool echo = true;
};

// What the model reads first. An empty prompt is the start of a document.
std::vector<std::int32_t> prompt_tokens(const LoadedModel& model, const std::string& text) {
  std::vector<std::uint32_t> ids;
  model.tokenizer.encode(text, ids, SpecialTokens::kRecognized);
  std::vector<std::int32_t> prompt(ids.begin(), ids.end());
  const auto beginning = model.beginning_of_text;
  if (beginning && (prompt.empty() || prompt.front() != *beginning)) {
    prompt.insert(prompt.begin(), *beginning);
  }
  if (prompt.empty()) {
    require(!model.ends_of_text.empty(),
            "the prompt is empty, and the tokenizer has no end-of-text token to start from");
    prompt.push_back(model.ends_of_text.back());
  }
  return prompt;
}

void check_length(const LoadedModel& model, std::span<const std::int32_t> prompt, Log& log) {
  const auto context = static_cast<std::size_t>(model.replica.model().architecture().context);
  if (prompt.size() > context) {
    log.warning("the prompt has {} tokens, the model's context holds {}: the first {} are forgotten", prompt.size(),
                context, prompt.size() - context);
  }
}

int run_generate(const Options& options, CommandContext& context) {
  context.stop.listen();
  SelfCommunicator alone;
  const auto backend = make_backend(choose_device(options.model.device(), options.model.precision(), alone),
                                    options.model.threads_or_all());
  const LoadedModel model = load_model(options.model, *backend, &context.log);
  const std::vector<std::int32_t> prompt = prompt_tokens(model, options.prompt);
  check_length(model, prompt, context.log);
  GenerateOptions generate_options = options.generate;
  generate_options.stop_tokens = model.ends_of_text;

  if (options.echo) {
    print(options.prompt);
  }
  Arena arena([&](std::size_t size_bytes) { return backend->allocate(size_bytes); });
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
  add_sampling_options(*command, options->generate);
  command->add_flag("!--no-echo", options->echo, "Print the continuation without the prompt");
  for (CLI::Option* option : command->get_options()) {
    option->capture_default_str();
  }
  command->footer(
      "Ctrl-C ends the text. Of a prompt longer than the model's context the first tokens are forgotten; when the\n"
      "text outgrows the context, its older half is.\n"
      "Example: lockstep generate --model runs/cpp-headers --prompt '#include <' --max-tokens 200");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_generate(*options, context); }; });
}

}  // namespace lockstep
