#include "trainer/train_job.h"

#include <sched.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "base/file.h"
#include "data/text/tokenizer.h"
#include "trainer/agreement.h"
#include "trainer/resume.h"
#include "trainer/train_loop.h"

namespace lockstep {
namespace {

// Cores that this rank's node offers to its ranks together. A launcher that binds ranks to cores has divided them
// already.
int cores_on_node(int ranks_on_node) {
  const int all = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return all;
  }
  const int mine = std::max(1, CPU_COUNT(&allowed));
  return mine < all ? mine * ranks_on_node : all;
}

struct Data {
  DatasetInfo info;
  std::string tokenizer_json;
};

// Reads what both datasets say of themselves and checks that they go together.
Data inspect_data(const Config& config) {
  require(!config.data.train.empty(), "data.train names no dataset");
  Dataset train = Dataset::open(config.data.train);
  Data data{train.info(), read_file(train.tokenizer_path())};
  const Tokenizer tokenizer = Tokenizer::from_json(data.tokenizer_json, train.tokenizer_path().string());
  require(tokenizer.fingerprint() == data.info.tokenizer.fingerprint,
          "{} is not the tokenizer that {} was packed with (fingerprint {}, expected {})",
          train.tokenizer_path().string(), config.data.train, tokenizer.fingerprint(), data.info.tokenizer.fingerprint);
  if (!config.data.valid.empty()) {
    const Dataset valid = Dataset::open(config.data.valid);
    require(valid.info().tokenizer.fingerprint == data.info.tokenizer.fingerprint,
            "{} was packed with the tokenizer {} and {} with {}; pack both with the same", config.data.valid,
            valid.info().tokenizer.name, config.data.train, data.info.tokenizer.name);
  }
  return data;
}

void check_lengths(const Config& config, const DatasetInfo& info) {
  require(info.tokens > static_cast<std::uint64_t>(config.data.sequence),
          "{} holds {} tokens; a sample of data.sequence {} needs {}", config.data.train, info.tokens,
          config.data.sequence, config.data.sequence + 1);
}

// Rank 0 decides, all ranks follow: empty for a fresh start.
std::filesystem::path agree_on_checkpoint(const TrainRequest& request, Communicator& communicator, Log& log) {
  std::string chosen;
  run_agreed(communicator, [&] {
    if (communicator.rank() != 0) {
      return;
    }
    chosen = choose_checkpoint(run_folder(request.config) / "checkpoints", request.resume, log).string();
  });
  return communicator.broadcast_text(chosen, 0);
}

}  // namespace

std::filesystem::path run_folder(const Config& config) {
  return std::filesystem::path(config.run.dir) / config.run.name;
}

TrainEnd train(const TrainRequest& request, Communicator& communicator, Log& log) {
  Data data;
  run_agreed(communicator, [&] {
    data = inspect_data(request.config);
    const Config config = resolve(request.config, {.world_size = communicator.world_size(),
                                                   .ranks_on_node = communicator.node_size(),
                                                   .cores_on_node = cores_on_node(communicator.node_size()),
                                                   .vocab = static_cast<int>(data.info.tokenizer.vocabulary_size)});
    check_lengths(config, data.info);
    static_cast<void>(architecture_of(config.model));
  });

  const std::filesystem::path checkpoint = agree_on_checkpoint(request, communicator, log);
  std::unique_ptr<TrainLoop> loop;
  std::optional<CheckpointReader> reader;
  Config config = request.config;
  run_agreed(communicator, [&] {
    if (!checkpoint.empty()) {
      // Rank 0 has verified every byte when it chose.
      reader.emplace(checkpoint, CheckpointReader::Verify::kManifestOnly);
      config = continue_config(config, reader->manifest(), checkpoint.string());
      check_same_data(run_progress_from_json(reader->manifest().position.extra_json), data.info, config.data.train);
    }
    config = resolve(config, {.world_size = communicator.world_size(),
                              .ranks_on_node = communicator.node_size(),
                              .cores_on_node = cores_on_node(communicator.node_size()),
                              .vocab = static_cast<int>(data.info.tokenizer.vocabulary_size)});
  });
  loop = std::make_unique<TrainLoop>(TrainLoop::Setup{config, data.info, data.tokenizer_json, request.stop_requested},
                                     communicator, log);
  run_agreed(communicator, [&] { loop->start(reader ? &*reader : nullptr); });
  return loop->run();
}

}  // namespace lockstep
