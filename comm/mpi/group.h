// Everything an mpi communicator works with: MPI's communicators, the paths of a sum, the blocking calls.
//
// Used by one thread at a time. When a group was not closed, its memory has to stay: messages may still be under way to
// it.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "comm/communicator.h"
#include "comm/mpi/exchange.h"
#include "comm/mpi/node_sum.h"
#include "comm/mpi/peers.h"
#include "comm/mpi/runtime.h"
#include "comm/mpi/topology.h"
#include "comm/mpi/watch.h"
#include "comm/rank_environment.h"
#include "comm/work_queue.h"

namespace lockstep::mpi {

class Group {
 public:
  // Collective over MPI_COMM_WORLD.
  Group(const CommOptions& options, const RankEnvironment& environment);

  [[nodiscard]] int rank() const { return peers_->rank(); }
  [[nodiscard]] int world_size() const { return peers_->world_size(); }
  [[nodiscard]] int node_size() const { return static_cast<int>(topology_.node_ranks.size()); }
  [[nodiscard]] std::string description() const;

  // Runs one of the calls below. When it fails, what it has to tell the other ranks is sent before the error goes on.
  template <typename Call>
  void run(const Call& call) {
    try {
      call(*this);
    } catch (...) {
      note_failure();
      throw;
    }
  }

  // Builds the paths of a sum: collective, the first call.
  void connect(std::function<void()> sign_of_life);
  // Zeroed memory, in a shared window where the node has one and room for it.
  [[nodiscard]] Buffer allocate(std::size_t size_bytes);
  void sum(const BufferView& data);
  void reduce_scatter(const BufferView& data, std::span<const ElementRange> owned);
  void all_gather_ranges(const BufferView& data, std::span<const ElementRange> owned);
  // How a collective on so many bytes is best begun: a short one where it is waited for.
  [[nodiscard]] WorkQueue::Start start_of(std::size_t size_bytes) const;
  void broadcast(std::span<std::byte> bytes, int root);
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all);
  void barrier();
  void check_peers() { watch_->check_peers(); }
  // MPI_Allreduce in place: milliseconds a call.
  [[nodiscard]] double time_library_sum(const BufferView& data, int repeats);
  // The orderly end: frees what was built, after a barrier. Throws Error(kUsage) while a Buffer from allocate() is
  // alive.
  void close();

  // Callable from another thread: waits end soon, with an error.
  void abandon() { is_abandoned_ = true; }
  // Tells the other ranks, instead of close(), unless they know from a call that failed.
  void leave();

 private:
  void note_failure();
  void wait_for_barrier();

  Runtime runtime_;
  const CommOptions options_;
  MPI_Comm world_ = MPI_COMM_NULL;
  MPI_Comm node_ = MPI_COMM_NULL;
  MPI_Comm counterparts_ = MPI_COMM_NULL;
  Topology topology_;
  std::optional<Peers> peers_;
  std::optional<Watch> watch_;
  std::optional<Exchange> exchange_;
  std::optional<NodeSum> node_sum_;
  std::vector<std::byte> bounce_;  // what MPI's collectives work on
  bool has_failed_ = false;
  std::atomic<bool> is_abandoned_ = false;
};

}  // namespace lockstep::mpi
