// The kernels of attention as a backend is asked for them: lengths around the sizes of tiles, widths that fill a tile
// and that do not, q, k and v in one matrix with more in its rows. A GPU has two sets of kernels, of which the strides
// choose one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "op_harness.h"
#include "ops/sequences.h"
#include "reference.h"

namespace lockstep::test {
namespace {

struct Case {
  std::int64_t batch, query_length, key_length, heads, kv_heads, head_dim;
  float dropout = 0;

  [[nodiscard]] std::int64_t rows() const { return batch * key_length; }
  [[nodiscard]] std::int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
  [[nodiscard]] std::int64_t out_width() const { return heads * head_dim; }
  [[nodiscard]] std::string name() const {
    return fmt::format("{} x {} of {} tokens, {} of {} heads of {}, dropout {}", batch, query_length, key_length, heads,
                       kv_heads, head_dim, dropout);
  }
};

// A multiple of 8 keeps the rows of bf16 where a GPU reads 16 bytes at once; 1 does not.
constexpr std::int64_t kWide = 8;
constexpr std::int64_t kOdd = 1;
constexpr double kUnused = 99;

class AttentionTest : public OpTest {
 protected:
  struct Inputs {
    Values qkv;   // [rows, width]; the queries are those of the last query_length rows of each batch entry
    Values dout;  // [batch * query_length, out_width]
  };
  [[nodiscard]] Inputs inputs_of(const Case& c) {
    return {random_(c.rows() * c.width()), random_(c.batch * c.query_length * c.out_width())};
  }

  // Attention in memory whose rows have `more` elements than they need.
  class Run {
   public:
    // `lengths`: of sequences that the case's rows fall into. Without, sequences of one length are told likewise where
    // they may be: cuDNN, which takes no such sequences, is not what is tested here.
    Run(const Case& c, const Inputs& inputs, std::int64_t more, std::vector<std::int64_t> lengths = {})
        : case_(c), more_(more), lengths_(std::move(lengths)), graph_(GetParam()) {
      if (lengths_.empty() && c.query_length == c.key_length && c.dropout == 0) {
        lengths_.assign(static_cast<std::size_t>(c.batch), c.key_length);
      }
      qkv_ = make(c.rows(), c.width(), inputs.qkv);
      dqkv_ = make(c.rows(), c.width(), Values(inputs.qkv.size(), kUnused));
      out_ = make(queries(), c.out_width(), Values(inputs.dout.size(), kUnused));
      dout_ = make(queries(), c.out_width(), inputs.dout);
      log_sum_exp_ = graph_.constant({c.batch, c.heads, c.query_length},
                                     Values(static_cast<std::size_t>(queries() * c.heads), kUnused), DType::kF32);
    }

    void forward(bool keeps_log_sum_exp = true) {
      graph_.backend().attention_forward({.shape = shape(),
                                          .dtype = dtype(),
                                          .q = queries_of(qkv_),
                                          .k = keys_of(qkv_, 0),
                                          .v = keys_of(qkv_, 1),
                                          .dropout = dropout(),
                                          .out = rows_of(out_),
                                          .log_sum_exp = keeps_log_sum_exp ? log_sum_exp_ : Tensor(),
                                          .lengths = lengths_});
    }
    void backward() {
      graph_.backend().attention_backward({.shape = shape(),
                                           .dtype = dtype(),
                                           .q = queries_of(qkv_),
                                           .k = keys_of(qkv_, 0),
                                           .v = keys_of(qkv_, 1),
                                           .out = rows_of(out_),
                                           .dout = rows_of(dout_),
                                           .dropout = dropout(),
                                           .log_sum_exp = log_sum_exp_,
                                           .dq = queries_of(dqkv_),
                                           .dk = keys_of(dqkv_, 0),
                                           .dv = keys_of(dqkv_, 1),
                                           .lengths = lengths_});
    }
    // What forward() leaves for backward().
    void take_from(const Run& other) {
      fill(log_sum_exp_, to_values(other.log_sum_exp_));
      fill(out_, with_more(other.out(), case_.out_width()));
    }

    [[nodiscard]] Dropout dropout() const { return {case_.dropout, {5, 6}}; }
    [[nodiscard]] Values log_sum_exp() const { return to_values(log_sum_exp_); }
    [[nodiscard]] Values out() const { return without_more(out_, case_.out_width()); }
    // As qkv; of queries that there are not, what was there before.
    [[nodiscard]] Values gradient() const { return without_more(dqkv_, case_.width()); }

   private:
    [[nodiscard]] std::int64_t queries() const { return case_.batch * case_.query_length; }
    [[nodiscard]] AttentionShape shape() const {
      const std::int64_t sequences = lengths_.empty() ? 1 : case_.batch;  // that are one batch entry
      return {.batch = case_.batch / sequences,
              .query_length = case_.query_length * sequences,
              .key_length = case_.key_length * sequences,
              .key_capacity = case_.key_length * sequences,
              .heads = case_.heads,
              .kv_heads = case_.kv_heads,
              .head_dim = case_.head_dim,
              .scale = 1.0F / std::sqrt(static_cast<float>(case_.head_dim))};
    }

