#include "trainer/model/parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "base/hash.h"
#include "base/random.h"

namespace lockstep {
namespace {

// Collects specs; each add() returns the parameter's number.
class Builder {
 public:
  int matrix(const std::string& name, std::int64_t rows, std::int64_t columns,
             std::vector<ParameterExport> exports = {}) {
    return add({name, {rows, columns}, true, std::move(exports)});
  }
  int vector(const std::string& name, std::int64_t size, std::vector<ParameterExport> exports = {}) {
    return add({name, {size}, false, std::move(exports)});
  }
  [[nodiscard]] ParameterLayout finish() { return ParameterLayout(std::move(specs_)); }

 private:
  int add(ParameterSpec spec) {
    specs_.push_back(std::move(spec));
    return static_cast<int>(specs_.size()) - 1;
  }
  std::vector<ParameterSpec> specs_;
};

ModelParameters gpt2_parameters(const Architecture& a) {
  Builder builder;
  ModelParameters p;
  const auto optional_bias = [&](const std::string& name, std::int64_t size) {
    return a.bias ? builder.vector(name + ".bias", size) : -1;
  };
  p.final_gain = builder.vector("transformer.ln_f.weight", a.width);
  p.final_bias = optional_bias("transformer.ln_f", a.width);
  p.blocks.resize(static_cast<std::size_t>(a.layers));
  for (std::int64_t layer = a.layers - 1; layer >= 0; --layer) {
    BlockParameters& block = p.blocks[static_cast<std::size_t>(layer)];
    const std::string prefix = "transformer.h." + std::to_string(layer) + ".";
    const auto linear = [&](const std::string& name, std::int64_t in, std::int64_t out, int& weight, int& bias) {
      weight = builder.matrix(prefix + name + ".weight", in, out);
      bias = optional_bias(prefix + name, out);
    };
    const auto norm = [&](const std::string& name, int& gain, int& bias) {
      gain = builder.vector(prefix + name + ".weight", a.width);
      bias = optional_bias(prefix + name, a.width);
    };
    linear("mlp.c_proj", a.hidden, a.width, block.down, block.down_bias);
    linear("mlp.c_fc", a.width, a.hidden, block.up, block.up_bias);
    norm("ln_2", block.norm2_gain, block.norm2_bias);
    linear("attn.c_proj", a.width, a.width, block.attention_out, block.attention_out_bias);
    linear("attn.c_attn", a.width, 3 * a.width, block.qkv, block.qkv_bias);
    norm("ln_1", block.norm1_gain, block.norm1_bias);
  }
  p.position_table = builder.matrix("transformer.wpe.weight", a.context, a.width);
  p.token_table = builder.matrix("transformer.wte.weight", a.vocab, a.width);
  p.head = p.token_table;
  p.layout = builder.finish();
  return p;
}

ModelParameters llama_parameters(const Architecture& a) {
  Builder builder;
  ModelParameters p;
  if (!a.tied) {
    p.head = builder.matrix("lm_head.weight", a.vocab, a.width);
  }
  p.final_gain = builder.vector("model.norm.weight", a.width);
  p.blocks.resize(static_cast<std::size_t>(a.layers));
  const std::int64_t q = a.query_width();
  const std::int64_t kv = a.kv_width();
  for (std::int64_t layer = a.layers - 1; layer >= 0; --layer) {
    BlockParameters& block = p.blocks[static_cast<std::size_t>(layer)];
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    block.down = builder.matrix(prefix + "mlp.down_proj.weight", a.width, a.hidden);
    block.up = builder.matrix(prefix + "mlp.gate_up_proj.weight", 2 * a.hidden, a.width,
                              {{prefix + "mlp.gate_proj.weight", {a.hidden, a.width}, 0},
                               {prefix + "mlp.up_proj.weight", {a.hidden, a.width}, a.hidden * a.width}});
    block.norm2_gain = builder.vector(prefix + "post_attention_layernorm.weight", a.width);
    block.attention_out = builder.matrix(prefix + "self_attn.o_proj.weight", a.width, q);
    if (a.has_head_norm()) {
      block.key_norm = builder.vector(prefix + "self_attn.k_norm.weight", a.head_dim);
      block.query_norm = builder.vector(prefix + "self_attn.q_norm.weight", a.head_dim);
    }
    block.qkv = builder.matrix(prefix + "self_attn.qkv_proj.weight", q + 2 * kv, a.width,
                               {{prefix + "self_attn.q_proj.weight", {q, a.width}, 0},
                                {prefix + "self_attn.k_proj.weight", {kv, a.width}, q * a.width},
                                {prefix + "self_attn.v_proj.weight", {kv, a.width}, (q + kv) * a.width}});
    if (a.has_qkv_bias()) {
      block.qkv_bias = builder.vector(prefix + "self_attn.qkv_proj.bias", q + 2 * kv,
                                      {{prefix + "self_attn.q_proj.bias", {q}, 0},
                                       {prefix + "self_attn.k_proj.bias", {kv}, q},
                                       {prefix + "self_attn.v_proj.bias", {kv}, q + kv}});
    }
    block.norm1_gain = builder.vector(prefix + "input_layernorm.weight", a.width);
  }
  p.token_table = builder.matrix("model.embed_tokens.weight", a.vocab, a.width);
  if (a.tied) {
    p.head = p.token_table;
  }
  p.layout = builder.finish();
  return p;
}

// Element i of a standard normal sequence: Box and Muller (1958) on words 2 (i % 2) and 2 (i % 2) + 1 of counter i / 2.
void fill_normal(RandomKey key, double deviation, std::size_t first, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto words = philox(key, (first + i) / 2);
    const std::size_t w = 2 * ((first + i) % 2);
    const double u = (static_cast<double>(words[w]) + 1.0) * 0x1p-32;  // in (0, 1]
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(words[w + 1]) * 0x1p-32;
    values[i] = static_cast<float>(deviation * std::sqrt(-2.0 * std::log(u)) * std::cos(angle));
  }
}

}  // namespace

