// What a server writes down of its part of the weights, so that it can be killed and started again: a snapshot, and a
// log of the gradients that were applied since. docs/server-protocol.md has the bytes.
//
// append() hands the record to the operating system before the update is made and acknowledged: a killed process loses
// nothing. Snapshots are synced to the disk; the log is not, so a machine that loses power may lose the newest updates,
// which then shows as a log that ends early. Used by one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "base/file.h"
#include "comm/server/store.h"

namespace lockstep::server {

class StoreJournal {
 public:
  // Of part `part` of `parts`, from 0. Makes the folder, and keeps other processes out. Throws Error(kUsage) when one
  // is at work there, Error(kIo).
  StoreJournal(const std::filesystem::path& folder, int part, int parts);

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }

  // The newest snapshot, if there is one. Throws Error(kCorrupt) when it is damaged, Error(kUnsupported) for another
  // version.
  [[nodiscard]] std::optional<StoreState> load() const;
  // Calls `apply` for each record since the snapshot that `state`, which `apply` advances, was loaded from; later
  // records are appended behind them. A record that was cut off at the end is removed. Throws Error(kCorrupt) for
  // others that are damaged.
  using Apply = std::function<void(std::uint32_t rank, const Gradient& gradient, std::span<const float> values)>;
  void replay(const StoreState& state, const Apply& apply);

  // Writes a snapshot and begins a new log.
  void keep(const StoreState& state);
  // The log has become so long that a snapshot is due.
  [[nodiscard]] bool is_long() const { return log_bytes_ >= long_bytes_; }
  // `state` is the one that the gradient is going to be applied to.
  void append(const StoreState& state, std::uint32_t rank, const Gradient& gradient, std::span<const float> values);
  // Forgets everything: the job has ended.
  void clear();

 private:
  [[nodiscard]] std::filesystem::path log_path(std::uint64_t applied) const;
  void remove_logs_but(const std::filesystem::path& kept) const;

  std::filesystem::path folder_;
  std::string name_;  // "part-1-of-2"
  std::optional<File> lock_;
  std::optional<File> log_;
  std::uint64_t log_bytes_ = 0;
  std::uint64_t long_bytes_ = 0;
};

}  // namespace lockstep::server
