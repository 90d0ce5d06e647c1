// What TCP moves between workers and servers when nothing is done with it: a yardstick for sums through parameter
// servers, not a way to move data. As in a sum that every worker wants all of, each sends its buffer to the servers and
// receives as many bytes, both at the same time, over one connection a server; one thread a process. Nothing is
// authenticated, checked or added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/server/session.h"

namespace lockstep::server {

class BareServer {
 public:
  // Listens on the loopback address, at a port that is free. Throws Error(kIo).
  BareServer();
  ~BareServer();
  BareServer(const BareServer&) = delete;
  BareServer& operator=(const BareServer&) = delete;

  [[nodiscard]] std::uint16_t port() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

class BareStream {
 public:
  // Connects to a BareServer each. Throws Error(kPeerLost).
  explicit BareStream(const std::vector<ServerAddress>& servers);
  ~BareStream();
  BareStream(const BareStream&) = delete;
  BareStream& operator=(const BareStream&) = delete;

  // Sends each server its part of `data`, and receives as many zeros in its place. Throws Error(kPeerLost).
  void exchange(std::span<std::byte> data);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::server
