// What a pack run leaves: a dataset of each split, and what it holds.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "data/dataset.h"
#include "data/pack/pack_impl.h"
#include "data/pack/together.h"

namespace lockstep {

namespace fs = std::filesystem;

void PackRun::publish(WorkFolder& work) {
  std::vector<UnitRecord> records;
  std::array<std::uint64_t, kSplits> tokens = {};
  std::uint64_t cut = 0;
  std::uint64_t dropped = 0;
  for (const std::optional<UnitRecord>& record : records_) {
    records.push_back(record.value());
    cut += record->cut;
    dropped += record->dropped;
    for (std::size_t s = 0; s < kSplits; ++s) {
      tokens[s] += record->shards[s].tokens;
    }
  }
  require(dropped == 0 || std::ranges::any_of(tokens, [](std::uint64_t count) { return count > 0; }),
          "nothing is left: all conversations ({}) are longer than --max-tokens {}, and so cut have no answer", dropped,
          options_.max_tokens);
  for (std::size_t s = 0; s < kSplits; ++s) {
    require(shares_[s] == 0 || tokens[s] > 0, "no document fell to {} (share {}); use another --seed or --split",
            kSplitNames[s], shares_[s]);
  }
  on_first_rank(peers_, [&] {
    work.publish(records,
                 {tokenizer_->name(), tokenizer_->fingerprint(), tokenizer_->vocab_size(), std::int64_t{end_of_text_}},
                 {.tokenizer_json = tokenizer_->to_json(),
                  .kind = dataset_kind(options_.format),
                  .chat_template = options_.chat_template,
                  .own_template = own_template_});
    if (cut + dropped > 0) {
      hooks_.message(fmt::format("too long: {} cut to {} tokens, {} left out", cut, options_.max_tokens, dropped));
    }
    return std::string();
  });
}

PackResult PackRun::published(const WorkFolder& work) const {
  PackResult result;
  for (std::size_t s = 0; s < kSplits; ++s) {
    if (shares_[s] == 0) {
      continue;
    }
    const fs::path path = work.split_folder(s) / "dataset.json";
    const std::string json = on_first_rank(peers_, [&] { return read_file(path); });
    const DatasetInfo info = parse_dataset_json(json, path.string());
    result.splits.push_back({.name = std::string(kSplitNames[s]),
                             .folder = work.split_folder(s),
                             .kind = info.kind,
                             .tokens = info.tokens,
                             .documents = info.documents,
                             .files = info.files.size()});
  }
  return result;
}

std::string PackedSplit::contents() const {
  switch (kind) {
    case DatasetKind::kText:
      return fmt::format("{} documents", documents);
    case DatasetKind::kChat:
      return fmt::format("{} conversations", documents);
    case DatasetKind::kPairs:
      return fmt::format("{} pairs", documents / 2);
  }
  return {};
}

}  // namespace lockstep
