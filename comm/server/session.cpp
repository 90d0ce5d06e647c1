#include "comm/server/session.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <utility>

#include "base/error.h"
#include "comm/server/session_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;

bool is_number(const std::string& text) {
  return !text.empty() && text.size() <= 5 && text.find_first_not_of("0123456789") == std::string::npos;
}

// "node01:7070", or "node01:7070-7073" for four of one host.
void parse_address(const std::string& text, std::vector<ServerAddress>& addresses) {
  const std::size_t colon = text.rfind(':');
  const std::string ports = colon == std::string::npos ? "" : text.substr(colon + 1);
  const std::size_t dash = ports.find('-');
  const std::string first = ports.substr(0, dash);
  const std::string last = dash == std::string::npos ? first : ports.substr(dash + 1);
  require(colon != std::string::npos && colon > 0 && is_number(first) && is_number(last) &&
              std::stoi(first) <= std::stoi(last) && std::stoi(last) <= 65'535,
          "comm.servers: found \"{}\", expected HOST:PORT or HOST:FIRST-LAST", text);
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  for (int port = std::stoi(first); port <= std::stoi(last); ++port) {
    addresses.push_back({host, std::to_string(port)});
  }
}

}  // namespace

std::string text_of(const ServerAddress& address) { return address.host + ":" + address.port; }

std::uint64_t own_process() {
  static const std::uint64_t own = [] {
    const control::Digest random = control::random_challenge();
    std::uint64_t number = 0;
    std::memcpy(&number, random.data(), sizeof(number));
    return number;
  }();
  return own;
}

std::vector<ServerAddress> parse_addresses(const std::string& text) {
  require(!text.empty(), "comm.servers is empty; comm.backend: server needs HOST:PORT of each `lockstep serve`");
  std::vector<ServerAddress> addresses;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    parse_address(text.substr(begin, end - begin), addresses);
    begin = end + 1;
  }
  return addresses;
}

Session::Impl::Impl(Options options)
    : options_(std::move(options)),
      rank_(options_.rank ? static_cast<std::uint32_t>(*options_.rank) : kNoRank),
      world_(static_cast<std::uint32_t>(options_.world)),
      newest_group_(options_.newest_group ? options_.newest_group : std::make_shared<std::atomic<std::uint64_t>>(0)) {
  thread_ = std::thread([this] { io_.run(); });
  try {
    wait_for(join_group());
  } catch (...) {
    io_.stop();
    thread_.join();
    throw;
  }
}

void Session::Impl::wait_for(Awaitable<void> run) {
  std::promise<void> done;
  asio::co_spawn(io_, std::move(run), [&done](std::exception_ptr error) {
    if (error) {
      done.set_exception(error);
    } else {
      done.set_value();
    }
  });
  done.get_future().get();
}

void Session::Impl::check() const {
  const std::lock_guard lock(outcome_->mutex);
  if (outcome_->error) {
    std::rethrow_exception(outcome_->error);
  }
}

bool Session::Impl::may_rejoin() const {
  const std::lock_guard lock(outcome_->mutex);
  return outcome_->error && outcome_->job_goes_on;
}

void Session::Impl::close() {
  wait_for(say_bye());
  const std::lock_guard lock(outcome_->mutex);
  outcome_->is_closed = true;
}

void Session::Impl::leave() {
  {
    const std::lock_guard lock(outcome_->mutex);
    if (outcome_->is_closed) {
      return;
    }
  }
  wait_for(end_early());
}

Session::Session(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Session::~Session() { impl_->leave(); }
int Session::rank() const { return static_cast<int>(impl_->rank()); }
int Session::world() const { return static_cast<int>(impl_->world()); }
Work Session::sum(std::string name, BufferView data, ElementRange wanted, Wire wire) {
  return impl_->sum(std::move(name), data, wanted, wire);
}
Work Session::gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned) {
  return impl_->gather(std::move(name), bytes, std::move(owned));
}
std::shared_ptr<OwnMemory> Session::share(std::size_t size_bytes) { return impl_->share(size_bytes); }
void Session::take_back(const std::shared_ptr<OwnMemory>& memory) { impl_->take_back(memory); }
void Session::check() const { impl_->check(); }
bool Session::may_rejoin() const { return impl_->may_rejoin(); }
void Session::close() { impl_->close(); }

}  // namespace lockstep::server
