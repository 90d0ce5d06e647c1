#include "trainer/tuned_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "ops/matrices.h"
#include "trainer/adapter_config.h"
#include "trainer/base_model.h"
#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/files.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/formats/hf_weights.h"
#include "trainer/formats/safetensors.h"
#include "trainer/resume.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAdapterConfig = "adapter_config.json";

void check_base(const TunedModel& tuned, const fs::path& base, const Hash128& fingerprint) {
  require(tuned.base_fingerprint.empty() || fingerprint.hex() == tuned.base_fingerprint,
          "{} was trained on another model than {}: the fingerprint of that is {}, expected {}", tuned.folder.string(),
          base.string(), fingerprint.hex(), tuned.base_fingerprint);
}

void check_tying(const TunedModel& tuned, const Architecture& architecture) {
  require(tuned.ties_weights || !trains_shared_table(architecture, tuned.tune),
          "{} trains the embedding apart from the head, which are one in its model; expected ensure_weight_tying in "
          "adapter_config.json",
          tuned.folder.string());
}

// What an export has noted; empty where there is no such file, or another program wrote it.
std::string fingerprint_in(const fs::path& weights) {
  if (!fs::is_regular_file(weights)) {
    return {};
  }
  const SafetensorsFile file(weights);
  const std::map<std::string, std::string>& metadata = file.header().metadata;
  const auto found = metadata.find(kFingerprintKey);
  return found == metadata.end() ? std::string() : found->second;
}

// weight[out, in] += scale * b[out, r] a[r, in], or its transpose into weight[in, out], for the rows of `part`.
struct Product {
  std::span<float> weight;
  WeightLayout layout = WeightLayout::kOutIn;
  std::int64_t in = 0;
  std::int64_t out = 0;
  LowRank::Part part;
  std::span<float> a;
  std::span<float> b;
  std::int64_t rank = 0;
};

void add_product(const Product& product, float scale, Backend& backend) {
  std::vector<float> scaled_b(product.b.begin(), product.b.end());
  for (float& value : scaled_b) {
    value *= scale;
  }
  const Matrix a{product.a.data(), DType::kF32, product.rank, product.in, product.in, false};
  const Matrix b{scaled_b.data(), DType::kF32, product.part.columns, product.rank, product.rank, false};
  const auto transposed = [](Matrix matrix) {
    matrix.transposed = true;
    return matrix;
  };
  if (product.layout == WeightLayout::kOutIn) {
    float* first = product.weight.data() + product.part.begin * product.in;
    backend.gemm({.a = b,
                  .b = a,
                  .d = {first, DType::kF32, product.part.columns, product.in, product.in, false},
                  .accumulate = true});
  } else {
    float* first = product.weight.data() + product.part.begin;
    backend.gemm({.a = transposed(a),
                  .b = transposed(b),
                  .d = {first, DType::kF32, product.in, product.part.columns, product.out, false},
                  .accumulate = true});
  }
}

// Brings the weights of each output of `part` to a length, where they have one (Liu et al. 2024, DoRA).
void set_lengths(std::span<float> weight, WeightLayout layout, const WeightSizes& sizes, const LowRank::Part& part,
                 std::span<const float> lengths) {
  const bool in_out = layout == WeightLayout::kInOut;
  for (std::int64_t column = 0; column < part.columns; ++column) {
    const std::int64_t out = part.begin + column;
    float* first = weight.data() + (in_out ? out : out * sizes.in);
    const std::int64_t stride = in_out ? sizes.out : 1;
    double squares = 0;
    for (std::int64_t i = 0; i < sizes.in; ++i) {
      const auto value = static_cast<double>(first[i * stride]);
      squares += value * value;
    }
    if (squares == 0) {
      continue;
    }
    const double factor = static_cast<double>(lengths[static_cast<std::size_t>(column)]) / std::sqrt(squares);
    for (std::int64_t i = 0; i < sizes.in; ++i) {
      first[i * stride] = static_cast<float>(factor * static_cast<double>(first[i * stride]));
    }
  }
}

}  // namespace

std::optional<TunedModel> find_tuned_model(const fs::path& folder) {
  const fs::path adapter = folder / kAdapterConfig;
  if (fs::is_regular_file(folder / kManifestName)) {
    const Manifest manifest = read_manifest(folder);
    if (manifest.model_file == kModelFileName) {
      return {};
    }
    const Config config = parse_config(manifest.position.config_text, (folder / kManifestName).string());
    return TunedModel{folder, folder / manifest.model_file, config.tune, config.model.from,
                      run_progress_from_json(manifest.position.extra_json).base_fingerprint};
  }
  if (fs::is_regular_file(adapter)) {
    const AdapterConfig config = from_adapter_config(read_file(adapter), adapter.string());
    return TunedModel{folder,
                      folder / kAdapterFileName,
                      config.tune,
                      config.base,
                      fingerprint_in(folder / kAdapterFileName),
                      config.ties_weights};
  }
  return {};
}

