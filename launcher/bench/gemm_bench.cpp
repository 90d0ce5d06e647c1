#include "launcher/bench/gemm_bench.h"

#include <algorithm>

#include "base/buffer.h"
#include "launcher/bench/step_bench.h"
#include "trainer/gemm_rate.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

// The operands of a product, in memory of their own.
class Operands {
 public:
  Operands(const GemmCalls& shape, Backend& backend)
      : gemm_(shape.gemm),
        a_(buffer_for(gemm_.a, backend)),
        b_(buffer_for(gemm_.b, backend)),
        d_(buffer_for(gemm_.d, backend)),
        bias_(filled_memory(backend, static_cast<std::size_t>(shape.n()) * sizeof(float), std::byte{0})) {
    gemm_.a.data = a_.data();
    gemm_.b.data = b_.data();
    gemm_.d.data = d_.data();
    gemm_.bias = shape.has_bias ? bias_.data() : nullptr;
    if (gemm_.epilogue != Epilogue::kNone) {
      before_ = random_memory(backend, static_cast<std::size_t>(shape.m() * shape.n()), gemm_.d.dtype);
      gemm_.before = Tensor(before_.data(), {shape.m(), shape.n()}, gemm_.d.dtype, backend.device());
    }
  }

  [[nodiscard]] const Gemm& gemm() const { return gemm_; }

 private:
  static Buffer buffer_for(const Matrix& matrix, Backend& backend) {
    return random_memory(backend, static_cast<std::size_t>(matrix.rows * matrix.stride), matrix.dtype);
  }

  Gemm gemm_;
  Buffer a_;
  Buffer b_;
  Buffer d_;
  Buffer bias_;
  Buffer before_;
};

// The best of a few repetitions that take some tens of milliseconds together.
double best_ms(Backend& backend, const Gemm& gemm) {
  constexpr double kPatienceMs = 30;
  double best = 1e30;
  const double begin_ms = now_ms();
  for (int i = 0; i < 3 || (i < 100 && now_ms() - begin_ms < kPatienceMs); ++i) {
    const double before_ms = now_ms();
    backend.gemm(gemm);
    backend.synchronize();
    best = std::min(best, now_ms() - before_ms);
  }
  return best;
}

}  // namespace

GemmBenchResult bench_gemm(const BenchModel& model, int rounds, Communicator& communicator) {
  const std::vector<GemmCalls> shapes = gemms_of_step(model, communicator);
  const auto backend = make_backend(model.device, model.config.train.threads);
  const DType working = dtype_of(model.config.train.precision);
  std::vector<std::vector<double>> rates(shapes.size());
  std::vector<std::vector<double>> ratios(shapes.size());
  std::vector<double> ceilings;
  for (int round = 0; round < rounds; ++round) {
    ceilings.push_back(gemm_ceiling(communicator, *backend, working));
    for (std::size_t s = 0; s < shapes.size(); ++s) {
      const Operands operands(shapes[s], *backend);
      communicator.barrier();
      const double rate = shapes[s].flop() / (best_ms(*backend, operands.gemm()) * 1e-3);
      rates[s].push_back(sum_over_ranks(communicator, rate));
      ratios[s].push_back(rates[s].back() / ceilings.back());
    }
  }
  GemmBenchResult result;
  result.ceiling_flop_per_s = median(ceilings);
  double flop = 0;
  double flop_at_ceiling = 0;  // what the ceiling would have computed in the same time
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    result.rows.push_back({shapes[s], median(rates[s]), median(ratios[s])});
    const double work = shapes[s].flop() * static_cast<double>(shapes[s].calls);
    flop += work;
    flop_at_ceiling += work / result.rows.back().of_ceiling;
  }
  result.of_ceiling = flop / flop_at_ceiling;
  return result;
}

}  // namespace lockstep
