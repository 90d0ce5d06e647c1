#include "comm/mpi/peers.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/process.h"
#include "comm/mpi/check.h"

namespace lockstep::mpi {
namespace {

template <std::size_t N>
void copy_text(const std::string& text, std::array<char, N>& to) {
  std::copy_n(text.begin(), std::min(text.size(), N - 1), to.begin());
}

}  // namespace

Peers::Identity Peers::own_identity() {
  Identity identity;
  copy_text(host_name(), identity.host);
  std::ifstream boot_file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  boot_file >> boot;
  copy_text(boot, identity.boot);
  identity.pid_namespace = process_namespace();
  identity.pid = ::getpid();
  if (const auto own = process_status(identity.pid)) {
    identity.start_time = own->start_time;
  }
  return identity;
}

Peers::Peers(MPI_Comm world) {
  int size = 0;
  check(MPI_Comm_rank(world, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(world, &size), "MPI_Comm_size");
  all_.resize(static_cast<std::size_t>(size));
  const Identity own = own_identity();
  check(MPI_Allgather(&own, sizeof(own), MPI_BYTE, all_.data(), sizeof(own), MPI_BYTE, world), "MPI_Allgather");
}

ProcessState Peers::state_of(int rank) const {
  const Identity& own = all_[static_cast<std::size_t>(rank_)];
  const Identity& peer = all_[static_cast<std::size_t>(rank)];
  const bool can_be_seen =
      own.start_time != 0 && peer.start_time != 0 && own.boot == peer.boot && own.pid_namespace == peer.pid_namespace;
  if (!can_be_seen) {
    return ProcessState::kUnknown;
  }
  const auto status = process_status(peer.pid);
  if (!status || status->start_time != peer.start_time || status->state == 'Z' || status->state == 'X') {
    return ProcessState::kGone;
  }
  return status->state == 'T' || status->state == 't' ? ProcessState::kStopped : ProcessState::kRunning;
}

std::string Peers::name_of(int rank) const {
  const Identity& peer = all_[static_cast<std::size_t>(rank)];
  return fmt::format("rank {} (host {}, process {})", rank, peer.host.data(), peer.pid);
}

}  // namespace lockstep::mpi
