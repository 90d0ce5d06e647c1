// Results are a pure function of the inputs: the same bits on any number of threads, at any address, the second time as
// the first.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <functional>
#include <map>

#include "op_harness.h"
#include "tests/ops/sum_of_squares.h"

namespace lockstep::test {
namespace {

using Results = std::map<std::string, Values>;

void expect_same_bits(const Results& actual, const Results& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, values] : expected) {
    EXPECT_EQ(actual.at(name), values) << name;
  }
}

// A block of a llama-like and one of a gpt2-like model with everything in them: every op, sizes that need several
// chunks.
Results train_step(const Platform& platform, int threads) {
  constexpr std::int64_t kWidth = 48;
  constexpr std::int64_t kVocabulary = 300;
  constexpr std::int64_t kSequence = 150;
  constexpr std::int64_t kRows = 2 * kSequence;
  RandomValues random(41);
  Graph graph(platform, threads);
  Tape& tape = graph.tape();
  const auto parameter = [&](const Shape& shape) { return graph.parameter(shape, random(shape.count())); };
  const auto layer = [&](std::int64_t in, std::int64_t out) {
    return Linear{parameter({in, out}), parameter({out}), WeightLayout::kInOut};
  };
  const auto dropout_at = [](std::uint32_t site) { return Dropout{0.1F, {site, 77}}; };

  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
  for (std::int64_t i = 0; i < kRows; ++i) {
    tokens.push_back(static_cast<std::int32_t>(i * i % kVocabulary));
    targets.push_back(i % 11 == 0 ? -1 : static_cast<std::int32_t>(i * 7 % kVocabulary));
  }
  const EmbeddingTables tables{parameter({kVocabulary, kWidth}), parameter({kSequence, kWidth})};
  const Norm layer_norm{NormKind::kLayer, 1e-5F, parameter({kWidth}), parameter({kWidth})};
  const Norm rms_norm{NormKind::kRms, 1e-5F, parameter({kWidth}), Tensor()};
  const Linear projections[] = {layer(kWidth, 2 * kWidth), layer(kWidth, 4 * kWidth), layer(2 * kWidth, kWidth),
                                layer(kWidth, kWidth)};
  const Tensor frequency = graph.on_host({4}, {1, 0.5, 0.25, 0.125});

  const Tensor x = dropout(tape, embedding(tape, {tokens, kSequence, 0}, tables), dropout_at(1));
  // 6 query heads share 3 key heads of size 8.
  const Tensor qkv =
      rotary_embedding(tape, linear(tape, norm(tape, x, rms_norm), projections[0]), {9, 8, kSequence, 0, frequency});
  const Tensor attended = linear(tape, self_attention(tape, qkv, {2, 6, 3, dropout_at(2)}), projections[3]);
  const SumAndNorm sum = add_norm(tape, x, attended, dropout_at(3), layer_norm);
  const Tensor hidden = gelu(tape, swiglu(tape, linear(tape, sum.y, projections[1])));
  const Tensor last = add(tape, sum.sum, linear(tape, hidden, projections[2]));
  const Loss loss = linear_cross_entropy(tape, norm(tape, last, layer_norm), {tables.tokens, {}, WeightLayout::kOutIn},
                                         {targets, 1.0F / kRows});
  Results results{{"loss", {loss.sum()}}};
  tape.backward(loss.value);
  for (const int id : graph.ready()) {
    Tensor tensor;
    tensor.parameter = id;
    results[fmt::format("gradient of parameter {}", id)] = graph.gradient_of(tensor);
  }
  return results;
}

class DeterminismTest : public OpTest {};

TEST_P(DeterminismTest, TrainStepHasTheSameBitsOnAnyNumberOfThreadsAndTwice) {
  const Results expected = train_step(GetParam(), 1);
  EXPECT_EQ(expected.size(), 14U);  // the loss and 13 gradients
  for (const int threads : {1, 2, 3, 4}) {
    SCOPED_TRACE(fmt::format("{} threads", threads));
    expect_same_bits(train_step(GetParam(), threads), expected);
  }
}

