#include "data/pack/columns.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/pack/json_objects.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr std::size_t kMostListed = 30;  // columns that a message lists

// Those of one row: what is inside their values is left out.
json columns_of(const std::string& text) {
  const auto is_outside = [](int depth, json::parse_event_t, json&) { return depth <= 1; };
  return json::parse(text, is_outside, /*allow_exceptions=*/false);
}

// Takes from `missing` what the rows of a file have, and adds to `found` what columns those are.
void look_through(const InputFile& input, std::uint64_t longest, std::map<std::string, std::string>& missing,
                  std::set<std::string>& found) {
  const File file = File::open_to_read(input.path);
  std::string text;
  scan_json_objects(input, longest, [&](DocumentExtent row) {
    if (row.begin >= input.size) {
      return false;  // more than are taken of this file
    }
    text.resize(row.size);
    file.read_exactly(row.begin, std::as_writable_bytes(std::span(text)));
    const json columns = columns_of(text);
    for (auto column = columns.begin(); columns.is_object() && column != columns.end(); ++column) {
      std::erase_if(missing, [&](const auto& named) { return named.second == column.key(); });
      if (found.size() < kMostListed) {
        found.insert(column.key());
      }
    }
    return !missing.empty();
  });
}

std::string name_of(const std::vector<const InputFile*>& files) {
  const std::string first = files.front()->path.string();
  return files.size() == 1 ? first : fmt::format("{} and {} more", first, files.size() - 1);
}

}  // namespace

void check_named_columns(const Plan& plan, std::uint64_t longest) {
  for (std::size_t i = 0; i < plan.chat_sources.size(); ++i) {
    const ChatSource& source = plan.chat_sources[i];
    std::map<std::string, std::string> missing = source.columns;
    std::set<std::string> found;
    std::vector<const InputFile*> files;
    for (const InputFile& file : plan.files) {
      if (file.input == i && !missing.empty()) {
        look_through(file, longest, missing, found);
        files.push_back(&file);
      }
    }
    if (!files.empty() && !missing.empty()) {
      fail(ErrorCode::kUsage, "dataset {}: the column {} ({}) stands in no row of {}; the rows have {}", source.name,
           missing.begin()->second, missing.begin()->first, name_of(files), fmt::join(found, ", "));
    }
  }
}

}  // namespace lockstep
