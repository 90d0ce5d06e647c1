// Who the other ranks are as processes: their host, and, for those on this host, whether they still exist.
#pragma once

#include <mpi.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace lockstep::mpi {

enum class ProcessState {
  kRunning,
  kStopped,  // by a signal or a debugger
  kGone,
  kUnknown,  // on another host or in another container
};

class Peers {
 public:
  // Collective over `world`.
  explicit Peers(MPI_Comm world);

  [[nodiscard]] int world_size() const { return static_cast<int>(all_.size()); }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] ProcessState state_of(int rank) const;
  // "rank 3 (host node07, process 4711)".
  [[nodiscard]] std::string name_of(int rank) const;

 private:
  // What every rank tells the others about itself, byte by byte.
  struct Identity {
    std::array<char, 64> host{};
    std::array<char, 40> boot{};      // tells hosts of the same name apart
    std::uint64_t pid_namespace = 0;  // process ids mean something only within one
    std::int64_t pid = 0;
    std::uint64_t start_time = 0;  // a process id may be given to a new process, not with the same start
  };
  [[nodiscard]] static Identity own_identity();

  int rank_ = 0;
  std::vector<Identity> all_;
};

}  // namespace lockstep::mpi
