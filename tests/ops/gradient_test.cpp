// Gradients of every op against central differences of its definition in double precision, at odd sizes.
#include <gtest/gtest.h>

#include "op_harness.h"
#include "reference.h"

namespace lockstep::test {
namespace {

// Rows and columns that fill no vector, one vector, and several with a rest.
constexpr std::int64_t kSizes[] = {1, 3, 17, 127, 129};

class GradientTest : public OpTest {
 protected:
  RandomValues random_{17};
};

TEST_P(GradientTest, LinearHasTheGradientsOfItsDefinition) {
  for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
    for (const bool has_bias : {true, false}) {
      const std::int64_t in = 5;
      const std::int64_t out = 3;
      const std::vector<Values> inputs = {random_(7 * in), random_(in * out), random_(has_bias ? out : 0)};
      Graph graph(GetParam());
      const Tensor x = graph.input({7, in}, inputs[0]);
      const Shape shape = layout == WeightLayout::kInOut ? Shape{in, out} : Shape{out, in};
      const Linear layer{graph.parameter(shape, inputs[1]), has_bias ? graph.parameter({out}, inputs[2]) : Tensor(),
                         layout};
      const Tensor y = linear(graph.tape(), x, layer);
      const auto function = [&](const std::vector<Values>& v) {
        return reference::linear(v[0], v[1], v[2], in, out, layout);
      };
      EXPECT_TRUE(near(to_values(y), function(inputs), tolerance()));

      const Values dy = random_(7 * out);
      const std::vector<Values> expected = reference::gradients(function, inputs, dy);
      graph.backward({{y, dy}});
      EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance()));
      EXPECT_TRUE(near(graph.gradient_of(layer.weight), expected[1], tolerance()));
      if (has_bias) {
        EXPECT_TRUE(near(graph.gradient_of(layer.bias), expected[2], tolerance()));
      }
    }
  }
}

// A weight in few bits gives what its unpacked values give, bit for bit, forward and back.
TEST_P(GradientTest, PackedWeightsAreWhatTheyUnpackTo) {
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kIn = 24;
  constexpr std::int64_t kOut = 36;
  for (const Packing packing : {Packing::kQ8, Packing::kNf4}) {
    for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
      const Values random = random_(kIn * kOut);
      const std::vector<float> values(random.begin(), random.end());
      std::vector<std::byte> bytes(packed_bytes(packing, values.size()));
      pack(packing, values, bytes);
      const Values x_values = random_(kRows * kIn);
      const Values dy = random_(kRows * kOut);
      const Shape shape = layout == WeightLayout::kInOut ? Shape{kIn, kOut} : Shape{kOut, kIn};
      std::vector<Values> results;
      for (const bool is_packed : {false, true}) {
        Graph graph(GetParam());
        const Tensor x = graph.input({kRows, kIn}, x_values);
        Backend& backend = graph.backend();
        const Buffer buffer = backend.allocate(bytes.size());
        backend.copy({bytes.data(), bytes.size(), DType::kU8, Device{}},
                     {buffer.data(), bytes.size(), DType::kU8, backend.device()});
        Linear layer;
        layer.layout = layout;
        layer.weight = is_packed ? Tensor(PackedWeight{packing, buffer.data()}, shape, dtype(), backend.device())
                                 : graph.constant(shape, reference::unpacked(packing, bytes, values.size()), dtype());
        const Tensor y = linear(graph.tape(), x, layer);
        results.push_back(to_values(y));
        graph.backward({{y, dy}});
        results.push_back(graph.input_gradient(0));
      }
      EXPECT_EQ(results[0], results[2]);
      EXPECT_EQ(results[1], results[3]);
    }
  }
}

