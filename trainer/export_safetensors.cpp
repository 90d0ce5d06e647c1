#include "trainer/export_safetensors.h"

#include <fmt/format.h>

#include <cassert>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "trainer/formats/ggml_blocks.h"
#include "trainer/formats/hashing_file.h"
#include "trainer/model/architecture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

struct Part {
  SafetensorsTensor tensor;
  std::span<const float> values;
};

std::vector<Part> parts_of(const SafetensorsExport& source) {
  std::vector<Part> parts;
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape, std::span<const float> values) {
    parts.push_back({{.name = name, .type = source.type, .shape = shape}, values});
  };
  for (std::size_t p = 0; p < source.layout.size(); ++p) {
    const ParameterSpec& spec = source.layout.specs()[p];
    const auto values = source.weights.subspan(source.layout.offset(p), source.layout.count(p));
    if (spec.exports.empty()) {
      add(spec.name, spec.shape, values);
    }
    for (const ParameterExport& part : spec.exports) {
      const auto of_part = values.subspan(static_cast<std::size_t>(part.offset_elements), *count_of(part.shape));
      add(part.hf_name, part.shape, of_part);
      if (part.hf_name == source.copied) {
        add(source.copy, part.shape, of_part);
      }
    }
  }
  return parts;
}

// Which parts go into which file.
std::vector<std::vector<Part>> shards_of(std::vector<Part> parts, const SafetensorsExport& source) {
  std::vector<std::vector<Part>> shards(1);
  std::uint64_t bytes = 0;
  for (Part& part : parts) {
    const std::uint64_t size = part.values.size() * size_of(source.type);
    if (!shards.back().empty() && bytes + size > source.shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += size;
    shards.back().push_back(std::move(part));
  }
  return shards;
}

GgmlType number_format(SafetensorsType type) {
  return type == SafetensorsType::kF16    ? GgmlType::kF16
         : type == SafetensorsType::kBF16 ? GgmlType::kBF16
                                          : GgmlType::kF32;
}

void write_values(std::span<const float> values, SafetensorsType type, HashingFileWriter& file) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  const GgmlType format = number_format(type);
  std::vector<std::byte> bytes;
  for (std::size_t done = 0; done < values.size(); done += kPiece) {
    const auto piece = values.subspan(done, std::min(kPiece, values.size() - done));
    bytes.resize(size_of(format, static_cast<std::int64_t>(piece.size())));
    quantize(format, piece, bytes);
    file.write(bytes);
  }
}

std::string config_with_dtype(const std::string& config, SafetensorsType type) {
  auto json = nlohmann::ordered_json::parse(config);
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (json.contains(key)) {
      json[key] = torch_name_of(to_dtype(type));
    }
  }
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

// A folder beside the one that it becomes; without finish() nothing is left of it.
class PartialFolder {
 public:
  explicit PartialFolder(fs::path out) : out_(std::move(out)), path_(out_.string() + ".partial") {
    fs::remove_all(path_);  // of a process that was killed
    fs::create_directories(path_);
  }
  ~PartialFolder() {
    std::error_code ignored;  // there is an error to report already
    fs::remove_all(path_, ignored);
  }
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  [[nodiscard]] const fs::path& path() const { return path_; }
  void finish() {
    sync_folder(path_);
    fs::rename(path_, out_);  // also over an empty folder
  }

 private:
  fs::path out_;
  fs::path path_;
};

}  // namespace

SafetensorsSummary export_safetensors(const SafetensorsExport& source, const fs::path& out,
                                      const std::function<void(std::size_t, std::size_t)>& progress) {
  std::vector<Part> parts = parts_of(source);
  const std::size_t total = parts.size();
  const std::vector<std::vector<Part>> shards = shards_of(std::move(parts), source);
  const fs::path target = out.has_filename() ? out : out.parent_path();
  PartialFolder folder(target);
  std::map<std::string, std::string> metadata = source.metadata;
  metadata["format"] = "pt";
  SafetensorsSummary summary{shards.size(), 0};
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  std::size_t done = 0;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::string name = shards.size() == 1
                                 ? source.stem + ".safetensors"
                                 : fmt::format("{}-{:05}-of-{:05}.safetensors", source.stem, s + 1, shards.size());
    std::vector<SafetensorsTensor> tensors;
    for (const Part& part : shards[s]) {
      tensors.push_back(part.tensor);
      weight_map[part.tensor.name] = name;
    }
    const SafetensorsLayout layout(std::move(tensors), metadata);
    HashingFileWriter file(folder.path() / name);
    file.write(layout.head);
    for (const Part& part : shards[s]) {
      write_values(part.values, source.type, file);
      if (progress) {
        progress(++done, total);
      }
    }
    file.sync();
    summary.bytes += layout.data_bytes;
  }
  if (shards.size() > 1) {
    const nlohmann::ordered_json index = {{"metadata", {{"total_size", summary.bytes}}}, {"weight_map", weight_map}};
    write_file_atomic(folder.path() / (source.stem + ".safetensors.index.json"), index.dump(2) + "\n");
  }
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                           "generation_config.json", "chat_template.jinja"}) {
    if (const auto text = source.texts.find(name); text != source.texts.end()) {
      write_file_atomic(folder.path() / name, text->second);
    } else if (fs::is_regular_file(source.text_folder / name)) {
      write_file_atomic(folder.path() / name, read_file(source.text_folder / name));
    }
  }
  write_file_atomic(folder.path() / source.config_name, config_with_dtype(source.config, source.type));
  folder.finish();
  return summary;
}

}  // namespace lockstep
