// What a Backend promises that does not show through the ops' gradients: exact masks and roundings, fixed sums, empty
// input.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "op_harness.h"
#include "reference.h"
#include "tests/ops/sum_of_squares.h"

namespace lockstep::test {
namespace {

class BackendTest : public OpTest {
 protected:
  [[nodiscard]] Tensor tensor(const Shape& shape, const Values& values) {
    return graph_.constant(shape, values, dtype());
  }
  [[nodiscard]] Tensor floats(const Shape& shape, const Values& values) {
    return graph_.constant(shape, values, DType::kF32);
  }
  [[nodiscard]] Tensor floats(const Shape& shape) {
    return floats(shape, Values(static_cast<std::size_t>(shape.count()), std::nan("")));
  }

  Graph graph_{GetParam()};
  Backend& backend_ = graph_.backend();
  RandomValues random_{5};
};

TEST_P(BackendTest, DropoutKeepsExactlyTheElementsThatTheScalarRandomNumbersKeep) {
  for (const std::int64_t count : {0, 1, 3, 17, 127, 129, 1023, 1025, 40000}) {
    for (const float probability : {0.1F, 0.5F, 0.9F}) {
      const Dropout dropout{probability, {0x12345678U, static_cast<std::uint32_t>(count)}};
      const Values ones(static_cast<std::size_t>(count), 1);
      const Tensor x = tensor({count}, ones);
      backend_.dropout(dropout, x, x);  // in place
      Values expected = reference::drop(dropout, ones);
      for (double& value : expected) {
        const float factor = value == 0 ? 0 : 1.0F / (1.0F - probability);
        value = rounded(static_cast<double>(factor), dtype());
      }
      EXPECT_EQ(to_values(x), expected) << count << " elements, p = " << probability;
    }
  }
}

TEST_P(BackendTest, DropoutKeepsTheExpectedShareAndScale) {
  const std::int64_t count = 100000;
  const Tensor x = tensor({count}, Values(static_cast<std::size_t>(count), 1));
  const Tensor y = tensor({count}, Values(static_cast<std::size_t>(count), 0));
  backend_.dropout({0.25F, {7, 8}}, x, y);
  double sum = 0;
  std::int64_t kept = 0;
  for (const double value : to_values(y)) {
    sum += value;
    kept += value != 0;
  }
  EXPECT_NEAR(static_cast<double>(kept) / count, 0.75, 0.006);  // 4 standard deviations
  EXPECT_NEAR(sum / count, 1.0, 0.01);
}

TEST_P(BackendTest, DropoutWithProbabilityZeroKeepsEverything) {
  const Values values = random_(1000);
  const Tensor x = tensor({1000}, values);
  const Tensor y = tensor({1000}, Values(1000, 9));
  backend_.dropout({0.0F, {7, 8}}, x, y);
  EXPECT_EQ(to_values(y), values);
}

TEST_P(BackendTest, ScalesEachElement) {
  for (const std::int64_t count : {0, 1, 17, 1025, 40000}) {
    const Values values = to_values(tensor({count}, random_(count)));
    const Tensor x = tensor({count}, values);
    backend_.scale(x, -0.5F, x);  // in place, and exact
    Values expected = values;
    for (double& value : expected) {
      value *= -0.5;
    }
    EXPECT_EQ(to_values(x), expected) << count << " elements";
  }
}

TEST_P(BackendTest, AddsNoiseOfTheScalarRandomNumbers) {
  for (const std::int64_t count : {0, 1, 17, 1025, 40000}) {
    const Noise noise{0.25F, {3, static_cast<std::uint32_t>(count)}};
    const Values values = to_values(tensor({count}, random_(count)));
    const Tensor x = tensor({count}, values);
    backend_.add_noise(noise, x);
    Values expected = values;
    double sum = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double added = 0.25 * (2.0 * uniform_float(philox(noise.key, i / 4)[i % 4]) - 1.0);
      sum += added;
      expected[i] += added;
    }
    EXPECT_TRUE(near(to_values(x), expected, tolerance())) << count << " elements";
    EXPECT_LE(std::abs(sum), 4 * 0.25 / std::sqrt(3.0) * std::sqrt(static_cast<double>(count)));
  }
}

TEST_P(BackendTest, UnpacksWhatWasPacked) {
  for (const Packing packing : {Packing::kQ8, Packing::kNf4}) {
    for (const std::int64_t count : {1, 31, 64, 65, 1000, 40007}) {
      const Values random = random_(count);
      const std::vector<float> values(random.begin(), random.end());
      std::vector<std::byte> bytes(packed_bytes(packing, values.size()));
      pack(packing, values, bytes);
      const Buffer buffer = backend_.allocate(bytes.size());
      backend_.copy({bytes.data(), bytes.size(), DType::kU8, Device{}},
                    {buffer.data(), bytes.size(), DType::kU8, backend_.device()});
      const Tensor out = tensor({count}, Values(values.size(), 9));
      backend_.unpack({packing, buffer.data()}, out);
      const Values expected = to_values(tensor({count}, reference::unpacked(packing, bytes, values.size())));
      EXPECT_EQ(to_values(out), expected) << count << " elements";
      // A level is at most half of the widest gap away.
      const std::size_t block = values_in_block(packing);
      for (std::size_t b = 0; b < values.size(); b += block) {
        const std::size_t end = std::min(values.size(), b + block);
        double largest = 0;
        for (std::size_t i = b; i < end; ++i) {
          largest = std::max(largest, std::abs(random[i]));
        }
        for (std::size_t i = b; i < end; ++i) {
          const double bound = (packing == Packing::kQ8 ? 0.5 / 127 + 1e-3 : 0.152 + 4e-3) * largest;
          EXPECT_NEAR(expected[i], random[i], bound + 0.004 * std::abs(random[i]));
        }
      }
    }
  }
}

TEST_P(BackendTest, RowsOfTheSumAndNormDropElementsByTheirPlaceInTheTensor) {
  const std::int64_t rows = 3;
  const std::int64_t columns = 1030;  // longer than a piece of the mask, and no multiple of 4
  const Dropout dropout{0.5F, {9, 10}};
  const Values branch(static_cast<std::size_t>(rows * columns), 1);
  NormForward norm;
  norm.x = tensor({rows, columns}, Values(branch.size(), 0));
  norm.branch = tensor({rows, columns}, branch);
  norm.dropout = dropout;
  norm.gain = tensor({columns}, Values(static_cast<std::size_t>(columns), 1));
  norm.sum = tensor({rows, columns}, branch);
  norm.y = tensor({rows, columns}, branch);
  norm.mean = floats({rows});
  norm.rstd = floats({rows});
  backend_.norm_forward(norm);
  EXPECT_EQ(to_values(norm.sum), reference::drop(dropout, branch));
}

TEST_P(BackendTest, SumAndNormGivesTheBitsOfAnAdditionAndANorm) {
  const std::int64_t columns = 129;
  NormForward fused;
  fused.x = tensor({4, columns}, random_(4 * columns));
  fused.branch = tensor({4, columns}, random_(4 * columns));
  fused.gain = tensor({columns}, random_(columns));
  fused.bias = tensor({columns}, random_(columns));
  fused.sum = tensor({4, columns}, random_(4 * columns));
  fused.y = tensor({4, columns}, random_(4 * columns));
  fused.mean = floats({4});
  fused.rstd = floats({4});
  backend_.norm_forward(fused);

  NormForward plain = fused;
  plain.x = tensor({4, columns}, random_(4 * columns));
  plain.branch = Tensor();
  plain.sum = Tensor();
  plain.y = tensor({4, columns}, random_(4 * columns));
  backend_.add(fused.x, fused.branch, plain.x);
  backend_.norm_forward(plain);
  EXPECT_EQ(to_values(fused.sum), to_values(plain.x));
  EXPECT_EQ(to_values(fused.y), to_values(plain.y));
}

TEST_P(BackendTest, ColumnSumsAddBlocksOfRowsAndToWhatIsThere) {
  for (const std::int64_t rows : {0, 1, 3, 31, 32, 33, 129}) {
    for (const std::int64_t columns : {1, 17, 129}) {
      const Values x = random_(rows * columns);
      Values expected(static_cast<std::size_t>(columns), 0);  // sums of multiples of 1/64 are exact
      for (std::size_t i = 0; i < x.size(); ++i) {
        expected[i % expected.size()] += x[i];
      }
      const Tensor sums = floats({columns});
      const Tensor input = tensor({rows, columns}, x);
      backend_.column_sum(input, sums, false);
      EXPECT_EQ(to_values(sums), expected) << rows << " x " << columns;
      backend_.column_sum(input, sums, true);
      EXPECT_EQ(to_values(sums), reference::add(expected, expected)) << rows << " x " << columns;
    }
  }
}

TEST_P(BackendTest, NormGradientsOfParametersAreAddedWhenAsked) {
  const std::int64_t columns = 17;
  NormBackward norm;
  norm.dy = tensor({70, columns}, random_(70 * columns));
  norm.sum = tensor({70, columns}, random_(70 * columns));
  norm.gain = tensor({columns}, random_(columns));
  norm.mean = floats({70}, random_(70));
  norm.rstd = floats({70}, random_(70));
  norm.dx = tensor({70, columns}, random_(70 * columns));
  norm.dgain = floats({columns});
  norm.dbias = floats({columns});
  backend_.norm_backward(norm);
  const Values dgain = to_values(norm.dgain);
  const Values dbias = to_values(norm.dbias);
  norm.accumulate_parameters = true;
  backend_.norm_backward(norm);
  EXPECT_EQ(to_values(norm.dgain), reference::add(dgain, dgain));
  EXPECT_EQ(to_values(norm.dbias), reference::add(dbias, dbias));
}

// Vectors among them, where strides say little: oneDNN 3.7 takes some whose elements lie apart for dense ones.
TEST_P(BackendTest, GemmMultipliesWithTransposedStridedAndAccumulatedOperands) {
  std::vector<std::array<std::int64_t, 3>> sizes = {{129, 131, 130}};
  for (const std::int64_t m : {1, 2, 17}) {
    for (const std::int64_t n : {1, 2, 17}) {
      for (const std::int64_t k : {1, 2, 17}) {
        sizes.push_back({m, n, k});
      }
    }
  }
  for (const auto& [m, n, k] : sizes) {
    for (const int variant : {0, 1, 2, 3, 4, 5, 6, 7}) {
      SCOPED_TRACE(fmt::format("[{}, {}] x [{}, {}], variant {}", m, k, k, n, variant));
      const Values a = random_(m * k);
      const Values b = random_(k * n);
      const Values product = reference::linear(a, b, {}, k, n, WeightLayout::kInOut);
      const auto operand = [&](const Values& values, std::int64_t rows, std::int64_t columns, bool transposed) {
        // Longer than a row; also by so much that all rows begin at the same place of a page.
        const std::int64_t stride = (variant & 4) != 0 ? 2048 : (transposed ? rows : columns) + 5;
        Values memory(static_cast<std::size_t>((transposed ? columns : rows) * stride), 77);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < columns; ++c) {
            memory[static_cast<std::size_t>(transposed ? c * stride + r : r * stride + c)] =
                values[static_cast<std::size_t>(r * columns + c)];
          }
        }
        const Tensor held = tensor({static_cast<std::int64_t>(memory.size())}, memory);
        return std::pair(held, Matrix{held.data(), dtype(), transposed ? columns : rows, transposed ? rows : columns,
                                      stride, transposed});
      };
      const auto [a_memory, a_matrix] = operand(a, m, k, (variant & 1) != 0);
      const auto [b_memory, b_matrix] = operand(b, k, n, (variant & 2) != 0);
      const std::int64_t stride = n + 3;
      // Zero between the rows.
      const auto laid_out = [&](const auto& value_at) {
        Values values(static_cast<std::size_t>(m * stride), 0);
        for (std::int64_t r = 0; r < m; ++r) {
          for (std::int64_t c = 0; c < n; ++c) {
            values[static_cast<std::size_t>(r * stride + c)] = value_at(static_cast<std::size_t>(r * n + c));
          }
        }
        return values;
      };
      const Tensor d = floats({m, stride}, laid_out([](std::size_t) { return std::nan(""); }));
      const auto expect_times = [&](double times) {
        EXPECT_TRUE(near(to_values(d), laid_out([&](std::size_t i) { return times * product[i]; }), 3e-6)) << times;
      };
      Gemm gemm{a_matrix, b_matrix, {d.data(), DType::kF32, m, n, stride, false}};
      backend_.gemm(gemm);
      expect_times(1);
      gemm.accumulate = true;
      backend_.gemm(gemm);
      expect_times(2);
    }
  }
}

