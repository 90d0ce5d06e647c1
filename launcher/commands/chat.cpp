// lockstep chat: a conversation with a model that was trained on some.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/self_communicator.h"
#include "data/chat/chat_encoder.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/commands/model_options.h"
#include "launcher/output.h"
#include "trainer/device.h"
#include "trainer/generate.h"

namespace lockstep {
namespace {

struct Options {
  ModelOptions model;
  std::string chat_template;
  std::string system;
  GenerateOptions generate;
};

// Lines of standard input, for as long as nobody asks to stop.
class LineInput {
 public:
  explicit LineInput(const StopSignal& stop) : stop_(stop) {}

  // Without its line feed; nothing at the end of the input, or when stopped.
  std::optional<std::string> next() {
    while (!stop_.requested()) {
      if (const std::size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      if (at_end_) {
        return buffer_.empty() ? std::nullopt : std::optional(std::exchange(buffer_, {}));
      }
      read_more();
    }
    return std::nullopt;
  }

 private:
  void read_more() {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    if (::poll(&input, 1, 100) <= 0) {
      return;  // nothing yet, or a signal
    }
    std::array<char, 4096> block;
    const ssize_t size = ::read(STDIN_FILENO, block.data(), block.size());
    at_end_ = size <= 0;
    buffer_.append(block.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  }

  const StopSignal& stop_;
  std::string buffer_;
  bool at_end_ = false;
};

// What is given, or what the model was trained with here, or else the template that it brought along.
std::string template_name(const Options& options, const LoadedModel& model) {
  if (!options.chat_template.empty()) {
    return options.chat_template;
  }
  if (!model.template_name.empty()) {
    return model.template_name;
  }
  require(!model.template_source.empty() || !OwnTemplate::source_in(model.text_folder).empty(),
          "{} has no template of its own and does not say which it was trained with; expected --template {}",
          model.folder.string(), fmt::join(ChatTemplate::names(), ", "));
  return std::string(kOwnTemplateName);
}

// The template that a model brought along, in a GGUF file or beside its weights.
std::optional<OwnTemplate> find_own_template(const LoadedModel& model) {
  if (model.template_source.empty()) {
    return OwnTemplate::find(model.text_folder);
  }
  nlohmann::json config = {{"chat_template", model.template_source}};
  const auto name_token = [&](const char* key, std::optional<std::uint32_t> id) {
    if (id) {
      config[key] = model.tokenizer.token_bytes(*id);
    }
  };
  name_token("bos_token", model.tokenizer.beginning_of_text());
  name_token("eos_token", model.tokenizer.end_of_text());
  return OwnTemplate::from_json(config.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                                model.text_folder.string());
}

ChatEncoder make_encoder(const Options& options, const LoadedModel& model) {
  const std::string name = template_name(options, model);
  if (name != kOwnTemplateName) {
    return {ChatTemplate::named(name), model.tokenizer, TrainedTurns::kAll};
  }
  const std::optional<OwnTemplate> own = find_own_template(model);
  require(own.has_value(), "--template {}: {} has no chat template", kOwnTemplateName, model.text_folder.string());
  return {own->at(std::time(nullptr)), model.tokenizer, TrainedTurns::kAll};
}

class Chat {
 public:
  Chat(const Options& options, const LoadedModel& model, Backend& backend, CommandContext& context)
      : options_(options),
        model_(model),
        context_(context),
        chat_(make_encoder(options, model)),
        encoder_(model.tokenizer),
        arena_([&backend](std::size_t size_bytes) { return backend.allocate(size_bytes); }) {
    conversation_.system = options.system;
  }

  void run() {
    const bool is_terminal = ::isatty(STDIN_FILENO) == 1;
    LineInput input(context_.stop);
    while (true) {
      if (is_terminal) {
        print("> ");
      }
      const std::optional<std::string> line = input.next();
      if (!line) {
        break;
      }
      if (*line == "/new") {
        conversation_.turns.clear();
      } else if (!line->empty()) {
        answer(*line);
      }
    }
    if (is_terminal) {
      print("\n");
    }
  }

 private:
  void answer(const std::string& question) {
    conversation_.turns.push_back({Role::kUser, question});
    try {
      chat_.encode(conversation_, encoder_, encoded_);
    } catch (const Error& error) {  // a template may refuse what was said
      conversation_.turns.pop_back();
      context_.log.warning("{}", error.what());
      return;
    }
    const std::vector<std::int32_t> prompt(encoded_.ids.begin(), encoded_.ids.end());
    GenerateOptions generate_options = options_.generate;
    generate_options.stop_tokens = model_.ends_of_text;
    generate_options.stop_tokens.push_back(static_cast<std::int32_t>(chat_.end_of_answer()));
    std::string text;
    generate(model_.replica, arena_, prompt, generate_options, [&](std::int32_t token) {
      const auto id = static_cast<std::uint32_t>(token);
      if (model_.tokenizer.has_token(id) && !model_.tokenizer.is_special(id)) {
        text += model_.tokenizer.token_bytes(id);
        print(model_.tokenizer.token_bytes(id));
      }
      return !context_.stop.requested();
    });
    print("\n");
    conversation_.turns.push_back({Role::kAssistant, text});
  }

  const Options& options_;
  const LoadedModel& model_;
  CommandContext& context_;
  ChatEncoder chat_;
  Encoder encoder_;
  Arena arena_;
  Conversation conversation_;
  EncodedChat encoded_;
};

int run_chat(const Options& options, CommandContext& context) {
  context.stop.listen();
  SelfCommunicator alone;
  const auto backend = make_backend(choose_device(options.model.device(), options.model.precision(), alone),
                                    options.model.threads_or_all());
  const LoadedModel model = load_model(options.model, *backend, &context.log);
  Chat(options, model, *backend, context).run();
  return kExitDone;
}

}  // namespace

void add_chat(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  options->generate.max_tokens = 512;
  CLI::App* command = app.add_subcommand("chat", "Talk with a model that was trained on conversations");
  add_model_options(*command, options->model);
  command
      ->add_option("--template", options->chat_template,
                   fmt::format("What stands around what is said, where the model does not tell: {}; {}: the model's",
                               fmt::join(ChatTemplate::names(), ", "), kOwnTemplateName))
      ->type_name("NAME");
  command->add_option("--system", options->system, "What the model is told first; empty: what the template says")
      ->type_name("TEXT");
  add_sampling_options(*command, options->generate);
  for (CLI::Option* option : command->get_options()) {
    option->capture_default_str();
  }
  command->footer(
      "Each line is a question; /new begins another conversation; Ctrl-D or Ctrl-C ends. Of a conversation longer "
      "than\n"
      "the model's context the first tokens are forgotten.\n"
      "Example: lockstep chat --model runs/chats");
  command->callback([options, &context] { context.run = [options, &context] { return run_chat(*options, context); }; });
}

}  // namespace lockstep
