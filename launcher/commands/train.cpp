// lockstep train: a worker, alone, under mpirun or under srun.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "comm/communicator.h"
#include "launcher/commands/command.h"
#include "launcher/job/job_watch.h"
#include "launcher/job_config.h"
#include "launcher/pack_job.h"
#include "launcher/store_job.h"
#include "trainer/agreement.h"
#include "trainer/config.h"
#include "trainer/rank_state.h"
#include "trainer/train_job.h"

namespace lockstep {
namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  bool help_config = false;
  bool print_config = false;
};

// What a LLaMA-Factory file asks for beside training. False when it was stopped. A run whose training data it replaces
// starts over.
bool pack_first(const JobConfig& job, TrainRequest& request, Communicator& communicator, CommandContext& context) {
  for (const std::string& note : job.notes) {
    context.log.info("train: {}", note);
  }
  for (const PackOptions& options : job.packs) {
    const PackResult result = pack_on_all_ranks(options, communicator, context.log, context.stop);
    if (result.was_stopped) {
      return false;
    }
    const bool is_trained_on = &options == &job.packs.front();
    if (is_trained_on && result.replaced_other && job.starts_over_on_other_data && request.resume == "auto") {
      context.log.warning("train: {} is packed anew, and overwrite_output_dir is true: starting over",
                          options.out.string());
      request.resume = "none";
    }
    for (const PackedSplit& split : result.splits) {
      context.log.info("train: {}: {} tokens in {}", split.folder.string(), split.tokens, split.contents());
    }
  }
  return true;
}

// Groups of ranks that were lost before they had done a step.
constexpr int kMostGroupsAtAStep = 20;

// Null when this process is to stop, and there was no group that it could have stopped with.
std::unique_ptr<Communicator> join_group(const CommOptions& options, CommandContext& context) {
  try {
    return make_communicator(options);
  } catch (const Error& error) {
    if (options.backend != "server" || !context.stop.requested()) {
      throw;
    }
    context.log.info("train: {}; the newest checkpoint stays", error.what());
    return nullptr;
  }
}

// All ranks end with the same error: who would replace lost ones need not wait for them.
void end_in_order(Communicator& communicator) {
  if (communicator.replaces_ranks()) {
    try {
      communicator.close();
    } catch (const Error&) {
      // Then it is waited for them.
    }
  }
}

// Nothing when the group of ranks is over and the job goes on with the next.
std::optional<int> train_in_group(const JobConfig& job, TrainRequest& request, bool may_go_on,
                                  Communicator& communicator, JobWatch& watch, CommandContext& context) {
  try {
    int exit_code = kExitRequeue;
    if (pack_first(job, request, communicator, context) &&
        train(request, communicator, context.log) == TrainEnd::kFinished) {
      exit_code = kExitDone;
    }
    watch.farewell(exit_code, nullptr);
    communicator.close();
    return exit_code;
  } catch (const AgreedError&) {
    end_in_order(communicator);
    throw;
  } catch (const std::exception& error) {
    if (!may_go_on || !communicator.may_rejoin()) {
      throw;
    }
    context.log.warning("train: {}; going on when all workers are there", error.what());
    return {};
  }
}

// A Slurm job that is put back into the queue goes on with it.
void keep_launched_config(const std::filesystem::path& run, const std::string& text, Log& log) {
  try {
    write_file_atomic(launched_config_file(run), text);
  } catch (const Error& error) {
    log.warning("launch: {}; a job that is put back into the queue will read its configuration again", error.what());
  }
}

int run_train(const TrainOptions& options, CommandContext& context) {
  if (options.help_config) {
    std::fputs(config_reference().c_str(), stdout);
    return kExitDone;
  }
  require(!options.config.empty(), "no configuration given; expected lockstep train CONFIG.yaml");
  TrainRequest request;
  const std::optional<std::string> launched = launched_config(process_environment());
  const JobConfig job = parse_job_config(launched ? *launched : read_job_config(options.config), options.config,
                                         options.overrides, context.ranks.world_size, options.resume);
  request.config = job.config;
  request.resume = options.resume;
  if (options.print_config) {
    std::fputs(to_yaml(request.config).c_str(), stdout);
    return kExitDone;
  }
  context.stop.listen();
  JobWatch watch(request.config.comm, context.ranks, process_environment(), context.log);
  request.stop_requested = [&] { return context.stop.requested() || watch.stop_requested(); };
  request.save_requested = [&] { return watch.take_save_request(); };
  request.activity = &watch.activity();
  request.opened = [&](const std::filesystem::path& run) {
    if (launched) {
      keep_launched_config(run, *launched, context.log);
    }
    watch.publish(run);
  };
  const CommConfig& comm = request.config.comm;
  CommOptions comm_options = {.backend = comm.backend,
                              .ranks_per_node = comm.ranks_per_node,
                              .timeout_ms = comm.timeout_s * 1000,
                              .silence_ms = comm.silence_s * 1000,
                              .gives_up = [&] { return context.stop.requested(); },
                              .servers = comm.servers,
                              .wire = comm.wire,
                              .shared_memory = comm.shared_memory,
                              .tls_ca = comm.tls_ca};
  std::optional<RankState> state;  // of this rank, when its group of ranks ends before the job
  request.state = &state;
  try {
    if (request.config.comm.mode != "sync") {
      require(job.packs.empty(), "comm.mode {}: the datasets are not packed yet; lockstep pack packs them",
              request.config.comm.mode);
      const int exit_code = train_through_store(request, context);
      watch.farewell(exit_code, nullptr);
      return exit_code;
    }
    std::int64_t last_step = -1;
    for (int at_same_step = 0;; ++at_same_step) {
      const auto communicator = join_group(comm_options, context);
      if (!communicator) {
        watch.farewell(kExitRequeue, nullptr);
        return kExitRequeue;
      }
      comm_options.rank = communicator->rank();
      context.log.set_rank(communicator->rank(), communicator->world_size());
      watch.join(*communicator);
      const bool may_go_on = at_same_step < kMostGroupsAtAStep;
      if (const auto exit_code = train_in_group(job, request, may_go_on, *communicator, watch, context)) {
        return *exit_code;
      }
      request.rejoins = true;
      const std::int64_t step = watch.activity().now().completed_step;
      at_same_step = step == last_step ? at_same_step : 0;
      last_step = step;
    }
  } catch (const std::exception& error) {
    watch.farewell(exit_code_of(error), &error);
    throw;
  }
}

}  // namespace

void add_train(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand("train", "Train a model as a configuration says, or continue where it was");
  command->add_option("CONFIG", options->config,
                      "YAML file; --help-config lists its keys. Those of LLaMA-Factory (stages pt, sft, dpo) do, too");
  command->add_option("--set", options->overrides, "Override a key, for example --set train.steps=100; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command
      ->add_option("--resume", options->resume,
                   "auto: from the newest intact checkpoint of the run, if there is one; none: start over; "
                   "or the folder of a checkpoint")
      ->type_name("auto|none|DIR");
  command->add_flag("--help-config", options->help_config, "List every key with its default, range and meaning");
  command->add_flag("--print-config", options->print_config, "Print the configuration as it was read, and stop");
  command->footer(
      "The first Ctrl-C or SIGTERM saves at the next step and stops (exit code 75); a second stops at once.\n"
      "Results: runs/NAME/metrics.jsonl and runs/NAME/checkpoints/.\n"
      "Example: mpirun -np 2 lockstep train examples/shakespeare/shakespeare.yaml --set train.steps=500");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_train(*options, context); }; });
}

}  // namespace lockstep
