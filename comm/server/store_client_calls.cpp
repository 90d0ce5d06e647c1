// What the caller of a StoreClient asks for: each call is handed to its thread.
#include <algorithm>
#include <utility>

#include "comm/server/store_client_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;

// How long servers may take to answer the last frame.
constexpr std::chrono::milliseconds kFarewell{2'000};

}  // namespace

StoreClient::Position StoreClient::Impl::open(Open open) {
  Position position{.is_initialized = true, .completed = ~std::uint64_t{0}};
  run(
      [&] {
        open.id = id_;
        open_ = std::move(open);
        for (Link& link : links_) {
          link.range = range_of_part(open_->elements, link.server, links_.size());
          if (link.connection) {
            send_open(link);
          }
        }
      },
      [&] {
        if (!all([](const Link& link) { return link.opened.has_value(); })) {
          return false;
        }
        for (const Link& link : links_) {
          position.is_initialized = position.is_initialized && link.was_initialized;
          position.completed = std::min(position.completed, link.opened->completed);
        }
        // The first server alone knows who leads.
        const auto is_kept = [](const Link& link) { return link.opened->is_kept != 0; };
        position.is_kept =
            position.is_initialized ? is_kept(links_.front()) : std::any_of(links_.begin(), links_.end(), is_kept);
        return true;
      });
  return position;
}

void StoreClient::Impl::start(std::uint64_t completed, const Arrays<const float>& values) {
  run(
      [&] {
        started_after_ = completed;
        start_ = values;
        for (Link& link : links_) {
          link.is_starting = !link.was_initialized;
          if (link.is_starting && link.opened) {
            send_start(link);
          }
        }
      },
      [this] { return all([](const Link& link) { return !link.is_starting; }); });
}

void StoreClient::Impl::wish(Ending ending) {
  asio::post(io_, [this, ending] { pass_on(ending); });
}

void StoreClient::Impl::pass_on(Ending wish) {
  wish_ = wish;
  for (const Link& link : links_) {
    if (link.opened) {
      link.connection->send({.type = FrameType::kWish}, encode(Wish{wish_}));
    }
  }
}

StoreClient::Pulled StoreClient::Impl::pull(const Pull& pull, const Arrays<float>& into,
                                            const std::function<void()>& poll) {
  Pulled result;
  run(
      [&] {
        pull_ = pull;
        has_reached_end_ = pull.when == Pull::When::kEnd;
        into_ = into;
        for (Link& link : links_) {
          link.is_pulling = true;
          if (link.opened) {
            send_pull(link);
          }
        }
      },
      [this, &result] {
        if (!all([](const Link& link) { return !link.is_pulling && !link.push; })) {
          return false;
        }
        const server::Pulled& first = links_.front().pulled;
        leads_ = first.lead == rank_;
        result.leads = leads_;
        result.is_led = first.lead != kNoRank && !leads_;
        result.version = first.version;
        const auto workers = static_cast<double>(world_);
        for (const Link& link : links_) {
          const server::Pulled& pulled = link.pulled;
          result.version = std::min(result.version, pulled.version);
          result.ending = std::max(result.ending, pulled.ending);
          result.missing = std::max(result.missing, pulled.missing);
          result.stale_max = std::max(result.stale_max, static_cast<double>(pulled.stale_max) / workers);
          const double mean =
              pulled.pushes == 0 ? 0
                                 : static_cast<double>(pulled.stale_sum) / static_cast<double>(pulled.pushes) / workers;
          result.stale_mean = std::max(result.stale_mean, mean);
        }
        return true;
      },
      poll);
  return result;
}

void StoreClient::Impl::push(std::uint64_t step, float scale, std::span<const float> values) {
  asio::post(io_, [this, step, scale, values] {
    if (failure_) {
      return;  // which the next pull throws
    }
    gradient_ = values;
    for (Link& link : links_) {
      link.push = Gradient{step, link.pulled.version, scale};
      if (link.opened) {
        send_push(link);
      }
    }
  });
}

double StoreClient::Impl::last_staleness() const {
  std::uint64_t most = 0;
  for (const Link& link : links_) {
    most = std::max(most, link.stale);
  }
  return static_cast<double>(most) / static_cast<double>(world_);
}

void StoreClient::Impl::close() {
  run(
      [this] {
        for (Link& link : links_) {
          link.is_closing = true;
          if (link.opened) {
            link.connection->send({.header = {.type = FrameType::kBye}});
          }
        }
      },
      [this] { return all([](const Link& link) { return !link.is_closing; }); });
  run([this] { is_ending_ = true; }, [] { return true; });
}

void StoreClient::Impl::fail(const Error& error) {
  const auto say = [](Impl* self, Error why) -> Awaitable<void> {
    if (!self->failure_) {
      self->failure_ = std::make_exception_ptr(why);  // the first server's answer does not cut off the others
      self->is_ending_ = true;
    }
    for (const Link& link : self->links_) {
      if (link.connection) {
        link.connection->send_last({.type = FrameType::kFail}, encode(why));
      }
    }
    // A connection that is closed with unread bytes may take along what the server has not read.
    const auto deadline = Clock::now() + kFarewell;
    asio::steady_timer pause(self->io_);
    while (!self->all([](const Link& link) { return link.connection == nullptr; }) && Clock::now() < deadline) {
      pause.expires_after(std::chrono::milliseconds(5));
      co_await pause.async_wait(asio::use_awaitable);
    }
  };
  std::promise<void> said;
  asio::co_spawn(io_, say(this, error), [&said](const std::exception_ptr&) { said.set_value(); });
  said.get_future().wait();
}

}  // namespace lockstep::server
