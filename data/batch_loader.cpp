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
#include "data/samples.h"
#include "data/trace_file.h"

namespace lockstep {
namespace {

// One sample's place: which of the rank's micro-batches it goes into, and where.
struct Place {
  std::uint64_t sample;
  std::int64_t local_micro_batch;  // counted from the rank's first
  std::int64_t row;                // of the micro-batch's samples
  std::size_t begin;               // in its inputs
};

// Everything of one step that a rank reads.
struct StepBatches {
  std::vector<TokenBatch> batches;
  std::vector<TraceLine> trace;  // in the order of micro-batches and rows; empty without a trace
};

// Conversations are filled up to a multiple of it: kernels work on whole vectors, and few sizes recur.
constexpr std::int64_t kRowGranule = 16;

// A batch that has room for samples, and where each of them goes.
class BatchPlan {
 public:
  BatchPlan(const Samples& samples, std::int64_t micro_batch) : samples_(samples) { batch_.micro_batch = micro_batch; }

  // Returns where its inputs begin.
  std::size_t add(std::uint64_t sample) {
    const std::size_t begin = tokens_;
    tokens_ += static_cast<std::size_t>(samples_.inputs(sample));
    batch_.target_tokens += samples_.targets(sample);
    batch_.pairs += samples_.pairs(sample);
    samples_.append_lengths(sample, batch_.lengths);
    return begin;
  }
  // `rows` of `sequence` tokens of text; conversations take what they need.
  [[nodiscard]] TokenBatch finish(std::int64_t rows, std::int64_t sequence) {
    batch_.row_tokens = sequence;
    if (!batch_.lengths.empty()) {
      const auto used = static_cast<std::int64_t>(tokens_);
      batch_.row_tokens = (used + kRowGranule - 1) / kRowGranule * kRowGranule;
      if (batch_.row_tokens > used) {
        batch_.lengths.push_back(batch_.row_tokens - used);
      }
      rows = 1;
    }
    batch_.inputs.assign(static_cast<std::size_t>(rows * batch_.row_tokens), 0);
    batch_.targets.assign(batch_.inputs.size(), -1);
    return std::move(batch_);
  }

 private:
  const Samples& samples_;
  TokenBatch batch_;
  std::size_t tokens_ = 0;
};

// Puts a sample into its place in a batch; returns the hash of its tokens.
Hash128 fill(Samples& samples, std::uint64_t sample, std::size_t begin, TokenBatch& batch) {
  const auto count = static_cast<std::size_t>(samples.inputs(sample));
  return samples.read(sample, std::span(batch.inputs).subspan(begin, count),
                      std::span(batch.targets).subspan(begin, count));
}

// Reads all that a rank needs for a step. Owned by the reading thread.
class StepReader {
 public:
  explicit StepReader(const BatchLoaderOptions& options)
      : options_(options),
        dataset_(Dataset::open(options.dataset)),
        samples_(dataset_, options.sequence, options.packed),
        sampler_({samples_.count(), options.micro_batches, options.micro_batch_size, options.seed}),
        range_(micro_batches_of_rank(options.micro_batches, options.rank, options.world)) {}

  StepBatches read(std::uint64_t step) {
    StepBatches result;
    std::vector<Place> places;
    for (std::int64_t m = range_.begin; m < range_.end; ++m) {
      BatchPlan plan(samples_, m);
      for (std::int64_t b = 0; b < options_.micro_batch_size; ++b) {
        const std::uint64_t sample = sampler_.sample(step, m, b);
        places.push_back({sample, m - range_.begin, b, plan.add(sample)});
      }
      result.batches.push_back(plan.finish(options_.micro_batch_size, options_.sequence));
    }
    set_totals(step, result.batches);
    if (!options_.trace.empty()) {
      result.trace.resize(places.size());
    }
    // In the order of the file: neighbouring reads fall into the same shard, and often into the same page.
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.sample < b.sample; });
    for (const Place& place : places) {
      const Hash128 hash =
          fill(samples_, place.sample, place.begin, result.batches[static_cast<std::size_t>(place.local_micro_batch)]);
      if (!options_.trace.empty()) {
        const auto line = static_cast<std::size_t>(place.local_micro_batch * options_.micro_batch_size + place.row);
        result.trace[line] = {step, range_.begin + place.local_micro_batch, place.sample, hash};
      }
    }
    return result;
  }

  [[nodiscard]] bool has_work() const { return range_.begin < range_.end; }

 private:
  // Over all ranks, without reading what is the others'.
  void set_totals(std::uint64_t step, std::vector<TokenBatch>& batches) const {
    std::int64_t inputs = 0;
    std::int64_t targets = 0;
    std::int64_t pairs = 0;
    for (std::int64_t m = 0; m < options_.micro_batches; ++m) {
      for (std::int64_t b = 0; b < options_.micro_batch_size; ++b) {
        const std::uint64_t sample = sampler_.sample(step, m, b);
        inputs += samples_.inputs(sample);
        targets += samples_.targets(sample);
        pairs += samples_.pairs(sample);
      }
    }
    for (TokenBatch& batch : batches) {
      batch.step = step;
      batch.step_inputs = inputs;
      batch.step_targets = targets;
      batch.step_pairs = pairs;
    }
  }

  const BatchLoaderOptions& options_;
  Dataset dataset_;
  Samples samples_;
  Sampler sampler_;
  MicroBatchRange range_;
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
  explicit State(const Options& o)
      : options(o), dataset(Dataset::open(o.dataset)), samples(dataset, o.sequence, o.packed) {
    require(o.micro_batch_size >= 1, "data: micro_batch_size {} must be at least 1", o.micro_batch_size);
    const auto rows = static_cast<std::uint64_t>(o.micro_batch_size);
    count = (samples.count() + rows - 1) / rows;
    if (o.max_batches > 0) {
      count = std::min(count, o.max_batches);
    }
  }

  const Options options;
  Dataset dataset;
  Samples samples;
  std::uint64_t count = 0;
  TokenBatch batch;
};

EvaluationBatches::EvaluationBatches(const Options& options) : state_(std::make_unique<State>(options)) {}

EvaluationBatches::~EvaluationBatches() = default;

std::uint64_t EvaluationBatches::count() const { return state_->count; }

const TokenBatch& EvaluationBatches::read(std::uint64_t index) {
  State& state = *state_;
  assert(index < state.count);
  const auto rows = static_cast<std::uint64_t>(state.options.micro_batch_size);
  const std::uint64_t first = index * rows;
  const std::uint64_t end = std::min(first + rows, state.samples.count());
  BatchPlan plan(state.samples, static_cast<std::int64_t>(index));
  std::vector<std::size_t> begins;
  for (std::uint64_t sample = first; sample < end; ++sample) {
    begins.push_back(plan.add(sample));
  }
  state.batch = plan.finish(state.options.micro_batch_size, state.options.sequence);
  for (std::uint64_t sample = first; sample < end; ++sample) {
    fill(state.samples, sample, begins[sample - first], state.batch);
  }
  return state.batch;
}

}  // namespace lockstep
