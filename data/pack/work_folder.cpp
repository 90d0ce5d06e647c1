#include "data/pack/work_folder.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/writable_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSettingsName = "pack.json";
constexpr const char* kLockName = "lock";
// From here on the datasets in OUT are this run's.
constexpr const char* kPublishingName = "publishing";

std::string to_json(const PackSettings& settings) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [name, value] : settings) {
    json[name] = value;
  }
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

// What `settings` in a file say, by the names of ours, empty texts where it says nothing; behind them what ours lack.
PackSettings read_settings(const fs::path& file, const PackSettings& ours) {
  const nlohmann::json json = nlohmann::json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  PackSettings theirs;
  for (const auto& [name, value] : ours) {
    const bool is_known = json.is_object() && json.contains(name) && json[name].is_string();
    theirs.emplace_back(name, is_known ? json[name].get<std::string>() : std::string());
  }
  for (auto entry = json.begin(); json.is_object() && entry != json.end(); ++entry) {
    const auto is_it = [&](const auto& setting) { return setting.first == entry.key(); };
    if (entry->is_string() && std::ranges::none_of(ours, is_it)) {
      theirs.emplace_back(entry.key(), entry->get<std::string>());
    }
  }
  return theirs;
}

std::string record_name(std::size_t unit) { return fmt::format("unit-{:05}.json", unit); }

// Nothing when there is none, or one that the file system or somebody has spoilt.
std::optional<UnitRecord> read_record(const fs::path& path, std::size_t unit) {
  if (!fs::exists(path)) {
    return std::nullopt;
  }
  try {
    UnitRecord record = parse_unit_record(read_file(path), path.string());
    return record.unit == unit ? std::optional(std::move(record)) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// "00012.h5".
bool is_shard_name(const std::string& name) {
  const std::size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
  return digits >= 5 && name.substr(digits) == ".h5";
}

// dataset.json, tokenizer.json and tokenizer_config.json, and what is left of writing them.
bool is_description_name(std::string name) {
  if (name.ends_with(kPartialSuffix)) {
    name.resize(name.size() - kPartialSuffix.size());
  }
  return name == "dataset.json" || name == "tokenizer.json" || name == "tokenizer_config.json";
}

bool has_size(const fs::path& file, std::uint64_t size) {
  std::error_code error;
  const std::uint64_t found = fs::file_size(file, error);
  return !error && found == size;
}

void rename_checked(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail_errno(fmt::format("rename {} to {}", from.string(), to.string()));
  }
}

}  // namespace

WorkFolder::WorkFolder(fs::path out, PackSettings settings, Shares shares)
    : out_(std::move(out)), folder_(out_ / ".pack"), settings_(std::move(settings)), shares_(shares) {}

fs::path WorkFolder::split_folder(std::size_t split) const { return out_ / kSplitNames[split]; }

bool WorkFolder::has_same_settings(const fs::path& file) const {
  return fs::exists(file) && read_settings(file, settings_) == settings_;
}

bool WorkFolder::holds_other() const {
  return fs::exists(out_ / kSettingsName) && !has_same_settings(out_ / kSettingsName);
}

bool WorkFolder::is_complete(Overwrite overwrite, const std::string& when_other, std::string& damage) const {
  try {
    return look_for_finished(overwrite, when_other, damage);
  } catch (const fs::filesystem_error& error) {
    fail(ErrorCode::kUsage, "{} cannot be used: {}: {}", out_.string(), error.path1().string(), error.code().message());
  }
}

