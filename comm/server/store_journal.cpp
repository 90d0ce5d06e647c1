#include "comm/server/store_journal.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "comm/server/payload.h"

namespace lockstep::server {
namespace {

namespace fs = std::filesystem;

constexpr std::array<char, 8> kSnapshotMagic = {'L', 'S', 'P', 'S', 'S', 'N', 'A', 'P'};
constexpr std::array<char, 8> kRecordMagic = {'L', 'S', 'P', 'S', 'G', 'R', 'A', 'D'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kSnapshotHeaderBytes = 8 + 3 * 4 + 8 * 8 + 4;
constexpr std::size_t kRecordHeaderBytes = 8 + 2 * 4 + 5 * 8;
// A snapshot has three arrays, a record one: of what is written, an eighth are snapshots.
constexpr std::uint64_t kRecordsPerSnapshot = 24;
constexpr std::size_t kHashBytes = sizeof(std::uint64_t) * 2;

// Writes a file from its beginning to its end, with a checksum of it all behind.
class HashedFile {
 public:
  explicit HashedFile(const fs::path& path) : file_(File::create(path)) {}
  void write(std::span<const std::byte> bytes) {
    file_.write(at_, bytes);
    hasher_.update(bytes);
    at_ += bytes.size();
  }
  void finish() {
    const Hash128 hash = hasher_.finish();
    const std::array<std::uint64_t, 2> both = {hash.low, hash.high};
    file_.write(at_, std::as_bytes(std::span(both)));
    file_.sync();
  }

 private:
  File file_;
  Hasher hasher_;
  std::uint64_t at_ = 0;
};

std::vector<std::byte> snapshot_header(const StoreState& state) {
  std::vector<std::byte> header(kSnapshotHeaderBytes);
  Writer writer(header);
  writer.put(kSnapshotMagic);
  writer.put(kVersion);
  writer.put(static_cast<std::uint32_t>(state.completed.size()));
  writer.put(state.max_staleness);
  writer.put(state.elements);
  writer.put(state.range.begin);
  writer.put(state.range.end);
  writer.put(state.steps);
  writer.put(state.applied);
  writer.put(state.staleness.pushes);
  writer.put(state.staleness.sum);
  writer.put(state.staleness.max);
  writer.put(static_cast<std::uint32_t>(state.description.size()));
  return header;
}

// Reads what HashedFile wrote, and checks it in the end.
class HashedReader {
 public:
  explicit HashedReader(const fs::path& path) : file_(File::open_to_read(path)), size_(file_.size()) {
    expect(size_ >= kSnapshotHeaderBytes + kHashBytes);
  }
  void read(std::span<std::byte> bytes) {
    expect(bytes.size() <= size_ - kHashBytes - at_);
    file_.read_exactly(at_, bytes);
    hasher_.update(bytes);
    at_ += bytes.size();
  }
  void finish() {
    expect(at_ + kHashBytes == size_);
    std::array<std::uint64_t, 2> both{};
    file_.read_exactly(at_, std::as_writable_bytes(std::span(both)));
    expect(hasher_.finish() == Hash128{both[0], both[1]});
  }
  void expect(bool condition) const {
    if (!condition) {
      fail(ErrorCode::kCorrupt, "{} is damaged; without it the job goes on from its newest checkpoint",
           file_.path().string());
    }
  }
  // What can still come: nothing larger is worth allocating.
  [[nodiscard]] std::uint64_t left() const { return size_ - kHashBytes - at_; }

 private:
  File file_;
  std::uint64_t size_;
  Hasher hasher_;
  std::uint64_t at_ = 0;
};

StoreState read_snapshot(const fs::path& path) {
  HashedReader file(path);
  std::vector<std::byte> header(kSnapshotHeaderBytes);
  file.read(header);
  Reader reader(header, path.string());
  file.expect(reader.get<std::array<char, 8>>() == kSnapshotMagic);
  if (const auto version = reader.get<std::uint32_t>(); version != kVersion) {
    fail(ErrorCode::kUnsupported, "{} has version {}, expected {}", path.string(), version, kVersion);
  }
  StoreState state;
  const auto workers = reader.get<std::uint32_t>();
  state.max_staleness = reader.get<std::uint32_t>();
  state.elements = reader.get<std::uint64_t>();
  state.range.begin = reader.get<std::uint64_t>();
  state.range.end = reader.get<std::uint64_t>();
  state.steps = reader.get<std::uint64_t>();
  state.applied = reader.get<std::uint64_t>();
  state.staleness.pushes = reader.get<std::uint64_t>();
  state.staleness.sum = reader.get<std::uint64_t>();
  state.staleness.max = reader.get<std::uint64_t>();
  const auto description_bytes = reader.get<std::uint32_t>();
  file.expect(workers <= kMaxWorkers && state.range.begin <= state.range.end && state.elements <= kMaxElements &&
              state.range.end <= state.elements && description_bytes <= kMaxPayloadBytes);
  state.completed.resize(workers);
  file.read(std::as_writable_bytes(std::span(state.completed)));
  state.description.resize(description_bytes);
  file.read(std::as_writable_bytes(std::span(state.description)));
  file.expect(file.left() == 3 * state.range.size() * sizeof(float));
  for (std::vector<float>* const array : {&state.weights, &state.exp_avg, &state.exp_avg_sq}) {
    array->resize(state.range.size());
    file.read(std::as_writable_bytes(std::span(*array)));
  }
  file.finish();
  return state;
}

std::array<std::byte, kRecordHeaderBytes> record_header(const StoreState& state, std::uint32_t rank,
                                                        const Gradient& gradient, std::span<const float> values) {
  std::array<std::byte, kRecordHeaderBytes> header;
  Writer writer(header);
  writer.put(kRecordMagic);
  writer.put(rank);
  writer.put(gradient.scale);
  writer.put(gradient.step);
  writer.put(gradient.version);
  writer.put(state.applied);
  writer.put(payload_hash_of(std::as_bytes(values)));
  writer.put(payload_hash_of(std::span(header).first(kRecordHeaderBytes - sizeof(std::uint64_t))));
  return header;
}

}  // namespace

StoreJournal::StoreJournal(const fs::path& folder, int part, int parts)
    : folder_(folder), name_(fmt::format("part-{}-of-{}", part + 1, parts)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) {
    fail(ErrorCode::kIo, "--state: {} cannot be made: {}", folder_.string(), error.message());
  }
  lock_ = File::open_or_create(folder_ / (name_ + ".lock"));
  require(lock_->try_lock(), "--state: another server is at work in {}", folder_.string());
}

fs::path StoreJournal::log_path(std::uint64_t applied) const {
  return folder_ / fmt::format("{}.log-{:012}", name_, applied);
}

void StoreJournal::remove_logs_but(const fs::path& kept) const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    const bool is_log = entry.path().filename().string().starts_with(name_ + ".log-");
    if (is_log && entry.path() != kept) {
      fs::remove(entry.path(), error);
    }
  }
}

