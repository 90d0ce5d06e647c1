#include "ops/cpu/optimizer.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/optimizer.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

// m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
// w = w (1 - lr decay) - lr (m / c1) / (sqrt(v / c2) + eps)
void adamw_chunk(const AdamW& args, std::size_t begin, std::size_t count) {
  float* master = args.master.data() + begin;
  float* exp_avg = args.exp_avg.data() + begin;
  float* exp_avg_sq = args.exp_avg_sq.data() + begin;
  const float* gradient = args.gradient.data() + begin;
  const Float gradient_scale = set(args.gradient_scale);
  const Float beta1 = set(args.beta1);
  const Float rest1 = set(1.0F - args.beta1);
  const Float beta2 = set(args.beta2);
  const Float rest2 = set(1.0F - args.beta2);
  const Float keep = set(1.0F - args.learning_rate * args.weight_decay);
  const Float step = set(args.learning_rate / args.bias_correction1);
  const Float inverse_root = set(1.0F / std::sqrt(args.bias_correction2));
  const Float epsilon = set(args.epsilon);
  sweep(count, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    const Float g = hn::Mul(load(gradient + i, extent), gradient_scale);
    const Float m = hn::MulAdd(load(exp_avg + i, extent), beta1, hn::Mul(g, rest1));
    const Float v = hn::MulAdd(load(exp_avg_sq + i, extent), beta2, hn::Mul(hn::Mul(g, g), rest2));
    const Float denominator = hn::MulAdd(hn::Sqrt(v), inverse_root, epsilon);
    const Float decayed = hn::Mul(load(master + i, extent), keep);
    store(m, exp_avg + i, extent);
    store(v, exp_avg_sq + i, extent);
    store(hn::NegMulAdd(step, hn::Div(m, denominator), decayed), master + i, extent);
  });
}

void adamw_kernel(const AdamW& args, ThreadPool& pool) {
  const Chunks chunks = chunks_of_elements(args.master.size());
  pool.parallel_for(chunks.count(),
                    [&](std::size_t chunk) { adamw_chunk(args, chunks.begin(chunk), chunks.size(chunk)); });
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(adamw_kernel);

void adamw(const AdamW& adamw, ThreadPool& pool) {
  assert(adamw.exp_avg.size() == adamw.master.size() && adamw.exp_avg_sq.size() == adamw.master.size() &&
         adamw.gradient.size() == adamw.master.size());
  HWY_DYNAMIC_DISPATCH(adamw_kernel)(adamw, pool);
}

}  // namespace lockstep::cpu
#endif