// Vocabularies around whole vectors, the largest logit at every place, alone and with its equal further on.
TEST_P(BackendTest, CrossEntropyTellsTheFirstOfTheLikeliestTokens) {
  for (const std::int64_t vocabulary : {1, 2, 15, 16, 33, 64, 71}) {
    const Backend::LogitsShape shape = backend_.logits_shape(vocabulary, dtype());
    const std::int64_t stride = shape.stride;
    const std::int64_t rows = 2 * vocabulary + 1;
    Values logits(static_cast<std::size_t>(rows * stride), 1000);  // what is behind a row counts for nothing
    std::vector<std::int32_t> expected;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t first = row / 2 % vocabulary;
      const bool twice = row % 2 == 1;
      for (std::int64_t i = 0; i < vocabulary; ++i) {
        const bool largest = i == first || (twice && i == vocabulary - 1);
        logits[static_cast<std::size_t>(row * stride + i)] = largest ? -1.0 : -1.5 - static_cast<double>(i % 3);
      }
      expected.push_back(static_cast<std::int32_t>(first));
    }
    std::vector<std::int32_t> targets(static_cast<std::size_t>(rows), 0);
    targets.back() = -1;
    expected.back() = -1;
    const Tensor x = graph_.constant({rows, stride}, logits, shape.dtype);
    const Tensor likeliest = graph_.tape().make({rows}, DType::kI32);
    for (const Tensor& dx : {Tensor(), x}) {
      backend_.cross_entropy({x, vocabulary, targets, 1.0F, dx, floats({rows}), likeliest});
      EXPECT_EQ(elements_of<std::int32_t>(likeliest.buffer()), expected) << vocabulary;
    }
  }
}

