// A job of servers that hold the weights and their workers, in one process, over the loopback address.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/server/server.h"
#include "comm/server/store_client.h"
#include "comm/server/store_server.h"
#include "tests/comm/server_job.h"
#include "tests/comm/store_job.h"

namespace lockstep::server {

inline constexpr std::size_t kCount = 600'000;  // several frames a part
inline constexpr std::uint64_t kSteps = 12;

class StoreJob {
 public:
  StoreJob(Mode mode, int workers, int parts = 1, std::filesystem::path state = {}) : mode_(mode), workers_(workers) {
    state_ = std::move(state);
    servers_.resize(static_cast<std::size_t>(parts));
    ports_.resize(servers_.size());
    for (std::size_t part = 0; part < servers_.size(); ++part) {
      start_server(part);
    }
  }
  void stop_server(std::size_t part) { servers_[part].reset(); }
  // From now on workers are told this port.
  void tell_port(std::size_t part, std::uint16_t port) { ports_[part] = port; }
  [[nodiscard]] std::uint16_t port(std::size_t part) const { return ports_[part]; }
  // At the port that it had before.
  void start_server(std::size_t part) {
    StoreServer::Options options;
    options.token = token_;
    options.port = ports_[part];
    options.workers = workers_;
    options.part = static_cast<int>(part);
    options.parts = static_cast<int>(servers_.size());
    options.mode = mode_;
    options.state = state_;
    options.make_rule = test::make_halving_rule;
    options.rejoin = std::chrono::milliseconds(300);
    options.say = [this](LogLevel, const std::string& text) {
      const std::lock_guard lock(mutex_);
      said_ += text + "\n";
    };
    servers_[part] = std::make_unique<StoreServer>(std::move(options));
    ports_[part] = servers_[part]->port();
  }
  [[nodiscard]] StoreClient::Options options(int rank, int timeout_ms = 20'000) const {
    StoreClient::Options options;
    for (const std::uint16_t port : ports_) {
      options.servers.push_back({"127.0.0.1", std::to_string(port)});
    }
    options.token = token_;
    if (rank >= 0) {
      options.rank = rank;
    }
    options.timeout_ms = timeout_ms;
    options.name = "worker " + std::to_string(rank);
    options.mode = mode_;
    return options;
  }
  [[nodiscard]] StoreServer::End end(std::size_t part = 0) {
    return servers_[part]
        ->wait_for_end(std::chrono::seconds(20))
        .value_or(StoreServer::End{false, "goes on", 0, 0, {}});
  }
  [[nodiscard]] std::string said() {
    const std::lock_guard lock(mutex_);
    return said_;
  }

 private:
  Mode mode_;
  int workers_;
  std::filesystem::path state_;
  control::JobToken token_ = control::JobToken::random();
  std::vector<std::unique_ptr<StoreServer>> servers_;
  std::vector<std::uint16_t> ports_;
  std::mutex mutex_;
  std::string said_;
};

// A worker that trains as AsyncLoop does.
class Worker {
 public:
  Worker(StoreJob& job, int rank, std::uint32_t max_staleness = 2, int timeout_ms = 20'000,
         std::uint64_t steps = kSteps, const std::string& description = "lr: 1\n")
      : weights_(kCount), exp_avg_(kCount), exp_avg_sq_(kCount), client_(job.options(rank, timeout_ms)) {
    const StoreClient::Position position = client_.open({.id = 0,
                                                         .elements = kCount,
                                                         .steps = steps,
                                                         .max_staleness = max_staleness,
                                                         .leads = 0,
                                                         .has_reached_end = 0,
                                                         .description = description});
    completed_ = position.completed;
    if (!position.is_initialized && client_.rank() == 0) {
      client_.start(0, {weights_, exp_avg_, exp_avg_sq_});
    }
  }
  [[nodiscard]] StoreClient& client() { return client_; }
  [[nodiscard]] std::uint64_t completed() const { return completed_; }
  [[nodiscard]] const std::vector<float>& weights() const { return weights_; }
  [[nodiscard]] const std::vector<float>& updates() const { return exp_avg_; }
  StoreClient::Pulled pull(Pull::When when = Pull::When::kStep, std::uint32_t arrays = 1,
                           const std::function<void()>& poll = {}) {
    return client_.pull({.completed = completed_, .arrays = arrays, .when = when}, {weights_, exp_avg_, exp_avg_sq_},
                        poll);
  }
  void push() {
    gradient_ = test::gradient_of(static_cast<std::uint32_t>(client_.rank()), completed_, kCount);
    client_.push(completed_, 0.5F, gradient_);
    ++completed_;
  }
  // As many steps as are left, or these. Returns what the last pull said.
  Ending steps(std::uint64_t until = kSteps, const std::function<void()>& between = {}) {
    while (completed_ < until) {
      if (const StoreClient::Pulled pulled = pull(); pulled.ending != Ending::kNone) {
        return pulled.ending;
      }
      if (between) {
        between();
      }
      push();
    }
    return Ending::kNone;
  }
  StoreClient::Pulled finish() {
    const StoreClient::Pulled pulled = pull(Pull::When::kEnd, 3);
    client_.close();
    return pulled;
  }

 private:
  std::vector<float> weights_;
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
  std::vector<float> gradient_;
  std::uint64_t completed_ = 0;
  StoreClient client_;  // goes first: it may be sending what lies above
};

// The weights after all steps of one worker.
inline std::vector<float> weights_of_one_worker(std::uint64_t steps = kSteps) {
  std::vector<float> weights(kCount);
  for (std::uint64_t step = 0; step < steps; ++step) {
    const std::vector<float> gradient = test::gradient_of(0, step, kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      weights[i] = 0.5F * weights[i] + 0.5F * gradient[i];
    }
  }
  return weights;
}

}  // namespace lockstep::server
