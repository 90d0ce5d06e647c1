// A link between workers and a server that a test can cut, or let fall silent.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

namespace lockstep::test {

// Passes bytes on between those who connect to port() and a port of this machine, on a thread.
class Relay {
 public:
  explicit Relay(std::uint16_t target) : target_(target) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = loopback(0);
    socklen_t length = sizeof(address);
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 || ::listen(listener_, 16) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      throw std::runtime_error("relay: no port");
    }
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Relay() {
    is_over_ = true;
    thread_.join();
    ::close(listener_);
  }
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  [[nodiscard]] std::uint16_t port() const { return port_; }
  // All connections that there are end, in the middle of what they carry.
  void cut() { wish_ = Wish::kCut; }
  // They stay open, and carry nothing any more; later ones do.
  void silence() { wish_ = Wish::kSilence; }

 private:
  enum class Wish { kNone, kCut, kSilence };
  struct Link {
    std::array<int, 2> ends;
    bool is_silent = false;
  };
  static sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  static void close(const Link& link) {
    ::close(link.ends[0]);
    ::close(link.ends[1]);
  }
  // Passes on what there is; false at the end.
  static bool pump(int from, int to) {
    std::array<char, 65536> bytes;
    const ssize_t count = ::recv(from, bytes.data(), bytes.size(), 0);
    for (ssize_t sent = 0; sent < count;) {
      const ssize_t more = ::send(to, bytes.data() + sent, static_cast<std::size_t>(count - sent), MSG_NOSIGNAL);
      if (more <= 0) {
        return false;
      }
      sent += more;
    }
    return count > 0;
  }
  void accept() {
    const int near = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    const int far = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = loopback(target_);
    if (::connect(far, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      links_.push_back({{near, far}});
    } else {
      close({{near, far}});
    }
  }
  void run() {
    while (!is_over_) {
      const Wish wish = wish_.exchange(Wish::kNone);
      for (Link& link : links_) {
        link.is_silent = link.is_silent || wish == Wish::kSilence;
        if (wish == Wish::kCut) {
          close(link);
        }
      }
      if (wish == Wish::kCut) {
        links_.clear();
      }
      std::vector<pollfd> waits = {{listener_, POLLIN, 0}};
      for (const Link& link : links_) {
        for (const int end : link.ends) {
          waits.push_back({link.is_silent ? -1 : end, POLLIN, 0});
        }
      }
      ::poll(waits.data(), waits.size(), 2);
      std::vector<Link> kept;
      for (std::size_t i = 0; i < links_.size(); ++i) {
        const std::array<int, 2>& ends = links_[i].ends;
        const bool goes_on = (waits[2 * i + 1].revents == 0 || pump(ends[0], ends[1])) &&
                             (waits[2 * i + 2].revents == 0 || pump(ends[1], ends[0]));
        if (goes_on) {
          kept.push_back(links_[i]);
        } else {
          close(links_[i]);
        }
      }
      links_ = std::move(kept);
      if (waits[0].revents != 0) {
        accept();
      }
    }
    for (const Link& link : links_) {
      close(link);
    }
  }

  std::uint16_t target_;
  std::uint16_t port_ = 0;
  int listener_ = -1;
  std::vector<Link> links_;
  std::atomic<Wish> wish_{Wish::kNone};
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

}  // namespace lockstep::test
