// Exports of the golden models: read back as the programs that they are for would. tests/golden/model/check_gguf.py
// holds them against transformers and llama.cpp, by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/text/gguf_reader.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/model/golden_weights.h"
#include "trainer/export_gguf.h"
#include "trainer/export_safetensors.h"
#include "trainer/formats/hf_weights.h"
#include "trainer/model/parameters.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

// A GGUF file as it says that it is.
struct ReadTensor {
  std::vector<std::uint64_t> sizes;  // the fastest first
  GgmlType type = GgmlType::kF32;
  std::vector<float> values;
};
struct ReadGguf {
  std::map<std::string, std::string> texts;
  std::map<std::string, std::uint32_t> numbers;
  std::map<std::string, ReadTensor> tensors;
};
ReadGguf read_gguf(const fs::path& path) {
  const File file = File::open_to_read(path);
  GgufReader reader([&](std::uint64_t offset, std::span<std::byte> bytes) { return file.read_some(offset, bytes); },
                    file.size(), path.string());
  EXPECT_EQ(reader.u32("magic"), 0x46554747U);
  EXPECT_EQ(reader.u32("version"), 3U);
  const std::uint64_t tensors = reader.u64("tensors");
  const std::uint64_t keys = reader.u64("keys");
  ReadGguf gguf;
  for (std::uint64_t i = 0; i < keys; ++i) {
    const std::string key = reader.string("key", 1000);
    const GgufType type = reader.type(key);
    if (type == GgufType::kString) {
      gguf.texts[key] = reader.string(key, 1 << 20);
    } else if (type == GgufType::kU32) {
      gguf.numbers[key] = reader.u32(key);
    } else {
      reader.skip(type, key);
    }
  }
  std::map<std::string, std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < tensors; ++i) {
    const std::string name = reader.string("name", 64);
    ReadTensor& tensor = gguf.tensors[name];
    for (std::uint32_t d = reader.u32("dimensions"); d > 0; --d) {
      tensor.sizes.push_back(reader.u64("size"));
    }
    tensor.type = static_cast<GgmlType>(reader.u32("type"));
    offsets[name] = reader.u64("offset");
  }
  const std::uint64_t begin = (reader.position() + 31) / 32 * 32;
  for (auto& [name, tensor] : gguf.tensors) {
    EXPECT_EQ(offsets[name] % 32, 0U);
    std::int64_t count = 1;
    for (const std::uint64_t size : tensor.sizes) {
      count *= static_cast<std::int64_t>(size);
    }
    std::vector<std::byte> bytes(size_of(tensor.type, count));
    file.read_exactly(begin + offsets[name], bytes);
    tensor.values.resize(static_cast<std::size_t>(count));
    dequantize(tensor.type, bytes, tensor.values);
  }
  return gguf;
}

class ExportTest : public testing::Test {
 protected:
  GgufSummary export_to(const GoldenWeights& model, GgufKind kind, const fs::path& path) {
    return export_gguf({.architecture = model.architecture,
                        .layout = model.parameters.layout,
                        .weights = model.weights,
                        .tokenizer = Tokenizer::bytes(),
                        .ends = {},
                        .name = "golden",
                        .chat_template = "{{ messages }}"},
                       kind, path);
  }
  // The values of a tensor of the model's own files.
  static std::vector<float> original(const GoldenWeights& model, const std::string& name) {
    const SafetensorsFile file(model.folder / "model.safetensors");
    std::vector<float> values(file.get(name).count());
    file.read_f32(file.get(name), 0, values);
    return values;
  }

  TemporaryFolder folder_;
};

TEST_F(ExportTest, OfLlamaHasItsQueriesAndKeysInPairs) {
  const GoldenWeights model = golden("llama");
  EXPECT_EQ(export_to(model, GgufKind::kF32, folder_ / "m.gguf").tensors, 2U * 9 + 3);
  const ReadGguf gguf = read_gguf(folder_ / "m.gguf");
  EXPECT_EQ(gguf.texts.at("general.architecture"), "llama");
  EXPECT_EQ(gguf.texts.at("tokenizer.chat_template"), "{{ messages }}");
  EXPECT_EQ(gguf.numbers.at("llama.attention.head_count_kv"), 2U);
  EXPECT_EQ(gguf.numbers.at("llama.rope.dimension_count"), 8U);
  EXPECT_FALSE(gguf.numbers.contains("general.quantization_version"));
  EXPECT_THAT(gguf.tensors.at("blk.0.ffn_down.weight").sizes, ElementsAre(48U, 32U));
  EXPECT_EQ(gguf.tensors.at("blk.1.ffn_gate.weight").values, original(model, "model.layers.1.mlp.gate_proj.weight"));
  EXPECT_EQ(gguf.tensors.at("output.weight").values, original(model, "lm_head.weight"));
  // Four query heads of 8 rows: rows 0 and 4 of a head become 0 and 1.
  const std::vector<float> before = original(model, "model.layers.0.self_attn.q_proj.weight");
  const std::vector<float>& after = gguf.tensors.at("blk.0.attn_q.weight").values;
  for (std::size_t head = 0; head < 4; ++head) {
    for (std::size_t row = 0; row < 8; ++row) {
      const std::size_t from = head * 8 + row / 2 + row % 2 * 4;
      for (std::size_t column = 0; column < 32; ++column) {
        ASSERT_EQ(after[(head * 8 + row) * 32 + column], before[from * 32 + column]);
      }
    }
  }
}

