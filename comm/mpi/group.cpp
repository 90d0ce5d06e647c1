#include "comm/mpi/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/mpi/check.h"

namespace lockstep::mpi {
namespace {

// Broadcast and all-gather go through memory of the group's own, in pieces of this many bytes in all.
constexpr std::size_t kBounceBytes = std::size_t{4} << 20;
// To wake the communication thread and to hear from it takes 11 us: a sum of 4 MiB within a node takes 60, one of 1 MiB
// between nodes 200, and there the woken thread would take its core from a rank that is about to answer.
constexpr std::size_t kShortInANode = std::size_t{4} << 20;
constexpr std::size_t kShortBetweenNodes = std::size_t{1} << 20;

// By rank: the first rank that shares its memory.
std::vector<int> detect_nodes(MPI_Comm world, int rank, int world_size) {
  MPI_Comm shared = MPI_COMM_NULL;
  check(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &shared), "MPI_Comm_split_type");
  int first = rank;
  check(MPI_Bcast(&first, 1, MPI_INT, 0, shared), "MPI_Bcast");
  check(MPI_Comm_free(&shared), "MPI_Comm_free");
  std::vector<int> nodes(static_cast<std::size_t>(world_size));
  check(MPI_Allgather(&first, 1, MPI_INT, nodes.data(), 1, MPI_INT, world), "MPI_Allgather");
  return nodes;
}

MPI_Comm split(MPI_Comm world, int color, int rank) {
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(world, color, rank, &part), "MPI_Comm_split");
  return part;
}

}  // namespace

Group::Group(const CommOptions& options, const RankEnvironment& environment) : options_(options) {
  check(MPI_Comm_dup(MPI_COMM_WORLD, &world_), "MPI_Comm_dup");
  peers_.emplace(world_);
  check_mpi_world_size(environment, world_size());
  std::vector<int> nodes = detect_nodes(world_, rank(), world_size());
  if (options_.ranks_per_node > 0) {
    nodes = override_nodes(nodes, options_.ranks_per_node);
  }
  topology_ = make_topology(nodes, rank());
}

void Group::connect(std::function<void()> sign_of_life) {
  Watch::Settings settings;
  settings.timeout_ms = options_.timeout_ms;
  settings.sign_of_life = std::move(sign_of_life);
  settings.is_abandoned = [this] { return is_abandoned_.load(); };
  watch_.emplace(world_, *peers_, std::move(settings));
  watch_->begin_call("start");

  std::vector<int> members = topology_.counterpart_ranks;
  if (!topology_.nodes_are_subtrees) {
    for (int r = 0; r < world_size(); ++r) {
      members.push_back(r);
    }
  }
  counterparts_ = split(world_, members.front(), rank());
  node_ = split(world_, topology_.node_ranks.front(), rank());
  exchange_.emplace(counterparts_, members, *watch_);
  if (topology_.nodes_are_subtrees && node_size() > 1) {
    node_sum_.emplace(node_, topology_.node_ranks, topology_.nodes > 1 ? &*exchange_ : nullptr, *watch_);
  }
}

std::string Group::description() const {
  if (!topology_.nodes_are_subtrees) {
    return fmt::format("mpi: {} ranks on {} nodes, all by messages since the nodes are not 2^k consecutive ranks each",
                       world_size(), topology_.nodes);
  }
  return fmt::format("mpi: {} rank(s), {} node(s) of {}", world_size(), topology_.nodes, node_size());
}

Buffer Group::allocate(std::size_t size_bytes) {
  watch_->begin_call("allocate");
  if (node_sum_ && size_bytes > 0) {
    if (auto allocation = node_sum_->allocate(size_bytes)) {
      return Buffer(allocation->data, size_bytes, [in_use = allocation->in_use](void*) { *in_use = false; });
    }
  }
  return Buffer::allocate(size_bytes);
}

void Group::sum(const BufferView& data) {
  watch_->begin_call("all_reduce_sum", data.count, name_of(data.dtype));
  if (node_sum_) {
    node_sum_->sum(data);
  } else {
    exchange_->sum(data);
  }
}

void Group::reduce_scatter(const BufferView& data, std::span<const ElementRange> owned) {
  watch_->begin_call("reduce_scatter_sum", data.count, name_of(data.dtype));
  if (node_sum_) {
    node_sum_->reduce_scatter(data, owned);
  } else {
    exchange_->reduce_scatter(data, owned);
  }
}

