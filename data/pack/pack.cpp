#include "data/pack/pack.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/writable_folder.h"
#include "data/pack/columns.h"
#include "data/pack/pack_impl.h"
#include "data/pack/together.h"
#include "data/text/encoder.h"

namespace lockstep {

namespace fs = std::filesystem;

PackResult PackRun::run() {
  find_files();
  load_tokenizer();
  make_the_plan();
  WorkFolder work(options_.out, settings(), shares_);
  if (is_complete(work)) {
    PackResult result = published(work);
    result.was_complete = true;
    return result;
  }
  const bool replaces = on_first_rank(peers_, [&] { return std::string(work.holds_other() ? "yes" : "no"); }) == "yes";
  check_columns();
  begin(work);
  bool is_packed = false;
  try {
    check_room(work);
    is_packed = train_tokenizer(work) && pack_units(work);
    if (is_packed) {
      publish(work);
    }
  } catch (const Error& error) {
    // The input or the options will have to change, so nothing of this can be used again.
    const bool is_final = error.code() == ErrorCode::kUsage || error.code() == ErrorCode::kCorrupt ||
                          error.code() == ErrorCode::kUnsupported;
    if (peers_.rank == 0 && is_final) {
      work.discard();
    }
    throw;
  }
  if (!is_packed) {
    PackResult stopped;
    stopped.was_stopped = true;
    return stopped;
  }
  PackResult result = published(work);
  result.replaced_other = replaces;
  return result;
}

void PackRun::find_files() {
  const auto fingerprints = gather_together(peers_, [&] {
    files_ = find_inputs(options_);
    return fingerprint_of(files_);
  });
  const auto other = std::find_if(fingerprints.begin(), fingerprints.end(),
                                  [&](const std::string& f) { return f != fingerprints.front(); });
  require(other == fingerprints.end(),
          "rank {} sees other input files than rank 0; they must lie on a file system that all nodes share",
          other - fingerprints.begin());
  input_fingerprint_ = fingerprints.front();
}

void PackRun::make_the_plan() {
  together(peers_, [&] { plan_ = make_plan(options_, std::move(files_), end_of_text_); });
  records_.resize(plan_.units.size());
}

void PackRun::check_columns() const {
  on_first_rank(peers_, [&] {
    check_named_columns(plan_, options_.memory_mib * kMiB);
    return std::string();
  });
}

bool PackRun::is_complete(const WorkFolder& work) const {
  std::string damage;
  const std::string answer = on_first_rank(peers_, [&] {
    return std::string(work.is_complete(options_.overwrite, options_.when_other, damage) ? "yes" : "no");
  });
  if (!damage.empty()) {
    hooks_.message(fmt::format("packing again what is in {}: {}", options_.out.string(), damage));
  }
  return answer == "yes";
}

void PackRun::begin(WorkFolder& work) {
  const std::string finished = on_first_rank(peers_, [&] {
    work.begin();
    std::string lines;
    for (const UnitRecord& record : work.finished_units(plan_.units.size())) {
      lines += to_json(record);
    }
    return lines;
  });
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < finished.size();) {
    const std::size_t end = finished.find('\n', begin) + 1;
    lines.push_back(finished.substr(begin, end - begin));
    begin = end;
  }
  take_records(lines);
  if (peers_.rank == 0 && !lines.empty()) {
    hooks_.message(fmt::format("going on in {}: {} of {} parts were finished before", options_.out.string(),
                               lines.size(), plan_.units.size()));
  }
}

// What is left to pack may well turn out larger than this.
void PackRun::check_room(const WorkFolder& work) const {
  std::uint64_t left_bytes = 0;
  bool has_units = false;
  for (std::size_t unit = 0; unit < plan_.units.size(); ++unit) {
    has_units = has_units || records_[unit].has_value();
    left_bytes += records_[unit] ? 0 : plan_.units[unit].bytes;
  }
  const std::uint64_t needed = least_shard_bytes(left_bytes);
  on_first_rank(peers_, [&] {
    const std::uint64_t room = room_at(options_.out).value_or(needed);
    if (room < needed) {
      // An error of the usage would cost what is finished.
      const bool is_begun = has_units || fs::exists(work.folder() / kTrainedName);
      fail(is_begun ? ErrorCode::kNoSpace : ErrorCode::kUsage,
           "{} has room for {} MiB; {} MiB of input are left to pack and take at least {} MiB", options_.out.string(),
           room / kMiB, left_bytes / kMiB, needed / kMiB + 1);
    }
    return std::string();
  });
}

std::uint64_t PackRun::least_shard_bytes(std::uint64_t input_bytes) const {
  constexpr std::uint64_t kBytesInAToken = 32;  // more than vocabularies reach on average, whatever the script
  switch (options_.format) {
    case PackFormat::kText:
      return options_.tokenizer == "bytes" ? 2 * input_bytes : 2 * (input_bytes / kBytesInAToken);
    case PackFormat::kTokens:
      return input_bytes / 2;  // ids of 4 bytes that fit 2
    case PackFormat::kJsonl:
    case PackFormat::kChat:
    case PackFormat::kPairs:
      return 0;  // the rest of the lines may be anything
  }
  return 0;
}

// Returns false when stopped.
bool PackRun::pack_units(const WorkFolder& work) {
  std::vector<std::size_t> left;
  std::uint64_t done_bytes = 0;
  for (std::size_t unit = 0; unit < plan_.units.size(); ++unit) {
    if (records_[unit]) {
      done_bytes += plan_.units[unit].bytes;
    } else {
      left.push_back(unit);
    }
  }
  if (left.empty()) {
    return true;
  }
  report("pack", done_bytes);
  Encoder encoder(*tokenizer_);
  const ReaderOptions reader = reader_options();
  std::optional<ChatPacking> chat;
  if (chat_) {
    chat.emplace(ChatPacking{*chat_, options_.max_tokens, options_.drop_long});
  }
  const auto world = static_cast<std::size_t>(peers_.world);
  for (std::size_t first = 0; first < left.size(); first += world) {
    const std::size_t mine = first + static_cast<std::size_t>(peers_.rank);
    const auto results = gather_together(peers_, [&]() -> std::string {
      if (mine >= left.size()) {
        return {};
      }
      UnitRecord record;
      const UnitJob job{plan_, left[mine], work.folder(), chat ? &*chat : nullptr, reader, hooks_.stop_requested};
      if (!pack_unit(job, encoder, record)) {
        return kStopped;
      }
      work.write_record(record);
      return to_json(record);
    });
    take_records(results);
    if (std::find(results.begin(), results.end(), kStopped) != results.end()) {
      return false;
    }
    for (std::size_t i = first; i < std::min(first + world, left.size()); ++i) {
      done_bytes += plan_.units[left[i]].bytes;
    }
    report("pack", done_bytes);
  }
  return true;
}

void PackRun::take_records(const std::vector<std::string>& records) {
  for (const std::string& text : records) {
    if (!text.empty() && text != kStopped) {
      UnitRecord record = parse_unit_record(text, "pack");
      records_.at(record.unit) = std::move(record);
    }
  }
}

PackResult pack(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks) {
  check_options(options);
  return PackRun(options, peers, hooks).run();
}

}  // namespace lockstep