void load_trained(const TunedModel& tuned, const ParameterLayout& layout, std::span<float> weights) {
  verify_weights(tuned.folder);
  const HfWeights source(tuned.weights);
  source.check(layout);
  source.check_nothing_else(layout, tuned.ties_weights ? kPeftHead : "");
  source.read_all(layout, weights);
}

void load_tuned(const TunedModel& tuned, const fs::path& base, Replica& replica) {
  check_tying(tuned, replica.model().architecture());
  check_base(tuned, base, load_base(base, replica, {}));
  replica.fill([&](std::span<float> weights) { load_trained(tuned, replica.layout(), weights); });
}

void load_merged(const TunedModel& tuned, const fs::path& base, const Architecture& architecture, Backend& backend,
                 std::span<float> weights) {
  const ParameterLayout whole = make_parameters(architecture).layout;
  const ModelParameters parameters = make_parameters(architecture, tuned.tune);
  check_tying(tuned, architecture);
  load_weights(base, whole, weights);
  StateDigest digest(whole);
  digest.add(StateKind::kMaster, 0, weights);
  check_base(tuned, base, StateDigest::finish(whole, digest.sum()));
  std::vector<float> trained(parameters.layout.total());
  load_trained(tuned, parameters.layout, trained);

  const auto place_of = [&](const ParameterLayout& layout, std::span<float> flat, std::size_t index) {
    return flat.subspan(layout.offset(index), layout.count(index));
  };
  // Layers that were trained whole.
  for (std::size_t i = 0; i < parameters.layout.size(); ++i) {
    if (const auto same = whole.find(parameters.layout.specs()[i].name)) {
      std::ranges::copy(place_of(parameters.layout, trained, i), place_of(whole, weights, *same).begin());
    }
  }
  const auto merge = [&](int weight, const Adapter& adapter, std::int64_t in, std::int64_t out) {
    if (adapter.a < 0) {
      return;
    }
    const auto matrix = [&](int number) {
      return place_of(parameters.layout, trained, parameters.places[static_cast<std::size_t>(number)].index);
    };
    const ModelParameters::Place& place = parameters.places[static_cast<std::size_t>(weight)];
    const std::string& name = (place.trained ? parameters.layout : parameters.frozen).specs()[place.index].name;
    const std::int64_t rank = tuned.tune.rank;
    const WeightLayout layout = architecture.is_gpt2() ? WeightLayout::kInOut : WeightLayout::kOutIn;
    std::int64_t rows_of_a = 0;
    std::int64_t rows_of_b = 0;
    for (const LowRank::Part& part : adapter.parts) {
      if (part.columns > 0) {
        const auto rows = [](std::span<float> flat, std::int64_t first, std::int64_t count, std::int64_t columns) {
          return flat.subspan(static_cast<std::size_t>(first * columns), static_cast<std::size_t>(count * columns));
        };
        add_product({.weight = place_of(whole, weights, *whole.find(name)),
                     .layout = layout,
                     .in = in,
                     .out = out,
                     .part = part,
                     .a = rows(matrix(adapter.a), rows_of_a, rank, in),
                     .b = rows(matrix(adapter.b), rows_of_b, part.columns, rank),
                     .rank = rank},
                    static_cast<float>(tuned.tune.scale()), backend);
        if (adapter.magnitude >= 0) {
          const std::span<float> lengths = matrix(adapter.magnitude);
          set_lengths(place_of(whole, weights, *whole.find(name)), layout, {in, out}, part,
                      lengths.subspan(static_cast<std::size_t>(rows_of_b), static_cast<std::size_t>(part.columns)));
        }
        rows_of_a += rank;
        rows_of_b += part.columns;
      }
    }
  };
  const std::int64_t qkv = architecture.query_width() + 2 * architecture.kv_width();
  const std::int64_t up = architecture.is_gpt2() ? architecture.hidden : 2 * architecture.hidden;
  for (const BlockParameters& block : parameters.blocks) {
    merge(block.qkv, block.qkv_adapter, architecture.width, qkv);
    merge(block.attention_out, block.attention_out_adapter, architecture.query_width(), architecture.width);
    merge(block.up, block.up_adapter, architecture.width, up);
    merge(block.down, block.down_adapter, architecture.hidden, architecture.width);
  }
}

}  // namespace lockstep
