// The row kernels of attention's softmax (ops/cpu/softmax.h).
#include "ops/cpu/softmax.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "op_harness.h"
#include "reference.h"

namespace lockstep::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");

// A block of rows: scores in f32, results in the dtype under test, rows longer than the columns in use.
struct Block {
  std::int64_t rows, columns, first_length;

  [[nodiscard]] std::int64_t stride() const { return columns + 3; }
  [[nodiscard]] std::int64_t count() const { return rows * stride(); }
  [[nodiscard]] std::int64_t visible(std::int64_t row) const {
    return std::clamp<std::int64_t>(first_length + row, 0, columns);
  }
  // Values in the visible part, NaN elsewhere.
  [[nodiscard]] std::vector<float> visible_only(const Values& values) const {
    std::vector<float> result(static_cast<std::size_t>(count()), kNaN);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < visible(row); ++i) {
        const auto at = static_cast<std::size_t>(row * stride() + i);
        result[at] = static_cast<float>(values[at]);
      }
    }
    return result;
  }
};

const Block kBlocks[] = {{1, 1, 1},     {3, 3, 1},       {17, 17, 1}, {4, 40, 13},
                         {5, 129, 125}, {3, 1100, 1090}, {4, 64, 64}, {3, 5, -1}};
const float kScale = 0.375F;

class SoftmaxTest : public OpTest {
 protected:
  [[nodiscard]] Tensor output(const Block& block) {
    return graph_.constant({block.count()}, Values(static_cast<std::size_t>(block.count()), 7), dtype());
  }

  Graph graph_{GetParam()};
  RandomValues random_{23};
};

// What softmax_rows should write, 7 where it should write nothing.
Values expected_probabilities(const Block& block, const Values& scores, const cpu::ProbabilityDropout& dropout) {
  Values p(static_cast<std::size_t>(block.count()), 7);
  for (std::int64_t row = 0; row < block.rows; ++row) {
    double sum = 0;
    for (std::int64_t i = 0; i < block.visible(row); ++i) {
      sum += std::exp(static_cast<double>(kScale) * scores[static_cast<std::size_t>(row * block.stride() + i)]);
    }
    for (std::int64_t i = 0; i < block.columns; ++i) {
      const auto at = static_cast<std::size_t>(row * block.stride() + i);
      const std::uint64_t element = dropout.first + static_cast<std::uint64_t>(row * dropout.row_stride + i);
      p[at] = i < block.visible(row) ? std::exp(static_cast<double>(kScale) * scores[at]) / sum *
                                           reference::dropout_factor(dropout.dropout, element)
                                     : 0;
    }
  }
  return p;
}

cpu::SoftmaxRows rows_of(const Block& block, std::vector<float>& scores, const Tensor& probabilities) {
  cpu::SoftmaxRows args;
  args.rows = block.rows;
  args.columns = block.columns;
  args.first_length = block.first_length;
  args.scale = kScale;
  args.scores = scores.data();
  args.score_stride = block.stride();
  args.dtype = probabilities.dtype();
  args.probabilities = probabilities.data();
  args.probability_stride = block.stride();
  return args;
}

TEST_P(SoftmaxTest, RowsAreSoftmaxesOfWhatTheySeeAndZeroBeyond) {
  for (const Block& block : kBlocks) {
    for (const float probability : {0.0F, 0.4F}) {
      const cpu::ProbabilityDropout dropout{{probability, {31, 32}}, 1234567, 2001};
      const Values values = random_(block.count());
      std::vector<float> scores = block.visible_only(values);
      const Tensor p = output(block);
      std::vector<float> log_sum_exp(static_cast<std::size_t>(block.rows));
      cpu::SoftmaxRows args = rows_of(block, scores, p);
      args.log_sum_exp = log_sum_exp.data();
      args.dropout = dropout;
      cpu::softmax_rows(args);
      EXPECT_TRUE(near(to_values(p), expected_probabilities(block, values, dropout), tolerance())) << block.columns;

      for (std::int64_t row = 0; row < block.rows; ++row) {
        double sum = 0;
        for (std::int64_t i = 0; i < block.visible(row); ++i) {
          sum += std::exp(static_cast<double>(kScale) * values[static_cast<std::size_t>(row * block.stride() + i)]);
        }
        const float actual = log_sum_exp[static_cast<std::size_t>(row)];
        if (sum == 0) {
          EXPECT_EQ(actual, -kInfinity);
        } else {
          EXPECT_NEAR(actual, std::log(sum), 1e-6);
        }
      }
    }
  }
}

TEST(SoftmaxRows, MayReplaceTheScoresInF32) {
  Graph graph({});
  RandomValues random(23);
  const Block block{5, 40, 30};
  const Values values = random(block.count());
  std::vector<float> scores = block.visible_only(values);
  const Tensor apart = graph.constant({block.count()}, Values(static_cast<std::size_t>(block.count()), 7), DType::kF32);
  std::vector<float> copy = scores;
  cpu::softmax_rows(rows_of(block, copy, apart));
  cpu::softmax_rows(rows_of(block, scores, Tensor(scores.data(), {block.count()}, DType::kF32)));
  for (std::int64_t row = 0; row < block.rows; ++row) {
    for (std::int64_t i = 0; i < block.columns; ++i) {
      const auto at = static_cast<std::size_t>(row * block.stride() + i);
      EXPECT_EQ(scores[at], apart.data<float>()[at]);
    }
  }
}

