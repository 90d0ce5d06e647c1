// lockstep pack: documents to tokenized datasets, alone or on all ranks of an MPI job.
#include "data/pack/pack.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>

#include "base/error.h"
#include "comm/communicator.h"
#include "data/chat/dataset_info.h"
#include "data/dataset.h"
#include "data/text/tokenizer.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "launcher/pack_job.h"
#include "trainer/load_model.h"

namespace lockstep {
namespace {

void print_result(const PackResult& result, const PackOptions& options) {
  if (result.was_complete) {
    print(fmt::format("{} holds this input already, packed in the same way: nothing to do\n", options.out.string()));
  }
  for (const PackedSplit& split : result.splits) {
    print(fmt::format("{:<6} {} tokens in {}, {} {}: {}\n", split.name, split.tokens, split.contents(), split.files,
                      split.files == 1 ? "file" : "files", split.folder.string()));
  }
}

// The first conversations of a dataset, what is trained on in colour, or elsewhere than on a terminal in brackets.
void show_conversations(const std::filesystem::path& folder, std::uint64_t count) {
  Dataset dataset = Dataset::open(folder);
  const Tokenizer tokenizer = Tokenizer::load(dataset.tokenizer_path());
  const bool in_colour = ::isatty(STDOUT_FILENO) == 1;
  const std::string_view open = in_colour ? "\x1b[1;32m" : "[[";
  const std::string_view close = in_colour ? "\x1b[0m" : "]]";
  std::vector<std::uint64_t> begins = dataset.document_offsets();
  begins.push_back(dataset.info().tokens);
  const bool is_pairs = dataset.info().kind == DatasetKind::kPairs;
  count *= is_pairs ? 2 : 1;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, begins.size() - 1); ++i) {
    std::vector<std::int32_t> tokens(begins[i + 1] - begins[i]);
    std::vector<std::uint8_t> trained(tokens.size());
    dataset.read(begins[i], tokens);
    dataset.read_trained(begins[i], trained);
    const auto targets = std::count(trained.begin(), trained.end(), std::uint8_t{1});
    const std::string name = is_pairs ? fmt::format("pair {}, {}", i / 2 + 1, i % 2 == 0 ? "chosen" : "rejected")
                                      : fmt::format("conversation {}", i + 1);
    std::string text =
        fmt::format("--- {} of {}: {} tokens, {} of them trained on\n", name, folder.string(), tokens.size(), targets);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const bool before = t > 0 && trained[t - 1] != 0;
      text += trained[t] != 0 && !before ? open : trained[t] == 0 && before ? close : "";
      text += tokenizer.token_bytes(static_cast<std::uint32_t>(tokens[t]));
    }
    text += trained.back() != 0 ? close : "";
    print(text + "\n");
  }
}

int run_pack(const PackOptions& options, std::uint64_t show, CommandContext& context) {
  require(show == 0 || has_conversations(options.format), "--show is for --format chat or pairs");
  context.stop.listen();
  const auto communicator = make_communicator({.timeout_ms = kPackTimeoutMs});
  const PackResult result = pack_on_all_ranks(options, *communicator, context.log, context.stop);
  if (communicator->rank() == 0) {
    print_result(result, options);
    if (show > 0 && !result.splits.empty()) {
      show_conversations(result.splits.front().folder, show);
    }
    if (result.was_stopped) {
      context.log.info("pack: stopped; the same command goes on from here");
    }
  }
  communicator->close();
  return result.was_stopped ? kExitRequeue : kExitDone;
}

// How --format chat is told which conversations are to be packed, beside INPUT.
struct ChatInputs {
  std::vector<std::string> datasets;
  std::string dataset_dir = "data";
  std::vector<double> weights;
  std::uint64_t max_samples = 0;
};

// Datasets come behind files.
void take_chat_inputs(const ChatInputs& inputs, PackOptions& options) {
  require(options.inputs.empty() || inputs.datasets.empty(), "expected INPUT or --dataset, not both");
  if (!has_conversations(options.format)) {
    options.most = inputs.max_samples;
  }
  if (inputs.datasets.empty() && inputs.weights.empty() &&
      (inputs.max_samples == 0 || !has_conversations(options.format))) {
    return;
  }
  ChatSource usual;
  usual.format.is_pairs = options.format == PackFormat::kPairs;
  options.chat_sources.resize(options.inputs.size(), usual);
  for (const std::string& name : inputs.datasets) {
    const NamedDataset dataset = find_named_dataset(inputs.dataset_dir, name);
    options.inputs.push_back(dataset.path);
    options.chat_sources.push_back({dataset.format, dataset.most, 1, name, dataset.columns});
  }
  require(inputs.weights.empty() || inputs.weights.size() == options.inputs.size(),
          "--weights holds {} numbers, expected one for each input: {}", inputs.weights.size(), options.inputs.size());
  for (std::size_t i = 0; i < options.chat_sources.size(); ++i) {
    ChatSource& source = options.chat_sources[i];
    source.weight = inputs.weights.empty() ? 1 : inputs.weights[i];
    source.most = source.most == 0 || (inputs.max_samples > 0 && inputs.max_samples < source.most) ? inputs.max_samples
                                                                                                   : source.most;
  }
}

// A run's tokenizer is that of its newest checkpoint.
void take_tokenizer_of_run(PackOptions& options, Log& log) {
  if (std::filesystem::is_directory(std::filesystem::path(options.tokenizer) / "checkpoints")) {
    options.tokenizer =
        find_model_folder(options.tokenizer, [&](const DamagedCheckpoint& damaged) {
          log.warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
        }).string();
  }
}

