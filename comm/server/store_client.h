// A worker's connections to the parameter servers that hold the weights, on a thread of their own.
//
//   StoreClient client(options);          connects, gets a rank
//   client.open(...);                     says what is to be trained; the first rank also sends the weights: start()
//   for each step: pull(); compute; push();
//   pull() at the end; close();
//
// A connection that is lost is made again, and what was not acknowledged is sent again, for timeout_ms; servers drop
// what they have. So a server that keeps its state may be killed and started again. When that does not help, or a
// server ends the job, every call throws the same error. Calls come from one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/control/token.h"
#include "comm/server/session.h"
#include "comm/server/store_protocol.h"

namespace lockstep::server {

class StoreClient {
 public:
  struct Options {
    std::vector<ServerAddress> servers;  // in the order of their parts
    control::JobToken token = control::JobToken::random();
    std::optional<int> rank;  // nothing: one that the first server chooses
    int world = 0;            // 0: as many as the servers wait for
    int timeout_ms = 600'000;
    std::string name;  // "host node07, process 4711"
    Mode mode = Mode::kBounded;
    std::shared_ptr<const TlsContext> tls = {};  // null: connections are not encrypted
  };
  // Connects to every server, again and again until it answers, for timeout_ms in all. Throws Error(kUsage) when a
  // server refuses this worker, Error(kTimeout) when one does not answer.
  explicit StoreClient(Options options);
  // Without close() the servers take this worker for lost: the others go on.
  ~StoreClient();
  StoreClient(const StoreClient&) = delete;
  StoreClient& operator=(const StoreClient&) = delete;

  [[nodiscard]] int rank() const;
  [[nodiscard]] int world() const;
  [[nodiscard]] Mode mode() const;

  struct Position {
    bool is_initialized = false;  // all servers have weights
    bool is_kept = false;         // from their state folders, and nobody has led since; or some of them have such
    std::uint64_t completed = 0;  // this worker's steps that all servers have applied
  };
  // Throws Error(kUsage) when another worker trains something else. Id is filled in.
  [[nodiscard]] Position open(Open open);

  // All elements of the flat parameters each, in host memory; moments may be empty where they are not asked for.
  template <typename Float>
  struct Arrays {
    std::span<Float> weights;
    std::span<Float> exp_avg = {};
    std::span<Float> exp_avg_sq = {};
  };
  // The state that every rank begins with, after so many steps. Servers that have one already keep it.
  void start(std::uint64_t completed, const Arrays<const float>& values);

  struct Pulled {
    std::uint64_t version = 0;      // the smallest of the servers'
    Ending ending = Ending::kNone;  // then no weights came
    bool leads = false;             // this worker evaluates and saves
    bool is_led = false;            // another one does
    double stale_mean = 0;          // of all updates so far, in steps of all workers
    double stale_max = 0;
    std::uint64_t missing = 0;  // steps of workers that were lost
  };
  // Waits as long as the servers say that there is something to wait for. `poll` (may be empty) is called now and then
  // meanwhile: it may call wish().
  [[nodiscard]] Pulled pull(const Pull& pull, const Arrays<float>& into, const std::function<void()>& poll = {});
  // The servers have not named another worker to lead since the last pull said that this one does. From `poll`, too.
  [[nodiscard]] bool leads() const;
  // All workers are to end: from then on pulls for a step say so.
  void wish(Ending ending);
  // Begins to send; `values`, all elements, stay as they are until the next pull returns, or this client is gone. The
  // version is filled in.
  void push(std::uint64_t step, float scale, std::span<const float> values);
  // By how many updates of others, in steps, the last push was behind on arrival; at the slowest server, once a later
  // pull has returned.
  [[nodiscard]] double last_staleness() const;

  // The orderly end, once nothing is under way.
  void close();
  // Ends the job for all workers.
  void fail(const Error& error);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::server
