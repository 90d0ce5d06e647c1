#include "comm/server/communicator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "base/process.h"
#include "comm/arguments.h"
#include "comm/server/shared_memory.h"

namespace lockstep {
namespace {

// The same for processes that share a machine and its loopback address: a network namespace of one boot.
std::string own_node() {
  std::ifstream boot_file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  boot_file >> boot;
  char network[64] = {};
  const ssize_t length = ::readlink("/proc/self/ns/net", network, sizeof(network));
  return fmt::format("{} {} {}", host_name(), boot,
                     std::string(network, static_cast<std::size_t>(std::max<ssize_t>(length, 0))));
}

std::string text_of(const char* call, const BufferView& data) {
  return fmt::format("{} of {} {}", call, data.count, name_of(data.dtype));
}

class ServerCommunicator final : public Communicator {
 public:
  ServerCommunicator(std::shared_ptr<server::Session> session, std::size_t servers, int ranks_per_node,
                     server::Wire wire)
      : servers_(servers), wire_(wire), session_(std::move(session)) {
    node_size_ = ranks_per_node > 0 ? size_of_group(ranks_per_node) : detected_node_size();
  }

  [[nodiscard]] int rank() const override { return session_->rank(); }
  [[nodiscard]] int world_size() const override { return session_->world(); }
  [[nodiscard]] int node_size() const override { return node_size_; }
  [[nodiscard]] std::string description() const override {
    return fmt::format("server: {} rank{}, sums by {} parameter server{}{}", world_size(), world_size() == 1 ? "" : "s",
                       servers_, servers_ == 1 ? "" : "s",
                       wire_ == server::Wire::kAsIs
                           ? ""
                           : fmt::format(" of gradients that travel as {}, not in the bits of fp32", name_of(wire_)));
  }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override {
    const std::shared_ptr<server::OwnMemory> memory = session_->share(size_bytes);
    if (!memory) {
      return Buffer::allocate(size_bytes);
    }
    return {memory->bytes().data(), size_bytes, [from = std::weak_ptr(session_), memory](void*) {
              if (const auto session = from.lock()) {
                session->take_back(memory);
              }
            }};
  }

  [[nodiscard]] Work all_reduce_sum(BufferView data) override {
    comm_detail::check_all_reduce(data);
    return session_->sum(text_of("all_reduce_sum", data), data, {0, data.count}, wire_of(data));
  }

  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override {
    comm_detail::check_reduce_scatter(data, owned, world_size());
    return session_->sum(text_of("reduce_scatter_sum", data), data, owned[static_cast<std::size_t>(rank())],
                         wire_of(data));
  }

  [[nodiscard]] Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) override {
    comm_detail::check_all_gather_ranges(data, owned, world_size());
    const std::uint64_t element_bytes = size_of(data.dtype);
    std::vector<ElementRange> bytes;
    for (const ElementRange& range : owned) {
      bytes.push_back({range.begin * element_bytes, range.end * element_bytes});
    }
    return session_->gather(text_of("all_gather_ranges", data), {static_cast<std::byte*>(data.data), data.size_bytes()},
                            std::move(bytes));
  }

  void broadcast(std::span<std::byte> bytes, int root) override {
    comm_detail::check_broadcast(root, world_size());
    std::vector<ElementRange> owned(static_cast<std::size_t>(world_size()));
    owned[static_cast<std::size_t>(root)] = {0, bytes.size()};
    session_->gather(fmt::format("broadcast of {} bytes", bytes.size()), bytes, std::move(owned)).wait();
  }

  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    comm_detail::check_all_gather(mine, all, world_size());
    std::vector<ElementRange> owned;
    for (std::size_t r = 0; r < static_cast<std::size_t>(world_size()); ++r) {
      owned.push_back({r * mine.size(), (r + 1) * mine.size()});
    }
    std::copy(mine.begin(), mine.end(), all.begin() + static_cast<std::ptrdiff_t>(mine.size()) * rank());
    session_->gather(fmt::format("all_gather of {} bytes a rank", mine.size()), all, std::move(owned)).wait();
  }

  void barrier() override { meet("barrier"); }

  void check_peers() override { session_->check(); }
  [[nodiscard]] bool replaces_ranks() const override { return true; }
  [[nodiscard]] bool may_rejoin() const override { return session_->may_rejoin(); }
  [[nodiscard]] double time_library_sum(BufferView, int) override { return 0; }

  void close() override {
    meet("close");
    session_->close();
  }

 private:
  [[nodiscard]] server::Wire wire_of(const BufferView& data) const {
    return data.dtype == DType::kF32 ? wire_ : server::Wire::kAsIs;
  }
  // A sum is not there before everybody has contributed.
  void meet(const char* name) {
    float nothing = 0;
    session_->sum(name, view_of(std::span(&nothing, 1)), {0, 1}).wait();
  }
  [[nodiscard]] int size_of_group(int ranks_per_node) const {
    const int first = rank() / ranks_per_node * ranks_per_node;
    return std::min(ranks_per_node, world_size() - first);
  }
  [[nodiscard]] int detected_node_size() {
    const std::string own = own_node();
    const std::vector<std::string> all = all_gather_text(own);
    return static_cast<int>(std::count(all.begin(), all.end(), own));
  }

  const std::size_t servers_;
  const server::Wire wire_;
  const std::shared_ptr<server::Session> session_;
  int node_size_ = 1;
};

}  // namespace

std::unique_ptr<Communicator> make_server_communicator(server::Session::Options options, int ranks_per_node,
                                                       server::Wire wire) {
  while (true) {
    const auto session = std::make_shared<server::Session>(options);
    try {
      return std::make_unique<ServerCommunicator>(session, options.servers.size(), ranks_per_node, wire);
    } catch (const Error&) {
      if (!session->may_rejoin()) {
        throw;
      }
    }
  }
}

}  // namespace lockstep