// Lengths of the first and the last columns of three groups; the norm is a constant.
TEST_P(GradientTest, DecomposedAdaptersHaveTheGradientsOfTheirDefinition) {
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kIn = 19;
  constexpr std::int64_t kOut = 11;
  constexpr std::int64_t kRank = 3;
  for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
    Graph graph(GetParam());
    const std::vector<Values> inputs = {random_(kRows * kOut), random_(5 + 4), random_(kOut)};
    const Values weight = to_values(graph.constant({kIn * kOut}, random_(kIn * kOut), GetParam().dtype));
    const Values a = to_values(graph.constant({2 * kRank * kIn}, random_(2 * kRank * kIn), GetParam().dtype));
    const Values b = to_values(graph.constant({9 * kRank}, random_(9 * kRank), GetParam().dtype));
    LowRank adapters;
    adapters.parts = {{{0, 5}, {}, {7, 4}}};
    adapters.a = graph.constant({2 * kRank, kIn}, a, GetParam().dtype);
    adapters.b = graph.constant({5 + 4, kRank}, b, GetParam().dtype);
    adapters.scale = 0.5F;
    const Shape shape = layout == WeightLayout::kInOut ? Shape{kIn, kOut} : Shape{kOut, kIn};
    const Tensor x = graph.input({kRows, kOut}, inputs[0]);
    const Tensor magnitude = graph.parameter({5 + 4}, inputs[1]);
    const Tensor bias = graph.parameter({kOut}, inputs[2]);
    const Linear layer{graph.constant(shape, weight, GetParam().dtype), bias, layout};
    const Tensor y = decompose(graph.tape(), x, {layer, adapters, magnitude});

    Values norms;
    for (std::int64_t place = 0; place < 9; ++place) {
      const std::int64_t out = place < 5 ? place : place + 2;
      double squares = 0;
      for (std::int64_t in = 0; in < kIn; ++in) {
        double value = weight[reference::index(layout == WeightLayout::kInOut ? in * kOut + out : out * kIn + in)];
        for (std::int64_t r = 0; r < kRank; ++r) {
          value += 0.5 * b[reference::index(place * kRank + r)] *
                   a[reference::index(((place < 5 ? 0 : kRank) + r) * kIn + in)];
        }
        squares += value * value;
      }
      norms.push_back(std::sqrt(squares));
    }
    EXPECT_TRUE(near(to_values(norms_of(graph.tape(), layer, adapters)), norms, tolerance(1)));
    const auto function = [&](const std::vector<Values>& v) {
      Values scaled = v[0];
      for (std::int64_t i = 0; i < kRows * kOut; ++i) {
        const std::int64_t out = i % kOut;
        if (out < 5 || out >= 7) {
          const std::size_t place = reference::index(out < 5 ? out : out - 2);
          scaled[reference::index(i)] *= v[1][place] / norms[place];
        }
        scaled[reference::index(i)] += v[2][reference::index(out)];
      }
      return scaled;
    };
    EXPECT_TRUE(near(to_values(y), function(inputs), tolerance(2)));
    const Values dy = random_(kRows * kOut);
    const std::vector<Values> expected = reference::gradients(function, inputs, dy);
    graph.backward({{y, dy}});
    EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance(2)));
    EXPECT_TRUE(near(graph.gradient_of(magnitude), expected[1], tolerance(3)));
    EXPECT_TRUE(near(graph.gradient_of(bias), expected[2], tolerance(2)));
  }
}

