// lockstep pack: documents to tokenized datasets, alone or on all ranks of an MPI job.
#include "data/pack/pack.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "comm/communicator.h"
#include "data/dataset.h"
#include "data/text/tokenizer.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "trainer/agreement.h"

namespace lockstep {
namespace {

// A rank waits for the others once per unit, and while rank 0 trains a vocabulary.
constexpr int kTimeoutMs = 30 * 60 * 1000;

PackPeers peers_of(Communicator& communicator) {
  PackPeers peers;
  peers.rank = communicator.rank();
  peers.world = communicator.world_size();
  peers.all_gather = [&communicator](const std::string& mine) { return communicator.all_gather_text(mine); };
  peers.broadcast = [&communicator](const std::string& text, int root) {
    return communicator.broadcast_text(text, root);
  };
  return peers;
}

// One Progress a stage, from its first call to the one in which everything is done.
class StageProgress {
 public:
  explicit StageProgress(Log& log) : log_(log) {}

  void update(std::string_view stage, std::uint64_t done_bytes, std::uint64_t total_bytes) {
    if (total_bytes < kMB) {
      return;  // Nobody waits for it.
    }
    const std::uint64_t total = total_bytes / kMB;
    if (!progress_) {
      progress_.emplace(
          log_,
          ProgressOptions{.what = std::string(stage), .unit = "megabyte", .total = total, .start = done_bytes / kMB});
      started_ = std::chrono::steady_clock::now();
      started_at_bytes_ = done_bytes;
      return;
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started_;
    const double bytes_per_s = static_cast<double>(done_bytes - started_at_bytes_) / std::max(seconds.count(), 1e-3);
    const std::array<std::string, 1> fields = {fmt::format("{:.1f} MB/s", bytes_per_s / kMB)};
    if (done_bytes < total_bytes) {
      progress_->update(done_bytes / kMB, fields);
    } else {
      progress_->finish(total, fields);
      progress_.reset();
    }
  }

 private:
  static constexpr std::uint64_t kMB = 1'000'000;

  Log& log_;
  std::optional<Progress> progress_;
  std::chrono::steady_clock::time_point started_;
  std::uint64_t started_at_bytes_ = 0;
};

PackResult pack_with_agreed_errors(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks) {
  try {
    return pack(options, peers, hooks);
  } catch (const Error& error) {
    // pack() throws the same on every rank, except where the others cannot be reached any more.
    if (error.code() == ErrorCode::kPeerLost || error.code() == ErrorCode::kTimeout) {
      throw;
    }
    throw AgreedError(error.code(), error.what());
  }
}

void print_result(const PackResult& result, const PackOptions& options) {
  if (result.was_complete) {
    print(fmt::format("{} holds this input already, packed in the same way: nothing to do\n", options.out.string()));
  }
  for (const PackedSplit& split : result.splits) {
    print(fmt::format("{:<6} {} tokens in {} {}, {} {}: {}\n", split.name, split.tokens, split.documents,
                      split.kind == DatasetKind::kChat ? "conversations" : "documents", split.files,
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
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, begins.size() - 1); ++i) {
    std::vector<std::int32_t> tokens(begins[i + 1] - begins[i]);
    std::vector<std::uint8_t> trained(tokens.size());
    dataset.read(begins[i], tokens);
    dataset.read_trained(begins[i], trained);
    const auto targets = std::count(trained.begin(), trained.end(), std::uint8_t{1});
    std::string text = fmt::format("--- conversation {} of {}: {} tokens, {} of them trained on\n", i + 1,
                                   folder.string(), tokens.size(), targets);
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
  require(show == 0 || options.format == PackFormat::kChat, "--show is for --format chat");
  context.stop.listen();
  const auto communicator = make_communicator({.timeout_ms = kTimeoutMs});
  StageProgress progress(context.log);
  PackHooks hooks;
  hooks.progress = [&](std::string_view stage, std::uint64_t done_bytes, std::uint64_t total_bytes) {
    progress.update(stage, done_bytes, total_bytes);
  };
  hooks.message = [&](const std::string& line) { context.log.info("pack: {}", line); };
  hooks.stop_requested = [&] { return context.stop.requested(); };
  const PackResult result = pack_with_agreed_errors(options, peers_of(*communicator), hooks);
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

void add_options(CLI::App& command, PackOptions& options, std::string& format, std::uint64_t& show) {
  command.add_option("INPUT", options.inputs, "Files, and folders that are searched recursively")->required();
  command
      .add_option("--format", format,
                  "text: a document a file; jsonl: a line; tokens: llm.c's .bin files; chat: conversations in JSON")
      ->type_name("text|jsonl|tokens|chat")
      ->required();
  command
      .add_option("--tokenizer", options.tokenizer,
                  "bytes; bpe:SIZE, trained on the input; or a tokenizer.json or GGUF file")
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
      ->type_name("A,B,C")
      ->default_str("0.9,0.05,0.05");
  command.add_option("--seed", options.seed, "Decides which documents go where")
      ->transform(whole_number())
      ->capture_default_str();
  command.add_option("--field", options.field, "jsonl: the field that holds the text")->capture_default_str();
  const std::string group = "Conversations (with --format chat)";
  command
      .add_option("--template", options.chat_template,
                  fmt::format("What stands around what is said: {}", fmt::join(ChatTemplate::names(), ", ")))
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
  command.add_flag("--overwrite", options.overwrite, "Replace a dataset that is in DIR");
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
    std::string format;
    std::uint64_t show = 0;
  };
  const auto state = std::make_shared<State>();
  CLI::App* command = app.add_subcommand("pack", "Turn documents into tokenized datasets");
  add_options(*command, state->options, state->format, state->show);
  command->footer(
      "Runs in parallel under mpirun, with the same files as the result. Interrupted, the same command goes on where "
      "it\n"
      "was.\n"
      "Example: mpirun -np 4 lockstep pack --format text --tokenizer bpe:4096 --include '*.h' --out data/headers "
      "/usr/include");
  command->callback([state, &context] {
    context.run = [state, &context] {
      state->options.format = parse_pack_format(state->format);
      return run_pack(state->options, state->show, context);
    };
  });
}

}  // namespace lockstep