bool WorkFolder::look_for_finished(Overwrite overwrite, const std::string& when_other, std::string& damage) const {
  std::error_code error;
  const bool replaces =
      overwrite == Overwrite::kAll || (overwrite == Overwrite::kOthers && !has_same_settings(out_ / kSettingsName));
  if (replaces || !fs::exists(out_ / kSettingsName, error)) {
    require_writable_folder(out_);
  }
  if (replaces) {
    return false;
  }
  const bool is_ours = fs::exists(out_ / kSettingsName) || fs::exists(folder_ / kPublishingName);
  bool datasets_exist = true;
  for (std::size_t s = 0; s < kSplits; ++s) {
    datasets_exist = datasets_exist && (fs::exists(split_folder(s) / "dataset.json") || shares_[s] == 0);
    const std::vector<fs::path> files = is_ours ? std::vector<fs::path>() : files_of_dataset(s);
    require(files.empty(), "{} is in the way, and nothing says that pack made it; use --overwrite or another --out",
            files.empty() ? "" : files.front().string());
  }
  if (has_same_settings(out_ / kSettingsName)) {
    return datasets_exist && datasets_are_whole(damage);
  }
  for (const fs::path& file : {out_ / kSettingsName, folder_ / kSettingsName}) {
    if (!fs::exists(file) || has_same_settings(file)) {
      continue;
    }
    require(when_other.empty(), "{}", when_other);
    const PackSettings theirs = read_settings(file, settings_);
    const auto [mine, other] = std::mismatch(settings_.begin(), settings_.end(), theirs.begin());
    fail(ErrorCode::kUsage, "{} holds {} packed with {} {}, asked for is {}; use --overwrite or another --out",
         out_.string(), file.parent_path() == folder_ ? "an unfinished dataset" : "a dataset", other->first,
         other->second.empty() ? "unknown" : other->second, mine == settings_.end() ? "none" : mine->second);
  }
  return false;
}

bool WorkFolder::datasets_are_whole(std::string& damage) const {
  try {
    for (std::size_t s = 0; s < kSplits; ++s) {
      if (shares_[s] > 0) {
        static_cast<void>(Dataset::open(split_folder(s)));
      }
    }
    return true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorrupt && error.code() != ErrorCode::kUsage) {
      throw;  // what cannot be read may be whole
    }
    damage = error.what();
    return false;
  }
}

void WorkFolder::begin() {
  require_writable_folder(folder_);
  for (fs::path path = fs::absolute(out_); !fs::exists(path); path = path.parent_path()) {
    first_created_ = path;
  }
  std::error_code error;
  goes_on_ = fs::exists(folder_, error);
  fs::create_directories(folder_, error);
  require(!error, "{} cannot be written: {}", out_.string(), error.message());
  take_lock();
  const bool is_ours = has_same_settings(folder_ / kSettingsName);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    const bool is_kept = is_ours ? entry.path().extension() != kPartialSuffix : entry.path().filename() == kLockName;
    if (!is_kept) {
      fs::remove_all(entry.path());
    }
  }
  if (!is_ours) {
    write_file_atomic(folder_ / kSettingsName, to_json(settings_));
  }
}

void WorkFolder::take_lock() {
  lock_.emplace(File::open_or_create(folder_ / kLockName));
  require(lock_->try_lock(),
          "another run is packing into {}; under mpirun, give all ranks one --out and start them as one job",
          out_.string());
}

// In this order: killed in between, what is left is known to be pack's, and then to be ours.
void WorkFolder::make_place() const {
  if (fs::exists(folder_ / kPublishingName)) {
    return;
  }
  remove_datasets();
  fs::remove(out_ / kSettingsName);
  write_file_atomic(folder_ / kPublishingName, "");
}