// Adapters of the first and the last columns of three groups, with dropout of their own.
TEST_P(GradientTest, LowRankAdaptersHaveTheGradientsOfTheirDefinition) {
  constexpr std::int64_t kRows = 7;
  constexpr std::int64_t kIn = 19;
  constexpr std::int64_t kOut = 11;
  constexpr std::int64_t kRank = 3;
  for (const float probability : {0.0F, 0.25F}) {
    const std::vector<Values> inputs = {random_(kRows * kIn), random_(kRows * kOut), random_(2 * kRank * kIn),
                                        random_((5 + 4) * kRank)};
    Graph graph(GetParam());
    const Tensor x = graph.input({kRows, kIn}, inputs[0]);
    const Tensor before = graph.input({kRows, kOut}, inputs[1]);
    LowRank layer;
    layer.parts = {{{0, 5}, {}, {7, 4}}};
    layer.a = graph.parameter({2 * kRank, kIn}, inputs[2]);
    layer.b = graph.parameter({5 + 4, kRank}, inputs[3]);
    layer.scale = 1.5F;
    layer.dropout = {probability, {21, 22}};
    const Tensor y = add_low_rank(graph.tape(), x, before, layer);
    const auto function = [&](const std::vector<Values>& v) {
      const Values h =
          reference::linear(reference::drop(layer.dropout, v[0]), v[2], {}, kIn, 2 * kRank, WeightLayout::kOutIn);
      Values sum = v[1];
      for (std::int64_t row = 0; row < kRows; ++row) {
        for (std::int64_t column = 0; column < kOut; ++column) {
          const bool first = column < 5;
          if (!first && column < 7) {
            continue;
          }
          for (std::int64_t r = 0; r < kRank; ++r) {
            sum[reference::index(row * kOut + column)] +=
                1.5 * h[reference::index(row * 2 * kRank + (first ? 0 : kRank) + r)] *
                v[3][reference::index((first ? column : column - 2) * kRank + r)];
          }
        }
      }
      return sum;
    };
    EXPECT_TRUE(near(to_values(y), function(inputs), tolerance(2)));

    const Values dy = random_(kRows * kOut);
    const std::vector<Values> expected = reference::gradients(function, inputs, dy);
    graph.backward({{y, dy}});
    EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance(3)));
    EXPECT_TRUE(near(graph.input_gradient(1), expected[1], tolerance()));
    EXPECT_TRUE(near(graph.gradient_of(layer.a), expected[2], tolerance(3)));
    EXPECT_TRUE(near(graph.gradient_of(layer.b), expected[3], tolerance(3)));
  }
}

TEST_P(GradientTest, NormsHaveTheGradientsOfTheirDefinitionAtOddSizes) {
  for (const std::int64_t columns : kSizes) {
    for (const NormKind kind : {NormKind::kLayer, NormKind::kRms}) {
      SCOPED_TRACE(fmt::format("{} columns", columns));
      const bool has_bias = kind == NormKind::kLayer;
      const std::vector<Values> inputs = {random_(2 * columns), random_(columns), random_(has_bias ? columns : 0)};
      Graph graph(GetParam());
      const Tensor x = graph.input({2, columns}, inputs[0]);
      const Norm layer{kind, 1e-5F, graph.parameter({columns}, inputs[1]),
                       has_bias ? graph.parameter({columns}, inputs[2]) : Tensor()};
      const Tensor y = norm(graph.tape(), x, layer);
      const auto function = [&](const std::vector<Values>& v) { return reference::norm(kind, v[0], v[1], v[2]); };
      EXPECT_TRUE(near(to_values(y), function(inputs), tolerance()));

      const Values dy = random_(2 * columns);
      const std::vector<Values> expected = reference::gradients(function, inputs, dy);
      graph.backward({{y, dy}});
      if (columns > 1) {  // one column: the gradient is nearly 0, a difference of equal numbers
        EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance(3)));
      }
      EXPECT_TRUE(near(graph.gradient_of(layer.gain), expected[1], tolerance(3)));
      if (has_bias) {
        EXPECT_TRUE(near(graph.gradient_of(layer.bias), expected[2], tolerance()));
      }
    }
  }
}