TEST_P(BackendTest, CrossEntropyOfManyWordsStaysExactForLargeLogits) {
  const std::int64_t vocabulary = 5003;
  Values logits = random_(3 * vocabulary);
  for (double& logit : logits) {
    logit = logit * 100 + 10000;
  }
  const std::vector<std::int32_t> targets = {17, -1, 5002};
  const Tensor x = floats({3, vocabulary}, logits);
  const Tensor dx = dtype() == DType::kF32 ? x : tensor({3, vocabulary}, logits);  // f32: in place
  const Tensor losses = floats({3});
  const Tensor losses_alone = floats({3});
  backend_.cross_entropy({x, vocabulary, targets, 2.0F, Tensor(), losses_alone});
  backend_.cross_entropy({x, vocabulary, targets, 2.0F, dx, losses});
  EXPECT_EQ(to_values(losses), to_values(losses_alone));
  EXPECT_EQ(to_values(losses)[1], 0);
  EXPECT_TRUE(near(to_values(losses), reference::cross_entropy(logits, targets), 1e-6));

  const Values gradient = to_values(dx);
  for (std::size_t row = 0; row < 3; ++row) {
    double sum = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(vocabulary); ++i) {
      const double value = gradient[row * static_cast<std::size_t>(vocabulary) + i];
      const bool is_target = static_cast<std::int32_t>(i) == targets[row];
      EXPECT_TRUE(is_target ? value >= -2 && value < 0 : value >= 0) << row << ", " << i;
      EXPECT_TRUE(row != 1 || value == 0);
      sum += value;
    }
    EXPECT_NEAR(sum, 0, tolerance() * 2);  // of a softmax and its target
  }
}

