#include "launcher/bench/checkpoint_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/writable_folder.h"
#include "data/batch_loader.h"
#include "launcher/bench/batches.h"
#include "launcher/bench/scratch_folder.h"
#include "ops/backend.h"
#include "trainer/agreement.h"
#include "trainer/checkpoint/files.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/model/parameters.h"
#include "trainer/replica.h"
#include "trainer/run_folder.h"
#include "trainer/step_record.h"
#include "trainer/stopwatch.h"
#include "trainer/train_checkpoint.h"
#include "trainer/train_step.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr int kWarmUpSteps = 2;
// The steps before a save and those after it take about so long, within these numbers.
constexpr double kUndisturbedMs = 500;
constexpr double kFewestSteps = 3;
constexpr double kMostSteps = 100;

// Steps, and saves between them, as TrainLoop makes them: without its schedule, evaluations and log.
class Job {
 public:
  struct Setup {
    const BenchModel& model;
    TrainStep& train_step;
    Communicator& communicator;
    CheckpointOptions checkpoint;
    std::function<bool()> stop_requested;
  };
  explicit Job(Setup setup)
      : config_(setup.model.config),
        train_step_(setup.train_step),
        communicator_(setup.communicator),
        stop_requested_(std::move(setup.stop_requested)),
        batches_(setup.model, communicator_),
        records_(communicator_, static_cast<std::size_t>(train_step_.largest_micro_batches())),
        writer_(train_step_.layout(), std::move(setup.checkpoint)) {}

  [[nodiscard]] std::int64_t completed() const { return completed_; }

  // Milliseconds of each of `count` steps, from a moment at which every rank begins.
  [[nodiscard]] std::vector<double> time_steps(int count) {
    std::vector<double> steps_ms;
    communicator_.barrier();
    double begin_ms = now_ms();
    for (int i = 0; i < count; ++i) {
      step();
      const double end_ms = now_ms();
      steps_ms.push_back(end_ms - begin_ms);
      begin_ms = end_ms;
    }
    return steps_ms;
  }

  struct AccompaniedSave {
    double copy_ms = 0;
    int steps = 0;
    double total_ms = 0;
  };
  // Ends with the step in which the ranks learn of the outcome.
  [[nodiscard]] AccompaniedSave save_beside_steps() {
    AccompaniedSave save;
    communicator_.barrier();
    const double begin_ms = now_ms();
    begin_save();
    save.copy_ms = now_ms() - begin_ms;
    while (writer_.busy()) {
      step();
      ++save.steps;
    }
    communicator_.barrier();
    save.total_ms = now_ms() - begin_ms;
    return save;
  }

  // Milliseconds until it is published.
  [[nodiscard]] double save_alone() {
    communicator_.barrier();
    const double begin_ms = now_ms();
    begin_save();
    while (writer_.busy()) {
      writer_.wait();
      exchange({});
    }
    return now_ms() - begin_ms;
  }

 private:
  void step() {
    const std::span<const double> losses =
        train_step_.compute_gradients(completed_, [&]() -> const TokenBatch& { return batches_.next(); });
    train_step_.finish_gradients();
    exchange(losses);
    train_step_.update(completed_, config_.optimizer.lr, train_step_.gradient_norm(completed_));
    ++completed_;
  }

  void begin_save() {
    const auto tokens = static_cast<std::uint64_t>(completed_ * train_step_.tokens_per_step());
    writer_.begin(run_position(config_, completed_, tokens), checkpoint_source(train_step_, communicator_));
  }

  void exchange(std::span<const double> losses) {
    const GatheredRecords& gathered = records_.exchange(
        {.stop_requested = stop_requested_(), .save_report = writer_.report(), .micro_batch_losses = losses});
    const auto outcome = writer_.advance(gathered.save_reports);
    if (outcome && (!outcome->published || !outcome->message.empty())) {
      throw AgreedError(ErrorCode::kIo, fmt::format("checkpoint of step {}: {}", outcome->step, outcome->message));
    }
    if (gathered.stop_requested) {
      throw AgreedError(ErrorCode::kIo, "stopped by a signal before all was measured");
    }
  }