TEST_F(ExportTest, OfOtherFamiliesIsAsLlamaCppHasThem) {
  const GoldenWeights gpt2 = golden("gpt2");
  export_to(gpt2, GgufKind::kF32, folder_ / "gpt2.gguf");
  const ReadGguf of_gpt2 = read_gguf(folder_ / "gpt2.gguf");
  const ReadTensor& qkv = of_gpt2.tensors.at("blk.1.attn_qkv.weight");
  EXPECT_THAT(qkv.sizes, ElementsAre(32U, 96U));
  const std::vector<float> conv = original(gpt2, "transformer.h.1.attn.c_attn.weight");  // [32, 96]
  for (std::size_t out = 0; out < 96; ++out) {
    for (std::size_t in = 0; in < 32; ++in) {
      ASSERT_EQ(qkv.values[out * 32 + in], conv[in * 96 + out]);
    }
  }
  EXPECT_TRUE(of_gpt2.tensors.contains("position_embd.weight"));
  EXPECT_TRUE(of_gpt2.tensors.contains("output_norm.bias"));

  const GoldenWeights qwen3 = golden("qwen3");
  export_to(qwen3, GgufKind::kF32, folder_ / "qwen3.gguf");
  const ReadGguf of_qwen3 = read_gguf(folder_ / "qwen3.gguf");
  EXPECT_EQ(of_qwen3.numbers.at("qwen3.attention.key_length"), 16U);
  EXPECT_EQ(of_qwen3.tensors.at("blk.0.attn_q.weight").values,
            original(qwen3, "model.layers.0.self_attn.q_proj.weight"));
  EXPECT_EQ(of_qwen3.tensors.at("blk.0.attn_k_norm.weight").values,
            original(qwen3, "model.layers.0.self_attn.k_norm.weight"));

  export_to(golden("mistral"), GgufKind::kF32, folder_ / "mistral.gguf");
  EXPECT_EQ(read_gguf(folder_ / "mistral.gguf").texts.at("general.architecture"), "llama");

  // Waves of 6.3, 30, 140 and 664 positions, of which 64 / 4 and 64 / 1 are the borders: see make_models.py.
  export_to(golden("llama3"), GgufKind::kF32, folder_ / "llama3.gguf");
  const ReadGguf of_llama3 = read_gguf(folder_ / "llama3.gguf");
  const std::vector<float>& factors = of_llama3.tensors.at("rope_freqs.weight").values;
  ASSERT_EQ(factors.size(), 4U);
  EXPECT_EQ(factors[0], 1.0F);
  EXPECT_GT(factors[1], 1.0F);
  EXPECT_LT(factors[1], 8.0F);
  EXPECT_NEAR(factors[2], 8.0F, 1e-5F);
  EXPECT_NEAR(factors[3], 8.0F, 1e-5F);
}

TEST_F(ExportTest, GivesBiasesToAModelWithoutThem) {
  GoldenWeights model = golden("gpt2");
  Architecture a = model.architecture;
  a.bias = false;
  const ModelParameters parameters = make_parameters(a);
  const std::vector<float> weights(parameters.layout.total(), 0.5F);
  export_gguf({.architecture = a,
               .layout = parameters.layout,
               .weights = weights,
               .tokenizer = Tokenizer::bytes(),
               .ends = {},
               .name = "golden",
               .chat_template = ""},
              GgufKind::kF16, folder_ / "m.gguf");
  const ReadGguf gguf = read_gguf(folder_ / "m.gguf");
  EXPECT_EQ(gguf.tensors.at("blk.0.attn_qkv.bias").values, std::vector<float>(96, 0.0F));
  EXPECT_EQ(gguf.tensors.at("output_norm.bias").values, std::vector<float>(32, 0.0F));
  EXPECT_FALSE(gguf.texts.contains("tokenizer.chat_template"));
}

