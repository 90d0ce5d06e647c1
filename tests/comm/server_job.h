// Parameter servers and their workers in one process, a thread for each worker, over the loopback address.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/server/communicator.h"
#include "comm/server/server.h"

namespace lockstep::test {

class ServerJob {
 public:
  explicit ServerJob(int workers, int servers = 1) {
    for (int part = 0; part < servers; ++part) {
      server::Server::Options options;
      options.token = token_;
      options.workers = workers;
      options.part = part;
      options.parts = servers;
      servers_.push_back(std::make_unique<server::Server>(options));
    }
  }

  [[nodiscard]] server::Server& server(std::size_t i = 0) { return *servers_[i]; }
  void stop_server(std::size_t i) { servers_[i].reset(); }

  // Of worker `rank`; -1: any that is free.
  [[nodiscard]] server::Session::Options options(int rank, int timeout_ms = 20'000) const {
    server::Session::Options options;
    for (const auto& server : servers_) {
      options.servers.push_back({"127.0.0.1", std::to_string(server->port())});
    }
    options.token = token_;
    if (rank >= 0) {
      options.rank = rank;
    }
    options.timeout_ms = timeout_ms;
    options.name = "worker " + std::to_string(rank);
    return options;
  }

  // How a server saw the job end; a cause of "it goes on" when it does not within ten seconds.
  [[nodiscard]] server::Server::End end(std::size_t i = 0) {
    return servers_[i]->wait_for_end(std::chrono::seconds(10)).value_or(server::Server::End{false, "it goes on"});
  }

 private:
  control::JobToken token_ = control::JobToken::random();
  std::vector<std::unique_ptr<server::Server>> servers_;
};

// Runs `body` once for each of these ranks, at the same time. Returns what each threw, in their order: "" for nothing.
inline std::vector<std::string> run_workers(const std::vector<int>& ranks, const std::function<void(int)>& body) {
  std::vector<std::string> errors(ranks.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        body(ranks[i]);
      } catch (const std::exception& error) {
        errors[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return errors;
}

inline std::vector<int> ranks_below(int count) {
  std::vector<int> ranks;
  for (int rank = 0; rank < count; ++rank) {
    ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace lockstep::test
