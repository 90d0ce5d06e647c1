#include "trainer/model/parameters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>
#include <sstream>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/random.h"

namespace lockstep {
namespace {

constexpr const char* kPeftPrefix = "base_model.model.";

bool ends_path(const std::string& path, const std::string& name) { return path == name || path.ends_with("." + name); }

// A linear layer as Hugging Face has it: a range of the outputs of ours.
struct LinearModule {
  std::string path;
  LowRank::Part outputs;
};

// Collects specs; each add() returns the parameter's number.
class Builder {
 public:
  Builder(const Architecture& architecture, const TuneConfig& tune)
      : architecture_(architecture), tune_(tune), linear_layers_(linear_layers_of(architecture)) {}

  void begin_block(std::int64_t layer) { block_ = layer; }
  void end_blocks() { block_ = -1; }

  int matrix(const std::string& name, std::int64_t rows, std::int64_t columns,
             std::vector<ParameterExport> exports = {}) {
    return add_base({name, {rows, columns}, true, std::move(exports)});
  }
  int vector(const std::string& name, std::int64_t size, std::vector<ParameterExport> exports = {}) {
    return add_base({name, {size}, false, std::move(exports)});
  }
  // Of the layer whose parameters are called `name`, for those of its modules that are to have one.
  Adapter adapter(const std::string& name, std::int64_t inputs, const std::vector<LinearModule>& modules) {
    Adapter adapter;
    if (tune_.method != TuneMethod::kLora) {
      return adapter;
    }
    ParameterSpec a{name + ".lora_A", {0, inputs}, true, {}};
    ParameterSpec b{name + ".lora_B", {0, tune_.rank}, true, {}, tune_.lora_plus};
    ParameterSpec magnitude{name + ".lora_magnitude_vector", {0}, false, {}};
    std::size_t parts = 0;
    for (const LinearModule& module : modules) {
      if (!is_target(module.path) || is_whole(module.path)) {
        continue;
      }
      adapter.parts.at(parts++) = module.outputs;
      const std::string path = kPeftPrefix + module.path;
      a.exports.push_back({path + ".lora_A.weight", {tune_.rank, inputs}, a.shape[0] * inputs});
      b.exports.push_back({path + ".lora_B.weight", {module.outputs.columns, tune_.rank}, b.shape[0] * tune_.rank});
      magnitude.exports.push_back({path + ".lora_magnitude_vector", {module.outputs.columns}, magnitude.shape[0]});
      a.shape[0] += tune_.rank;
      b.shape[0] += module.outputs.columns;
      magnitude.shape[0] += module.outputs.columns;
    }
    if (parts > 0 && tune_.dora) {
      adapter.magnitude = add(std::move(magnitude), true);
    }
    if (parts > 0) {
      adapter.b = add(std::move(b), true);
      adapter.a = add(std::move(a), true);
    }
    return adapter;
  }

  // Throws Error(kUsage) for a name that nothing was found for.
  void finish(ModelParameters& parameters) {
    const auto check = [&](const char* key, const std::string& list, const std::vector<std::string>& expected) {
      for (const std::string& name : names_in(list)) {
        require(list == "all" || used_.contains(name),
                "{}: no layer of this {} is called {}; expected {} (or longer parts of a name)", key,
                name_of(architecture_.family), name, fmt::join(expected, ", "));
      }
    };
    require(tune_.method != TuneMethod::kFreeze || tune_.blocks <= architecture_.layers,
            "tune.blocks is {}; expected at most the {} of this {}", tune_.blocks, architecture_.layers,
            name_of(architecture_.family));
    if (tune_.method == TuneMethod::kLora) {
      check("tune.targets", tune_.targets, linear_layers_);
    }
    if (tune_.method != TuneMethod::kFull) {
      check("tune.also_train", tune_.also_train, layers_);
    }
    parameters.layout = ParameterLayout(std::move(trained_));
    parameters.frozen = ParameterLayout(std::move(frozen_));
    parameters.places = std::move(places_);
  }

 private:
  int add(ParameterSpec spec, bool trained) {
    std::vector<ParameterSpec>& specs = trained ? trained_ : frozen_;
    places_.push_back({trained, specs.size()});
    specs.push_back(std::move(spec));
    return static_cast<int>(places_.size()) - 1;
  }