TEST_P(DeterminismTest, LargeProductsAndSumsHaveTheSameBitsOnAnyNumberOfThreads) {
  // Large enough for several chunks each.
  const std::int64_t rows = 192;
  const std::int64_t columns = 3100;
  const std::int64_t inner = 1000;
  const auto compute = [&](int threads) {
    RandomValues random(43);
    Graph graph(GetParam(), threads);
    Backend& backend = graph.backend();
    const Tensor a = graph.constant({rows, inner}, random(rows * inner), dtype());
    const Tensor b = graph.constant({inner, columns}, random(inner * columns), dtype());
    const Tensor d = graph.constant({rows, columns}, Values(static_cast<std::size_t>(rows * columns), 0), DType::kF32);
    backend.gemm({{a.data(), dtype(), rows, inner, inner, false},
                  {b.data(), dtype(), inner, columns, columns, false},
                  {d.data(), DType::kF32, rows, columns, columns, false}});
    Results results;
    results["gemm"] = to_values(d);
    const Tensor sums = graph.constant({columns}, Values(static_cast<std::size_t>(columns), 0), DType::kF32);
    backend.column_sum(b, sums, false);
    results["column_sum"] = to_values(sums);
    results["sum_of_squares"] = {test::sum_of_squares(backend, d.as<float>())};
    std::vector<std::int32_t> targets(static_cast<std::size_t>(rows), 5);
    const Tensor losses = graph.constant({rows}, Values(static_cast<std::size_t>(rows), 0), DType::kF32);
    backend.cross_entropy({d, columns, targets, 1.0F, d, losses});
    results["cross_entropy"] = to_values(d);
    results["losses"] = to_values(losses);
    return results;
  };
  const Results expected = compute(1);
  for (const int threads : {2, 3, 4}) {
    SCOPED_TRACE(fmt::format("{} threads", threads));
    expect_same_bits(compute(threads), expected);
  }
}

// Tensors that begin `offset` elements past a 64-byte boundary.
class OffsetTensors {
 public:
  OffsetTensors(Graph& graph, std::int64_t offset) : graph_(graph), offset_(offset) {}
  [[nodiscard]] Tensor operator()(const Shape& shape, const Values& values, DType dtype) {
    const Tensor whole = graph_.tape().make({shape.count() + offset_}, dtype);
    held_.push_back(whole);
    const Tensor part(static_cast<std::byte*>(whole.data()) + static_cast<std::size_t>(offset_) * size_of(dtype), shape,
                      dtype);
    fill(part, values);
    return part;
  }

 private:
  Graph& graph_;
  std::int64_t offset_;
  std::vector<Tensor> held_;
};

