// Every op, forward and gradients, against PyTorch in double precision (tests/golden/ops/make_golden.py).
#include <gtest/gtest.h>

#include <string>

#include "golden_file.h"
#include "op_harness.h"

namespace lockstep::test {
namespace {

const GoldenFile& golden_file() {
  static const GoldenFile file(LOCKSTEP_GOLDEN_OPS);
  return file;
}

// One case of the file: its tensors as inputs and parameters of a graph, and what they should give.
class Case {
 public:
  Case(const Platform& platform, std::string name) : graph(platform), name_(std::move(name)), dtype_(platform.dtype) {}

  [[nodiscard]] const GoldenTensor& operator[](const std::string& tensor) const {
    return golden_file()[name_ + "/" + tensor];
  }
  [[nodiscard]] bool has(const std::string& tensor) const { return golden_file().has(name_ + "/" + tensor); }
  [[nodiscard]] Tensor input(const std::string& tensor) {
    return graph.input((*this)[tensor].shape, (*this)[tensor].values);
  }
  [[nodiscard]] Tensor parameter(const std::string& tensor) {
    return graph.parameter((*this)[tensor].shape, (*this)[tensor].values);
  }
  [[nodiscard]] Tensor parameter_if_any(const std::string& tensor) {
    return has(tensor) ? parameter(tensor) : Tensor();
  }
  [[nodiscard]] std::vector<std::int32_t> integers(const std::string& tensor) const {
    std::vector<std::int32_t> result;
    for (const double value : (*this)[tensor].values) {
      result.push_back(static_cast<std::int32_t>(value));
    }
    return result;
  }

  // `steps`: how many roundings of the working dtype the result went through.
  void expect(const std::string& tensor, const Values& actual, double steps = 1) const {
    EXPECT_TRUE(near(actual, (*this)[tensor].values, tolerance_of(dtype_, steps))) << name_ << "/" << tensor;
  }
  void expect_gradient(const std::string& tensor, const Tensor& parameter, double steps = 1) const {
    if (parameter.is_defined()) {
      expect(tensor, graph.gradient_of(parameter), steps);
    }
  }

  Graph graph;