    [[nodiscard]] Tensor make(std::int64_t rows, std::int64_t width, const Values& values) {
      return graph_.constant({rows, width + more_}, with_more(values, width), dtype());
    }
    [[nodiscard]] Values with_more(const Values& values, std::int64_t width) const {
      Values wider;
      for (auto row = values.begin(); row != values.end(); row += width) {
        wider.insert(wider.end(), row, row + width);
        wider.insert(wider.end(), static_cast<std::size_t>(more_), kUnused);
      }
      return wider;
    }
    [[nodiscard]] Values without_more(const Tensor& tensor, std::int64_t width) const {
      const Values wider = to_values(tensor);
      Values values;
      for (auto row = wider.begin(); row != wider.end(); row += width + more_) {
        values.insert(values.end(), row, row + width);
        EXPECT_TRUE(std::all_of(row + width, row + width + more_, [](double v) { return v == kUnused; }));
      }
      return values;
    }

    [[nodiscard]] static RowsView view(const Tensor& tensor, std::int64_t row, std::int64_t column,
                                       std::int64_t rows_per_entry) {
      const std::int64_t stride = tensor.dim(1);
      auto* const data = static_cast<std::byte*>(tensor.data());
      return {data + static_cast<std::size_t>(row * stride + column) * size_of(dtype()), stride,
              rows_per_entry * stride};
    }
    [[nodiscard]] RowsView queries_of(const Tensor& qkv) const {
      return view(qkv, case_.key_length - case_.query_length, 0, case_.key_length);
    }
    [[nodiscard]] RowsView keys_of(const Tensor& qkv, std::int64_t which) const {
      return view(qkv, 0, (case_.heads + which * case_.kv_heads) * case_.head_dim, case_.key_length);
    }
    [[nodiscard]] RowsView rows_of(const Tensor& out) const { return view(out, 0, 0, case_.query_length); }

    Case case_;
    std::int64_t more_;
    std::vector<std::int64_t> lengths_;
    Graph graph_;
    Tensor qkv_, dqkv_, out_, dout_, log_sum_exp_;
  };

  // The definition's, of all rows as queries.
  struct Expected {
    Values out;       // of the queries that there are
    Values gradient;  // likewise
  };
  [[nodiscard]] static Expected expected(const Case& c, const Inputs& inputs, const Dropout& dropout) {
    const reference::AttentionSizes sizes{c.batch, c.key_length, c.heads, c.kv_heads, c.head_dim};
    const Values out = reference::attention(inputs.qkv, sizes, dropout);
    Values dout(out.size());
    Expected expected;
    for (std::int64_t row = 0; row < c.batch * c.query_length; ++row) {
      const std::int64_t of_all =
          row / c.query_length * c.key_length + c.key_length - c.query_length + row % c.query_length;
      const auto begin = out.begin() + of_all * c.out_width();
      expected.out.insert(expected.out.end(), begin, begin + c.out_width());
      std::copy_n(inputs.dout.begin() + row * c.out_width(), c.out_width(), dout.begin() + of_all * c.out_width());
    }
    expected.gradient = reference::attention_gradient(inputs.qkv, dout, sizes, dropout);
    for (std::int64_t row = 0; row < c.rows(); ++row) {
      if (row % c.key_length < c.key_length - c.query_length) {
        std::fill_n(expected.gradient.begin() + row * c.width(), c.out_width(), kUnused);
      }
    }
    return expected;
  }

  // near(), where what was never written is not what others are compared with.
  static void expect_near_gradient(const Values& actual, const Values& expected, double steps) {
    Values written;
    Values expected_written;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (expected[i] == kUnused) {
        ASSERT_EQ(actual[i], kUnused) << "element " << i;
      } else {
        written.push_back(actual[i]);
        expected_written.push_back(expected[i]);
      }
    }
    EXPECT_TRUE(near(written, expected_written, tolerance(steps)));
  }

  RandomValues random_{37};
};

TEST_P(AttentionTest, HasTheGradientsOfItsDefinitionAtAllLengthsAndWidths) {
  const Case cases[] = {{1, 1, 1, 1, 1, 8},          {2, 17, 17, 2, 1, 40},       {1, 64, 64, 2, 2, 64},
                        {1, 65, 65, 2, 1, 64},       {1, 129, 129, 1, 1, 80},     {1, 200, 200, 2, 1, 128},
                        {1, 65, 200, 3, 1, 64},      {1, 1, 129, 2, 2, 128},      {2, 17, 130, 2, 1, 8},
                        {1, 33, 33, 1, 1, 80, 0.3F}, {1, 66, 66, 2, 1, 64, 0.3F}, {2, 35, 35, 1, 1, 128, 0.3F},
                        {1, 40, 40, 2, 1, 200}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name());
    const Inputs inputs = inputs_of(c);
    Run run(c, inputs, kWide);
    run.forward();
    run.backward();
    const Expected expected_values = expected(c, inputs, run.dropout());
    EXPECT_TRUE(near(run.out(), expected_values.out, tolerance(2)));
    expect_near_gradient(run.gradient(), expected_values.gradient, 4);
  }
}

