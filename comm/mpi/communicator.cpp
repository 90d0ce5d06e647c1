#include "comm/mpi/communicator.h"

#include <type_traits>
#include <utility>

#include "base/error.h"
#include "comm/arguments.h"
#include "comm/mpi/group.h"
#include "comm/mpi/module.h"
#include "comm/work_queue.h"

namespace lockstep {
namespace {

// Beyond its deadlines, which the waits of a call keep themselves: how long MPI may stay inside one of its own
// functions.
constexpr int kStuckGraceMs = 30'000;

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(const CommOptions& options, const RankEnvironment& environment)
      : group_(std::make_shared<mpi::Group>(options, environment)),
        queue_(std::make_unique<WorkQueue>(WorkQueue::Limits{1024, options.timeout_ms + kStuckGraceMs})) {
    run([sign = queue_->sign_of_life()](mpi::Group& group) { group.connect(sign); });
  }

  ~MpiCommunicator() override {
    if (is_closed_) {
      return;
    }
    group_->abandon();
    queue_.reset();
    // Not reached by the queue's thread any more, unless that is stuck inside MPI, which then is not to be touched.
    if (group_.use_count() == 1) {
      group_->leave();
    }
    new std::shared_ptr<mpi::Group>(group_);
  }

  [[nodiscard]] int rank() const override { return group_->rank(); }
  [[nodiscard]] int world_size() const override { return group_->world_size(); }
  [[nodiscard]] int node_size() const override { return group_->node_size(); }
  [[nodiscard]] std::string description() const override { return group_->description(); }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override {
    auto result = std::make_shared<Buffer>();
    run([result, size_bytes](mpi::Group& group) { *result = group.allocate(size_bytes); });
    return std::move(*result);
  }

  [[nodiscard]] Work all_reduce_sum(BufferView data) override {
    comm_detail::check_all_reduce(data);
    return push([data](mpi::Group& group) { group.sum(data); }, group_->start_of(data.size_bytes()));
  }

  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override {
    comm_detail::check_reduce_scatter(data, owned, world_size());
    return push([data, owned](mpi::Group& group) { group.reduce_scatter(data, owned); },
                group_->start_of(data.size_bytes()));
  }

  [[nodiscard]] Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) override {
    comm_detail::check_all_gather_ranges(data, owned, world_size());
    return push([data, owned](mpi::Group& group) { group.all_gather_ranges(data, owned); },
                group_->start_of(data.size_bytes()));
  }

  void broadcast(std::span<std::byte> bytes, int root) override {
    comm_detail::check_broadcast(root, world_size());
    run([bytes, root](mpi::Group& group) { group.broadcast(bytes, root); });
  }

  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    comm_detail::check_all_gather(mine, all, world_size());
    run([mine, all](mpi::Group& group) { group.all_gather(mine, all); });
  }

  void barrier() override {
    run([](mpi::Group& group) { group.barrier(); });
  }

  void check_peers() override {
    run([](mpi::Group& group) { group.check_peers(); });
  }

  [[nodiscard]] double time_library_sum(BufferView data, int repeats) override {
    const auto ms = std::make_shared<double>(0);
    run([ms, data, repeats](mpi::Group& group) { *ms = group.time_library_sum(data, repeats); });
    return *ms;
  }

  void close() override {
    run([](mpi::Group& group) { group.close(); });
    is_closed_ = true;
    queue_.reset();
  }

 private:
  // `call` runs with the group, on the queue's thread or on one that waits for it.
  template <typename Call>
  Work push(Call call, WorkQueue::Start start = WorkQueue::Start::kAtOnce) {
    require(!is_closed_, "comm: a call after close()");
    return queue_->push([group = group_, call] { group->run(call); }, start);
  }
  template <typename Call>
  void run(Call call) {
    push(std::move(call)).wait();
  }

  std::shared_ptr<mpi::Group> group_;
  std::unique_ptr<WorkQueue> queue_;
  bool is_closed_ = false;
};

}  // namespace

}  // namespace lockstep

extern "C" __attribute__((visibility("default"))) lockstep::Communicator* LOCKSTEP_MPI_FACTORY(
    const lockstep::CommOptions& options, const lockstep::RankEnvironment& environment) {
  return new lockstep::MpiCommunicator(options, environment);
}
static_assert(std::is_same_v<decltype(LOCKSTEP_MPI_FACTORY), lockstep::mpi::Factory>);
