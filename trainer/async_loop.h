// The training loop of a worker whose servers hold the weights (comm.mode bounded and async): it pulls them, computes
// the gradient of its share of a step, and pushes it. Workers do not wait for each other, but as the servers say.
//
// A worker takes the micro-batches that its rank has in mode sync, so each sample is used once; one that comes in a
// lost one's place goes on behind the last gradient that the servers have applied. With one worker the weights are
// those of mode sync, to the bit.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/log.h"
#include "comm/communicator.h"
#include "comm/control/activity.h"
#include "comm/server/store_client.h"
#include "data/batch_loader.h"
#include "trainer/async_lead.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/train_job.h"
#include "trainer/train_loop.h"
#include "trainer/train_step.h"

namespace lockstep {

class AsyncLoop {
 public:
  // `share` has this worker's rank. Everything outlives the loop.
  AsyncLoop(TrainLoop::Setup setup, Communicator& share, server::StoreClient& store, control::Activity& activity,
            Log& log);

  // Tells the servers what is trained; rank 0 gives them weights (the checkpoint's, model.from's, or random ones) where
  // they have none. Throws Error(kUsage) when another worker trains something else, or some servers alone have kept
  // weights. `resume`: TrainRequest's, which chose the checkpoint.
  void begin(const CheckpointReader* checkpoint, const std::string& resume);
  // Until the last step, a stop, or early stopping; closes `store`. `opened` (may be empty) is told the run's folder
  // once it belongs to this worker. Throws Error(kUsage), and ends the job for all, when this worker is to lead and the
  // servers have kept something else than what the run is to go on from.
  [[nodiscard]] TrainEnd run(const std::function<void(const std::filesystem::path& run)>& opened);

 private:
  using Arrays = server::StoreClient::Arrays<float>;
  using Pulled = server::StoreClient::Pulled;

  // Arrays of a pull.
  static constexpr std::uint32_t kNothing = 0;
  static constexpr std::uint32_t kWeights = 1;
  static constexpr std::uint32_t kEverything = 3;

  // Host memory of weights and moments: the backend's own where that is the host's.
  [[nodiscard]] Arrays arrays(std::uint32_t count);
  void upload(std::uint32_t count);
  void load(const CheckpointReader* checkpoint);
  Pulled pull(server::Pull::When when, std::uint32_t count);
  void step();
  void report_step();
  // Takes up or gives up leading, as the servers say. `patience`: how long to wait for another worker's lock. True when
  // it has pulled, after `pulled`.
  bool take_the_lead(const Pulled& pulled, std::chrono::seconds patience = {});
  [[nodiscard]] bool open_run(RunLock& lock, std::int64_t updated, std::chrono::seconds patience);
  void expect_kept_state_is_meant(std::int64_t updated) const;
  void expect_kept_state_is_newest(std::int64_t updated) const;
  // What is due between steps. True when something was: the weights may have changed meanwhile.
  [[nodiscard]] bool lead_between_steps();
  void wish_to_stop_if_asked();
  void end(const Pulled& last, server::Ending ending);
  [[nodiscard]] std::int64_t updated(const Pulled& pulled) const;
  [[noreturn]] void end_diverged(double loss, double norm);
  [[noreturn]] void end_for_all(const Error& error);
  [[nodiscard]] bool is_stop_requested() const { return stop_requested_ && stop_requested_(); }

  const Config config_;
  const SavedTokenizer tokenizer_;
  const std::function<bool()> stop_requested_;
  const std::function<bool()> save_requested_;
  Communicator& share_;
  server::StoreClient& store_;
  control::Activity& activity_;
  Log& log_;
  std::unique_ptr<Backend> backend_;
  TrainStep train_step_;
  RunProgress progress_;
  std::unique_ptr<BatchLoader> loader_;
  std::unique_ptr<AsyncLead> lead_;  // while this worker leads
  std::function<void(const std::filesystem::path& run)> opened_;
  Buffer host_;  // of weights and moments, and of the gradient, where the backend's memory is another
  Buffer gradient_;

  std::string resume_;
  std::int64_t loaded_ = -1;         // step of the checkpoint that this worker began with
  bool is_kept_ = false;             // what the servers hold is from their state folders, and nobody has led since
  bool is_successor_ = false;        // others have led this job, or may have
  bool waits_for_run_ = false;       // which the one that led still holds
  bool has_wished_ = false;          // that all workers end
  std::int64_t completed_ = 0;       // steps of this worker
  std::uint64_t tokens_ = 0;         // inputs of these steps, over all ranks
  std::optional<StepMetrics> step_;  // whose gradient is on its way
  double step_begin_ms_ = 0;
  double pull_ms_ = 0;  // of the last pull
};

}  // namespace lockstep
