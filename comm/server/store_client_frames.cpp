// What a store client and its servers send each other.
#include <fmt/format.h>

#include <array>

#include "comm/server/dial.h"
#include "comm/server/store_client_impl.h"

namespace lockstep::server {

namespace asio = boost::asio;

// What comes back.

asio::awaitable<void> StoreClient::Impl::receive(Link& link, std::shared_ptr<Connection> connection) {
  while (true) {
    const FrameHeader header = co_await connection->read_header();
    const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
    if (header.type == FrameType::kApplied || header.type == FrameType::kPulled || header.type == FrameType::kWaiting) {
      link.moved = Clock::now();
      link.losses = 0;
    }
    if (header.type == FrameType::kOpened) {
      take_opened(link, decode_opened(payload));
    } else if (header.type == FrameType::kApplied) {
      const Applied applied = decode_applied(payload);
      if (link.push && link.push->step == applied.step) {
        link.push.reset();
        link.stale = applied.stale;
      }
    } else if (header.type == FrameType::kPulled) {
      const server::Pulled pulled = decode_pulled(payload);
      if (!link.is_pulling || (pulled.arrays != 0 && pulled.arrays != pull_.arrays)) {
        lockstep::fail(ErrorCode::kCorrupt, "server: weights that were not asked for");
      }
      co_await receive_values(link, connection, pulled.arrays);
      link.pulled = pulled;
      link.is_pulling = false;
      if (pulled.ending != Ending::kNone && wish_ == Ending::kNone) {
        pass_on(pulled.ending);  // somebody may have told this server alone
      }
    } else if (header.type == FrameType::kFail) {
      throw Refusal(decode_error(payload));
    } else if (header.type == FrameType::kBye) {
      link.is_closing = false;
      link.has_left = true;
    } else if (header.type != FrameType::kWaiting) {
      lockstep::fail(ErrorCode::kCorrupt, "server: a frame of type {}, which servers do not send",
                     static_cast<int>(header.type));
    }
    settle();
  }
}

asio::awaitable<void> StoreClient::Impl::receive_values(Link& link, std::shared_ptr<Connection> connection,
                                                        std::uint32_t arrays) {
  const std::array<std::span<float>, 3> into = {into_.weights, into_.exp_avg, into_.exp_avg_sq};
  for (std::uint32_t array = 0; array < arrays; ++array) {
    for (std::uint64_t at = link.range.begin; at < link.range.end;) {
      const FrameHeader header = co_await connection->read_header();
      if (header.type == FrameType::kFail) {
        const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
        throw Refusal(decode_error(payload));
      }
      if (header.type != FrameType::kValues || header.call != array + 1 || header.begin != at ||
          header.end > link.range.end) {
        lockstep::fail(ErrorCode::kCorrupt,
                       "server: a frame of type {} with elements [{}, {}), expected values from {}",
                       static_cast<int>(header.type), header.begin, header.end, at);
      }
      const std::span<float> part = into[array].subspan(at, header.end - at);
      co_await connection->read_payload(header, std::as_writable_bytes(part));
      at = header.end;
    }
  }
}

void StoreClient::Impl::take_opened(Link& link, const Opened& opened) {
  if (link.was_initialized && opened.is_initialized == 0) {
    throw Refusal(
        ErrorCode::kPeerLost,
        fmt::format("the parameter server {} has lost its state; start the job again from its newest checkpoint",
                    text_of(options_.servers[link.server])));
  }
  const bool is_first = !link.opened;
  link.opened = opened;
  link.was_open = true;
  link.is_durable = opened.is_durable != 0;
  link.was_initialized = opened.is_initialized != 0;
  if (opened.lead != kNoRank && opened.lead != rank_) {
    leads_ = false;
  }
  if (opened.is_initialized != 0) {
    link.is_starting = false;
  }
  if (!is_first) {
    return;
  }
  if (link.is_starting) {
    send_start(link);
  }
  if (wish_ != Ending::kNone) {
    link.connection->send({.type = FrameType::kWish}, encode(Wish{wish_}));
  }
  if (link.push) {
    send_push(link);
  }
  if (link.is_pulling) {
    send_pull(link);
  }
  if (link.is_closing) {
    link.connection->send({.header = {.type = FrameType::kBye}});
  }
}

// What goes out.

void StoreClient::Impl::send_open(Link& link) {
  Open open = *open_;
  open.leads = leads_ ? 1 : 0;
  open.has_reached_end = has_reached_end_ ? 1 : 0;
  link.connection->send({.type = FrameType::kOpen}, encode(open));
}

void StoreClient::Impl::send_start(Link& link) {
  link.connection->send({.type = FrameType::kStart}, encode(Start{started_after_}));
  send_values(link, StoreArray::kWeights, start_.weights);
  send_values(link, StoreArray::kExpAvg, start_.exp_avg);
  send_values(link, StoreArray::kExpAvgSq, start_.exp_avg_sq);
}

void StoreClient::Impl::send_push(Link& link) {
  link.connection->send({.type = FrameType::kGradient}, encode(*link.push));
  send_values(link, StoreArray::kWeights, gradient_);
}

void StoreClient::Impl::send_pull(Link& link) { link.connection->send({.type = FrameType::kPull}, encode(pull_)); }

void StoreClient::Impl::send_values(Link& link, StoreArray array, std::span<const float> values) {
  for (FrameHeader& header : headers_of_values(array, values.size(), link.range)) {
    header.rank = rank_;
    const std::span<const float> piece = values.subspan(header.begin, header.end - header.begin);
    link.connection->send({.header = header, .payload = std::as_bytes(piece)});
  }
}

}  // namespace lockstep::server
