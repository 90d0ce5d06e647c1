// The model that a tuned run stands on: weights that stay as they are.
#pragma once

#include <filesystem>
#include <span>

#include "base/hash.h"
#include "trainer/replica.h"

namespace lockstep {

// Reads the base model's weights from a checkpoint, a Hugging Face folder or a GGUF file, one parameter at a time, into
// the frozen parameters of `replica`. Where the replica trains one of them, its values go into `trained`, f32 on the
// host, in the replica's layout; an empty span leaves those out. Returns the model's fingerprint: the digest
// (checkpoint/digest.h) of its weights as they stand in the files, in f32, whatever their type and however they are cut
// into files. Throws what open_weights() throws.
Hash128 load_base(const std::filesystem::path& folder, Replica& replica, std::span<float> trained);

}  // namespace lockstep
