#include "comm/server/store_client.h"

#include <random>
#include <utility>

#include "comm/server/store_client_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;

// How often a caller that waits is asked what it wishes.
constexpr std::chrono::milliseconds kPoll{50};

std::uint64_t random_id() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32 | device()) | 1;
}

}  // namespace

StoreClient::Impl::Impl(Options options)
    : options_(std::move(options)),
      id_(random_id()),
      rank_(options_.rank ? static_cast<std::uint32_t>(*options_.rank) : kNoRank),
      world_(static_cast<std::uint32_t>(options_.world)) {
  links_.resize(options_.servers.size());
  for (std::size_t server = 0; server < links_.size(); ++server) {
    links_[server].server = server;
  }
  thread_ = std::thread([this] { io_.run(); });
  try {
    // The first tells the rank that the others are told.
    for (Link& link : links_) {
      run([this, &link] { asio::co_spawn(io_, keep(link), asio::detached); },
          [&link] { return link.connection != nullptr; });
    }
    asio::post(io_, [this] { asio::co_spawn(io_, watch(), asio::detached); });
  } catch (...) {
    io_.stop();
    thread_.join();
    throw;
  }
}

StoreClient::Impl::~Impl() {
  if (thread_.joinable()) {
    io_.stop();
    thread_.join();
  }
}

// Waiting.

void StoreClient::Impl::run(const std::function<void()>& begin, std::function<bool()> is_done,
                            const std::function<void()>& poll) {
  std::promise<void> done;
  std::future<void> result = done.get_future();
  asio::post(io_, [this, &begin, &done, is_done = std::move(is_done)]() mutable {
    done_ = std::move(done);
    is_done_ = std::move(is_done);
    if (!failure_) {
      begin();
    }
    settle();
  });
  while (poll && result.wait_for(kPoll) != std::future_status::ready) {
    poll();
  }
  result.get();
}

void StoreClient::Impl::settle() {
  if (!is_done_) {
    return;
  }
  if (failure_) {
    is_done_ = nullptr;
    done_.set_exception(failure_);
  } else if (is_done_()) {
    is_done_ = nullptr;
    done_.set_value();
  }
}

// Once the connections are closed, no memory of the caller is read or written any more.
void StoreClient::Impl::fail_all(const Error& error) {
  if (failure_) {
    return;
  }
  failure_ = std::make_exception_ptr(error);
  is_ending_ = true;
  for (Link& link : links_) {
    if (link.connection) {
      link.connection->close();
    }
  }
  settle();
}

StoreClient::StoreClient(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
StoreClient::~StoreClient() = default;
int StoreClient::rank() const { return static_cast<int>(impl_->rank()); }
int StoreClient::world() const { return static_cast<int>(impl_->world()); }
Mode StoreClient::mode() const { return impl_->mode(); }
StoreClient::Position StoreClient::open(Open open) { return impl_->open(std::move(open)); }
void StoreClient::start(std::uint64_t completed, const Arrays<const float>& values) { impl_->start(completed, values); }
StoreClient::Pulled StoreClient::pull(const Pull& pull, const Arrays<float>& into, const std::function<void()>& poll) {
  return impl_->pull(pull, into, poll);
}
bool StoreClient::leads() const { return impl_->leads(); }
void StoreClient::wish(Ending ending) { impl_->wish(ending); }
void StoreClient::push(std::uint64_t step, float scale, std::span<const float> values) {
  impl_->push(step, scale, values);
}
double StoreClient::last_staleness() const { return impl_->last_staleness(); }
void StoreClient::close() { impl_->close(); }
void StoreClient::fail(const Error& error) { impl_->fail(error); }

}  // namespace lockstep::server
