#include "trainer/checkpoint/share_writer.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/state_files.h"
#include "trainer/formats/hashing_file.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

using BeforeWrite = std::function<void(std::size_t)>;
namespace fs = std::filesystem;

CheckpointFile finished(HashingFileWriter& file, const std::string& name) {
  file.sync();
  return {name, file.size(), file.hash()};
}

CheckpointFile write_model(const fs::path& folder, const ParameterLayout& layout, const CheckpointShare& share,
                           const BeforeWrite& before_write) {
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterSpec& spec : layout.specs()) {
    for (const ParameterExport& part : spec.exports) {
      tensors.push_back({part.hf_name, to_safetensors(share.model_dtype), part.shape, 0, 0});
    }
  }
  const SafetensorsLayout model(std::move(tensors),
                                {{"format", "pt"}, {"lockstep_step", fmt::format("{}", share.step)}});
  HashingFileWriter file(folder / share.model_file, before_write);
  file.write(model.head);
  // A parameter's exports cover it in order, so its elements are its tensors' bytes; only padding is left out.
  const std::size_t element_bytes = size_of(share.model_dtype);
  const std::span bytes(static_cast<const std::byte*>(share.weights.data), share.weights.size_bytes());
  for (std::size_t i = 0; i < layout.size(); ++i) {
    file.write(bytes.subspan(layout.offset(i) * element_bytes, layout.count(i) * element_bytes));
  }
  return finished(file, share.model_file);
}

CheckpointFile write_state(const fs::path& folder, const CheckpointShare& share, const BeforeWrite& before_write) {
  std::vector<std::pair<StateKind, std::span<const float>>> kinds = {{StateKind::kExpAvg, share.exp_avg},
                                                                     {StateKind::kExpAvgSq, share.exp_avg_sq}};
  if (share.model_dtype != DType::kF32) {
    kinds.emplace_back(StateKind::kMaster, share.master);
  }
  const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(share.range.size())};
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [kind, values] : kinds) {
    tensors.push_back({state_tensor_name(kind), SafetensorsType::kF32, shape, 0, 0});
  }
  const SafetensorsLayout state(std::move(tensors), {{"format", "pt"},
                                                     {"lockstep_step", fmt::format("{}", share.step)},
                                                     {"lockstep_rank", fmt::format("{}", share.rank)},
                                                     {"lockstep_world", fmt::format("{}", share.world)},
                                                     {"lockstep_begin", fmt::format("{}", share.range.begin)},
                                                     {"lockstep_end", fmt::format("{}", share.range.end)}});
  const std::string name = state_file_name(share.rank, share.world);
  HashingFileWriter file(folder / name, before_write);
  file.write(state.head);
  for (const auto& [kind, values] : kinds) {
    file.write(std::as_bytes(values));
  }
  return finished(file, name);
}

Hash128 digest_of_share(const ParameterLayout& layout, const CheckpointShare& share) {
  StateDigest digest(layout);
  digest.add(StateKind::kExpAvg, share.range.begin, share.exp_avg);
  digest.add(StateKind::kExpAvgSq, share.range.begin, share.exp_avg_sq);
  if (share.model_dtype != DType::kF32) {
    digest.add(StateKind::kMaster, share.range.begin, share.master);
  } else if (share.rank == 0) {
    digest.add(StateKind::kMaster, 0, share.weights.as<float>());
  }
  return digest.sum();
}

}  // namespace

WrittenShare write_share(const fs::path& folder, const ParameterLayout& layout, const CheckpointShare& share,
                         const std::map<std::string, std::string>& texts, const BeforeWrite& before_write) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    const bool no_space = error == std::errc::no_space_on_device;
    fail(no_space ? ErrorCode::kNoSpace : ErrorCode::kIo, "create {}: {}", folder.string(), error.message());
  }
  WrittenShare written;
  written.digest_sum = digest_of_share(layout, share);
  if (share.rank == 0) {
    written.others.push_back(write_model(folder, layout, share, before_write));
    for (const auto& [name, text] : texts) {
      HashingFileWriter file(folder / name, before_write);
      file.write(text);
      written.others.push_back(finished(file, name));
    }
  }
  written.state = write_state(folder, share, before_write);
  return written;
}

}  // namespace lockstep