Results kernels_at_offset(const Platform& platform, std::int64_t offset) {
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kColumns = 74;
  const DType working = platform.dtype;
  RandomValues random(47);
  Graph graph(platform);
  Backend& backend = graph.backend();
  OffsetTensors make(graph, offset);
  const auto input = [&](const Shape& shape) { return make(shape, random(shape.count()), working); };
  const auto floats = [&](const Shape& shape) { return make(shape, random(shape.count()), DType::kF32); };
  const Shape shape{kRows, kColumns};
  Results results;

  NormForward forward;
  forward.x = input(shape);
  forward.branch = input(shape);
  forward.dropout = {0.2F, {1, 2}};
  forward.gain = input({kColumns});
  forward.bias = input({kColumns});
  forward.sum = input(shape);
  forward.y = input(shape);
  forward.mean = floats({kRows});
  forward.rstd = floats({kRows});
  backend.norm_forward(forward);
  results["norm"] = to_values(forward.y);
  results["rstd"] = to_values(forward.rstd);

  NormBackward backward;
  backward.dy = input(shape);
  backward.dsum = input(shape);
  backward.sum = forward.sum;
  backward.gain = forward.gain;
  backward.mean = forward.mean;
  backward.rstd = forward.rstd;
  backward.dx = input(shape);
  backward.dgain = floats({kColumns});
  backward.dbias = floats({kColumns});
  backend.norm_backward(backward);
  results["norm dx"] = to_values(backward.dx);
  results["norm dgain"] = to_values(backward.dgain);
  results["norm dbias"] = to_values(backward.dbias);

  const Tensor x = input(shape);
  const Tensor y = input(shape);
  const Tensor half = input({kRows, kColumns / 2});
  backend.gelu_forward(x, y);
  results["gelu"] = to_values(y);
  backend.gelu_backward(x, y, y);
  results["gelu dx"] = to_values(y);
  backend.swiglu_forward(x, half);
  results["swiglu"] = to_values(half);
  backend.swiglu_backward(x, half, y);
  results["swiglu dx"] = to_values(y);
  backend.dropout({0.3F, {3, 4}}, x, y);
  results["dropout"] = to_values(y);
  backend.rope({x, 2, 34, 10, 5, graph.on_host({17}, random(17)), false});
  results["rope"] = to_values(x);
  const Tensor sums = floats({kColumns});
  backend.column_sum(x, sums, true);
  results["column_sum"] = to_values(sums);
  const Tensor logits = floats(shape);
  const std::vector<std::int32_t> targets(kRows, 3);
  backend.cross_entropy({logits, kColumns, targets, 1.0F, y, floats({kRows})});
  results["cross_entropy"] = to_values(y);
  const Tensor product = floats({kRows, kRows});
  backend.gemm({{x.data(), working, kRows, kColumns, kColumns, false},
                {y.data(), working, kRows, kColumns, kColumns, true},
                {product.data(), DType::kF32, kRows, kRows, kRows, false}});
  results["gemm"] = to_values(product);

  const Tensor state[] = {floats({999}), floats({999}), make({999}, Values(999, 0.5), DType::kF32), floats({999})};
  backend.adamw({state[0].as<float>(), state[1].as<float>(), state[2].as<float>(), state[3].as<float>(), 0.5F, 0.1F,
                 0.9F, 0.99F, 1e-8F, 0.1F, 0.5F, 0.5F});
  results["adamw"] = to_values(state[0]);
  results["sum_of_squares"] = {test::sum_of_squares(backend, state[0].as<float>())};
  return results;
}

TEST_P(DeterminismTest, KernelsHaveTheSameBitsAtAnyAddress) {
  if (GetParam().device == DeviceKind::kCuda) {
    GTEST_SKIP() << "a GPU's matrix products depend on alignment, which is the same in every run";
  }
  const Results expected = kernels_at_offset(GetParam(), 0);
  for (const std::int64_t offset : {1, 7, 16}) {
    SCOPED_TRACE(fmt::format("{} elements off", offset));
    expect_same_bits(kernels_at_offset(GetParam(), offset), expected);
  }
}

// While it lives, kernels use this instruction set alone.
class OnlyTarget {
 public:
  explicit OnlyTarget(std::int64_t target) { choose(target); }
  ~OnlyTarget() { choose(0); }
  OnlyTarget(const OnlyTarget&) = delete;
  OnlyTarget& operator=(const OnlyTarget&) = delete;

 private:
  static void choose(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

TEST_P(DeterminismTest, InstructionSetsAgreeAndThoseWithFusedMultiplyAddHaveTheSameBits) {
  if (GetParam().device == DeviceKind::kCuda) {
    GTEST_SKIP() << "instruction sets are the CPU's";
  }
  // Lower bits are better sets: AVX2 and all above it have fused multiply-add and sum in the same lanes.
  const std::int64_t with_fma = HWY_AVX2 | (HWY_AVX2 - 1);
  const Results best = kernels_at_offset(GetParam(), 0);
  // Of those that the processor has, the kernels are compiled for fewer.
  const std::int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  const bool best_has_fma = (supported & with_fma) != 0;
  for (std::int64_t left = supported; left != 0; left &= left - 1) {
    const std::int64_t target = left & -left;
    SCOPED_TRACE(hwy::TargetName(target));
    const OnlyTarget only(target);
    const Results results = kernels_at_offset(GetParam(), 0);
    for (const auto& [name, values] : results) {
      if (best_has_fma && (target & with_fma) != 0) {
        EXPECT_EQ(values, best.at(name)) << name;
      } else {
        EXPECT_TRUE(near(values, best.at(name), tolerance(8))) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, DeterminismTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
