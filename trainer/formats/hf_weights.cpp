#include "trainer/formats/hf_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "trainer/formats/safetensors.h"
#include "trainer/formats/strict_json.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// Which shard holds which tensor: names of files beside the index, by names of tensors.
std::map<std::string, std::string> read_weight_map(const fs::path& index_path) {
  const std::string name = index_path.string();
  const nlohmann::json index = parse_strict_json(read_file(index_path), name);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail(ErrorCode::kCorrupt, "{}: \"weight_map\" is missing", name);
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor_name, value] : index["weight_map"].items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    if (shard.empty() || shard == "." || shard == ".." || shard.find('/') != std::string::npos) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} is said to be in {}, which is not a file name", name,
           quoted_name(tensor_name), quoted_name(shard));
    }
    shards.emplace(tensor_name, shard);
  }
  return shards;
}

}  // namespace

std::vector<fs::path> hf_weight_files(const fs::path& folder) {
  if (fs::exists(folder / kSingleFile)) {
    return {folder / kSingleFile};
  }
  std::set<fs::path> files;
  if (fs::exists(folder / kIndexFile)) {
    for (const auto& [tensor_name, shard] : read_weight_map(folder / kIndexFile)) {
      files.insert(folder / shard);
    }
  }
  return {files.begin(), files.end()};
}

// The tensors of one file or of all shards, by name.
class HfWeights::TensorSource {
 public:
  explicit TensorSource(const fs::path& path) : path_(path) {
    if (!fs::is_directory(path)) {
      add_file(path);
    } else if (fs::exists(path / kSingleFile)) {
      add_file(path / kSingleFile);
    } else if (fs::exists(path / kIndexFile)) {
      add_shards(path / kIndexFile);
    } else {
      fail(ErrorCode::kUsage, "load {}: found neither {} nor {}", path.string(), kSingleFile, kIndexFile);
    }
  }

  struct Entry {
    const SafetensorsFile* file = nullptr;
    const SafetensorsTensor* tensor = nullptr;
  };
  // Throws Error(kUsage) when the tensor is missing.
  [[nodiscard]] Entry get(const std::string& hf_name) const {
    auto found = entries_.find(hf_name);
    const std::size_t dot = hf_name.find('.');
    if (found == entries_.end() && dot != std::string::npos) {
      found = entries_.find(hf_name.substr(dot + 1));
    }
    if (found == entries_.end()) {
      fail(ErrorCode::kUsage, "load {}: tensor {} is missing", path_.string(), quoted_name(hf_name));
    }
    return found->second;
  }
  [[nodiscard]] const std::map<std::string, Entry>& entries() const { return entries_; }

 private:
  void add_file(const fs::path& path) {
    const auto& file = files_.emplace_back(std::make_unique<SafetensorsFile>(path));
    for (const SafetensorsTensor& tensor : file->header().tensors) {
      entries_[tensor.name] = {file.get(), &tensor};
    }
  }

  void add_shards(const fs::path& index_path) {
    std::map<std::string, const SafetensorsFile*> shards;
    for (const auto& [tensor_name, shard] : read_weight_map(index_path)) {
      auto& file = shards[shard];
      if (file == nullptr) {
        file = files_.emplace_back(std::make_unique<SafetensorsFile>(index_path.parent_path() / shard)).get();
      }
      entries_[tensor_name] = {file, &file->get(tensor_name)};
    }
  }

  fs::path path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> entries_;
};

HfWeights::HfWeights(const fs::path& path) : source_(std::make_unique<TensorSource>(path)) {}
HfWeights::~HfWeights() = default;

void HfWeights::check(const ParameterLayout& layout) const {
  for (const ParameterSpec& spec : layout.specs()) {
    for (const ParameterExport& part : spec.exports) {
      const auto [file, tensor] = source_->get(part.hf_name);
      require(tensor->shape == part.shape, "load {}: tensor {} has shape {}, expected {}", file->path().string(),
              quoted_name(tensor->name), shape_text(tensor->shape), shape_text(part.shape));
    }
  }
}

void HfWeights::check_nothing_else(const ParameterLayout& layout, std::string_view known) const {
  std::set<std::string> used;
  for (const ParameterSpec& spec : layout.specs()) {
    for (const ParameterExport& part : spec.exports) {
      used.insert(source_->get(part.hf_name).tensor->name);
    }
  }
  for (const auto& [name, entry] : source_->entries()) {
    require(name == known || used.contains(name), "load {}: nothing is known to do with tensor {}",
            entry.file->path().string(), quoted_name(name));
  }
}

void HfWeights::read(const ParameterSpec& spec, std::span<float> values) const {
  for (const ParameterExport& part : spec.exports) {
    const auto [file, tensor] = source_->get(part.hf_name);
    file->read_f32(*tensor, 0, values.subspan(static_cast<std::size_t>(part.offset_elements), tensor->count()));
  }
}

void HfWeights::read_all(const ParameterLayout& layout, std::span<float> weights) const {
  assert(weights.size() == layout.total());
  std::fill(weights.begin(), weights.end(), 0.0F);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    read(layout.specs()[i], weights.subspan(layout.offset(i), layout.count(i)));
  }
}

void load_hf_weights(const fs::path& path, const ParameterLayout& layout, std::span<float> weights) {
  const HfWeights source(path);
  source.check(layout);  // before the first value is overwritten
  source.read_all(layout, weights);
}

}  // namespace lockstep
