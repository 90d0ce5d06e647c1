// What a worker sends that has opened the store.
#include <optional>
#include <utility>

#include "comm/server/store_server_impl.h"

namespace lockstep::server {

namespace asio = boost::asio;

asio::awaitable<void> StoreServer::Impl::serve_frames(Worker& worker, std::shared_ptr<Connection> connection) {
  while (true) {
    const FrameHeader header = co_await connection->read_header();
    std::vector<std::byte> payload(header.payload_bytes);
    co_await connection->read_payload(header, payload);
    if (over_) {
      continue;  // a connection closed with unread bytes may take along what the worker has not read
    }
    if (worker.connection != connection) {
      co_return;
    }
    if (header.type == FrameType::kStart) {
      co_await receive_start(worker, connection, decode_start(payload));
    } else if (header.type == FrameType::kGradient) {
      co_await receive_gradient(worker, connection, decode_gradient(payload));
    } else {
      handle(worker, header, payload);
    }
  }
}

void StoreServer::Impl::handle(Worker& worker, const FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == FrameType::kPull) {
    if (worker.pull) {
      fail(ErrorCode::kCorrupt, "server: a pull before the last one was answered");
    }
    worker.pull = decode_pull(payload);
    worker.pull_since = Clock::now();
    worker.has_reached_end = worker.pull->when == Pull::When::kEnd;
    answer_pulls();
  } else if (header.type == FrameType::kWish) {
    roster_.take_wish(decode_wish(payload).ending);
    answer_pulls();
  } else if (header.type == FrameType::kBye) {
    worker.has_said_bye = true;
    worker.connection->send(FrameHeader{.type = FrameType::kBye}, {});
    answer_pulls();
    end_if_over();
  } else if (header.type == FrameType::kFail) {
    finish(decode_error(payload));
  } else {
    fail(ErrorCode::kCorrupt, "server: a frame of type {}, which workers do not send", static_cast<int>(header.type));
  }
}

asio::awaitable<void> StoreServer::Impl::receive_start(Worker& worker, std::shared_ptr<Connection> connection,
                                                       Start start) {
  if (store_->is_started()) {
    fail(ErrorCode::kCorrupt, "server: a second start");
  }
  for (const StoreArray array : {StoreArray::kWeights, StoreArray::kExpAvg, StoreArray::kExpAvgSq}) {
    co_await receive_values(connection, array, store_->values(array));
  }
  try {
    store_->start(start.completed);
    roster_.set_started();
  } catch (const Error& error) {
    finish(error);
    co_return;
  }
  send_opened(worker);
  answer_pulls();
}

asio::awaitable<void> StoreServer::Impl::receive_gradient(Worker& worker, std::shared_ptr<Connection> connection,
                                                          Gradient gradient) {
  co_await receive_values(connection, StoreArray::kWeights, worker.gradient);
  if (worker.connection == connection && !over_) {
    apply(worker, gradient);
  }
}

asio::awaitable<void> StoreServer::Impl::receive_values(std::shared_ptr<Connection> connection, StoreArray array,
                                                        std::span<float> into) {
  const ElementRange range = store_->state().range;
  for (std::uint64_t at = range.begin; at < range.end;) {
    const FrameHeader header = co_await connection->read_header();
    if (header.type != FrameType::kValues || header.call != static_cast<std::uint64_t>(array) || header.begin != at ||
        header.end > range.end) {
      fail(ErrorCode::kCorrupt, "server: a frame of type {} with elements [{}, {}), expected values from {} on",
           static_cast<int>(header.type), header.begin, header.end, at);
    }
    const std::span<float> part = into.subspan(at - range.begin, header.end - header.begin);
    co_await connection->read_payload(header, std::as_writable_bytes(part));
    at = header.end;
  }
}

void StoreServer::Impl::apply(Worker& worker, const Gradient& gradient) {
  if (!store_->is_started()) {
    fail(ErrorCode::kCorrupt, "server: a gradient before there are weights");
  }
  std::optional<std::uint64_t> stale;
  try {
    stale = store_->apply(worker.rank, gradient, worker.gradient);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCorrupt) {
      throw;
    }
    finish(error);  // it cannot be written down: nothing may be acknowledged any more
    return;
  }
  has_been_led_ |= roster_.lead() == worker.rank;
  if (stale) {
    constexpr double kShareOfNew = 0.25;
    worker.usual_staleness += kShareOfNew * (static_cast<double>(*stale) - worker.usual_staleness);
  }
  worker.connection->send({.type = FrameType::kApplied}, encode(Applied{gradient.step, stale.value_or(0)}));
  answer_pulls();
}

void StoreServer::Impl::send_opened(Worker& worker) {
  const bool is_kept = is_recovered_ && !has_been_led_;
  elect();
  worker.connection->send({.type = FrameType::kOpened}, encode(Opened{.is_initialized = store_->is_started() ? 1U : 0U,
                                                                      .is_durable = journal_ ? 1U : 0U,
                                                                      .is_kept = is_kept ? 1U : 0U,
                                                                      .lead = roster_.lead().value_or(kNoRank),
                                                                      .applied = store_->state().applied,
                                                                      .completed = roster_.completed(worker)}));
}

}  // namespace lockstep::server
