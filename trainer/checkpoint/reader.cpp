#include "trainer/checkpoint/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <memory>
#include <utility>

#include "base/error.h"
#include "trainer/checkpoint/files.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/checkpoint/state_files.h"
#include "trainer/formats/gguf_file.h"
#include "trainer/formats/hf_weights.h"
#include "trainer/formats/strict_json.h"
#include "trainer/gguf_model.h"

namespace lockstep {

namespace fs = std::filesystem;

namespace {

void require_same_parameters(const ParameterLayout& model, const ParameterLayout& saved, const std::string& where) {
  for (const ParameterSpec& spec : model.specs()) {
    const auto found = saved.find(spec.name);
    require(found.has_value(), "load {}: parameter {} of shape {} is not in the checkpoint", where,
            quoted_name(spec.name), shape_text(spec.shape));
    const auto& saved_shape = saved.specs()[*found].shape;
    require(saved_shape == spec.shape, "load {}: parameter {} has shape {} in the checkpoint, {} in the model", where,
            quoted_name(spec.name), shape_text(saved_shape), shape_text(spec.shape));
  }
  for (const ParameterSpec& spec : saved.specs()) {
    require(model.find(spec.name).has_value(), "load {}: parameter {} of shape {} is not in the model", where,
            quoted_name(spec.name), shape_text(spec.shape));
  }
}

}  // namespace

CheckpointReader::CheckpointReader(fs::path path, Verify verify)
    : path_(std::move(path)), manifest_(read_manifest(path_)) {
  if (verify == Verify::kEverything) {
    if (const std::string problem = first_problem(path_, manifest_, FileCheck::kContents); !problem.empty()) {
      fail(ErrorCode::kCorrupt, "checkpoint {}: {}", path_.string(), problem);
    }
  }
}

void CheckpointReader::load(const ParameterLayout& layout, const Destination& destination) const {
  const ElementRange range = destination.range;
  assert(range.begin <= range.end && range.end <= layout.total());
  assert(range.begin % ParameterLayout::kAlignment == 0 && range.end % ParameterLayout::kAlignment == 0);
  require_same_parameters(layout, manifest_.layout, path_.string());
  const StateFiles files(path_, manifest_);
  const auto load_kind = [&](StateKind kind, std::span<float> values) {
    if (values.empty()) {
      return;
    }
    assert(values.size() == range.size());
    std::fill(values.begin(), values.end(), 0.0F);
    for (std::size_t i = layout.index_at(range.begin); i < layout.size() && layout.offset(i) < range.end; ++i) {
      const std::uint64_t from = std::max(range.begin, layout.offset(i));
      const std::uint64_t to = std::min(range.end, layout.offset(i) + layout.count(i));
      if (from < to) {
        files.read(kind, *manifest_.layout.find(layout.specs()[i].name), from - layout.offset(i),
                   values.subspan(from - range.begin, to - from));
      }
    }
  };
  load_kind(StateKind::kMaster, destination.master);
  load_kind(StateKind::kExpAvg, destination.exp_avg);
  load_kind(StateKind::kExpAvgSq, destination.exp_avg_sq);
}

std::optional<CheckpointReader> find_latest_checkpoint(
    const fs::path& folder, const std::function<void(const DamagedCheckpoint&)>& on_damaged) {
  std::string newest_problem;
  std::size_t damaged = 0;
  for (const CheckpointFolder& candidate : list_checkpoints(folder)) {
    try {
      return CheckpointReader(candidate.path);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kUnsupported) {
        throw;  // a newer program's checkpoint is not damaged, and must not be trained over
      }
      if (damaged++ == 0) {
        newest_problem = error.what();
      }
      on_damaged({candidate.path, error.what()});
    }
  }
  if (damaged > 0) {
    fail(ErrorCode::kCorrupt, "{}: none of {} checkpoints is intact; the newest: {}", folder.string(), damaged,
         newest_problem);
  }
  return std::nullopt;
}

void verify_weights(const fs::path& path) {
  std::error_code error;
  if (fs::exists(path / kManifestName, error)) {
    const Manifest manifest = read_manifest(path);
    for (const CheckpointFile& file : manifest.files) {
      if (file.name == manifest.model_file) {
        if (const std::string problem = problem_with(path, file, FileCheck::kContents); !problem.empty()) {
          fail(ErrorCode::kCorrupt, "checkpoint {}: {}", path.string(), problem);
        }
      }
    }
  }
}

ParameterReader open_weights(const fs::path& path, const ParameterLayout& layout) {
  if (fs::is_regular_file(path) && is_gguf_file(path)) {
    const auto model = std::make_shared<const GgufModel>(path);
    model->check(layout);
    return [model](const ParameterSpec& spec, std::span<float> values) { model->read(spec, values); };
  }
  verify_weights(path);
  const auto source = std::make_shared<const HfWeights>(path);
  source->check(layout);
  return [source](const ParameterSpec& spec, std::span<float> values) { source->read(spec, values); };
}

void load_weights(const fs::path& path, const ParameterLayout& layout, std::span<float> weights) {
  assert(weights.size() == layout.total());
  const ParameterReader read = open_weights(path, layout);
  std::fill(weights.begin(), weights.end(), 0.0F);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    read(layout.specs()[i], weights.subspan(layout.offset(i), layout.count(i)));
  }
}

}  // namespace lockstep