TEST_P(AttentionTest, OneSetOfKernelsUsesWhatTheOtherKept) {
  const Case cases[] = {{2, 65, 65, 2, 1, 64}, {1, 40, 101, 4, 2, 40, 0.3F}, {1, 33, 70, 1, 1, 128, 0.3F}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name());
    const Inputs inputs = inputs_of(c);
    Run wide(c, inputs, kWide);
    Run odd(c, inputs, kOdd);
    wide.forward();
    odd.forward();
    EXPECT_TRUE(near(wide.log_sum_exp(), odd.log_sum_exp(), 1e-5));
    EXPECT_TRUE(near(wide.out(), odd.out(), tolerance(2)));
    wide.backward();
    const Values gradient = wide.gradient();
    odd.take_from(wide);
    odd.backward();
    expect_near_gradient(odd.gradient(), gradient, 4);
    odd.forward();
    wide.take_from(odd);
    wide.backward();
    expect_near_gradient(wide.gradient(), gradient, 4);
  }
}

TEST_P(AttentionTest, GivesTheSameWhetherOrNotAGradientWillBeAskedFor) {
  const Case c{1, 20, 70, 2, 1, 64, 0.3F};
  const Inputs inputs = inputs_of(c);
  Run kept(c, inputs, kWide);
  Run forgotten(c, inputs, kWide);
  kept.forward();
  forgotten.forward(false);
  EXPECT_EQ(forgotten.out(), kept.out());
  EXPECT_EQ(forgotten.log_sum_exp(), Values(40, kUnused));
}

// In f16: nothing that does not fit becomes finite on its way.
TEST_P(AttentionTest, HasGradientsThatAreInfiniteWhereTheyDoNotFit) {
  if (dtype() != DType::kF16) {
    GTEST_SKIP() << "of f16 alone";
  }
  const Case c{1, 200, 200, 1, 1, 64};
  Inputs inputs{Values(static_cast<std::size_t>(c.rows() * c.width()), 0),
                Values(static_cast<std::size_t>(c.rows() * c.out_width()), 60000)};
  for (const std::int64_t more : {kWide, kOdd}) {
    Run run(c, inputs, more);
    run.forward();
    run.backward();
    const Values gradient = run.gradient();
    // All weights are 1 / (row + 1): the first value's gradient is 60000 (1 + 1/2 + ... + 1/200).
    const auto first_value = static_cast<std::size_t>(2 * c.head_dim);
    for (std::size_t i = 0; i < 64; ++i) {
      EXPECT_EQ(gradient[first_value + i], std::numeric_limits<double>::infinity()) << more;
    }
  }
}

TEST_P(AttentionTest, ShowsNaNOfAKeyToAllThatSeeIt) {
  const Case c{1, 90, 90, 1, 1, 64};
  Inputs inputs = inputs_of(c);
  for (std::int64_t row = 0; row < 70; ++row) {  // more than a tile
    inputs.qkv[static_cast<std::size_t>(row * c.width() + c.head_dim)] = std::nan("");
  }
  for (const std::int64_t more : {kWide, kOdd}) {
    Run run(c, inputs, more);
    run.forward();
    for (const double value : run.out()) {
      ASSERT_TRUE(std::isnan(value)) << more;
    }
  }
}

// Sequences shorter and longer than a tile, which begin anywhere.
TEST_P(AttentionTest, StaysWithinEachSequence) {
  for (const Case& c : {Case{1, 0, 0, 4, 2, 64}, Case{1, 0, 0, 2, 1, 24, 0.3F}, Case{1, 0, 0, 1, 1, 128, 0.3F}}) {
    const std::vector<std::int64_t> lengths = {3, 130, 1, 64, 17, 70};
    Case all = c;
    all.query_length = all.key_length = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    SCOPED_TRACE(all.name());
    const Inputs inputs = inputs_of(all);
    Run wide(all, inputs, kWide, lengths);
    wide.forward();
    wide.backward();
    Run odd(all, inputs, kOdd, lengths);
    odd.forward();
    odd.backward();
    Expected expected_values;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      Case one = all;
      one.query_length = one.key_length = lengths[i];
      const auto rows = [&](const Values& values, std::int64_t width) {
        return Values(values.begin() + begin * width, values.begin() + (begin + lengths[i]) * width);
      };
      const Expected part = expected(one, {rows(inputs.qkv, all.width()), rows(inputs.dout, all.out_width())},
                                     {c.dropout, key_of_sequence(wide.dropout().key, i)});
      expected_values.out.insert(expected_values.out.end(), part.out.begin(), part.out.end());
      expected_values.gradient.insert(expected_values.gradient.end(), part.gradient.begin(), part.gradient.end());
      begin += lengths[i];
    }
    for (const Run* run : {&wide, &odd}) {
      EXPECT_TRUE(near(run->out(), expected_values.out, tolerance(2)));
      expect_near_gradient(run->gradient(), expected_values.gradient, 4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, AttentionTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
