// One training run, from the configuration to the last checkpoint: what `lockstep train` does on every rank.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "base/log.h"
#include "comm/communicator.h"
#include "comm/control/activity.h"
#include "trainer/config.h"
#include "trainer/rank_state.h"

namespace lockstep {

namespace server {
class StoreClient;
}

struct TrainRequest {
  Config config;  // as written: see load_config()
  // Where to start: "auto" takes the newest intact checkpoint of the run when there is one, "none" starts anew and sets
  // the run's checkpoints aside, anything else is the folder of a checkpoint.
  std::string resume = "auto";
  // Polled in every step and between the batches of an evaluation; true on one rank stops all of them at the same step,
  // after a save. May be empty.
  std::function<bool()> stop_requested;
  // Polled once a step; true on one rank saves after that step. May be empty.
  std::function<bool()> save_requested = {};
  // Where the run writes down what it is doing, for those who watch. May be null.
  control::Activity* activity = nullptr;
  // Called on rank 0 once the run's folder is there and belongs to this job. May be empty.
  std::function<void(const std::filesystem::path& run)> opened = {};
  // Where the communicator replaces lost ranks: what this rank has of the run since a group before, and where to put
  // what it has when train() throws. May be null.
  std::optional<RankState>* state = nullptr;
  // This rank has been in a group of this job before: the run has begun, whatever `resume` said then.
  bool rejoins = false;
  // comm.mode bounded and async: the servers that hold the weights, and nothing is collective. Otherwise null.
  server::StoreClient* store = nullptr;
};

enum class TrainEnd {
  kFinished,  // all steps done, or early stopping
  kStopped,   // asked to stop; saved
};

// Collective. Throws AgreedError for what a user got wrong (the same on all ranks, nothing was changed) and Error for
// what happened on this rank alone or while running.
[[nodiscard]] TrainEnd train(const TrainRequest& request, Communicator& communicator, Log& log);

}  // namespace lockstep
