// dataset_info.json: names for files of conversations, and where in their objects things stand. LLaMA-Factory's format.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/conversation.h"

namespace lockstep {

struct NamedDataset {
  std::filesystem::path path;  // a file, or a folder of them
  ChatFormat format;
  std::uint64_t most = 0;                           // conversations that are taken, from the beginning; 0: all
  std::map<std::string, std::string> columns = {};  // what the entry's "columns" call which part: "query" -> "input"
};

// The entry `name` of FOLDER/dataset_info.json. Throws Error(kUsage) naming the entry: that it is not there (and which
// are), that it stands on a hub, or that a key of it means nothing here.
[[nodiscard]] NamedDataset find_named_dataset(const std::filesystem::path& folder, const std::string& name);

// The same of the file's text; `origin` is what messages call it. Paths are relative to `folder`.
[[nodiscard]] NamedDataset parse_named_dataset(std::string_view json, const std::string& origin,
                                               const std::filesystem::path& folder, const std::string& name);

}  // namespace lockstep
