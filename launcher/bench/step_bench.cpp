#include "launcher/bench/step_bench.h"

#include <span>

#include "data/batch_loader.h"
#include "launcher/bench/batches.h"
#include "trainer/device_communicator.h"
#include "trainer/model/architecture.h"
#include "trainer/stopwatch.h"
#include "trainer/train_step.h"

namespace lockstep {
namespace {

constexpr int kWarmUpSteps = 2;
constexpr int kRecordingSteps = 2;  // with device.graph: in the first the kernels are recorded
constexpr int kPartsSteps = 3;

// The steps of one rank.
class Steps {
 public:
  Steps(const BenchModel& model, Communicator& communicator, TimedBackend& backend)
      : config_(model.config),
        communicator_(communicator),
        backend_(backend),
        of_device_(make_device_communicator(config_, model.device, communicator, backend)),
        step_(config_, of_device_ ? *of_device_ : communicator, backend),
        batches_(model, communicator) {
    Replica& replica = step_.replica();
    replica.initialize(config_.run.seed);
    backend.set_head(replica.weights()[static_cast<std::size_t>(replica.model().parameters().head)]);
  }

  [[nodiscard]] TrainStep& step() { return step_; }

  // When all ranks are done.
  void close() {
    if (of_device_) {
      of_device_->close();
    }
  }

  // Milliseconds, from a moment at which every rank begins.
  double run() {
    communicator_.barrier();
    const double begin_ms = now_ms();
    static_cast<void>(step_.compute_gradients(completed_, [&]() -> const TokenBatch& { return batches_.next(); }));
    step_.finish_gradients();
    step_.update(completed_, config_.optimizer.lr, step_.gradient_norm(completed_));
    backend_.synchronize();
    ++completed_;
    return now_ms() - begin_ms;
  }

  void reset_parts() {
    backend_.reset();
    exposed_ms_ = 0;
    static_cast<void>(batches_.take_blocked_ms());
    counted_ = 0;
    total_ms_ = 0;
  }
  void count(double step_ms) {
    exposed_ms_ += step_.exposed_ms();
    total_ms_ += step_ms;
    ++counted_;
  }
  // Milliseconds a step, of the steps that were counted.
  [[nodiscard]] std::vector<std::pair<std::string, double>> parts() {
    std::vector<std::pair<std::string, double>> parts;
    double rest_ms = total_ms_;
    const auto add = [&](std::string_view name, double ms) {
      parts.emplace_back(name, ms / counted_);
      rest_ms -= ms;
    };
    for (std::size_t p = 0; p < kStepParts; ++p) {
      const auto part = static_cast<StepPart>(p);
      add(name_of(part), backend_.ms(part));
    }
    add("exposed communication", exposed_ms_);
    add("data", batches_.take_blocked_ms());
    parts.emplace_back("other", rest_ms / counted_);
    return parts;
  }

 private:
  const Config& config_;
  Communicator& communicator_;
  TimedBackend& backend_;
  std::unique_ptr<Communicator> of_device_;
  TrainStep step_;
  Batches batches_;
  std::int64_t completed_ = 0;
  int counted_ = 0;
  double total_ms_ = 0;
  double exposed_ms_ = 0;
};

double gemm_rate_of(const TimedBackend& backend) {
  double flop = 0;
  double ms = 0;
  for (const GemmCalls& call : backend.gemms()) {
    if (!call.is_head) {
      flop += call.flop() * static_cast<double>(call.calls);
      ms += call.ms;
    }
  }
  return ms > 0 ? flop / (ms * 1e-3) : 0;
}

}  // namespace

std::vector<GemmCalls> gemms_of_step(const BenchModel& model, Communicator& communicator) {
  BenchModel kept = model;
  kept.config.train.recompute = Recompute::kNone;  // so that a forward product is one
  TimedBackend backend(make_backend(kept.device, kept.config.train.threads));
  Steps steps(kept, communicator, backend);
  steps.run();
  steps.close();
  return backend.gemms();
}

StepBenchResult bench_step(const BenchModel& model, int rounds, Communicator& communicator) {
  const Config& config = model.config;
  TimedBackend backend(make_backend(model.device, config.train.threads));
  Steps steps(model, communicator, backend);
  const Replica& replica = steps.step().replica();
  for (int i = 0; i < kWarmUpSteps + (config.device.graph ? kRecordingSteps : 0); ++i) {
    steps.run();
  }
  const auto tokens = static_cast<double>(steps.step().tokens_per_step());
  const double flop = tokens * training_flop_per_token(replica.model().architecture(), replica.model().parameters(),
                                                       config.data.sequence);
  std::vector<double> step_ms;
  std::vector<double> ceilings;
  std::vector<double> ratios;
  steps.reset_parts();
  const bool on_gpu = model.device.device.kind == DeviceKind::kCuda;
  for (int round = 0; round < rounds; ++round) {
    ceilings.push_back(gemm_ceiling(communicator, backend.untimed(), replica.working_dtype()));
    step_ms.push_back(steps.run());
    if (!on_gpu) {
      steps.count(step_ms.back());
    }
    ratios.push_back(flop / (step_ms.back() * 1e-3) / ceilings.back());
  }
  // A GPU's parts are told apart by waiting for each, which takes time of its own: in steps of their own.
  for (int i = 0; on_gpu && i < kPartsSteps; ++i) {
    if (i == 0) {
      steps.step().stop_recording();
      steps.reset_parts();
      backend.set_waiting(true);
    }
    steps.count(steps.run());
  }
  steps.close();
  StepBenchResult result;
  result.step_ms = median(step_ms);
  result.tokens_per_s = tokens / (result.step_ms * 1e-3);
  result.flop_per_s = flop / (result.step_ms * 1e-3);
  result.ceiling_flop_per_s = median(ceilings);
  result.of_ceiling = median(ratios);
  result.parts = steps.parts();
  result.gemm_flop_per_s = gemm_rate_of(backend);
  const double memory = resident_bytes();
  result.device_bytes = static_cast<double>(backend.allocated_bytes());
  result.resident_bytes.resize(static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather(std::as_bytes(std::span(&memory, 1)),
                          std::as_writable_bytes(std::span(result.resident_bytes)));
  return result;
}

}  // namespace lockstep
