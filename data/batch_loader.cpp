#include "data/batch_loader.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "data/dataset.h"
#include "data/trace_file.h"

namespace lockstep {
namespace {

// One row's place: which sample goes into which row of which of the rank's micro-batches.
struct Row {
  std::uint64_t sample;
  std::int64_t local_micro_batch;  // counted from the rank's first
  std::int64_t row;
};

// Everything of one step that a rank reads.
struct StepBatches {
  std::vector<TokenBatch> batches;
  std::vector<TraceLine> trace;  // in the order of micro-batches and rows; empty without a trace
};

// Puts a sample of T+1 tokens into a row of a batch.
void fill_row(std::span<const std::int32_t> tokens, std::size_t row, TokenBatch& batch) {
  const std::size_t sequence = tokens.size() - 1;
  std::copy(tokens.begin(), tokens.end() - 1, batch.inputs.begin() + static_cast<std::ptrdiff_t>(row * sequence));
  std::copy(tokens.begin() + 1, tokens.end(), batch.targets.begin() + static_cast<std::ptrdiff_t>(row * sequence));
  batch.target_tokens += static_cast<std::int64_t>(sequence);
}

TokenBatch empty_batch(std::uint64_t step, std::int64_t micro_batch, std::int64_t rows, std::int64_t sequence) {
  const auto tokens = static_cast<std::size_t>(rows * sequence);
  TokenBatch batch;
  batch.step = step;
  batch.micro_batch = micro_batch;
  batch.inputs.assign(tokens, 0);
  batch.targets.assign(tokens, -1);
  return batch;
}

// Reads all that a rank needs for a step. Owned by the reading thread.
class StepReader {
 public:
  explicit StepReader(const BatchLoaderOptions& options)
      : options_(options),
        dataset_(Dataset::open(options.dataset)),
        sampler_(
            {dataset_.info().tokens, options.sequence, options.micro_batches, options.micro_batch_size, options.seed}),
        range_(micro_batches_of_rank(options.micro_batches, options.rank, options.world)),
        sample_tokens_(static_cast<std::size_t>(options.sequence) + 1) {}

  StepBatches read(std::uint64_t step) {
    StepBatches result;
    std::vector<Row> rows;
    for (std::int64_t m = range_.begin; m < range_.end; ++m) {
      result.batches.push_back(empty_batch(step, m, options_.micro_batch_size, options_.sequence));
      for (std::int64_t b = 0; b < options_.micro_batch_size; ++b) {
        rows.push_back({sampler_.sample(step, m, b), m - range_.begin, b});
      }
    }
    if (!options_.trace.empty()) {
      result.trace.resize(rows.size());
    }
    // In the order of the file: neighbouring reads fall into the same shard, and often into the same page.
    std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.sample < b.sample; });
    for (const Row& row : rows) {
      dataset_.read(sampler_.first_token(row.sample), sample_tokens_);
      fill_row(sample_tokens_, static_cast<std::size_t>(row.row),
               result.batches[static_cast<std::size_t>(row.local_micro_batch)]);
      if (!options_.trace.empty()) {
        const auto place = static_cast<std::size_t>(row.local_micro_batch * options_.micro_batch_size + row.row);
        result.trace[place] = {step, range_.begin + row.local_micro_batch, row.sample,
                               hash_of(std::as_bytes(std::span(sample_tokens_)))};
      }
    }
    return result;
  }

  [[nodiscard]] bool has_work() const { return range_.begin < range_.end; }

 private:
  const BatchLoaderOptions& options_;
  Dataset dataset_;
  Sampler sampler_;
  MicroBatchRange range_;
  std::vector<std::int32_t> sample_tokens_;
};

}  // namespace

struct BatchLoader::State {
  explicit State(BatchLoaderOptions o) : options(std::move(o)) {}

  const BatchLoaderOptions options;

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<StepBatches> ready;  // at most read_ahead_steps
  std::exception_ptr failure;     // what ended the thread
  bool interrupted = false;

  // Of the thread that calls next().
  StepBatches current;
  std::size_t handed_out = 0;  // of current.batches
  std::chrono::steady_clock::duration blocked{0};
  std::optional<TraceFile> trace;

  std::thread reader;

  void read_steps();
  void wait_for_step();
};

