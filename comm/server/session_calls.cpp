// A worker's calls: the frames that they send, and what comes back.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/server/session_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;

constexpr std::size_t kMaxInFlight = 1024;
// Into how many pieces a server's part is cut, as long as they are not too short.
constexpr std::uint64_t kPieces = 2;
constexpr std::uint64_t kMinPieceBytes = std::uint64_t{256} << 10;
constexpr std::uint64_t kMaxPieceBytes = std::uint64_t{512} << 10;

// Of an element of a sum, on its way back.
std::size_t bytes_of_sum(const Operation& operation) {
  return rounds(operation.wire) ? wire_bytes(wire_of_sum(operation.wire), 1) : size_of(operation.data.dtype);
}

}  // namespace

Work Session::Impl::sum(std::string name, BufferView data, ElementRange wanted, Wire wire) {
  const auto operation = std::make_shared<Operation>(outcome_, std::move(name));
  operation->data = data;
  operation->wanted = wanted;
  operation->wire = wire;
  return start(operation, &Impl::queue_sum);
}

Work Session::Impl::gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned) {
  const auto operation = std::make_shared<Operation>(outcome_, std::move(name));
  operation->data = {bytes.data(), bytes.size(), DType::kU8, Device{}};
  operation->owned = std::move(owned);
  return start(operation, &Impl::queue_gather);
}

Work Session::Impl::start(const std::shared_ptr<Operation>& operation, Queue queue) {
  std::exception_ptr error;
  {
    std::unique_lock lock(outcome_->mutex);
    outcome_->changed.wait(lock, [this] { return outcome_->in_flight < kMaxInFlight || outcome_->error; });
    require(!outcome_->is_closed, "comm: a call after close()");
    ++outcome_->in_flight;
    error = outcome_->error;
  }
  if (error) {
    operation->finish(error);
    return Work(operation);
  }
  operation->call = ++last_call_;
  asio::post(io_, [this, operation, queue] {
    operation->begin = Clock::now();
    operation->awaited_of_server.resize(connections_.size());
    operation->in_memory_of_server.resize(connections_.size());
    operation->awaited_of_rank.resize(world_);
    operations_.emplace(operation->call, operation);
    if (const std::exception_ptr ended = ended_by_) {
      operations_.erase(operation->call);
      operation->finish(ended);
    } else if (!failing_) {
      (this->*queue)(operation);
      finish_if_done(operation);
    }
  });
  return Work(operation);
}

void Session::Impl::queue_sum(const std::shared_ptr<Operation>& operation) {
  const BufferView& data = operation->data;
  FrameHeader header{
      .type = FrameType::kPush, .dtype = data.dtype, .wire = operation->wire, .call = operation->call, .rank = rank_};
  if (operation->wire == Wire::kInt8) {
    std::shared_ptr<std::vector<float>>& residual = residuals_[data.data];
    if (!residual || residual->size() != data.count) {
      residual = std::make_shared<std::vector<float>>(data.count);
    }
    operation->residual = residual;
  }
  header.count = data.count;
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    const ElementRange part = range_of_part(data.count, server, connections_.size());
    const bool in_memory = operation->wire == Wire::kAsIs && shared_memory_of(data, server) != nullptr;
    operation->in_memory_of_server[server] = in_memory;
    header.wire = in_memory ? Wire::kInMemory : operation->wire;
    // Of contributions in shared memory, a server says that each has been read.
    const ElementRange awaited = in_memory ? part : intersection(part, operation->wanted);
    operation->awaited_of_server[server] = awaited.size() * bytes_of_sum(*operation);
    queue_pieces(operation, server, header, part);
  }
}

