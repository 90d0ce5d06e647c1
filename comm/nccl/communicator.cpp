#include "comm/nccl/communicator.h"

#include <fmt/format.h>

#include <chrono>

#include "comm/arguments.h"
#include "comm/nccl/collectives.h"
#include "comm/nccl/group.h"

namespace lockstep {
namespace {

bool is_on_gpu(const BufferView& data) { return data.device.kind == DeviceKind::kCuda; }

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const CommOptions& options, Communicator& host)
      : host_(host),
        group_(std::make_shared<nccl::Group>(options, host_)),
        collectives_(std::make_unique<nccl::Collectives>(*group_, options.elastic)) {}

  ~NcclCommunicator() override {
    group_->abandon();
    if (group_->is_stuck()) {
      static_cast<void>(collectives_.release());
      new std::shared_ptr<nccl::Group>(group_);
    }
  }

  [[nodiscard]] int rank() const override { return host_.rank(); }
  [[nodiscard]] int world_size() const override { return host_.world_size(); }
  [[nodiscard]] int node_size() const override { return host_.node_size(); }
  [[nodiscard]] std::string description() const override {
    return fmt::format("nccl {} over {}", group_->library().version(), host_.description());
  }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return host_.allocate(size_bytes); }

  [[nodiscard]] Work all_reduce_sum(BufferView data) override {
    if (!is_on_gpu(data)) {
      return host_.all_reduce_sum(data);
    }
    comm_detail::check_all_reduce(data, group_->device());
    return group_->start({"all_reduce_sum", data.count, data.dtype}, [&] { collectives_->all_reduce(data); });
  }

  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override {
    if (!is_on_gpu(data)) {
      return host_.reduce_scatter_sum(data, owned);
    }
    comm_detail::check_reduce_scatter(data, owned, world_size(), group_->device());
    return group_->start({"reduce_scatter_sum", data.count, data.dtype},
                         [&] { collectives_->reduce_scatter(data, owned); });
  }

  [[nodiscard]] Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) override {
    if (!is_on_gpu(data)) {
      return host_.all_gather_ranges(data, owned);
    }
    comm_detail::check_all_gather_ranges(data, owned, world_size(), group_->device());
    return group_->start({"all_gather_ranges", data.count, data.dtype}, [&] { collectives_->all_gather(data, owned); });
  }

  void broadcast(std::span<std::byte> bytes, int root) override { host_.broadcast(bytes, root); }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override { host_.all_gather(mine, all); }
  void barrier() override { host_.barrier(); }
  void check_peers() override { host_.check_peers(); }
  // ncclAllReduce.
  [[nodiscard]] double time_library_sum(BufferView data, int repeats) override {
    if (!is_on_gpu(data)) {
      return host_.time_library_sum(data, repeats);
    }
    comm_detail::check_all_reduce(data, group_->device());
    barrier();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) {
      group_->start({"ncclAllReduce", data.count, data.dtype}, [&] { collectives_->library_all_reduce(data); }).wait();
    }
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count() / repeats;
  }

  void close() override { group_->close(); }

 private:
  Communicator& host_;
  std::shared_ptr<nccl::Group> group_;  // shared with every Work
  std::unique_ptr<nccl::Collectives> collectives_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const CommOptions& options, Communicator& host) {
  return std::make_unique<NcclCommunicator>(options, host);
}

}  // namespace lockstep