// The reading thread.
void BatchLoader::State::read_steps() {
  try {
    StepReader steps(options);
    require(steps.has_work(), "data: rank {} of {} has none of the {} micro-batches", options.rank, options.world,
            options.micro_batches);
    for (std::uint64_t step = options.first_step;; ++step) {
      StepBatches batches = steps.read(step);
      std::unique_lock lock(mutex);
      changed.wait(lock,
                   [&] { return interrupted || ready.size() < static_cast<std::size_t>(options.read_ahead_steps); });
      if (interrupted) {
        return;
      }
      ready.push_back(std::move(batches));
      changed.notify_all();
    }
  } catch (...) {
    const std::lock_guard lock(mutex);
    failure = std::current_exception();
    changed.notify_all();
  }
}

void BatchLoader::State::wait_for_step() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return interrupted || failure || !ready.empty(); });
  blocked += std::chrono::steady_clock::now() - start;
  if (interrupted) {
    fail(ErrorCode::kTimeout, "data: reading {} was interrupted", options.dataset.string());
  }
  if (ready.empty()) {
    std::rethrow_exception(failure);
  }
  current = std::move(ready.front());
  ready.pop_front();
  handed_out = 0;
  changed.notify_all();
}

BatchLoader::BatchLoader(BatchLoaderOptions options) {
  require(options.read_ahead_steps >= 1, "data: read_ahead_steps is {}, expected at least 1", options.read_ahead_steps);
  state_ = std::make_unique<State>(std::move(options));
  if (!state_->options.trace.empty()) {
    state_->trace.emplace(TraceFile::path_of_rank(state_->options.trace, state_->options.rank));
  }
  state_->reader = std::thread([state = state_.get()] { state->read_steps(); });
}

BatchLoader::~BatchLoader() {
  interrupt();
  state_->reader.join();
}

const TokenBatch& BatchLoader::next() {
  State& state = *state_;
  if (state.handed_out == state.current.batches.size()) {
    state.wait_for_step();
  }
  const TokenBatch& batch = state.current.batches[state.handed_out];
  ++state.handed_out;
  if (state.trace && state.handed_out == state.current.batches.size()) {
    state.trace->append(state.current.trace);
  }
  return batch;
}

double BatchLoader::take_blocked_ms() {
  return std::chrono::duration<double, std::milli>(std::exchange(state_->blocked, {})).count();
}

void BatchLoader::interrupt() {
  const std::lock_guard lock(state_->mutex);
  state_->interrupted = true;
  state_->changed.notify_all();
}

struct EvaluationBatches::State {
  Options options;
  Dataset dataset;
  Sampler sampler;
  std::uint64_t count = 0;
  TokenBatch batch;
  std::vector<std::int32_t> tokens;
};

EvaluationBatches::EvaluationBatches(const Options& options) {
  Dataset dataset = Dataset::open(options.dataset);
  const Sampler sampler({dataset.info().tokens, options.sequence, 1, options.micro_batch_size, 0});
  const auto rows = static_cast<std::uint64_t>(options.micro_batch_size);
  std::uint64_t count = (sampler.samples_per_epoch() + rows - 1) / rows;
  if (options.max_batches > 0) {
    count = std::min(count, options.max_batches);
  }
  state_ = std::make_unique<State>(State{options, std::move(dataset), sampler, count, {}, {}});
}

EvaluationBatches::~EvaluationBatches() = default;

std::uint64_t EvaluationBatches::count() const { return state_->count; }

const TokenBatch& EvaluationBatches::read(std::uint64_t index) {
  State& state = *state_;
  assert(index < state.count);
  const auto rows = static_cast<std::uint64_t>(state.options.micro_batch_size);
  const auto sequence = static_cast<std::uint64_t>(state.options.sequence);
  state.batch =
      empty_batch(0, static_cast<std::int64_t>(index), state.options.micro_batch_size, state.options.sequence);
  const std::uint64_t first = index * rows;
  const std::uint64_t whole = std::min(rows, state.sampler.samples_per_epoch() - first);
  // The samples of a batch follow each other, each sharing its last token with the next: one read for all.
  state.tokens.resize(whole * sequence + 1);
  state.dataset.read(state.sampler.first_token(first), state.tokens);
  for (std::uint64_t row = 0; row < whole; ++row) {
    fill_row(std::span(state.tokens).subspan(row * sequence, sequence + 1), row, state.batch);
  }
  return state.batch;
}

}  // namespace lockstep