TEST_P(BackendTest, ConversionRoundsToNearestEvenAsTheScalarTypeDoes) {
  std::vector<float> values = {0.0F,
                               -0.0F,
                               1.0F,
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::max(),
                               std::numeric_limits<float>::denorm_min(),
                               std::numeric_limits<float>::min() / 3};
  for (const std::uint32_t bits : {0x3f808000U, 0x3f818000U, 0x3f807fffU, 0x3f808001U, 0x7f800001U, 0xffffffffU}) {
    values.push_back(std::bit_cast<float>(bits));  // ties, their neighbours, NaNs
  }
  std::mt19937 engine(3);
  while (values.size() < 40001) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(engine())));
  }
  const auto count = static_cast<std::int64_t>(values.size());
  const Tensor from = graph_.tape().make({count}, DType::kF32);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const Tensor between = graph_.tape().make({count}, dtype);
    set_elements(from.buffer(), values);
    backend_.convert(from.buffer(), between.buffer());
    backend_.convert(between.buffer(), from.buffer());
    const std::vector<float> wide = elements_of<float>(from.buffer());
    cpu::with_narrow_type(dtype, [&](auto type) {
      using T = decltype(type);
      const std::vector<T> narrow = elements_of<T>(between.buffer());
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (std::isnan(values[i]) && GetParam().device == DeviceKind::kCuda) {
          ASSERT_TRUE(std::isnan(wide[i]));  // a GPU's NaN has no payload
          continue;
        }
        ASSERT_EQ(narrow[i].bits, T(values[i]).bits) << values[i];
        ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::bit_cast<std::uint32_t>(static_cast<float>(narrow[i])))
            << values[i];
      }
    });
  }
}