TEST_P(SoftmaxTest, GradientIsThatOfTheSoftmaxWithDropout) {
  for (const Block& block : kBlocks) {
    for (const float probability : {0.0F, 0.4F}) {
      const cpu::ProbabilityDropout dropout{{probability, {41, 42}}, 99, 1500};
      const Values values = random_(block.count());
      const Values dvalues = random_(block.count());
      const std::vector<float> scores = block.visible_only(values);
      const std::vector<float> dprobabilities = block.visible_only(dvalues);
      const Values p = expected_probabilities(block, values, {});
      Values dscores(p.size(), 7);
      std::vector<float> log_sum_exp;
      std::vector<float> delta;
      for (std::int64_t row = 0; row < block.rows; ++row) {
        const auto first = static_cast<std::size_t>(row * block.stride());
        const auto visible = static_cast<std::size_t>(block.visible(row));
        const auto factor = [&](std::size_t i) {
          return reference::dropout_factor(dropout.dropout,
                                           dropout.first + static_cast<std::uint64_t>(row * dropout.row_stride) + i);
        };
        double sum = 0;
        double dot = 0;
        for (std::size_t i = 0; i < visible; ++i) {
          sum += std::exp(static_cast<double>(kScale) * values[first + i]);
          dot += p[first + i] * factor(i) * dvalues[first + i];
        }
        for (std::size_t i = 0; i < static_cast<std::size_t>(block.columns); ++i) {
          const double difference = factor(i) * dvalues[first + i] - dot;
          dscores[first + i] = i < visible ? static_cast<double>(kScale) * p[first + i] * difference : 0;
        }
        log_sum_exp.push_back(static_cast<float>(std::log(sum)));
        delta.push_back(static_cast<float>(dot));
      }

      const Tensor probabilities = output(block);
      const Tensor gradient = output(block);
      cpu::SoftmaxBackwardRows args;
      args.rows = block.rows;
      args.columns = block.columns;
      args.first_length = block.first_length;
      args.scale = kScale;
      args.scores = scores.data();
      args.score_stride = block.stride();
      args.dprobabilities = dprobabilities.data();
      args.dprobability_stride = block.stride();
      args.log_sum_exp = log_sum_exp.data();
      args.delta = delta.data();
      args.dtype = dtype();
      args.probabilities = probabilities.data();
      args.probability_stride = block.stride();
      args.dscores = gradient.data();
      args.dscore_stride = block.stride();
      args.dropout = dropout;
      cpu::softmax_backward_rows(args);
      EXPECT_TRUE(near(to_values(probabilities), expected_probabilities(block, values, dropout), tolerance()));
      EXPECT_TRUE(near(to_values(gradient), dscores, tolerance()));
    }
  }
}

TEST_P(SoftmaxTest, HugeScoresNeitherOverflowNorVanish) {
  const Block block{1, 4, 4};
  std::vector<float> scores = {3e38F, -3e38F, 3e38F, -kInfinity, 0, 0, 0};
  const Tensor p = output(block);
  cpu::softmax_rows(rows_of(block, scores, p));
  EXPECT_EQ(to_values(p), (Values{0.5, 0, 0.5, 0, 7, 7, 7}));
}

TEST_P(SoftmaxTest, NaNMakesTheRowThatSeesItNaNAndNoOther) {
  const Block block{3, 20, 18};
  std::vector<float> scores = block.visible_only(random_(block.count()));
  scores[static_cast<std::size_t>(block.stride() + 5)] = kNaN;
  const Tensor p = output(block);
  cpu::softmax_rows(rows_of(block, scores, p));
  const Values values = to_values(p);
  for (std::int64_t row = 0; row < 3; ++row) {
    for (std::int64_t i = 0; i < block.visible(row); ++i) {
      EXPECT_EQ(std::isnan(values[static_cast<std::size_t>(row * block.stride() + i)]), row == 1) << row << ", " << i;
    }
  }
}

TEST_P(SoftmaxTest, RowDotsMultiplyAndAdd) {
  for (const std::int64_t columns : {1, 3, 17, 64, 80, 127, 129}) {
    const Tensor a = graph_.constant({3 * (columns + 2)}, random_(3 * (columns + 2)), dtype());
    const Tensor b = graph_.constant({3 * (columns + 1)}, random_(3 * (columns + 1)), dtype());
    std::vector<float> dots(3);
    cpu::row_dots({3, columns, dtype(), a.data(), columns + 2, b.data(), columns + 1, dots.data()});
    for (std::int64_t row = 0; row < 3; ++row) {
      double expected = 0;  // multiples of 1/4096: exact in f32
      for (std::int64_t i = 0; i < columns; ++i) {
        expected += to_values(a)[static_cast<std::size_t>(row * (columns + 2) + i)] *
                    to_values(b)[static_cast<std::size_t>(row * (columns + 1) + i)];
      }
      EXPECT_EQ(static_cast<double>(dots[static_cast<std::size_t>(row)]), expected) << columns;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, SoftmaxTest, testing::ValuesIn(cpu_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