void Group::all_gather_ranges(const BufferView& data, std::span<const ElementRange> owned) {
  watch_->begin_call("all_gather_ranges", data.count, name_of(data.dtype));
  if (node_sum_) {
    node_sum_->all_gather(data, owned);
  } else {
    exchange_->all_gather(data, owned);
  }
}

WorkQueue::Start Group::start_of(std::size_t size_bytes) const {
  return size_bytes <= (topology_.nodes > 1 ? kShortBetweenNodes : kShortInANode) ? WorkQueue::Start::kWhenWaitedFor
                                                                                  : WorkQueue::Start::kAtOnce;
}

void Group::broadcast(std::span<std::byte> bytes, int root) {
  watch_->begin_call("broadcast", bytes.size(), "bytes");
  bounce_.resize(std::max(bounce_.size(), std::min(kBounceBytes, bytes.size())));
  for (std::size_t begin = 0; begin < bytes.size(); begin += kBounceBytes) {
    const auto piece = bytes.subspan(begin, std::min(kBounceBytes, bytes.size() - begin));
    std::memcpy(bounce_.data(), piece.data(), piece.size());
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibcast(bounce_.data(), static_cast<int>(piece.size()), MPI_BYTE, root, world_, &request), "MPI_Ibcast");
    wait_for(request, *watch_, -1);
    std::memcpy(piece.data(), bounce_.data(), piece.size());
  }
  // So that no rank leaves a call before all have entered it, which is what the watch judges by.
  wait_for_barrier();
}

void Group::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  watch_->begin_call("all_gather", mine.size(), "bytes a rank");
  const auto ranks = static_cast<std::size_t>(world_size());
  const std::size_t longest = std::min(std::max<std::size_t>(1, kBounceBytes / (ranks + 1)), mine.size());
  bounce_.resize(std::max(bounce_.size(), longest * (ranks + 1)));
  for (std::size_t begin = 0; begin < mine.size(); begin += longest) {
    const std::size_t length = std::min(longest, mine.size() - begin);
    std::byte* const gathered = bounce_.data() + length;
    std::memcpy(bounce_.data(), mine.data() + begin, length);
    MPI_Request request = MPI_REQUEST_NULL;
    const auto count = static_cast<int>(length);
    check(MPI_Iallgather(bounce_.data(), count, MPI_BYTE, gathered, count, MPI_BYTE, world_, &request),
          "MPI_Iallgather");
    wait_for(request, *watch_, -1);
    for (std::size_t r = 0; r < ranks; ++r) {
      std::memcpy(all.data() + r * mine.size() + begin, gathered + r * length, length);
    }
  }
  if (mine.empty()) {
    wait_for_barrier();
  }
}

void Group::barrier() {
  watch_->begin_call("barrier");
  wait_for_barrier();
}

double Group::time_library_sum(const BufferView& data, int repeats) {
  watch_->begin_call("MPI_Allreduce", data.count, "f32");
  wait_for_barrier();
  const double begin_s = MPI_Wtime();
  for (int i = 0; i < repeats; ++i) {
    check(MPI_Allreduce(MPI_IN_PLACE, data.data, static_cast<int>(data.count), MPI_FLOAT, MPI_SUM, world_),
          "MPI_Allreduce");
  }
  return (MPI_Wtime() - begin_s) * 1e3 / repeats;
}

void Group::wait_for_barrier() {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(world_, &request), "MPI_Ibarrier");
  wait_for(request, *watch_, -1);
}

void Group::close() {
  watch_->begin_call("close");
  require(!node_sum_ || !node_sum_->has_memory_in_use(),
          "close: a buffer from allocate() is still alive, expected all of them to be destroyed before");
  wait_for_barrier();
  if (node_sum_) {
    node_sum_->close();
  }
  watch_->close();
  for (MPI_Comm* comm : {&counterparts_, &node_, &world_}) {
    check(MPI_Comm_free(comm), "MPI_Comm_free");
  }
  runtime_.release();
}

void Group::leave() {
  if (watch_ && !has_failed_) {
    watch_->leave();
  }
}

void Group::note_failure() {
  has_failed_ = true;
  if (watch_) {
    watch_->flush();
  }
}

}  // namespace lockstep::mpi