  int add_base(ParameterSpec spec) {
    if (tune_.method == TuneMethod::kFull) {
      return add(std::move(spec), true);
    }
    if (spec.exports.empty()) {
      spec.exports.push_back({spec.name, spec.shape, 0});
    }
    std::size_t chosen = 0;
    for (const ParameterExport& part : spec.exports) {
      chosen += is_chosen(part.hf_name) ? 1 : 0;
      const std::string path = path_of(part.hf_name);
      const std::string layer = path.substr(path.rfind('.') + 1);
      if (std::find(layers_.begin(), layers_.end(), layer) == layers_.end()) {
        layers_.push_back(layer);
      }
    }
    require(chosen == 0 || chosen == spec.exports.size(),
            "tune: of {}, which are kept together, some are to be trained and some are not", joined_names(spec));
    if (chosen > 0 && tune_.method == TuneMethod::kLora) {
      for (ParameterExport& part : spec.exports) {
        part.hf_name = peft_name(part.hf_name);
      }
    }
    return add(std::move(spec), chosen > 0);
  }

  // "model.norm" of "model.norm.weight"
  static std::string path_of(const std::string& hf_name) { return hf_name.substr(0, hf_name.rfind('.')); }

  bool is_chosen(const std::string& hf_name) {
    const std::string path = path_of(hf_name);
    if (is_whole(path)) {
      return true;
    }
    if (tune_.method == TuneMethod::kFreeze) {
      return block_ >= 0 && block_ >= architecture_.layers - tune_.blocks;
    }
    const bool is_bias = hf_name.ends_with(".bias");
    return is_bias && (tune_.bias == TuneBias::kAll || (tune_.bias == TuneBias::kLoraOnly && is_target(path)));
  }

  // Biases of layers with adapters stand one level deeper in peft's models; layers that are trained whole do not.
  std::string peft_name(const std::string& hf_name) {
    const std::string path = path_of(hf_name);
    const bool is_inside = is_target(path) && !is_whole(path);
    return kPeftPrefix + path + (is_inside ? ".base_layer" : "") + hf_name.substr(path.size());
  }

  bool is_target(const std::string& path) {
    if (tune_.targets == "all") {
      return std::any_of(linear_layers_.begin(), linear_layers_.end(),
                         [&](const std::string& name) { return ends_path(path, name); });
    }
    return is_in(tune_.targets, path, ends_path) && is_linear(path);
  }
  bool is_linear(const std::string& path) const {
    return std::any_of(linear_layers_.begin(), linear_layers_.end(),
                       [&](const std::string& name) { return ends_path(path, name); });
  }
  // As peft compares: "norm" is every layer whose name ends so.
  bool is_whole(const std::string& path) {
    return is_in(tune_.also_train, path,
                 [](const std::string& whole, const std::string& end) { return whole.ends_with(end); });
  }
  template <typename Ends>
  bool is_in(const std::string& list, const std::string& path, const Ends& ends) {
    bool found = false;
    for (const std::string& name : names_in(list)) {
      if (ends(path, name)) {
        used_.insert(name);
        found = true;
      }
    }
    return found;
  }
  static std::string joined_names(const ParameterSpec& spec) {
    std::string names;
    for (const ParameterExport& part : spec.exports) {
      names += (names.empty() ? "" : ", ") + part.hf_name;
    }
    return names;
  }