TEST_P(GradientTest, SumAndNormWithDropoutHasTheGradientsOfItsDefinition) {
  const Dropout dropout{0.25F, {11, 12}};
  const std::vector<Values> inputs = {random_(5 * 33), random_(5 * 33), random_(33), random_(33)};
  Graph graph(GetParam());
  const Tensor x = graph.input({5, 33}, inputs[0]);
  const Tensor branch = graph.input({5, 33}, inputs[1]);
  const Norm layer{NormKind::kLayer, 1e-5F, graph.parameter({33}, inputs[2]), graph.parameter({33}, inputs[3])};
  const SumAndNorm result = add_norm(graph.tape(), x, branch, dropout, layer);
  const auto sum = [&](const std::vector<Values>& v) { return reference::add(v[0], reference::drop(dropout, v[1])); };
  // Both outputs, one after the other.
  const auto function = [&](const std::vector<Values>& v) {
    Values y = sum(v);
    const Values normal = reference::norm(NormKind::kLayer, y, v[2], v[3]);
    y.insert(y.end(), normal.begin(), normal.end());
    return y;
  };
  EXPECT_TRUE(near(to_values(result.sum), sum(inputs), tolerance()));

  const Values dsum = random_(5 * 33);
  const Values dy = random_(5 * 33);
  Values weights = dsum;
  weights.insert(weights.end(), dy.begin(), dy.end());
  const std::vector<Values> expected = reference::gradients(function, inputs, weights);
  graph.backward({{result.sum, dsum}, {result.y, dy}});
  EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance(2)));
  EXPECT_TRUE(near(graph.input_gradient(1), expected[1], tolerance(2)));
  EXPECT_TRUE(near(graph.gradient_of(layer.gain), expected[2], tolerance(2)));
  EXPECT_TRUE(near(graph.gradient_of(layer.bias), expected[3], tolerance(2)));
}

TEST_P(GradientTest, GeluSwigluDropoutAndAddHaveTheGradientsOfTheirDefinitionsAtOddSizes) {
  const Dropout dropped{0.5F, {3, 4}};
  for (const std::int64_t size : kSizes) {
    SCOPED_TRACE(fmt::format("{} elements", size));
    struct Op {
      Shape shape;
      std::function<Tensor(Tape&, const Tensor&)> op;
      std::function<Values(const std::vector<Values>&)> definition;
    };
    const Op ops[] = {
        {{size}, gelu, [](const std::vector<Values>& v) { return reference::gelu(v[0]); }},
        {{1, 2 * size},
         swiglu,
         [&](const std::vector<Values>& v) { return reference::swiglu(v[0], static_cast<std::size_t>(size)); }},
        {{size},
         [&](Tape& tape, const Tensor& x) { return dropout(tape, x, dropped); },
         [&](const std::vector<Values>& v) { return reference::drop(dropped, v[0]); }},
        {{size},
         [](Tape& tape, const Tensor& x) { return add(tape, x, x); },
         [](const std::vector<Values>& v) { return reference::add(v[0], v[0]); }},
    };
    for (const Op& op : ops) {
      Values input = random_(op.shape.count());
      for (double& value : input) {
        value *= 4;
      }
      Graph graph(GetParam());
      const Tensor y = op.op(graph.tape(), graph.input(op.shape, input));
      EXPECT_TRUE(near(to_values(y), op.definition({input}), tolerance()));
      const Values dy = random_(y.count());
      graph.backward({{y, dy}});
      EXPECT_TRUE(near(graph.input_gradient(0), reference::gradients(op.definition, {input}, dy)[0], tolerance()));
    }
  }
}

TEST_P(GradientTest, SelfAttentionHasTheGradientsOfItsDefinition) {
  const reference::AttentionSizes cases[] = {{1, 1, 1, 1, 1}, {2, 3, 2, 2, 4}, {1, 5, 4, 2, 3}, {1, 9, 3, 1, 2}};
  for (const reference::AttentionSizes& sizes : cases) {
    for (const float probability : {0.0F, 0.3F}) {
      const Dropout dropout{probability, {5, 6}};
      const std::int64_t rows = sizes.batch * sizes.tokens;
      const std::int64_t width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
      const Values qkv = random_(rows * width);
      Graph graph(GetParam());
      const Tensor y = self_attention(graph.tape(), graph.input({rows, width}, qkv),
                                      {sizes.batch, sizes.heads, sizes.kv_heads, dropout});
      const auto function = [&](const std::vector<Values>& v) { return reference::attention(v[0], sizes, dropout); };
      EXPECT_TRUE(near(to_values(y), function({qkv}), tolerance(2)));
      const Values dy = random_(y.count());
      graph.backward({{y, dy}});
      EXPECT_TRUE(near(graph.input_gradient(0), reference::gradients(function, {qkv}, dy)[0], tolerance(4)));
    }
  }
}