 private:
  std::string name_;
  DType dtype_;
};

class GoldenTest : public OpTest {};

TEST_P(GoldenTest, LinearAgreesInBothLayoutsWithAndWithoutBias) {
  for (const std::string layout : {"in_out", "out_in"}) {
    for (const std::string bias : {"bias", "plain"}) {
      Case c(GetParam(), "linear_" + layout + "_" + bias);
      const Tensor x = c.input("x");
      const Linear layer{c.parameter("weight"), c.parameter_if_any("bias"),
                         layout == "in_out" ? WeightLayout::kInOut : WeightLayout::kOutIn};
      const Tensor y = linear(c.graph.tape(), x, layer);
      c.expect("y", to_values(y));
      c.graph.backward({{y, c["dy"].values}});
      c.expect("dx", c.graph.input_gradient(0));
      c.expect_gradient("dweight", layer.weight);
      c.expect_gradient("dbias", layer.bias);
    }
  }
}

TEST_P(GoldenTest, EmbeddingAgreesWithAndWithoutPositions) {
  for (const std::string kind : {"positions", "plain"}) {
    Case c(GetParam(), "embedding_" + kind);
    const EmbeddingTables tables{c.parameter("table"), c.parameter_if_any("places")};
    const std::vector<std::int32_t> tokens = c.integers("tokens");
    const Tensor x = embedding(c.graph.tape(), {tokens, 5, 2}, tables);
    c.expect("x", to_values(x));
    c.graph.backward({{x, c["dx"].values}});
    c.expect_gradient("dtable", tables.tokens);
    c.expect_gradient("dplaces", tables.positions);
  }
}

TEST_P(GoldenTest, NormsAgree) {
  for (const std::string kind : {"layer", "rms"}) {
    Case c(GetParam(), "norm_" + kind);
    const Tensor x = c.input("x");
    const Norm layer{kind == "layer" ? NormKind::kLayer : NormKind::kRms, 1e-5F, c.parameter("gain"),
                     c.parameter_if_any("bias")};
    const Tensor y = norm(c.graph.tape(), x, layer);
    c.expect("y", to_values(y));
    c.graph.backward({{y, c["dy"].values}});
    c.expect("dx", c.graph.input_gradient(0));
    c.expect_gradient("dgain", layer.gain);
    c.expect_gradient("dbias", layer.bias);
  }
}

TEST_P(GoldenTest, SumAndNormAgreesAndTheSumCarriesItsOwnGradient) {
  for (const std::string kind : {"layer", "rms"}) {
    Case c(GetParam(), "add_norm_" + kind);
    const Tensor x = c.input("x");
    const Tensor branch = c.input("branch");
    const Norm layer{kind == "layer" ? NormKind::kLayer : NormKind::kRms, 1e-5F, c.parameter("gain"),
                     c.parameter_if_any("bias")};
    const SumAndNorm result = add_norm(c.graph.tape(), x, branch, Dropout(), layer);
    c.expect("sum", to_values(result.sum));
    c.expect("y", to_values(result.y));
    c.graph.backward({{result.sum, c["dsum"].values}, {result.y, c["dy"].values}});
    c.expect("dx", c.graph.input_gradient(0));
    c.expect("dx", c.graph.input_gradient(1));
    c.expect_gradient("dgain", layer.gain);
    c.expect_gradient("dbias", layer.bias);
  }
}

TEST_P(GoldenTest, SelfAttentionAgreesForManyGroupedAndSingleHeadsAndLengths) {
  for (const std::string kind : {"mha", "gqa", "mqa", "one_token", "two_blocks", "three_blocks"}) {
    Case c(GetParam(), "attention_" + kind);
    const std::vector<std::int32_t> shape = c.integers("shape");
    const Tensor qkv = c.input("qkv");
    const Tensor y = self_attention(c.graph.tape(), qkv, {shape[0], shape[1], shape[2], Dropout()});
    c.expect("y", to_values(y), 2);
    c.graph.backward({{y, c["dy"].values}});
    c.expect("dqkv", c.graph.input_gradient(0), 4);
  }
}

TEST_P(GoldenTest, RotaryEmbeddingAgreesAndLeavesTheRestOfTheRowAlone) {
  Case c(GetParam(), "rope");
  const Tensor x = c.input("x");
  const Tensor frequency = c.graph.on_host({4}, c["frequency"].values);
  const Tensor y = rotary_embedding(c.graph.tape(), x, {3, 8, 5, 3, frequency});
  c.expect("y", to_values(y));
  c.graph.backward({{y, c["dy"].values}});
  c.expect("dx", c.graph.input_gradient(0));
}

TEST_P(GoldenTest, GeluAgrees) {
  Case c(GetParam(), "gelu");
  const Tensor x = c.input("x");
  const Tensor y = gelu(c.graph.tape(), x);
  c.expect("y", to_values(y));
  c.graph.backward({{y, c["dy"].values}});
  c.expect("dx", c.graph.input_gradient(0));
}

TEST_P(GoldenTest, SwigluAgrees) {
  Case c(GetParam(), "swiglu");
  const Tensor x = c.input("x");
  const Tensor y = swiglu(c.graph.tape(), x);
  c.expect("y", to_values(y));
  c.graph.backward({{y, c["dy"].values}});
  c.expect("dx", c.graph.input_gradient(0));
}

TEST_P(GoldenTest, LinearCrossEntropyAgreesWithMaskedTargets) {
  for (const std::string layout : {"in_out", "out_in"}) {
    Case c(GetParam(), "loss_" + layout);
    const Tensor x = c.input("x");
    const Linear head{c.parameter("weight"), Tensor(),
                      layout == "in_out" ? WeightLayout::kInOut : WeightLayout::kOutIn};
    const std::vector<std::int32_t> targets = c.integers("targets");
    const auto scale = static_cast<float>(c["scale"].values[0]);
    const Loss loss = linear_cross_entropy(c.graph.tape(), x, head, {targets, scale});
    EXPECT_EQ(loss.count, 66);
    EXPECT_NEAR(loss.sum(), c["sum"].values[0], loss_tolerance() * c["sum"].values[0]);
    c.graph.tape().backward(loss.value);
    // A GPU's logits are of the working dtype as well: a rounding more.
    const double steps = GetParam().device == DeviceKind::kCuda ? 3 : 2;
    c.expect("dx", c.graph.input_gradient(0), steps);
    c.expect_gradient("dweight", head.weight, steps);
  }
}

TEST_P(GoldenTest, AdamWAgreesOverFiveSteps) {
  Case c(GetParam(), "adamw");
  const auto floats = [&](const Values& values) {
    return c.graph.constant({static_cast<std::int64_t>(values.size())}, values, DType::kF32);
  };
  const Tensor master = floats(c["start"].values);
  const Tensor exp_avg = floats(Values(c["start"].values.size(), 0));
  const Tensor exp_avg_sq = floats(Values(c["start"].values.size(), 0));
  for (int step = 1; step <= 5; ++step) {
    const std::string name = "adamw_" + std::to_string(step) + "/";
    Values gradient = golden_file()[name + "gradient"].values;
    for (double& value : gradient) {
      value *= 4;  // undone by gradient_scale
    }
    c.graph.backend().adamw({.master = master.as<float>(),
                             .exp_avg = exp_avg.as<float>(),
                             .exp_avg_sq = exp_avg_sq.as<float>(),
                             .gradient = floats(gradient).as<float>(),
                             .gradient_scale = 0.25F,
                             .learning_rate = 0.01F,
                             .beta1 = 0.9F,
                             .beta2 = 0.95F,
                             .epsilon = 1e-8F,
                             .weight_decay = 0.1F,
                             .bias_correction1 = static_cast<float>(1 - std::pow(0.9, step)),
                             .bias_correction2 = static_cast<float>(1 - std::pow(0.95, step))});
    EXPECT_TRUE(near(to_values(master), golden_file()[name + "weight"].values, 1e-6)) << step;
    EXPECT_TRUE(near(to_values(exp_avg), golden_file()[name + "exp_avg"].values, 1e-6)) << step;
    EXPECT_TRUE(near(to_values(exp_avg_sq), golden_file()[name + "exp_avg_sq"].values, 1e-6)) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, GoldenTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