  const Config& config_;
  TrainStep& train_step_;
  Communicator& communicator_;
  const std::function<bool()> stop_requested_;
  Batches batches_;
  StepRecordExchange records_;
  CheckpointWriter writer_;
  std::int64_t completed_ = 0;
};

// This rank's files of a checkpoint once more, written as `dd bs=1M conv=fsync` does: what the file system can do.
class PlainFiles {
 public:
  PlainFiles(const fs::path& folder, const Manifest& checkpoint, const Communicator& communicator)
      : block_(kBlockBytes / sizeof(std::uint64_t)) {
    const std::string state = state_file_name(communicator.rank(), communicator.world_size());
    for (const CheckpointFile& file : checkpoint.files) {
      const bool is_state = file.name.starts_with("state-");  // no other file's name begins like this
      if (is_state ? file.name == state : communicator.rank() == 0) {
        files_.push_back({folder / ("plain-" + file.name), file.bytes});
      }
    }
    // Nothing that a file system could shorten.
    for (std::size_t i = 0; i < block_.size(); ++i) {
      block_[i] = mix64(i);
    }
  }

  void write() const {
    const auto block = std::as_bytes(std::span(block_));
    for (const PlainFile& plain : files_) {
      const File file = File::create(plain.path);
      for (std::uint64_t at = 0; at < plain.size_bytes; at += block.size()) {
        file.write(at, block.first(std::min<std::uint64_t>(block.size(), plain.size_bytes - at)));
      }
      file.sync();
    }
  }

  void remove() const {
    for (const PlainFile& plain : files_) {
      std::error_code ignored;  // the next ones replace it
      fs::remove(plain.path, ignored);
    }
  }

 private:
  static constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  struct PlainFile {
    fs::path path;
    std::uint64_t size_bytes = 0;
  };

  std::vector<PlainFile> files_;
  std::vector<std::uint64_t> block_;
};

// Milliseconds until all ranks' files are on the disk.
double time_plain_files(const PlainFiles& files, Communicator& communicator) {
  communicator.barrier();
  const double begin_ms = now_ms();
  run_agreed(communicator, [&] { files.write(); });
  const double total_ms = now_ms() - begin_ms;
  files.remove();
  return total_ms;
}

struct Round {
  double step_ms = 0;
  double exposed_ms = 0;
  double copy_ms = 0;
  double save_steps = 0;
  double save_ms = 0;
  double idle_ms = 0;
  double plain_ms = 0;
};

// A virtual machine is slow where it touches memory that it has not held for seconds, and files lie in memory first.
// Both ways of writing shall find as much as they need.
void hold_memory(const PlainFiles& files, Communicator& communicator) {
  run_agreed(communicator, [&] { files.write(); });
  files.remove();
  communicator.barrier();
}

Round measure_round(Job& job, int steps, const PlainFiles& files, Communicator& communicator) {
  static_cast<void>(job.time_steps(1));  // finds the caches full of something else
  std::vector<double> undisturbed_ms = job.time_steps(steps);
  const Job::AccompaniedSave save = job.save_beside_steps();
  const std::vector<double> after_ms = job.time_steps(steps);
  undisturbed_ms.insert(undisturbed_ms.end(), after_ms.begin(), after_ms.end());

  Round round;
  round.step_ms = median(undisturbed_ms);
  round.exposed_ms = save.total_ms - save.steps * round.step_ms;
  round.copy_ms = save.copy_ms;
  round.save_steps = save.steps;
  round.save_ms = save.total_ms;
  hold_memory(files, communicator);
  round.idle_ms = job.save_alone();
  hold_memory(files, communicator);
  round.plain_ms = time_plain_files(files, communicator);
  return round;
}

// The same on every rank.
int steps_of_a_round(double step_ms, Communicator& communicator) {
  int steps = static_cast<int>(std::clamp(std::ceil(kUndisturbedMs / step_ms), kFewestSteps, kMostSteps));
  communicator.broadcast(std::as_writable_bytes(std::span(&steps, 1)), 0);
  return steps;
}

