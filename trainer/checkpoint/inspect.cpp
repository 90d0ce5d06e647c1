#include "trainer/checkpoint/inspect.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/files.h"
#include "trainer/checkpoint/state_files.h"

namespace lockstep {
namespace {

Hash128 digest_from_files(const std::filesystem::path& folder, const Manifest& manifest) {
  constexpr std::uint64_t kPieceElements = std::uint64_t{1} << 18;
  static_assert(kPieceElements % ParameterLayout::kAlignment == 0);
  const StateFiles files(folder, manifest);
  StateDigest digest(manifest.layout);
  std::vector<float> piece(kPieceElements);
  for (std::size_t i = 0; i < manifest.layout.size(); ++i) {
    const std::uint64_t count = manifest.layout.count(i);
    for (std::uint64_t first = 0; first < count; first += kPieceElements) {
      const auto values = std::span(piece).first(std::min(kPieceElements, count - first));
      for (const StateKind kind : {StateKind::kMaster, StateKind::kExpAvg, StateKind::kExpAvgSq}) {
        files.read(kind, i, first, values);
        digest.add_parameter(kind, i, first, values);
      }
    }
  }
  return StateDigest::finish(manifest.layout, digest.sum());
}

void check_digest(CheckpointDescription& description) {
  std::string problem;
  try {
    const Hash128 found = digest_from_files(description.path, description.manifest);
    if (found == description.manifest.digest) {
      return;
    }
    problem =
        fmt::format("the tensors' digest is {}, the manifest says {}", found.hex(), description.manifest.digest.hex());
  } catch (const Error& error) {
    problem = error.what();
  }
  auto& entry = description.files.emplace_back();
  entry.file.name = kManifestName;
  entry.problem = problem;
  description.intact = false;
}

}  // namespace

CheckpointDescription describe_checkpoint(const std::filesystem::path& path, InspectDepth depth) {
  require(std::filesystem::exists(path / kManifestName), "inspect {}: not a checkpoint: {} is missing", path.string(),
          kManifestName);
  CheckpointDescription description{path, read_manifest(path), {}, false, true};
  const FileCheck check = depth == InspectDepth::kSizes ? FileCheck::kSize : FileCheck::kContents;
  for (const CheckpointFile& file : description.manifest.files) {
    std::string problem = problem_with(path, file, check);
    description.intact = description.intact && problem.empty();
    description.files.push_back({file, std::move(problem)});
  }
  if (depth == InspectDepth::kContents && description.intact) {
    check_digest(description);
    description.verified = description.intact;
  }
  return description;
}

Hash128 recompute_digest(const std::filesystem::path& path) { return digest_from_files(path, read_manifest(path)); }

}  // namespace lockstep
