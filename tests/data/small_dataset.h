// Datasets of known tokens for tests.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "data/dataset.h"
#include "data/shard_writer.h"

namespace lockstep {

// Writes a dataset whose stream is `tokens`, in shards of the given lengths, a document beginning with each shard.
inline DatasetInfo write_small_dataset(const std::filesystem::path& folder, std::span<const std::uint32_t> tokens,
                                       const std::vector<std::size_t>& shard_tokens,
                                       std::int64_t vocabulary_size = 60'000) {
  std::filesystem::create_directories(folder);
  DatasetInfo info;
  info.tokenizer = {"counting", "0123456789abcdef0123456789abcdef", vocabulary_size, 0};
  for (const std::size_t count : shard_tokens) {
    const std::string name = fmt::format("{:05}.h5", info.files.size());
    ShardWriter writer(folder / name, info.token_dtype());
    writer.begin_document();
    writer.append(tokens.first(count));
    writer.close();
    tokens = tokens.subspan(count);
    info.files.push_back({name, writer.tokens(), writer.documents(), std::filesystem::file_size(folder / name),
                          hash_of_file(folder / name).hex()});
    info.tokens += writer.tokens();
    info.documents += writer.documents();
  }
  write_file_atomic(folder / "dataset.json", to_dataset_json(info));
  return info;
}

// 0, 1, 2, ...: a token says where it stands.
inline std::vector<std::uint32_t> counting_tokens(std::size_t count) {
  std::vector<std::uint32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<std::uint32_t>(i);
  }
  return tokens;
}

}  // namespace lockstep
