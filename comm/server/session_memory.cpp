// Memory that a worker shares with the servers on its machine.
#include <algorithm>
#include <utility>

#include "comm/server/session_impl.h"

namespace lockstep::server {

namespace asio = boost::asio;

std::shared_ptr<OwnMemory> Session::Impl::share(std::size_t size_bytes) {
  if (!has_near_server_ || size_bytes == 0) {
    return nullptr;
  }
  std::shared_ptr<OwnMemory> memory = OwnMemory::create(size_bytes);
  if (memory) {
    asio::post(io_, [this, memory] {
      const SharedMemory& description = memory->description();
      memories_[description.number] = {memory, std::vector<bool>(connections_.size())};
      tell_near_servers(description);
    });
  }
  return memory;
}

void Session::Impl::take_back(const std::shared_ptr<OwnMemory>& memory) {
  asio::post(io_, [this, number = memory->description().number] {
    memories_.erase(number);
    tell_near_servers({.number = number});
  });
}

void Session::Impl::tell_near_servers(const SharedMemory& memory) {
  for (const std::shared_ptr<Connection>& connection : connections_) {
    if (!failing_ && connection->stays_on_machine()) {
      connection->send({.type = FrameType::kMemory}, encode(memory));
    }
  }
}

const Session::Impl::Memory* Session::Impl::shared_memory_of(const BufferView& data, std::size_t server) const {
  const auto* const begin = static_cast<const std::byte*>(data.data);
  for (const auto& [number, memory] : memories_) {
    const std::span<const std::byte> bytes = memory.own->bytes();
    if (begin >= bytes.data() && begin + data.size_bytes() <= bytes.data() + bytes.size()) {
      return memory.is_used[server] ? &memory : nullptr;
    }
  }
  return nullptr;
}

}  // namespace lockstep::server
