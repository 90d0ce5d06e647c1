#include "launcher/bench/loader_bench.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <span>
#include <thread>
#include <vector>

#include "base/file.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "data/sampler.h"
#include "trainer/stopwatch.h"
#include "trainer/train_step.h"

namespace lockstep {
namespace {

constexpr std::int64_t kTokensARound = std::int64_t{1} << 22;
constexpr std::int64_t kMaxStepsARound = 4000;  // of small models

// Reads files from the first byte to the last, and again.
class SequentialReader {
 public:
  SequentialReader(const std::filesystem::path& folder, const DatasetInfo& info) : block_(std::size_t{1} << 20) {
    for (const DatasetFile& file : info.files) {
      files_.push_back(File::open_to_read(folder / file.name));
    }
  }

  void read(std::uint64_t size_bytes) {
    while (size_bytes > 0) {
      const std::size_t wanted = std::min<std::uint64_t>(size_bytes, block_.size());
      const std::size_t got = files_[file_].read_some(at_, std::span(block_).first(wanted));
      size_bytes -= got;
      at_ += got;
      if (got < wanted) {
        file_ = (file_ + 1) % files_.size();
        at_ = 0;
      }
    }
  }

 private:
  std::vector<File> files_;
  std::vector<std::byte> block_;
  std::size_t file_ = 0;
  std::uint64_t at_ = 0;
};

}  // namespace

LoaderBenchResult bench_loader(const BenchModel& model, int rounds, Communicator& communicator) {
  const Config& config = model.config;
  const DatasetInfo info = Dataset::open(config.data.train).info();
  const MicroBatchRange mine =
      micro_batches_of_rank(config.train.micro_batches, communicator.rank(), communicator.world_size());
  const std::int64_t tokens_a_batch = std::int64_t{config.train.micro_batch_size} * config.data.sequence;
  const std::int64_t tokens_a_step = (mine.end - mine.begin) * tokens_a_batch;
  // What was read ahead while nobody counted is a small part of a round.
  const std::int64_t ahead = config.data.read_ahead + 1;
  const std::int64_t steps = std::max(20 * ahead, std::min(kMaxStepsARound, kTokensARound / tokens_a_step));
  const std::uint64_t bytes = static_cast<std::uint64_t>(steps * tokens_a_step) * size_of(info.token_dtype());

  BatchLoader loader(loader_options(config, communicator, 0));
  SequentialReader reader(config.data.train, info);
  std::vector<double> rates;
  std::vector<double> ceilings;
  std::vector<double> ratios;
  const auto rate_of = [&](const auto& work) {
    communicator.barrier();
    const double begin_ms = now_ms();
    work();
    return sum_over_ranks(communicator, static_cast<double>(bytes) / ((now_ms() - begin_ms) * 1e-3));
  };
  const auto take_steps = [&](std::int64_t count) {
    for (std::int64_t batch = 0; batch < count * (mine.end - mine.begin); ++batch) {
      static_cast<void>(loader.next());
    }
  };
  for (int round = 0; round < rounds; ++round) {
    take_steps(ahead);
    const double begin_ms = now_ms();
    rates.push_back(rate_of([&] { take_steps(steps); }));
    // Until the loader has read ahead again and is idle.
    const double ahead_ms = (now_ms() - begin_ms) * static_cast<double>(ahead) / static_cast<double>(steps);
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(2 * ahead_ms));
    ceilings.push_back(rate_of([&] { reader.read(bytes); }));
    ratios.push_back(rates.back() / ceilings.back());
  }
  LoaderBenchResult result;
  result.bytes_per_s = median(rates);
  result.tokens_per_s = result.bytes_per_s / static_cast<double>(size_of(info.token_dtype()));
  result.ceiling_bytes_per_s = median(ceilings);
  result.of_ceiling = median(ratios);
  return result;
}

}  // namespace lockstep