void Session::Impl::queue_gather(const std::shared_ptr<Operation>& operation) {
  const std::uint64_t count = operation->data.count;
  FrameHeader header{.type = FrameType::kGive, .call = operation->call, .rank = rank_};
  header.count = count;
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    const ElementRange part = range_of_part(count, server, connections_.size());
    for (std::uint32_t rank = 0; rank < world_; ++rank) {
      if (rank != rank_) {
        const std::uint64_t awaited = intersection(part, operation->owned[rank]).size();
        operation->awaited_of_server[server] += awaited;
        operation->awaited_of_rank[rank] += awaited;
      }
    }
    connections_[server]->send({.header = {.type = FrameType::kTake, .call = operation->call, .rank = rank_}});
    if (world_ > 1) {
      queue_pieces(operation, server, header, intersection(part, operation->owned[rank_]));
    }
  }
}

// One frame for each piece of elements `range`. Each is a good part of the whole, so that one is added while the next
// travels; every worker cuts alike.
void Session::Impl::queue_pieces(const std::shared_ptr<Operation>& operation, std::size_t server,
                                 const FrameHeader& header, ElementRange range) {
  const std::uint64_t element_bytes = size_of(operation->data.dtype);
  const std::uint64_t longest =
      std::clamp<std::uint64_t>(range.size() / kPieces, kMinPieceBytes / element_bytes, kMaxPieceBytes / element_bytes);
  for (std::uint64_t begin = range.begin; begin < range.end; begin += longest) {
    const ElementRange piece = {begin, std::min(begin + longest, range.end)};
    const BufferView from = operation->data.slice(piece);
    FrameHeader frame = header;
    frame.begin = piece.begin;
    frame.end = piece.end;
    if (header.type == FrameType::kPush) {
      const ElementRange wanted = intersection(piece, operation->wanted);
      frame.wanted_begin = wanted.begin;
      frame.wanted_end = wanted.end;
    }
    ++operation->unsent;
    Connection::Outgoing outgoing = {.header = frame,
                                     .payload = {static_cast<const std::byte*>(from.data), from.size_bytes()},
                                     .owner = operation,
                                     .sent = [this, operation] {
                                       data_went_ = Clock::now();
                                       --operation->unsent;
                                       finish_if_done(operation);
                                     }};
    if (frame.wire == Wire::kInMemory) {
      const OwnMemory& memory = *shared_memory_of(from, server)->own;
      const auto offset = static_cast<const std::byte*>(from.data) - memory.bytes().data();
      const auto place = std::make_shared<const std::vector<std::byte>>(
          encode(Place{memory.description().number, static_cast<std::uint64_t>(offset)}));
      outgoing.payload = *place;
      outgoing.owner = place;
    } else if (rounds(frame.wire)) {
      outgoing.prepare = [this, operation, server, piece](Connection::Outgoing& push) {
        push.payload = encode_piece(*operation, piece, outgoing_[server]);
      };
    }
    connections_[server]->send(std::move(outgoing));
  }
}

// As it travels, in memory that lasts until the next piece to this server.
std::span<const std::byte> Session::Impl::encode_piece(const Operation& operation, ElementRange piece,
                                                       std::vector<std::byte>& memory) {
  memory.resize(wire_bytes(operation.wire, piece.size()));
  const BufferView from = operation.data.slice(piece);
  std::span<float> residual;
  if (operation.residual) {
    residual = std::span(*operation.residual).subspan(piece.begin, piece.size());
  }
  encode(operation.wire, {static_cast<const float*>(from.data), from.count}, residual, memory);
  return memory;
}

void Session::Impl::finish_if_done(const std::shared_ptr<Operation>& operation) {
  const auto none = [](const std::vector<std::uint64_t>& awaited) {
    return std::all_of(awaited.begin(), awaited.end(), [](std::uint64_t bytes) { return bytes == 0; });
  };
  if (operation->unsent == 0 && none(operation->awaited_of_server) && operations_.erase(operation->call) == 1) {
    operation->finish();
  }
}

// What comes back.

