// Saves checkpoints behind the training's back, in two phases.
//
// Phase 1, every rank: begin() copies this rank's share into buffers of its own and returns; a thread then writes,
// hashes and syncs this rank's files in step-N.partial. Phase 2, rank 0: once every rank has reported its files, rank 0
// writes manifest.json, renames the folder to step-N, syncs, and removes what retention no longer keeps. The ranks need
// no exchange of their own: each puts report() into the record that the train loop gathers anyway and hands all ranks'
// reports to advance(). What happens is a function of these gathered reports, so every rank sees a save end at the same
// step.
//
//   if (due && !writer.busy()) writer.begin(position, source);
//   ... every step: all_gather(writer.report()) -> reports
//   if (const auto outcome = writer.advance(reports)) { log it }
//   at the end: while (writer.busy()) { writer.wait(); all_gather; writer.advance(reports); }
//
// A save that fails (disk full, folder not writable) is an outcome with a message, not an exception: the
// partial folder is removed and the run goes on. All calls come from one thread.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/buffer.h"
#include "base/hash.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

enum class SaveState : std::uint32_t {
  kIdle,
  kWriting,    // in the background, or publishing (rank 0)
  kWritten,    // this rank's files are on the disk
  kPublished,  // rank 0: the checkpoint is visible
  kFailed,     // this rank could not save its part
  kDiscarded,  // rank 0: the partial folder is gone; `message` says which rank failed, and why
};

// One rank's part of the step's record: plain bytes of fixed size, exchanged by copying.
struct SaveReport {
  SaveState state = SaveState::kIdle;
  std::uint32_t rank = 0;
  std::uint64_t step = 0;
  ElementRange range;  // what this rank's state file holds
  std::uint64_t file_bytes = 0;
  Hash128 file_hash;
  Hash128 digest_sum;
  std::array<char, 184> message{};  // zero-terminated

  [[nodiscard]] std::string_view message_text() const { return message.data(); }
};
static_assert(sizeof(SaveReport) == 256);

struct CheckpointOptions {
  std::filesystem::path folder;  // runs/NAME/checkpoints; created when first needed
  int rank = 0;
  int world = 1;
  ElementRange range;  // the moments that this rank saves: balanced_range() where every rank holds all
  std::string model_file = kModelFileName;
  DType model_dtype = DType::kF32;  // of model_file; a narrow one adds the master weights to the state files
  int keep = 3;                     // newest checkpoints that stay, at least 1
  bool keep_best = false;           // the one with the lowest validation loss stays as well
  bool background = true;
  // How a source on a GPU is copied to host memory; empty: sources lie in the CPU's.
  std::function<void(const BufferView& from, const BufferView& to)> copy_from_device = {};
  double max_mb_per_s = 0;  // this rank's writing rate; 0: as fast as it goes
  // Rank 0: config.json, tokenizer.json and whatever else belongs beside them, name -> text.
  std::map<std::string, std::string> texts;
};

// What begin() copies from; free to change once it returns.
struct CheckpointSource {
  // Rank 0: the whole flat layout, f32 or as model_dtype. Other ranks leave it empty.
  BufferView weights;
  // This rank's range each, options.range.size() elements. `master` only where model_dtype is narrow.
  std::span<const float> master;
  std::span<const float> exp_avg;
  std::span<const float> exp_avg_sq;
  Device device = {};  // of all of them
};

struct SaveOutcome {
  std::uint64_t step = 0;
  bool published = false;
  std::string message;  // why not; or, when published, what retention could not remove (empty: all went well)
};

// Ranges for ranks that all hold the whole state: cut so that every rank writes as many bytes as the others, counting
// rank 0's model.safetensors.
[[nodiscard]] ElementRange balanced_range(const ParameterLayout& layout, int rank, int world, DType model_dtype);

class CheckpointWriter {
 public:
  // Allocates what begin() copies to (in background mode), so that no later save runs out of memory or waits for it.
  // Throws Error(kUsage) for options that contradict each other, Error(kIo) when there is no memory.
  CheckpointWriter(ParameterLayout layout, CheckpointOptions options);
  // Stops writing and waits for the thread. A save under way stays behind as *.partial, which clean_leftovers()
  // removes.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Between begin() and the outcome.
  [[nodiscard]] bool busy() const;
  // Every rank, at the same step, while not busy. Returns when the source was copied (background) or this rank's files
  // are written.
  void begin(const RunPosition& position, const CheckpointSource& source);
  [[nodiscard]] SaveReport report() const;
  // `reports` holds every rank's report() in the order of the ranks. Returns the outcome once a save, on every rank for
  // the same reports. Never blocks when background is set.
  [[nodiscard]] std::optional<SaveOutcome> advance(std::span<const SaveReport> reports);
  // Blocks until this rank's thread has nothing to do.
  void wait();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
