// The files that are packed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/pack/pack.h"

namespace lockstep {

struct InputFile {
  std::filesystem::path path;
  std::string name;  // relative to the INPUT it was found under: what files are told apart by
  std::uint64_t size = 0;
  std::int64_t modified_ns = 0;
  std::size_t input = 0;  // of PackOptions::inputs, under which it was found
};

// The files under `options.inputs`, in the order of their paths and then of the inputs, without empty ones. A file
// counts once (of the first input that it is found under), but for entries of dataset_info.json: of each of these.
// Folders are searched recursively; symbolic links are followed where they are given as an input and skipped inside
// folders. So are the places in `options.out` that packing writes to (.pack, pack.json, train, valid, test): a run
// never packs what it or an earlier one made. Throws Error(kUsage) when an input is missing, cannot be read or lies in
// such a place, when a file is found under two inputs of which one has a weight or the like of its own, or when nothing
// is left.
[[nodiscard]] std::vector<InputFile> find_inputs(const PackOptions& options);

// "corpus.jsonl line 812": the line that byte `at` is in, counted from 1. Reads the file up to it: for messages.
[[nodiscard]] std::string place_in_file(const File& file, std::uint64_t at);

// Hash over names, sizes and modification times.
[[nodiscard]] std::string fingerprint_of(const std::vector<InputFile>& files);

}  // namespace lockstep