std::vector<fs::path> WorkFolder::files_of_dataset(std::size_t split) const {
  const fs::path folder = split_folder(split);
  std::vector<fs::path> files;
  if (!fs::is_directory(folder)) {
    return files;
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (is_description_name(name) || is_shard_name(name)) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

void WorkFolder::remove_datasets() const {
  for (std::size_t s = 0; s < kSplits; ++s) {
    fs::remove(split_folder(s) / "dataset.json");  // first: without it the rest is no dataset
    for (const fs::path& path : files_of_dataset(s)) {
      fs::remove(path);
    }
    std::error_code not_empty;
    fs::remove(split_folder(s), not_empty);
  }
}

std::vector<UnitRecord> WorkFolder::finished_units(std::size_t units) const {
  std::vector<UnitRecord> finished;
  std::array<std::size_t, kSplits> published_index = {};
  // Only then is it known where a published shard would be.
  bool all_before_finished = fs::exists(folder_ / kPublishingName);
  for (std::size_t unit = 0; unit < units; ++unit) {
    const std::optional<UnitRecord> record = read_record(folder_ / record_name(unit), unit);
    if (!record) {
      all_before_finished = false;
      continue;
    }
    bool is_there = true;
    for (std::size_t s = 0; s < kSplits; ++s) {
      const PackedShard& shard = record->shards[s];
      if (shard.tokens == 0) {
        continue;
      }
      const fs::path published = split_folder(s) / fmt::format("{:05}.h5", published_index[s]++);
      is_there = is_there && (has_size(folder_ / unit_shard_name(unit, static_cast<Split>(s)), shard.size_bytes) ||
                              (all_before_finished && has_size(published, shard.size_bytes)));
    }
    if (is_there) {
      finished.push_back(*record);
    } else {
      all_before_finished = false;
    }
  }
  return finished;
}

void WorkFolder::write_record(const UnitRecord& record) const {
  const fs::path path = folder_ / record_name(record.unit);
  const fs::path partial = unique_partial_of(path);
  write_file_atomic(partial, lockstep::to_json(record));
  rename_checked(partial, path);
  sync_folder(folder_);
}

DatasetInfo WorkFolder::place_shards(std::size_t split, const std::vector<UnitRecord>& records) const {
  DatasetInfo info;
  fs::create_directories(split_folder(split));
  for (const UnitRecord& record : records) {
    const PackedShard& shard = record.shards[split];
    if (shard.tokens == 0) {
      continue;
    }
    const std::string name = fmt::format("{:05}.h5", info.files.size());
    const fs::path from = folder_ / unit_shard_name(record.unit, static_cast<Split>(split));
    if (fs::exists(from) || !has_size(split_folder(split) / name, shard.size_bytes)) {
      rename_checked(from, split_folder(split) / name);
    }
    info.files.push_back({name, shard.tokens, shard.documents, shard.size_bytes, shard.xxh3_128});
    info.tokens += shard.tokens;
    info.documents += shard.documents;
  }
  return info;
}

void WorkFolder::publish(const std::vector<UnitRecord>& records, const DatasetTokenizer& tokenizer,
                         const Description& description) {
  make_place();
  std::array<DatasetInfo, kSplits> infos;
  for (std::size_t s = 0; s < kSplits; ++s) {
    if (shares_[s] > 0) {
      infos[s] = place_shards(s, records);
      infos[s].tokenizer = tokenizer;
      infos[s].kind = description.kind;
      infos[s].chat_template = description.chat_template;
      write_file_atomic(split_folder(s) / "tokenizer.json", description.tokenizer_json);
      if (!description.own_template.empty()) {
        write_file_atomic(split_folder(s) / "tokenizer_config.json", description.own_template);
      }
    }
  }
  for (std::size_t s = 0; s < kSplits; ++s) {
    if (shares_[s] > 0) {
      write_file_atomic(split_folder(s) / "dataset.json", to_dataset_json(infos[s]));
    }
  }
  sync_folder(out_);
  write_file_atomic(out_ / kSettingsName, to_json(settings_));
  // Of no use any more, and a network file system may keep an open file.
  lock_.reset();
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void WorkFolder::discard() {
  lock_.reset();
  std::error_code ignored;  // the error that led here is the one to tell
  fs::remove_all(folder_, ignored);
  if (first_created_.empty()) {
    if (goes_on_) {
      fs::remove(out_, ignored);  // the run that was interrupted may have made it
    }
    return;
  }
  for (fs::path path = fs::absolute(out_);; path = path.parent_path()) {
    fs::remove(path, ignored);
    if (path == first_created_) {
      return;
    }
  }
}

}  // namespace lockstep