TEST_P(GradientTest, RotaryEmbeddingHasTheGradientsOfItsDefinitionAlsoFarFromTheStart) {
  for (const std::int64_t head_dim : {2, 6, 34, 66}) {
    for (const std::int64_t first_position : {0, 5, 100000}) {
      const reference::RopeSizes sizes{2 * head_dim + 3, 2, head_dim, 4, first_position};
      Values frequency;
      for (std::int64_t i = 0; i < head_dim / 2; ++i) {
        frequency.push_back(static_cast<double>(
            static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)))));
      }
      const Values x = random_(8 * sizes.width);
      Graph graph(GetParam());
      const Tensor frequencies = graph.on_host({head_dim / 2}, frequency);
      const Tensor y = rotary_embedding(graph.tape(), graph.input({8, sizes.width}, x),
                                        {sizes.heads, head_dim, sizes.sequence, first_position, frequencies});
      EXPECT_TRUE(near(to_values(y), reference::rope(x, sizes, frequency), tolerance()));
      const Values dy = random_(8 * sizes.width);
      graph.backward({{y, dy}});
      // A rotation's gradient is the rotation back.
      EXPECT_TRUE(near(reference::rope(graph.input_gradient(0), sizes, frequency), dy, tolerance(2)));
    }
  }
}

TEST_P(GradientTest, HeadNormsHaveTheGradientsOfTheirDefinition) {
  constexpr std::int64_t kRows = 3;
  constexpr std::int64_t kHeads = 4;
  constexpr std::int64_t kKvHeads = 2;
  for (const std::int64_t head_dim : {3, 16}) {
    const std::int64_t width = (kHeads + 2 * kKvHeads) * head_dim;
    const std::vector<Values> inputs = {random_(kRows * width), random_(head_dim), random_(head_dim)};
    Graph graph(GetParam());
    const Tensor qkv = graph.input({kRows, width}, inputs[0]);
    const HeadNorm layer{kHeads, kKvHeads, 1e-5F, graph.parameter({head_dim}, inputs[1]),
                         graph.parameter({head_dim}, inputs[2])};
    const Tensor y = head_norm(graph.tape(), qkv, layer);
    const auto function = [&](const std::vector<Values>& v) {
      Values out = v[0];
      for (std::int64_t row = 0; row < kRows; ++row) {
        for (std::int64_t head = 0; head < kHeads + kKvHeads; ++head) {
          const auto begin = out.begin() + row * width + head * head_dim;
          const Values normal =
              reference::norm(NormKind::kRms, Values(begin, begin + head_dim), head < kHeads ? v[1] : v[2], {});
          std::copy(normal.begin(), normal.end(), begin);
        }
      }
      return out;
    };
    EXPECT_TRUE(near(to_values(y), function(inputs), tolerance()));

    const Values dy = random_(kRows * width);
    const std::vector<Values> expected = reference::gradients(function, inputs, dy);
    graph.backward({{y, dy}});
    EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance(2)));
    EXPECT_TRUE(near(graph.gradient_of(layer.query_gain), expected[1], tolerance(2)));
    EXPECT_TRUE(near(graph.gradient_of(layer.key_gain), expected[2], tolerance(2)));
  }
}

