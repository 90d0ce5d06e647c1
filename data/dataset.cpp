#include "data/dataset.h"

#include <algorithm>
#include <cassert>
#include <functional>
#include <list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "data/hdf5_file.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormatName = "lockstep-dataset";
// Ids are read into int32.
constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 31;

// A typed view of one JSON object of the file, for messages such as
//   data/train/dataset.json: files[3].tokens is -1, expected a whole number from 0 on
class ObjectReader {
 public:
  ObjectReader(const Json& object, std::string_view where, std::string prefix)
      : object_(object), where_(where), prefix_(std::move(prefix)) {
    if (!object.is_object()) {
      fail(ErrorCode::kCorrupt, "{}: {} is not an object", where_, prefix_.empty() ? "the file's content" : prefix_);
    }
  }

  [[nodiscard]] const Json& member(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) {
      fail(ErrorCode::kCorrupt, "{}: {} is missing", where_, name(key));
    }
    return *found;
  }
  [[nodiscard]] std::string text(const char* key) const {
    const Json& value = member(key);
    if (!value.is_string()) {
      fail(ErrorCode::kCorrupt, "{}: {} is not a text", where_, name(key));
    }
    return value.get<std::string>();
  }
  // A whole number in [low, high].
  [[nodiscard]] std::uint64_t number(const char* key, std::uint64_t low, std::uint64_t high) const {
    const Json& value = member(key);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() < low || value.get<std::uint64_t>() > high) {
      const std::string found = value.is_number() ? value.dump() : std::string("not a number");
      fail(ErrorCode::kCorrupt, "{}: {} is {}, expected a whole number from {} to {}", where_, name(key), found, low,
           high);
    }
    return value.get<std::uint64_t>();
  }
  [[nodiscard]] std::string name(const char* key) const { return prefix_.empty() ? key : prefix_ + "." + key; }

 private:
  const Json& object_;
  std::string_view where_;
  std::string prefix_;
};

// Counts stay below it, so that sums of a few do not overflow.
constexpr std::uint64_t kMaxCount = std::uint64_t{1} << 60;

DatasetFile parse_file(const Json& entry, std::string_view where, std::size_t index) {
  const ObjectReader reader(entry, where, fmt::format("files[{}]", index));
  DatasetFile file;
  file.name = reader.text("name");
  if (file.name.empty() || file.name == "." || file.name == ".." || file.name.find('/') != std::string::npos ||
      std::any_of(file.name.begin(), file.name.end(), [](char c) { return c >= 0 && c < ' '; })) {
    fail(ErrorCode::kCorrupt, "{}: {} is not the name of a file in the dataset's folder", where, reader.name("name"));
  }
  file.tokens = reader.number("tokens", 1, kMaxCount);
  file.documents = reader.number("documents", 0, file.tokens);
  file.size_bytes = reader.number("size_bytes", 1, kMaxCount);
  file.xxh3_128 = reader.text("xxh3_128");
  if (file.xxh3_128.size() != 32 || file.xxh3_128.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fail(ErrorCode::kCorrupt, "{}: {} is not 32 lower-case hexadecimal digits", where, reader.name("xxh3_128"));
  }
  return file;
}

DatasetTokenizer parse_tokenizer(const Json& object, std::string_view where) {
  const ObjectReader reader(object, where, "tokenizer");
  DatasetTokenizer tokenizer;
  tokenizer.name = reader.text("name");
  tokenizer.fingerprint = reader.text("fingerprint");
  tokenizer.vocabulary_size = static_cast<std::int64_t>(reader.number("vocabulary_size", 1, kMaxVocabulary));
  tokenizer.end_of_text = static_cast<std::int64_t>(
      reader.number("end_of_text", 0, static_cast<std::uint64_t>(tokenizer.vocabulary_size) - 1));
  return tokenizer;
}

void expect_text(const ObjectReader& reader, std::string_view where, const char* key, std::string_view expected) {
  const std::string found = reader.text(key);
  if (found != expected) {
    fail(ErrorCode::kCorrupt, "{}: {} is {}, expected \"{}\"", where, key, in_quotes(found), expected);
  }
}

}  // namespace

std::string_view name_of(DatasetKind kind) {
  switch (kind) {
    case DatasetKind::kText:
      return "text";
    case DatasetKind::kChat:
      return "chat";
    case DatasetKind::kPairs:
      return "pairs";
  }
  return "?";
}

DType DatasetInfo::token_dtype() const { return tokenizer.vocabulary_size <= 65536 ? DType::kU16 : DType::kU32; }