std::optional<StoreState> StoreJournal::load() const {
  const fs::path path = folder_ / (name_ + ".snapshot");
  if (!fs::exists(path)) {
    return {};
  }
  return read_snapshot(path);
}

void StoreJournal::replay(const StoreState& state, const Apply& apply) {
  const fs::path path = log_path(state.applied);
  remove_logs_but(path);
  log_ = File::open_or_create(path);
  std::vector<float> values(state.range.size());
  const std::uint64_t record_bytes = kRecordHeaderBytes + values.size() * sizeof(float);
  const std::uint64_t records = log_->size() / record_bytes;
  log_bytes_ = 0;
  for (std::uint64_t i = 0; i < records; ++i) {
    std::array<std::byte, kRecordHeaderBytes> header;
    log_->read_exactly(log_bytes_, header);
    log_->read_exactly(log_bytes_ + kRecordHeaderBytes, std::as_writable_bytes(std::span(values)));
    Reader reader(header, path.string());
    (void)reader.get<std::array<char, 8>>();
    const auto rank = reader.get<std::uint32_t>();
    Gradient gradient;
    gradient.scale = reader.get<float>();
    gradient.step = reader.get<std::uint64_t>();
    gradient.version = reader.get<std::uint64_t>();
    const bool is_intact = header == record_header(state, rank, gradient, values) && rank < state.completed.size();
    if (!is_intact && i + 1 < records) {
      fail(ErrorCode::kCorrupt,
           "{}: record {} of {} is damaged; without these files the job goes on from its newest "
           "checkpoint",
           path.string(), i + 1, records);
    }
    if (!is_intact) {
      break;
    }
    apply(rank, gradient, values);
    log_bytes_ += record_bytes;
  }
  log_->truncate(log_bytes_);
  long_bytes_ = kRecordsPerSnapshot * record_bytes;
}

void StoreJournal::keep(const StoreState& state) {
  const fs::path path = folder_ / (name_ + ".snapshot");
  fs::path partial = path;
  partial += ".partial";
  {
    HashedFile file(partial);
    file.write(snapshot_header(state));
    file.write(std::as_bytes(std::span(state.completed)));
    file.write(std::as_bytes(std::span(state.description)));
    file.write(std::as_bytes(std::span(state.weights)));
    file.write(std::as_bytes(std::span(state.exp_avg)));
    file.write(std::as_bytes(std::span(state.exp_avg_sq)));
    file.finish();
  }
  std::error_code error;
  fs::rename(partial, path, error);
  if (error) {
    fail(ErrorCode::kIo, "{} cannot be renamed: {}", partial.string(), error.message());
  }
  sync_folder(folder_);
  // From here on the old log's records are in the snapshot: one that is left over is removed in replay().
  const fs::path log = log_path(state.applied);
  log_ = File::create(log);
  log_bytes_ = 0;
  long_bytes_ = kRecordsPerSnapshot * (kRecordHeaderBytes + state.range.size() * sizeof(float));
  remove_logs_but(log);
}

void StoreJournal::append(const StoreState& state, std::uint32_t rank, const Gradient& gradient,
                          std::span<const float> values) {
  const auto header = record_header(state, rank, gradient, values);
  log_->write(log_bytes_, header);
  log_->write(log_bytes_ + header.size(), std::as_bytes(values));
  log_bytes_ += header.size() + values.size_bytes();
}

void StoreJournal::clear() {
  std::error_code error;
  fs::remove(folder_ / (name_ + ".snapshot"), error);
  log_.reset();
  remove_logs_but({});
}

}  // namespace lockstep::server
