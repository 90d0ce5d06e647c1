// Tokenizes one unit into one shard per split.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "data/chat/chat_encoder.h"
#include "data/pack/document_reader.h"
#include "data/pack/plan.h"
#include "data/text/encoder.h"

namespace lockstep {

struct PackedShard {
  std::uint64_t tokens = 0;  // 0: there is no file
  std::uint64_t documents = 0;
  std::uint64_t targets = 0;  // of conversations
  std::uint64_t size_bytes = 0;
  std::string xxh3_128;
};

// What a finished unit left; written beside its shards when they are on the disk.
struct UnitRecord {
  std::size_t unit = 0;
  std::array<PackedShard, kSplits> shards;
  std::uint64_t cut = 0;      // conversations that were too long and lost their end
  std::uint64_t dropped = 0;  // conversations that were left out
};
[[nodiscard]] std::string to_json(const UnitRecord& record);
// Throws Error(kCorrupt) naming `where`.
[[nodiscard]] UnitRecord parse_unit_record(std::string_view text, std::string_view where);

// Ends the names of files that are being written.
inline constexpr std::string_view kPartialSuffix = ".partial";
// A name beside `path` for what is being written, like no other: a rank of a killed job may still be at the same unit.
[[nodiscard]] std::filesystem::path unique_partial_of(std::filesystem::path path);

// "train-00012.h5": the name of a unit's shard until it is published.
[[nodiscard]] std::string unit_shard_name(std::size_t unit, Split split);

// How conversations are encoded, and what becomes of those with more than max_tokens tokens (0: any number is taken).
struct ChatPacking {
  const ChatEncoder& encoder;
  std::uint64_t max_tokens = 0;
  bool drop_long = false;
};

struct UnitJob {
  const Plan& plan;
  std::size_t unit = 0;
  const std::filesystem::path& folder;  // where shards go
  const ChatPacking* chat = nullptr;    // of conversations
  const ReaderOptions& reader;
  const std::function<bool()>& stop_requested;
};

// Writes the unit's shards, complete or not at all under their names, each on the disk when this returns. `encoder` is
// not used for tokens. Returns false when stopped. Throws what read_unit and ShardWriter throw.
[[nodiscard]] bool pack_unit(const UnitJob& job, Encoder& encoder, UnitRecord& record);

}  // namespace lockstep