ModelParameters make_parameters(const Architecture& architecture) {
  return architecture.is_gpt2() ? gpt2_parameters(architecture) : llama_parameters(architecture);
}

void initialize(const Architecture& architecture, const ModelParameters& parameters, std::uint64_t seed,
                ThreadPool& pool, std::span<float> master) {
  const ParameterLayout& layout = parameters.layout;
  const auto is_gain = [&](int index) {
    return index == parameters.final_gain || std::ranges::any_of(parameters.blocks, [&](const BlockParameters& block) {
             return index == block.norm1_gain || index == block.norm2_gain || index == block.query_norm ||
                    index == block.key_norm;
           });
  };
  const auto ends_branch = [&](int index) {
    return std::ranges::any_of(parameters.blocks, [&](const BlockParameters& block) {
      return index == block.attention_out || index == block.down;
    });
  };
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const ParameterSpec& spec = layout.specs()[p];
    const std::span<float> values = master.subspan(layout.offset(p), layout.count(p));
    const int index = static_cast<int>(p);
    if (spec.shape.size() == 1) {
      std::ranges::fill(values, is_gain(index) ? 1.0F : 0.0F);
      continue;
    }
    const double deviation =
        ends_branch(index) ? 0.02 / std::sqrt(2.0 * static_cast<double>(architecture.layers)) : 0.02;
    const RandomKey key = random_key(seed, RandomUse::kInitialization, hash_of(spec.name).low);
    constexpr std::size_t kChunk = 65536;
    pool.parallel_for((values.size() + kChunk - 1) / kChunk, [&](std::size_t chunk) {
      const std::size_t begin = chunk * kChunk;
      fill_normal(key, deviation, begin, values.subspan(begin, std::min(kChunk, values.size() - begin)));
    });
  }
}

std::vector<Tensor> tensors_over(const ParameterLayout& layout, const BufferView& flat) {
  std::vector<Tensor> tensors;
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const std::vector<std::int64_t>& dims = layout.specs()[p].shape;
    const Shape shape = dims.size() == 1 ? Shape{dims[0]} : Shape{dims[0], dims[1]};
    Tensor tensor(flat.slice(layout.offset(p), layout.count(p)).data, shape, flat.dtype, flat.device);
    tensor.parameter = static_cast<int>(p);
    tensors.push_back(tensor);
  }
  return tensors;
}

}  // namespace lockstep