// The checkpoint that is replaced, the one that replaces it, and the plain files.
void require_room(const fs::path& folder, std::uint64_t checkpoint_size_bytes) {
  const std::uint64_t needed = 3 * checkpoint_size_bytes;
  const auto room = room_at(folder);
  require(room.value_or(needed) >= needed, "{} has room for {} MiB; three checkpoints of this run take {} MiB",
          folder.string(), room.value_or(0) >> 20, (needed >> 20) + 1);
}

CheckpointBenchResult summary_of(const std::vector<Round>& rounds, const Manifest& checkpoint,
                                 Communicator& communicator) {
  const auto median_of = [&](const auto& value) {
    std::vector<double> values;
    for (const Round& round : rounds) {
      values.push_back(value(round));
    }
    return median(std::move(values));
  };
  CheckpointBenchResult result;
  for (const CheckpointFile& file : checkpoint.files) {
    result.size_bytes += file.bytes;
  }
  result.step_ms = median_of([](const Round& round) { return round.step_ms; });
  result.exposed_ms = median_of([](const Round& round) { return round.exposed_ms; });
  result.copy_ms = max_over_ranks(communicator, median_of([](const Round& round) { return round.copy_ms; }));
  result.of_100_steps = median_of([](const Round& round) { return round.exposed_ms / (100 * round.step_ms); });
  result.save_steps = median_of([](const Round& round) { return round.save_steps; });
  result.save_ms = median_of([](const Round& round) { return round.save_ms; });
  result.idle_ms = median_of([](const Round& round) { return round.idle_ms; });
  const double plain_ms = median_of([](const Round& round) { return round.plain_ms; });
  const auto size_bytes = static_cast<double>(result.size_bytes);
  result.bytes_per_s = size_bytes / (result.idle_ms * 1e-3);
  result.ceiling_bytes_per_s = size_bytes / (plain_ms * 1e-3);
  result.of_ceiling = median_of([](const Round& round) { return round.plain_ms / round.idle_ms; });
  return result;
}

}  // namespace

CheckpointBenchResult bench_checkpoint(const BenchModel& model, int rounds, Communicator& communicator,
                                       const std::function<bool()>& stop_requested) {
  const Config& config = model.config;
  const fs::path folder = ScratchFolder::path_in(checkpoints_folder(config));
  std::unique_ptr<ScratchFolder> scratch;  // rank 0's; goes after all that writes there
  run_agreed(communicator, [&] {
    if (communicator.rank() == 0) {
      scratch = std::make_unique<ScratchFolder>(checkpoints_folder(config));
    }
  });
  const auto backend = make_backend(model.device, config.train.threads);
  TrainStep train_step(config, communicator, *backend);
  Replica& replica = train_step.replica();
  std::unique_ptr<Job> job;
  run_agreed(communicator, [&] {
    if (communicator.rank() == 0) {
      require_room(folder, checkpoint_bytes(replica));
    }
    replica.initialize(config.run.seed);
    CheckpointOptions options = checkpoint_options(config, train_step, communicator, *backend, {});
    options.folder = folder;
    options.keep = 1;
    options.keep_best = false;
    job = std::make_unique<Job>(Job::Setup{.model = model,
                                           .train_step = train_step,
                                           .communicator = communicator,
                                           .checkpoint = std::move(options),
                                           .stop_requested = stop_requested});
  });

  const int steps = steps_of_a_round(job->time_steps(kWarmUpSteps).back(), communicator);
  static_cast<void>(job->save_alone());
  Manifest checkpoint;
  run_agreed(communicator, [&] {
    checkpoint = read_manifest(folder / step_folder_name(static_cast<std::uint64_t>(job->completed())));
  });
  const PlainFiles files(folder, checkpoint, communicator);
  std::vector<Round> measured;
  try {
    for (int round = 0; round < rounds; ++round) {
      measured.push_back(measure_round(*job, steps, files, communicator));
    }
  } catch (const AgreedError&) {
    // No rank writes any more when rank 0 removes the folder.
    job.reset();
    communicator.barrier();
    throw;
  }
  return summary_of(measured, checkpoint, communicator);
}

}  // namespace lockstep