TEST_P(BackendTest, WidensEveryF16) {
  std::vector<Float16> values(0x10000);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i].bits = static_cast<std::uint16_t>(i);
  }
  const Tensor from = graph_.tape().make({0x10000}, DType::kF16);
  const Tensor to = graph_.tape().make({0x10000}, DType::kF32);
  set_elements(from.buffer(), values);
  backend_.convert(from.buffer(), to.buffer());
  const std::vector<float> wide = elements_of<float>(to.buffer());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto expected = static_cast<float>(values[i]);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::bit_cast<std::uint32_t>(expected)) << i;
    }
  }
}

// Every f16 there is, and the floats half way between two of them and next to that.
TEST_P(BackendTest, ConversionsRoundToTheNearestF16) {
  std::vector<float> values;
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    const float value = from_f16(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      continue;
    }
    const float next = from_f16(static_cast<std::uint16_t>(bits + 1));
    const float middle = std::isfinite(next) ? value + (next - value) / 2 : value;
    values.insert(values.end(), {value, middle, std::nextafter(middle, 0.0F), std::nextafter(middle, 2 * middle)});
  }
  const Tensor from = graph_.tape().make({static_cast<std::int64_t>(values.size())}, DType::kF32);
  const Tensor between = graph_.tape().make(from.shape(), DType::kF16);
  set_elements(from.buffer(), values);
  backend_.convert(from.buffer(), between.buffer());
  const std::vector<Float16> narrow = elements_of<Float16>(between.buffer());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(narrow[i].bits, to_f16(values[i])) << values[i];
  }
}

TEST_P(BackendTest, ConversionToTheSameTypeCopies) {
  const Values values = random_(30001);
  const Tensor from = tensor({30001}, values);
  const Tensor to = tensor({30001}, Values(30001, 0));
  backend_.convert(from.buffer(), to.buffer());
  EXPECT_EQ(to_values(to), values);
  backend_.fill_zero(to);
  EXPECT_EQ(to_values(to), Values(30001, 0));
}