  const Architecture& architecture_;
  const TuneConfig& tune_;
  const std::vector<std::string> linear_layers_;
  std::vector<std::string> layers_;  // all of them, by the last part of their names
  std::int64_t block_ = -1;
  std::vector<ParameterSpec> trained_;
  std::vector<ParameterSpec> frozen_;
  std::vector<ModelParameters::Place> places_;
  std::set<std::string> used_;  // names in lists that fit a layer
};

ModelParameters gpt2_parameters(const Architecture& a, const TuneConfig& tune) {
  Builder builder(a, tune);
  ModelParameters p;
  const auto optional_bias = [&](const std::string& name, std::int64_t size) {
    return a.bias ? builder.vector(name + ".bias", size) : -1;
  };
  p.final_gain = builder.vector("transformer.ln_f.weight", a.width);
  p.final_bias = optional_bias("transformer.ln_f", a.width);
  p.blocks.resize(static_cast<std::size_t>(a.layers));
  for (std::int64_t layer = a.layers - 1; layer >= 0; --layer) {
    BlockParameters& block = p.blocks[static_cast<std::size_t>(layer)];
    builder.begin_block(layer);
    const std::string prefix = "transformer.h." + std::to_string(layer) + ".";
    const auto linear = [&](const std::string& name, std::int64_t in, std::int64_t out, int& weight, int& bias,
                            Adapter& adapter) {
      adapter = builder.adapter(prefix + name, in, {{prefix + name, {0, out}}});
      weight = builder.matrix(prefix + name + ".weight", in, out);
      bias = optional_bias(prefix + name, out);
    };
    const auto norm = [&](const std::string& name, int& gain, int& bias) {
      gain = builder.vector(prefix + name + ".weight", a.width);
      bias = optional_bias(prefix + name, a.width);
    };
    linear("mlp.c_proj", a.hidden, a.width, block.down, block.down_bias, block.down_adapter);
    linear("mlp.c_fc", a.width, a.hidden, block.up, block.up_bias, block.up_adapter);
    norm("ln_2", block.norm2_gain, block.norm2_bias);
    linear("attn.c_proj", a.width, a.width, block.attention_out, block.attention_out_bias, block.attention_out_adapter);
    linear("attn.c_attn", a.width, 3 * a.width, block.qkv, block.qkv_bias, block.qkv_adapter);
    norm("ln_1", block.norm1_gain, block.norm1_bias);
  }
  builder.end_blocks();
  p.position_table = builder.matrix("transformer.wpe.weight", a.context, a.width);
  p.token_table = builder.matrix("transformer.wte.weight", a.vocab, a.width);
  p.head = p.token_table;
  builder.finish(p);
  return p;
}

ModelParameters llama_parameters(const Architecture& a, const TuneConfig& tune) {
  Builder builder(a, tune);
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
    builder.begin_block(layer);
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    block.down_adapter =
        builder.adapter(prefix + "mlp.down_proj", a.hidden, {{prefix + "mlp.down_proj", {0, a.width}}});
    block.down = builder.matrix(prefix + "mlp.down_proj.weight", a.width, a.hidden);
    block.up_adapter =
        builder.adapter(prefix + "mlp.gate_up_proj", a.width,
                        {{prefix + "mlp.gate_proj", {0, a.hidden}}, {prefix + "mlp.up_proj", {a.hidden, a.hidden}}});
    block.up = builder.matrix(prefix + "mlp.gate_up_proj.weight", 2 * a.hidden, a.width,
                              {{prefix + "mlp.gate_proj.weight", {a.hidden, a.width}, 0},
                               {prefix + "mlp.up_proj.weight", {a.hidden, a.width}, a.hidden * a.width}});
    block.norm2_gain = builder.vector(prefix + "post_attention_layernorm.weight", a.width);
    block.attention_out_adapter =
        builder.adapter(prefix + "self_attn.o_proj", q, {{prefix + "self_attn.o_proj", {0, a.width}}});
    block.attention_out = builder.matrix(prefix + "self_attn.o_proj.weight", a.width, q);
    if (a.has_head_norm()) {
      block.key_norm = builder.vector(prefix + "self_attn.k_norm.weight", a.head_dim);
      block.query_norm = builder.vector(prefix + "self_attn.q_norm.weight", a.head_dim);
    }
    block.qkv_adapter = builder.adapter(prefix + "self_attn.qkv_proj", a.width,
                                        {{prefix + "self_attn.q_proj", {0, q}},
                                         {prefix + "self_attn.k_proj", {q, kv}},
                                         {prefix + "self_attn.v_proj", {q + kv, kv}}});
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
  builder.end_blocks();
  p.token_table = builder.matrix("model.embed_tokens.weight", a.vocab, a.width);
  if (a.tied) {
    p.head = p.token_table;
  }
  builder.finish(p);
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

// Element i is word i % 4 of counter i / 4.
void fill_uniform(RandomKey key, double bound, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double u = static_cast<double>(philox(key, i / 4)[i % 4]) * 0x1p-32;  // in [0, 1)
    values[i] = static_cast<float>((2 * u - 1) * bound);
  }
}

}  // namespace

std::vector<std::string> names_in(const std::string& list) {
  std::vector<std::string> names;
  std::istringstream stream(list);
  for (std::string name; std::getline(stream, name, ',');) {
    const std::size_t begin = name.find_first_not_of(' ');
    if (begin != std::string::npos) {
      names.push_back(name.substr(begin, name.find_last_not_of(' ') + 1 - begin));
    }
  }
  return names;
}

std::vector<std::string> linear_layers_of(const Architecture& architecture) {
  if (architecture.is_gpt2()) {
    return {"c_attn", "c_proj", "c_fc"};
  }
  return {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
}

ModelParameters make_parameters(const Architecture& architecture, const TuneConfig& tune) {
  return architecture.is_gpt2() ? gpt2_parameters(architecture, tune) : llama_parameters(architecture, tune);
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
  const auto is_adapters = [&](int index, int Adapter::*matrix) {
    return std::ranges::any_of(parameters.blocks, [&](const BlockParameters& block) {
      return index == block.qkv_adapter.*matrix || index == block.attention_out_adapter.*matrix ||
             index == block.up_adapter.*matrix || index == block.down_adapter.*matrix;
    });
  };
  for (int index = 0; index < static_cast<int>(parameters.places.size()); ++index) {
    const ModelParameters::Place& place = parameters.places[static_cast<std::size_t>(index)];
    if (!place.trained) {
      continue;
    }
    const ParameterSpec& spec = layout.specs()[place.index];
    const std::span<float> values = master.subspan(layout.offset(place.index), layout.count(place.index));
    if (is_adapters(index, &Adapter::b)) {
      std::ranges::fill(values, 0.0F);
      continue;
    }
    if (is_adapters(index, &Adapter::a)) {
      fill_uniform(random_key(seed, RandomUse::kInitialization, hash_of(spec.name).low),
                   1.0 / std::sqrt(static_cast<double>(spec.shape[1])), values);
      continue;
    }
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

Shape shape_of(const ParameterSpec& spec) {
  return spec.shape.size() == 1 ? Shape{spec.shape[0]} : Shape{spec.shape[0], spec.shape[1]};
}

std::vector<bool> are_block_matrices(const ModelParameters& parameters) {
  std::vector<bool> are(parameters.places.size());
  for (const BlockParameters& block : parameters.blocks) {
    for (const int number : {block.qkv, block.attention_out, block.up, block.down}) {
      are[static_cast<std::size_t>(number)] = true;
    }
  }
  return are;
}

std::vector<Tensor> tensors_over(const ModelParameters& parameters, const BufferView& trained,
                                 std::span<const Tensor> frozen) {
  std::vector<Tensor> tensors;
  for (const ModelParameters::Place& place : parameters.places) {
    if (!place.trained) {
      tensors.push_back(frozen[place.index]);
      continue;
    }
    const ParameterLayout& layout = parameters.layout;
    Tensor tensor(trained.slice(layout.offset(place.index), layout.count(place.index)).data,
                  shape_of(layout.specs()[place.index]), trained.dtype, trained.device);
    tensor.parameter = static_cast<int>(place.index);
    tensors.push_back(tensor);
  }
  return tensors;
}

double training_flop_per_token(const Architecture& architecture, const ModelParameters& parameters,
                               std::int64_t sequence) {
  // The backward pass ends at the last parameter whose gradient is asked for.
  int last = -1;
  for (int number = 0; number < static_cast<int>(parameters.places.size()); ++number) {
    last = parameters.places[static_cast<std::size_t>(number)].trained ? number : last;
  }
  double flop = 0;
  for (int number = 0; number < static_cast<int>(parameters.places.size()); ++number) {
    const ModelParameters::Place& place = parameters.places[static_cast<std::size_t>(number)];
    const bool is_lookup = number == parameters.position_table ||
                           (number == parameters.token_table && parameters.head != parameters.token_table);
    const ParameterLayout& layout = place.trained ? parameters.layout : parameters.frozen;
    const double each = place.trained ? 6 : is_lookup ? 0 : number < last ? 4 : 2;
    flop += each * static_cast<double>(layout.count(place.index));
  }
  for (const BlockParameters& block : parameters.blocks) {
    flop += (block.attention_out < last ? 12.0 : 4.0) * static_cast<double>(architecture.query_width() * sequence);
  }
  return flop;
}

}  // namespace lockstep