asio::awaitable<void> Session::Impl::receive(std::size_t server, std::shared_ptr<Connection> connection) {
  const auto is_current = [&] { return server < connections_.size() && connections_[server] == connection; };
  try {
    while (true) {
      const FrameHeader header = co_await connection->read_header();
      if (header.type == FrameType::kSum || header.type == FrameType::kGive) {
        co_await receive_data(server, header);
        continue;
      }
      const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
      if (header.type == FrameType::kMemory) {
        const MemoryUse use = decode_memory_use(payload);
        if (const auto memory = memories_.find(use.number); memory != memories_.end()) {
          memory->second.is_used[server] = use.is_used;
        }
      } else if (header.type == FrameType::kFail) {
        fail_session(decode_error(payload), Job::kOver);
      } else if (header.type == FrameType::kRegroup) {
        fail_session(decode_error(payload), Job::kGoesOn);
      } else if (header.type == FrameType::kBye) {
        has_said_bye_[server] = true;
        bye_came_.cancel();
      } else if (header.type != FrameType::kAlive) {
        fail(ErrorCode::kCorrupt, "a frame of type {}, which servers do not send", static_cast<int>(header.type));
      }
    }
  } catch (const Error& error) {
    if (is_current() && !has_said_bye_[server]) {
      const Error lost(error.code(), fmt::format("the parameter server {} is lost: {}",
                                                 text_of(options_.servers[server]), error.what()));
      fail_session(lost, error.code() == ErrorCode::kUsage ? Job::kOver : Job::kGoesOn);
    }
  }
}

asio::awaitable<void> Session::Impl::receive_data(std::size_t server, FrameHeader header) {
  const auto place = operations_.find(header.call);
  if (place == operations_.end()) {
    fail(ErrorCode::kCorrupt, "a frame of call {}, which is not under way", header.call);
  }
  const std::shared_ptr<Operation> operation = place->second;
  const bool is_sum = header.type == FrameType::kSum;
  const bool is_of_known_rank = header.rank < world_ && header.rank != rank_;
  const bool in_memory = header.wire == Wire::kInMemory;
  const std::uint64_t bytes = in_memory ? (header.end - header.begin) * size_of(header.dtype) : header.payload_bytes;
  const bool fits = header.count == operation->data.count && header.dtype == operation->data.dtype &&
                    is_sum == operation->owned.empty() && (is_sum || is_of_known_rank) &&
                    in_memory == operation->in_memory_of_server[server] &&
                    (in_memory || header.wire == wire_of_sum(operation->wire)) &&
                    bytes <= operation->awaited_of_server[server];
  if (!fits) {
    fail(ErrorCode::kUsage, "{}: call {} has another type or size on another rank", operation->name, header.call);
  }
  const ElementRange range = {header.begin, header.end};
  const ElementRange part = range_of_part(header.count, server, connections_.size());
  const ElementRange expected = intersection(part, !is_sum     ? operation->owned[header.rank]
                                                   : in_memory ? ElementRange{0, header.count}
                                                               : operation->wanted);
  if (intersection(range, expected) != range) {
    fail(ErrorCode::kUsage, "{}: elements [{}, {}) came, expected some of [{}, {})", operation->name, range.begin,
         range.end, expected.begin, expected.end);
  }
  const BufferView to = operation->data.slice(range);
  if (header.wire == Wire::kAsIs) {
    co_await connections_[server]->read_payload(header, {static_cast<std::byte*>(to.data), to.size_bytes()});
  } else if (!in_memory) {
    std::vector<std::byte>& memory = incoming_[server];
    memory.resize(header.payload_bytes);
    co_await connections_[server]->read_payload(header, memory);
    decode(header.wire, memory, {static_cast<float*>(to.data), to.count});
  }
  data_came_ = Clock::now();
  operation->awaited_of_server[server] -= bytes;
  if (!is_sum) {
    std::uint64_t& awaited = operation->awaited_of_rank[header.rank];
    awaited -= std::min<std::uint64_t>(awaited, header.payload_bytes);
  }
  finish_if_done(operation);
}

}  // namespace lockstep::server