DatasetInfo parse_dataset_json(std::string_view text, std::string_view where) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    fail(ErrorCode::kCorrupt, "{}: not valid JSON: {}", where, error.what());
  }
  const ObjectReader reader(json, where, "");
  expect_text(reader, where, "format", kFormatName);
  const std::uint64_t version = reader.number("version", 0, kMaxCount);
  if (version != DatasetInfo::kVersion) {
    fail(ErrorCode::kCorrupt, "{}: version {}, this program reads version {}", where, version, DatasetInfo::kVersion);
  }
  DatasetInfo info;
  const std::string kind = reader.text("kind");
  if (kind == name_of(DatasetKind::kChat) || kind == name_of(DatasetKind::kPairs)) {
    info.kind = kind == name_of(DatasetKind::kChat) ? DatasetKind::kChat : DatasetKind::kPairs;
    info.chat_template = reader.text("chat_template");
  } else {
    expect_text(reader, where, "kind", name_of(DatasetKind::kText));
  }
  info.tokenizer = parse_tokenizer(reader.member("tokenizer"), where);
  info.tokens = reader.number("tokens", 1, kMaxCount);
  info.documents = reader.number("documents", 0, info.tokens);
  expect_text(reader, where, "dtype", info.token_dtype() == DType::kU16 ? "uint16" : "uint32");
  const Json& files = reader.member("files");
  if (!files.is_array() || files.empty()) {
    fail(ErrorCode::kCorrupt, "{}: files is not a list of at least one file", where);
  }
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;
  for (const Json& entry : files) {
    info.files.push_back(parse_file(entry, where, info.files.size()));
    tokens += info.files.back().tokens;
    documents += info.files.back().documents;
    if (tokens > info.tokens || documents > info.documents) {
      break;
    }
  }
  if (tokens != info.tokens || documents != info.documents || info.files.size() != files.size()) {
    fail(ErrorCode::kCorrupt, "{}: says {} tokens and {} documents, its files do not add up to that", where,
         info.tokens, info.documents);
  }
  return info;
}

