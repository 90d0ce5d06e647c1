// limited_links FOLDER NAME=MBIT...: machines with network links of a given speed, for measuring what depends on them.
//
// Each NAME is a network namespace, /proc/PID/ns/net of the process in FOLDER/NAME.pid, and gets an interface "link0".
// All are ports of one switch, this program. A port takes MBIT million bits a second in, and as many out, to the bit:
// a frame leaves its machine no sooner than those before it have, and again so on the way into the other machine.
// A port before which frames for 60 ms wait loses what else comes. Prints "ready", and runs until it is ended.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <queue>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

constexpr auto kLongestQueue = std::chrono::milliseconds(60);
constexpr std::size_t kLongestFrame = 65'536 + 64;
using Address = std::array<char, 6>;

void check(bool condition, const std::string& what) {
  if (!condition) {
    throw std::runtime_error(what + ": " + std::strerror(errno));
  }
}

// An Ethernet interface of the namespace, whose frames are read and written here.
int make_interface(const std::string& folder, const std::string& name) {
  std::string process;
  std::ifstream(folder + "/" + name + ".pid") >> process;
  const int own = ::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  const int other = ::open(("/proc/" + process + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC);
  check(own >= 0 && other >= 0 && ::setns(other, CLONE_NEWNET) == 0, "namespace of " + name);
  const int descriptor = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  check(descriptor >= 0, "/dev/net/tun");
  ifreq request = {};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  std::strcpy(request.ifr_name, "link0");
  check(::ioctl(descriptor, TUNSETIFF, &request) == 0, "interface of " + name);
  check(::setns(own, CLONE_NEWNET) == 0, "own namespace");
  ::close(other);
  ::close(own);
  return descriptor;
}

// When what is sent over a wire is through.
class Wire {
 public:
  explicit Wire(double bits_per_second) : ns_per_byte_(8e9 / bits_per_second) {}
  Clock::time_point send(std::size_t bytes, Clock::time_point from) {
    free_ = std::max(free_, from) + nanoseconds(static_cast<std::int64_t>(static_cast<double>(bytes) * ns_per_byte_));
    return free_;
  }
  [[nodiscard]] Clock::time_point is_free() const { return free_; }

 private:
  double ns_per_byte_;
  Clock::time_point free_;
};

struct Port {
  Port(int interface, double bits_per_second)
      : descriptor(interface), from_machine(bits_per_second), to_machine(bits_per_second) {}

  int descriptor;
  Wire from_machine;
  Wire to_machine;
};

class Switch {
 public:
  void add(int interface, double bits_per_second) { ports_.emplace_back(interface, bits_per_second); }

  [[noreturn]] void run() {
    while (true) {
      const auto now = Clock::now();
      deliver(now);
      wait(now);
    }
  }

 private:
  struct Frame {
    Clock::time_point arrives;
    std::uint64_t number;  // among equally late ones, the first comes first
    std::size_t port;
    std::vector<char> bytes;

    bool operator>(const Frame& other) const {
      return std::tie(arrives, number) > std::tie(other.arrives, other.number);
    }
  };

  void deliver(Clock::time_point now) {
    while (!under_way_.empty() && under_way_.top().arrives <= now) {
      const Frame& frame = under_way_.top();
      // A machine that takes no more frames loses them.
      [[maybe_unused]] const ssize_t written =
          ::write(ports_[frame.port].descriptor, frame.bytes.data(), frame.bytes.size());
      under_way_.pop();
    }
  }

  // Until a frame can be taken over or delivered.
  void wait(Clock::time_point now) {
    auto until = under_way_.empty() ? now + std::chrono::seconds(1) : under_way_.top().arrives;
    std::vector<pollfd> polled;
    for (const Port& port : ports_) {
      const bool is_held_up = port.from_machine.is_free() > now;
      if (is_held_up) {
        until = std::min(until, port.from_machine.is_free());
      }
      polled.push_back({port.descriptor, static_cast<short>(is_held_up ? 0 : POLLIN), 0});
    }
    const auto left = std::max<std::int64_t>(0, nanoseconds(until - now).count());
    const timespec timeout = {left / 1'000'000'000, left % 1'000'000'000};
    ::ppoll(polled.data(), polled.size(), &timeout, nullptr);
    for (std::size_t i = 0; i < polled.size(); ++i) {
      if ((polled[i].revents & POLLIN) != 0) {
        take_over(i);
      }
    }
  }

  void take_over(std::size_t from) {
    std::vector<char> bytes(kLongestFrame);
    const ssize_t length = ::read(ports_[from].descriptor, bytes.data(), bytes.size());
    if (length < 14) {
      return;
    }
    bytes.resize(static_cast<std::size_t>(length));
    Address to;
    Address own;
    std::memcpy(to.data(), bytes.data(), to.size());
    std::memcpy(own.data(), bytes.data() + to.size(), own.size());
    port_of_[own] = from;
    const auto through = ports_[from].from_machine.send(bytes.size(), Clock::now());
    const auto known = port_of_.find(to);
    for (std::size_t port = 0; port < ports_.size(); ++port) {
      const bool is_meant = port != from && (known == port_of_.end() || known->second == port);
      if (is_meant && ports_[port].to_machine.is_free() - through < kLongestQueue) {
        under_way_.push({ports_[port].to_machine.send(bytes.size(), through), ++last_frame_, port, bytes});
      }
    }
  }

  std::vector<Port> ports_;
  std::map<Address, std::size_t> port_of_;
  std::priority_queue<Frame, std::vector<Frame>, std::greater<>> under_way_;
  std::uint64_t last_frame_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    Switch all;
    for (int i = 2; i < argc; ++i) {
      const std::string argument = argv[i];
      const std::size_t equal = argument.find('=');
      const double mbit = equal == std::string::npos ? 0 : std::atof(argument.c_str() + equal + 1);
      if (mbit <= 0) {
        throw std::runtime_error(argument + ": expected NAME=MBIT");
      }
      all.add(make_interface(argv[1], argument.substr(0, equal)), mbit * 1e6);
    }
    if (argc < 4) {
      throw std::runtime_error("usage: limited_links FOLDER NAME=MBIT NAME=MBIT...");
    }
    std::puts("ready");
    std::fflush(stdout);
    all.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "limited_links: %s\n", error.what());
    return 1;
  }
}
