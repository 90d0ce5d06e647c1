#include "trainer/checkpoint/state_files.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "trainer/formats/strict_json.h"

namespace lockstep {
namespace {

void check_tensor(const SafetensorsFile& file, const std::string& name, SafetensorsType type,
                  const std::vector<std::int64_t>& shape) {
  const SafetensorsTensor& tensor = file.get(name);
  if (tensor.type != type || tensor.shape != shape) {
    fail(ErrorCode::kCorrupt, "{}: tensor {} is {} {}, the manifest says {} {}", file.path().string(),
         quoted_name(name), name_of(tensor.type), shape_text(tensor.shape), name_of(type), shape_text(shape));
  }
}

}  // namespace

StateFiles::StateFiles(const std::filesystem::path& folder, const Manifest& manifest)
    : manifest_(manifest), model_(folder / manifest.model_file) {
  for (const ParameterSpec& spec : manifest.layout.specs()) {
    for (const ParameterExport& part : spec.exports) {
      check_tensor(model_, part.hf_name, to_safetensors(manifest.model_dtype), part.shape);
    }
  }
  for (const StateShard& shard : manifest.shards) {
    const auto& file = shards_.emplace_back(std::make_unique<SafetensorsFile>(folder / shard.file));
    const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(shard.range.size())};
    for (const StateKind kind : {StateKind::kExpAvg, StateKind::kExpAvgSq, StateKind::kMaster}) {
      if (kind != StateKind::kMaster || manifest.model_dtype != DType::kF32) {
        check_tensor(*file, state_tensor_name(kind), SafetensorsType::kF32, shape);
      }
    }
  }
}

void StateFiles::read(StateKind kind, std::size_t index, std::uint64_t first, std::span<float> values) const {
  if (kind == StateKind::kMaster && manifest_.model_dtype == DType::kF32) {
    read_weights(index, first, values);
    return;
  }
  const std::uint64_t begin = manifest_.layout.offset(index) + first;
  const std::uint64_t end = begin + values.size();
  for (std::size_t s = 0; s < shards_.size(); ++s) {
    const ElementRange& range = manifest_.shards[s].range;
    const std::uint64_t from = std::max(begin, range.begin);
    const std::uint64_t to = std::min(end, range.end);
    if (from < to) {
      shards_[s]->read_f32(shards_[s]->get(state_tensor_name(kind)), from - range.begin,
                           values.subspan(from - begin, to - from));
    }
  }
}

void StateFiles::read_weights(std::size_t index, std::uint64_t first, std::span<float> values) const {
  const std::uint64_t end = first + values.size();
  for (const ParameterExport& part : manifest_.layout.specs()[index].exports) {
    const SafetensorsTensor& tensor = model_.get(part.hf_name);
    const auto part_begin = static_cast<std::uint64_t>(part.offset_elements);
    const std::uint64_t from = std::max(first, part_begin);
    const std::uint64_t to = std::min(end, part_begin + tensor.count());
    if (from < to) {
      model_.read_f32(tensor, from - part_begin, values.subspan(from - first, to - from));
    }
  }
}

const char* state_tensor_name(StateKind kind) {
  switch (kind) {
    case StateKind::kMaster:
      return "master";
    case StateKind::kExpAvg:
      return "exp_avg";
    case StateKind::kExpAvgSq:
      break;
  }
  return "exp_avg_sq";
}

}  // namespace lockstep
