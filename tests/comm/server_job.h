// Parameter servers and their workers in one process, a thread for each worker, over the loopback address.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/server/communicator.h"
#include "comm/server/server.h"

namespace lockstep::test {

class ServerJob {
 public:
  explicit ServerJob(int workers, int servers = 1, server::Server::Options options = {})
      : options_(std::move(options)) {
    options_.workers = workers;
    options_.parts = servers;
    options_.say = [this](LogLevel, const std::string& text) {
      const std::lock_guard lock(mutex_);
      said_ += text + "\n";
    };
    for (int part = 0; part < servers; ++part) {
      options_.part = part;
      servers_.push_back(std::make_unique<server::Server>(options_));
      ports_.push_back(servers_.back()->port());
    }
  }

  [[nodiscard]] server::Server& server(std::size_t i = 0) { return *servers_[i]; }
  void stop_server(std::size_t i) { servers_[i].reset(); }
  // Another one in its place, which knows nothing of it.
  void start_server(std::size_t i) {
    options_.part = static_cast<int>(i);
    options_.port = ports_[i];
    servers_[i] = std::make_unique<server::Server>(options_);
  }
  // What the servers told people so far.
  [[nodiscard]] std::string said() const {
    const std::lock_guard lock(mutex_);
    return said_;
  }

  // Of worker `rank`; -1: any that is free.
  [[nodiscard]] server::Session::Options options(int rank, int timeout_ms = 20'000) const {
    server::Session::Options options;
    for (const std::uint16_t port : ports_) {
      options.servers.push_back({"127.0.0.1", std::to_string(port)});
    }
    options.token = options_.token;
    if (rank >= 0) {
      options.rank = rank;
      options.insists = true;
      options.process = static_cast<std::uint64_t>(rank);
    } else {
      static std::atomic<std::uint64_t> others = 1'000'000;
      options.process = ++others;
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
  server::Server::Options options_;
  mutable std::mutex mutex_;
  std::string said_;  // under the mutex
  std::vector<std::uint16_t> ports_;
  std::vector<std::unique_ptr<server::Server>> servers_;
};

// Of servers that show this.
inline server::Server::Options tls_options(std::shared_ptr<const server::TlsContext> tls) {
  server::Server::Options options;
  options.tls = std::move(tls);
  return options;
}

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
