// A worker's connections to all servers of its job, on a thread of their own: collectives proceed while the caller
// computes.
//
// A call's frames are queued for all servers at once, and sent from the caller's memory; what comes back is read into
// it. Several calls may be in flight. When nothing has moved for timeout_ms although a call waits, the servers are
// asked who is to blame, and tell every worker. A failure ends the session: every call in flight and later fails with
// the same error, once no more of the callers' memory is in use, but for what is shared. Where only the group of
// workers is over, because one or a server was lost, a new session may go on in the next group: see may_rejoin().
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "comm/communicator.h"
#include "comm/control/token.h"
#include "comm/server/tls.h"
#include "comm/server/wire.h"

namespace lockstep::server {

struct ServerAddress {
  std::string host;
  std::string port;

  friend bool operator==(const ServerAddress&, const ServerAddress&) = default;
};
[[nodiscard]] std::string text_of(const ServerAddress& address);
// "node01:7070,node02:7070"; "node01:7070-7072" for three of one host; an IPv6 address in brackets. Throws
// Error(kUsage).
[[nodiscard]] std::vector<ServerAddress> parse_addresses(const std::string& text);

// A number that is this process's and no other's.
[[nodiscard]] std::uint64_t own_process();

class OwnMemory;

class Session {
 public:
  struct Options {
    std::vector<ServerAddress> servers;  // in the order of their parts
    control::JobToken token = control::JobToken::random();
    std::optional<int> rank;  // nothing: one that the first server chooses
    bool insists = false;     // on `rank`; otherwise it is the one that this process had before
    int world = 0;            // 0: as many as the servers wait for
    int timeout_ms = 600'000;
    int silence_ms = 0;  // a server that says nothing for so long is lost, and so is this worker; 0: no limit
    std::string name;    // "host node07, process 4711"
    std::function<bool()> gives_up = {};  // polled on the session's thread while it waits for a group; may be empty
    // The newest group that this process was in; servers that do not know of it number theirs after it. May be null.
    std::shared_ptr<std::atomic<std::uint64_t>> newest_group = {};
    std::uint64_t process = own_process();
    std::shared_ptr<const TlsContext> tls = {};  // null: connections are not encrypted
    bool shares_memory = true;                   // with servers on this machine
  };
  // Connects to every server, again and again until it answers, for timeout_ms in all, and returns when all workers of
  // a group are there. Throws Error(kUsage) when a server refuses this worker, Error(kTimeout) when one does not answer
  // or another worker does not come.
  explicit Session(Options options);
  // Without close() the others are told that this worker left.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] int rank() const;
  [[nodiscard]] int world() const;

  // From one thread. `name` is for errors: "all_reduce_sum of 1000 f32". `data` is summed in place, of which elements
  // `wanted` are received; what it holds elsewhere is undefined afterwards. `wire`: not kAsIs only for f32, the same on
  // every rank. What kInt8 loses is added to the next sum of the same buffer, that is, of the same address and count.
  [[nodiscard]] Work sum(std::string name, BufferView data, ElementRange wanted, Wire wire = Wire::kAsIs);
  // bytes[owned[r]] of rank r go to all others.
  [[nodiscard]] Work gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned);
  // Memory whose sums servers on this machine make in place; null when there is no such server, or no memory. A server
  // that has been lost may still write to it, so it must not outlive the session in use.
  [[nodiscard]] std::shared_ptr<OwnMemory> share(std::size_t size_bytes);
  // Afterwards no call may be made with it.
  void take_back(const std::shared_ptr<OwnMemory>& memory);
  // Throws the error that ended the session.
  void check() const;
  // Whether the session has ended, and the job goes on.
  [[nodiscard]] bool may_rejoin() const;
  // Collective, after a barrier. Waits until every server knows that this worker ends in order. Throws
  // Error(kPeerLost, kTimeout).
  void close();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::server