TEST_P(BackendTest, SumOfSquaresIsExactWhereDoublePrecisionIs) {
  for (const std::size_t count : {0UL, 1UL, 15UL, 17UL, 4095UL, 4096UL, 4097UL, 50001UL}) {
    std::vector<float> values(count);
    double expected = 0;
    for (std::size_t i = 0; i < count; ++i) {
      values[i] = static_cast<float>(i % 100) * 4097.0F;  // a square of up to 38 bits: too long for f32
      expected += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    const Tensor tensor = graph_.tape().make({static_cast<std::int64_t>(count)}, DType::kF32);
    set_elements(tensor.buffer(), values);
    EXPECT_EQ(test::sum_of_squares(backend_, tensor.as<float>()), expected) << count;
  }
}

TEST_P(BackendTest, FloatsAreAddedInPlaceToo) {
  std::vector<float> a(40003);
  std::vector<float> b(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<float>(i) * 0.37F;
    b[i] = static_cast<float>(i) * -1.91F;
  }
  std::vector<float> expected(a.size());
  std::ranges::transform(a, b, expected.begin(), std::plus<>());
  const auto tensor_of = [&](const std::vector<float>& values) {
    const Tensor tensor = graph_.tape().make({static_cast<std::int64_t>(values.size())}, DType::kF32);
    set_elements(tensor.buffer(), values);
    return tensor;
  };
  const Tensor left = tensor_of(a);
  const Tensor right = tensor_of(b);
  const Tensor sum = tensor_of(a);
  backend_.add_f32(left.as<float>(), right.as<float>(), sum.as<float>());
  EXPECT_EQ(elements_of<float>(sum.buffer()), expected);
  backend_.add_f32(left.as<float>(), right.as<float>(), left.as<float>());
  EXPECT_EQ(elements_of<float>(left.buffer()), expected);
}

TEST_P(BackendTest, EmptyInputGivesEmptyOutputAndZeroGradients) {
  const Tensor x = graph_.input({0, 8}, {});
  const Linear layer{graph_.parameter({8, 12}, random_(96)), graph_.parameter({12}, random_(12)), WeightLayout::kInOut};
  const Norm layer_norm{NormKind::kLayer, 1e-5F, graph_.parameter({12}, random_(12)),
                        graph_.parameter({12}, random_(12))};
  const EmbeddingTables tables{graph_.parameter({3, 12}, random_(36)), graph_.parameter({4, 12}, random_(48))};
  const Linear head{graph_.parameter({5, 12}, random_(60)), Tensor(), WeightLayout::kOutIn};
  const Tensor frequency = graph_.on_host({2}, {1, 0.5});
  Tape& tape = graph_.tape();

  const Tensor projected = rotary_embedding(tape, linear(tape, x, layer), {2, 4, 1, 0, frequency});
  const Tensor attended = self_attention(tape, projected, {1, 1, 1, Dropout()});
  const SumAndNorm sum =
      add_norm(tape, embedding(tape, {{}, 4, 0}, tables), linear(tape, x, layer), {0.5F, {1, 2}}, layer_norm);
  const Tensor activated = dropout(tape, swiglu(tape, gelu(tape, norm(tape, sum.y, layer_norm))), {0.5F, {1, 2}});
  const Tensor doubled = add(tape, activated, activated);
  EXPECT_EQ(attended.shape(), (Shape{0, 4}));
  EXPECT_EQ(activated.shape(), (Shape{0, 6}));
  EXPECT_EQ(doubled.shape(), (Shape{0, 6}));
  graph_.backward({{attended, {}}, {doubled, {}}});
  for (const Tensor& parameter :
       {layer.weight, layer.bias, layer_norm.gain, layer_norm.bias, tables.tokens, tables.positions}) {
    EXPECT_EQ(graph_.gradient_of(parameter), Values(static_cast<std::size_t>(parameter.count()), 0));
  }

  const Loss loss = linear_cross_entropy(tape, graph_.input({0, 12}, {}), head, {{}, 1});
  EXPECT_EQ(loss.sum(), 0);
  EXPECT_EQ(loss.count, 0);
  tape.backward(loss.value);
  EXPECT_EQ(graph_.gradient_of(head.weight), Values(60, 0));
}

INSTANTIATE_TEST_SUITE_P(Ops, BackendTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