std::string to_dataset_json(const DatasetInfo& info) {
  // Ordered, so that the file reads from the general to the particular.
  nlohmann::ordered_json json = {
      {"format", kFormatName},
      {"version", DatasetInfo::kVersion},
      {"kind", name_of(info.kind)},
      {"tokenizer",
       {{"name", info.tokenizer.name},
        {"fingerprint", info.tokenizer.fingerprint},
        {"vocabulary_size", info.tokenizer.vocabulary_size},
        {"end_of_text", info.tokenizer.end_of_text}}},
      {"dtype", info.token_dtype() == DType::kU16 ? "uint16" : "uint32"},
      {"tokens", info.tokens},
      {"documents", info.documents},
      {"files", nlohmann::ordered_json::array()},
  };
  if (has_conversations(info.kind)) {
    json["chat_template"] = info.chat_template;
  }
  for (const DatasetFile& file : info.files) {
    json["files"].push_back({{"name", file.name},
                             {"tokens", file.tokens},
                             {"documents", file.documents},
                             {"size_bytes", file.size_bytes},
                             {"xxh3_128", file.xxh3_128}});
  }
  // A tokenizer's name may be any file name, so any bytes: replaced rather than refused.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

struct Dataset::State {
  struct OpenShard {
    std::size_t index;
    Hdf5Array tokens;
    std::optional<Hdf5Array> trained;  // kChat
  };
  static constexpr std::size_t kMaxOpenShards = 64;

  std::filesystem::path folder;
  DatasetInfo info;
  std::vector<std::uint64_t> first_token;  // of each file, and the total at the end
  std::list<OpenShard> open;               // most recently used first

  [[nodiscard]] Hdf5Array open_tokens(std::size_t index) const;
  // kChat.
  [[nodiscard]] Hdf5Array open_trained(std::size_t index) const;
  void check_shard(std::size_t index) const;
  OpenShard& shard(std::size_t index);
  // Calls `read(file, position in it, offset from begin, count)` for each part of [begin, begin + count) of the stream.
  void for_each_part(std::uint64_t begin, std::size_t count,
                     const std::function<void(std::size_t, std::uint64_t, std::size_t, std::size_t)>& read) const;
  void read_shard(std::size_t index, std::uint64_t begin, std::span<std::int32_t> tokens);

 private:
  template <typename Id>
  void read_ids(std::size_t index, std::uint64_t begin, std::span<std::int32_t> tokens, std::vector<Id>& ids);
  std::vector<std::uint16_t> ids16;
  std::vector<std::uint32_t> ids32;
};

Hdf5Array Dataset::State::open_tokens(std::size_t index) const {
  const DatasetFile& file = info.files[index];
  const std::filesystem::path path = folder / file.name;
  Hdf5Array tokens = Hdf5File::open_to_read(path).open_array("tokens");
  if (tokens.dtype() != info.token_dtype()) {
    fail(ErrorCode::kCorrupt, "{}: /tokens holds {}, expected {}", path.string(), name_of(tokens.dtype()),
         name_of(info.token_dtype()));
  }
  if (tokens.size() != file.tokens) {
    fail(ErrorCode::kCorrupt, "{}: /tokens has {} elements, dataset.json says {}", path.string(), tokens.size(),
         file.tokens);
  }
  return tokens;
}

Hdf5Array Dataset::State::open_trained(std::size_t index) const {
  const DatasetFile& file = info.files[index];
  const std::filesystem::path path = folder / file.name;
  Hdf5Array trained = Hdf5File::open_to_read(path).open_array("trained");
  if (trained.dtype() != DType::kU8 || trained.size() != file.tokens) {
    fail(ErrorCode::kCorrupt, "{}: /trained has {} elements of {}, expected {} of u8", path.string(), trained.size(),
         name_of(trained.dtype()), file.tokens);
  }
  return trained;
}

void Dataset::State::check_shard(std::size_t index) const {
  const DatasetFile& file = info.files[index];
  const std::filesystem::path path = folder / file.name;
  std::error_code error;
  const std::uint64_t size = std::filesystem::file_size(path, error);
  if (error) {
    const bool is_missing = error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory;
    fail(is_missing ? ErrorCode::kCorrupt : ErrorCode::kIo, "{}: {}, but dataset.json lists it", path.string(),
         error.message());
  }
  if (size != file.size_bytes) {
    fail(ErrorCode::kCorrupt, "{}: {} bytes, dataset.json says {}", path.string(), size, file.size_bytes);
  }
  static_cast<void>(open_tokens(index));
  const Hdf5Array offsets = Hdf5File::open_to_read(path).open_array("document_offsets");
  if (offsets.dtype() != DType::kU64 || offsets.size() != file.documents) {
    fail(ErrorCode::kCorrupt, "{}: /document_offsets has {} elements of {}, expected {} of u64", path.string(),
         offsets.size(), name_of(offsets.dtype()), file.documents);
  }
  if (has_conversations(info.kind)) {
    static_cast<void>(open_trained(index));
    const Hdf5Array targets = Hdf5File::open_to_read(path).open_array("document_targets");
    if (targets.dtype() != DType::kU32 || targets.size() != file.documents) {
      fail(ErrorCode::kCorrupt, "{}: /document_targets has {} elements of {}, expected {} of u32", path.string(),
           targets.size(), name_of(targets.dtype()), file.documents);
    }
  }
}

Dataset::State::OpenShard& Dataset::State::shard(std::size_t index) {
  const auto found = std::find_if(open.begin(), open.end(), [&](const OpenShard& s) { return s.index == index; });
  if (found != open.end()) {
    open.splice(open.begin(), open, found);
  } else {
    open.push_front({index, open_tokens(index), {}});
    if (has_conversations(info.kind)) {
      open.front().trained.emplace(open_trained(index));
    }
    if (open.size() > kMaxOpenShards) {
      open.pop_back();
    }
  }
  return open.front();
}

// Read in the width they are stored in and widened here: HDF5's own conversion takes longer than the read.
template <typename Id>
void Dataset::State::read_ids(std::size_t index, std::uint64_t begin, std::span<std::int32_t> tokens,
                              std::vector<Id>& ids) {
  ids.resize(tokens.size());
  shard(index).tokens.read(begin, std::span<Id>(ids));
  // An id beyond the vocabulary would reach past the end of the embedding table.
  const auto vocabulary_size = static_cast<std::uint64_t>(info.tokenizer.vocabulary_size);
  const auto largest = std::max_element(ids.begin(), ids.end());
  if (largest != ids.end() && *largest >= vocabulary_size) {
    fail(ErrorCode::kCorrupt, "{}: token {} is {}, the vocabulary has {} ids",
         (folder / info.files[index].name).string(), begin + static_cast<std::uint64_t>(largest - ids.begin()),
         *largest, vocabulary_size);
  }
  std::transform(ids.begin(), ids.end(), tokens.begin(), [](Id id) { return static_cast<std::int32_t>(id); });
}

void Dataset::State::read_shard(std::size_t index, std::uint64_t begin, std::span<std::int32_t> tokens) {
  if (info.token_dtype() == DType::kU16) {
    read_ids(index, begin, tokens, ids16);
  } else {
    read_ids(index, begin, tokens, ids32);
  }
}

Dataset::Dataset(std::unique_ptr<State> state) : state_(std::move(state)) {}
Dataset::Dataset(Dataset&&) noexcept = default;
Dataset& Dataset::operator=(Dataset&&) noexcept = default;
Dataset::~Dataset() = default;

Dataset Dataset::open(const std::filesystem::path& folder) {
  const std::filesystem::path json_path = folder / "dataset.json";
  require(std::filesystem::is_regular_file(json_path), "data: {} is not a dataset: there is no {}", folder.string(),
          json_path.string());
  auto state = std::make_unique<State>();
  state->folder = folder;
  state->info = parse_dataset_json(read_file(json_path), json_path.string());
  std::uint64_t begin = 0;
  for (std::size_t i = 0; i < state->info.files.size(); ++i) {
    state->check_shard(i);
    state->first_token.push_back(begin);
    begin += state->info.files[i].tokens;
  }
  state->first_token.push_back(begin);
  return Dataset(std::move(state));
}

const DatasetInfo& Dataset::info() const { return state_->info; }
const std::filesystem::path& Dataset::folder() const { return state_->folder; }
std::filesystem::path Dataset::tokenizer_path() const { return state_->folder / "tokenizer.json"; }

void Dataset::State::for_each_part(
    std::uint64_t begin, std::size_t count,
    const std::function<void(std::size_t, std::uint64_t, std::size_t, std::size_t)>& read) const {
  require(begin <= info.tokens && count <= info.tokens - begin, "data: tokens {} to {} were asked for, {} has {}",
          begin, begin + count, folder.string(), info.tokens);
  const auto after = std::upper_bound(first_token.begin(), first_token.end(), begin);
  auto index = static_cast<std::size_t>(after - first_token.begin()) - 1;
  for (std::size_t done = 0; done < count; ++index) {
    const std::uint64_t position = begin + done;
    const std::size_t part = std::min<std::uint64_t>(count - done, first_token[index + 1] - position);
    read(index, position - first_token[index], done, part);
    done += part;
  }
}

void Dataset::read(std::uint64_t begin, std::span<std::int32_t> tokens) {
  state_->for_each_part(begin, tokens.size(),
                        [&](std::size_t index, std::uint64_t position, std::size_t done, std::size_t count) {
                          state_->read_shard(index, position, tokens.subspan(done, count));
                        });
}

void Dataset::read_trained(std::uint64_t begin, std::span<std::uint8_t> trained) {
  assert(has_conversations(state_->info.kind));
  state_->for_each_part(begin, trained.size(),
                        [&](std::size_t index, std::uint64_t position, std::size_t done, std::size_t count) {
                          state_->shard(index).trained->read(position, trained.subspan(done, count));
                        });
}

std::vector<std::uint32_t> Dataset::document_targets() {
  assert(has_conversations(state_->info.kind));
  std::vector<std::uint32_t> all(state_->info.documents);
  std::size_t done = 0;
  for (const DatasetFile& file : state_->info.files) {
    const std::filesystem::path path = state_->folder / file.name;
    const std::span<std::uint32_t> part = std::span(all).subspan(done, file.documents);
    Hdf5File::open_to_read(path).open_array("document_targets").read(0, part);
    if (std::ranges::find(part, 0U) != part.end()) {
      fail(ErrorCode::kCorrupt, "{}: /document_targets has a document without any", path.string());
    }
    done += part.size();
  }
  return all;
}

std::vector<std::uint64_t> Dataset::document_offsets() {
  std::vector<std::uint64_t> all(state_->info.documents);
  std::size_t done = 0;
  for (std::size_t i = 0; i < state_->info.files.size(); ++i) {
    const DatasetFile& file = state_->info.files[i];
    const std::filesystem::path path = state_->folder / file.name;
    const std::span<std::uint64_t> part = std::span(all).subspan(done, file.documents);
    Hdf5File::open_to_read(path).open_array("document_offsets").read(0, part);
    if (!std::is_sorted(part.begin(), part.end()) || (!part.empty() && part.back() >= file.tokens)) {
      fail(ErrorCode::kCorrupt, "{}: /document_offsets are not ascending positions in /tokens", path.string());
    }
    for (std::uint64_t& offset : part) {
      offset += state_->first_token[i];
    }
    done += part.size();
  }
  return all;
}

void Dataset::verify() const {
  for (const DatasetFile& file : state_->info.files) {
    const std::filesystem::path path = state_->folder / file.name;
    const std::string found = hash_of_file(path).hex();
    if (found != file.xxh3_128) {
      fail(ErrorCode::kCorrupt, "{}: its xxh3-128 is {}, dataset.json says {}", path.string(), found, file.xxh3_128);
    }
  }
}

}  // namespace lockstep