void add_options(CLI::App& command, PackOptions& options, ChatInputs& chat, std::string& format, std::uint64_t& show) {
  command.add_option("INPUT", options.inputs, "Files, and folders that are searched recursively");
  command
      .add_option("--format", format,
                  "text: a document a file; jsonl: a line; tokens: llm.c's .bin files; chat: conversations in JSON; "
                  "pairs: such that end in a chosen and a rejected answer")
      ->type_name("text|jsonl|tokens|chat|pairs")
      ->required();
  command
      .add_option("--tokenizer", options.tokenizer,
                  "bytes; bpe:SIZE, trained on the input; a run; or a tokenizer.json, tokenizer.model or GGUF file")
      ->type_name("bytes|bpe:SIZE|FILE")
      ->required();
  command
      .add_option("--end-of-text", options.end_of_text,
                  "Added token that ends a document, where FILE does not name it: '<|eot|>'")
      ->type_name("TOKEN");
  command.add_option("--out", options.out, "Folder for the datasets train, valid and test")
      ->type_name("DIR")
      ->required();
  command.add_option("--split", options.split, "Shares of train, valid and test")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("A,B,C")
      ->default_str("0.9,0.05,0.05");
  command.add_option("--seed", options.seed, "Decides which documents go where")
      ->transform(whole_number())
      ->capture_default_str();
  command.add_option("--field", options.field, "jsonl: the field that holds the text")->capture_default_str();
  const std::string group = "Conversations (with --format chat or pairs)";
  command
      .add_option("--template", options.chat_template,
                  fmt::format("What stands around what is said: {}; {}: what the model's folder has",
                              fmt::join(ChatTemplate::names(), ", "), kOwnTemplateName))
      ->type_name("NAME")
      ->group(group);
  command
      .add_option_function<std::string>(
          "--train-on",
          [&options](const std::string& turns) {
            options.trained_turns = turns == "last" ? TrainedTurns::kLast : TrainedTurns::kAll;
          },
          "Answers whose loss counts")
      ->check(CLI::IsMember({"all", "last"}))
      ->default_str("all")
      ->group(group);
  command
      .add_option("--dataset", chat.datasets,
                  "Instead of INPUT: entries of DIR/dataset_info.json, which says what their keys are called")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("NAME,...")
      ->group(group);
  command.add_option("--dataset-dir", chat.dataset_dir, "Where dataset_info.json and its files are")
      ->type_name("DIR")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--weights", chat.weights,
                  "Of each input: how often its conversations are trained on; of 0.3, three in ten are taken")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("W,...")
      ->group(group);
  command
      .add_option("--max-samples", chat.max_samples,
                  "Take the first N conversations, or lines of jsonl, of a file; 0: all")
      ->type_name("N")
      ->transform(whole_number())
      ->group(group);
  command.add_option("--max-tokens", options.max_tokens, "Longer conversations lose their end; 0: none is too long")
      ->transform(whole_number())
      ->capture_default_str()
      ->group(group);
  command.add_flag("--drop-long", options.drop_long, "Leave longer conversations out instead")->group(group);
  command.add_option("--show", show, "Print the first N of them, what is trained on in colour")
      ->type_name("N")
      ->transform(whole_number())
      ->group(group);
  command
      .add_option("--include", options.include,
                  "Take only files of such names from folders: '*.h'; '!*.*' takes names that '*.*' does not match; "
                  "repeatable")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command.add_flag("--skip-binary", options.skip_binary, "Leave out files with a zero byte in their first 8 KiB");
  command.add_flag_callback(
      "--overwrite", [&options] { options.overwrite = Overwrite::kAll; }, "Replace a dataset that is in DIR");
  command
      .add_option("--memory", options.memory_mib,
                  "Longest line of JSON; a rank with such a line needs five times as much memory")
      ->type_name("MiB")
      ->transform(whole_number())
      ->capture_default_str();
  command.add_option("--shard-mib", options.shard_mib, "Input in one shard, at most")
      ->type_name("MiB")
      ->transform(whole_number())
      ->capture_default_str();
  command.add_option("--bpe-sample-mib", options.bpe_sample_mib, "Part of the input that bpe:SIZE is trained on")
      ->type_name("MiB")
      ->transform(whole_number())
      ->capture_default_str();
}

}  // namespace

void add_pack(CLI::App& app, CommandContext& context) {
  struct State {
    PackOptions options;
    ChatInputs chat;
    std::string format;
    std::uint64_t show = 0;
  };
  const auto state = std::make_shared<State>();
  CLI::App* command = app.add_subcommand("pack", "Turn documents into tokenized datasets");
  add_options(*command, state->options, state->chat, state->format, state->show);
  command->footer(
      "Runs in parallel under mpirun, with the same files as the result. Interrupted, the same command goes on where "
      "it\n"
      "was.\n"
      "Example: mpirun -np 4 lockstep pack --format text --tokenizer bpe:4096 --include '*.h' --out data/headers "
      "/usr/include");
  command->callback([state, &context] {
    context.run = [state, &context] {
      state->options.format = parse_pack_format(state->format);
      take_chat_inputs(state->chat, state->options);
      take_tokenizer_of_run(state->options, context.log);
      return run_pack(state->options, state->show, context);
    };
  });
}

}  // namespace lockstep