// The same products and activation as three ops: the same bits on a CPU, where the activation is a pass of its own.
TEST_P(GradientTest, TheMlpHasTheGradientsOfItsParts) {
  for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
    for (const bool has_bias : {true, false}) {
      for (const std::int64_t width : {5, 64}) {
        const std::int64_t inner = 4 * width;
        const Values values[] = {random_(9 * width),     random_(width * inner), random_(inner),
                                 random_(inner * width), random_(width),         random_(9 * width)};
        const auto compute = [&](bool fused) {
          Graph graph(GetParam());
          const auto shape = [&](std::int64_t in, std::int64_t out) {
            return layout == WeightLayout::kInOut ? Shape{in, out} : Shape{out, in};
          };
          const Tensor x = graph.input({9, width}, values[0]);
          const Linear up{graph.parameter(shape(width, inner), values[1]),
                          has_bias ? graph.parameter({inner}, values[2]) : Tensor(), layout};
          const Linear down{graph.parameter(shape(inner, width), values[3]),
                            has_bias ? graph.parameter({width}, values[4]) : Tensor(), layout};
          Tape& tape = graph.tape();
          const Tensor y = fused ? gelu_mlp(tape, x, {up, down}) : linear(tape, gelu(tape, linear(tape, x, up)), down);
          std::vector<Values> results = {to_values(y)};
          graph.backward({{y, values[5]}});
          results.push_back(graph.input_gradient(0));
          for (const Tensor& parameter : {up.weight, up.bias, down.weight, down.bias}) {
            results.push_back(parameter.is_defined() ? graph.gradient_of(parameter) : Values());
          }
          return results;
        };
        const std::vector<Values> expected = compute(false);
        const std::vector<Values> actual = compute(true);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          if (GetParam().device == DeviceKind::kCpu) {
            EXPECT_EQ(actual[i], expected[i]) << i;
          } else {
            EXPECT_TRUE(near(actual[i], expected[i], tolerance(4))) << i;
          }
        }
      }
    }
  }
}

TEST_P(GradientTest, EmbeddingAddsTheGradientsOfRepeatedTokensAndPositions) {
  const std::vector<std::int32_t> tokens = {2, 2, 0, 1, 2, 0};
  const std::int64_t columns = 17;
  const std::vector<Values> inputs = {random_(3 * columns), random_(5 * columns)};
  Graph graph(GetParam());
  const EmbeddingTables tables{graph.parameter({3, columns}, inputs[0]), graph.parameter({5, columns}, inputs[1])};
  const Tensor x = embedding(graph.tape(), {tokens, 3, 1}, tables);
  const auto function = [&](const std::vector<Values>& v) {
    return reference::embedding(tokens, v[0], v[1], columns, 3, 1);
  };
  EXPECT_TRUE(near(to_values(x), function(inputs), tolerance()));
  const Values dx = random_(6 * columns);
  const std::vector<Values> expected = reference::gradients(function, inputs, dx);
  graph.backward({{x, dx}});
  EXPECT_TRUE(near(graph.gradient_of(tables.tokens), expected[0], 1e-6));  // sums in f32 in both dtypes
  EXPECT_TRUE(near(graph.gradient_of(tables.positions), expected[1], 1e-6));
}

TEST_P(GradientTest, TheLossHasTheGradientsOfItsDefinition) {
  const std::int64_t in = 5;
  for (const std::int64_t vocabulary : kSizes) {
    const std::vector<std::int32_t> targets = {0, -1, static_cast<std::int32_t>(vocabulary - 1), 0};
    const std::vector<Values> inputs = {random_(4 * in), random_(in * vocabulary)};
    Graph graph(GetParam());
    const Tensor x = graph.input({4, in}, inputs[0]);
    const Linear head{graph.parameter({vocabulary, in}, inputs[1]), Tensor(), WeightLayout::kOutIn};
    const Loss loss = linear_cross_entropy(graph.tape(), x, head, {targets, 0.25F});
    const auto function = [&](const std::vector<Values>& v) {
      return reference::cross_entropy(reference::linear(v[0], v[1], {}, in, vocabulary, WeightLayout::kOutIn), targets);
    };
    double sum = 0;
    for (const double value : function(inputs)) {
      sum += value;
    }
    EXPECT_NEAR(loss.sum(), sum, loss_tolerance() * 10);
    EXPECT_EQ(loss.count, 3);
    const std::vector<Values> expected = reference::gradients(function, inputs, {0.25, 0.25, 0.25, 0.25});
    graph.tape().backward(loss.value);
    EXPECT_TRUE(near(graph.input_gradient(0), expected[0], tolerance(2)));
    EXPECT_TRUE(near(graph.gradient_of(head.weight), expected[1], tolerance(2)));
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, GradientTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