TEST_F(ExportTest, MixesTypesAsLlamaCppDoes) {
  const auto type_of = [](GgufKind kind, const std::string& name, std::int64_t columns, bool is_head = false) {
    return tensor_type(kind, {name, {512, columns}, GgmlType::kF32}, is_head, 32);
  };
  EXPECT_EQ(type_of(GgufKind::kQ4_K_M, "blk.7.attn_q.weight", 256), GgmlType::kQ4_K);
  EXPECT_EQ(type_of(GgufKind::kQ4_K_M, "output.weight", 256, true), GgmlType::kQ6_K);
  EXPECT_EQ(type_of(GgufKind::kQ4_0, "output.weight", 256, true), GgmlType::kQ6_K);
  EXPECT_EQ(type_of(GgufKind::kQ8_0, "output.weight", 256, true), GgmlType::kQ8_0);
  // The first and the last four of 32 layers, and each third between them.
  for (const auto& [layer, better] : std::map<int, bool>{
           {0, true}, {3, true}, {4, false}, {5, false}, {6, true}, {27, true}, {28, true}, {31, true}, {26, false}}) {
    for (const char* part : {"attn_v", "ffn_down"}) {
      EXPECT_EQ(type_of(GgufKind::kQ4_K_M, "blk." + std::to_string(layer) + "." + part + ".weight", 256),
                better ? GgmlType::kQ6_K : GgmlType::kQ4_K)
          << layer;
    }
  }
  EXPECT_EQ(type_of(GgufKind::kQ4_K_M, "blk.5.attn_q.weight", 96), GgmlType::kQ5_0);
  EXPECT_EQ(type_of(GgufKind::kQ6_K, "blk.5.attn_q.weight", 96), GgmlType::kQ8_0);
  EXPECT_EQ(type_of(GgufKind::kQ8_0, "blk.5.attn_q.weight", 48), GgmlType::kF16);
  EXPECT_EQ(type_of(GgufKind::kQ6_K, "blk.5.attn_q.weight", 48), GgmlType::kF16);
  EXPECT_EQ(type_of(GgufKind::kQ8_0, "position_embd.weight", 256), GgmlType::kF32);
  EXPECT_EQ(tensor_type(GgufKind::kQ8_0, {"blk.0.attn_norm.weight", {256}, GgmlType::kF32}, false, 32), GgmlType::kF32);
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [] { (void)parse_gguf_kind("q3"); }),
            "--type is q3, expected f32, f16, bf16, q8_0, q4_0, q4_k_m, q6_k");
}

TEST_F(ExportTest, QuantisesWithinWhatTheTypeLoses) {
  const GoldenWeights model = golden("qwen2");
  const GgufSummary summary = export_to(model, GgufKind::kQ8_0, folder_ / "m.gguf");
  EXPECT_THAT(summary.fallbacks, ElementsAre(testing::Pair("F16", 2)));  // ffn_down: rows of 48
  const ReadGguf gguf = read_gguf(folder_ / "m.gguf");
  EXPECT_EQ(gguf.numbers.at("general.quantization_version"), 2U);
  EXPECT_EQ(gguf.tensors.at("blk.0.attn_q.weight").type, GgmlType::kQ8_0);
  EXPECT_EQ(gguf.tensors.at("blk.0.attn_q.bias").type, GgmlType::kF32);
  const std::vector<float> expected = original(model, "model.layers.0.self_attn.o_proj.weight");
  const std::vector<float>& actual = gguf.tensors.at("blk.0.attn_output.weight").values;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], 0.6 / 127);  // weights are below 0.6 here
  }
}

TEST_F(ExportTest, LeavesNoHalfFile) {
  EXPECT_THROW(GgufWriter(folder_ / "m.gguf", {}, {{"odd", {3, 33}, GgmlType::kQ8_0}}), Error);
  EXPECT_THROW(GgufWriter(folder_ / "m.gguf", {}, {{std::string(64, 'x'), {3}, GgmlType::kF32}}), Error);
  { const GgufWriter unfinished(folder_ / "m.gguf", {}, {{"t", {3}, GgmlType::kF32}}); }
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(ExportTest, CutsSafetensorsBySize) {
  const GoldenWeights model = golden("llama");
  const auto export_as = [&](SafetensorsType type, std::uint64_t shard_bytes, const fs::path& out) {
    return export_safetensors({.text_folder = model.folder,
                               .config = read_file(model.folder / "config.json"),
                               .layout = model.parameters.layout,
                               .weights = model.weights,
                               .type = type,
                               .shard_bytes = shard_bytes},
                              out);
  };
  const auto weights_in = [&](const fs::path& folder) {
    std::vector<float> weights(model.parameters.layout.total());
    load_hf_weights(folder, model.parameters.layout, weights);
    return weights;
  };
  EXPECT_EQ(export_as(SafetensorsType::kF32, 1 << 20, folder_ / "one").files, 1U);
  EXPECT_EQ(weights_in(folder_ / "one"), model.weights);
  const SafetensorsSummary cut = export_as(SafetensorsType::kF32, 16'384, folder_ / "cut");
  EXPECT_GT(cut.files, 3U);
  EXPECT_EQ(weights_in(folder_ / "cut"), model.weights);
  for (const fs::path& file : hf_weight_files(folder_ / "cut")) {
    EXPECT_LT(fs::file_size(file), 16'384U + 4096);
  }
  export_as(SafetensorsType::kBF16, 1 << 20, folder_ / "narrow");
  const auto config = nlohmann::json::parse(read_file(folder_ / "narrow" / "config.json"));
  EXPECT_EQ(config.at("dtype"), "bfloat16");
  EXPECT_EQ(from_hf_config(config.dump(), ""), model.architecture);
  const std::vector<float> narrow = weights_in(folder_ / "narrow");
  for (std::size_t i = 0; i < narrow.size(); ++i) {
    ASSERT_EQ(narrow[i], static_cast<float>(BFloat16(model.weights[i])));
  }
}

}  // namespace
}  // namespace lockstep
