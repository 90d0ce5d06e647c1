// fault_program FAULT RANKS_PER_NODE REPORT_FOLDER: four ranks sum in a loop until rank 2 does something bad.
//
// Every rank that gets an Error writes "CODE MILLISECONDS MESSAGE" to REPORT_FOLDER/RANK, the milliseconds counted from
// the bad deed as the file REPORT_FOLDER/deed tells it, and ends. fault_test.sh judges the reports.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"

namespace {

using namespace lockstep;
using std::chrono::milliseconds;

constexpr int kGuiltyRank = 2;
constexpr int kDeedInStep = 5;
constexpr int kTimeoutMs = 1500;
constexpr auto kLongerThanTimeout = milliseconds(4000);
constexpr std::size_t kCount = 300'000;
constexpr std::size_t kShortCount = 1'000;

std::int64_t now_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<milliseconds>(now).count();
}

std::string name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kPeerLost:
      return "peer_lost";
    case ErrorCode::kTimeout:
      return "timeout";
    case ErrorCode::kUsage:
      return "usage";
    default:
      return "other";
  }
}

// A helper that wakes this process again, since a stopped process cannot do it itself.
void stop_for(milliseconds duration) {
  const pid_t self = ::getpid();
  if (::fork() == 0) {
    ::usleep(static_cast<useconds_t>(duration.count() * 1000));
    ::kill(self, SIGCONT);
    ::_exit(0);
  }
  ::raise(SIGSTOP);
}

void do_deed(const std::string& fault) {
  if (fault == "killed") {
    ::raise(SIGKILL);
  } else if (fault == "stopped") {
    stop_for(kLongerThanTimeout);
  } else if (fault == "asleep") {
    std::this_thread::sleep_for(kLongerThanTimeout);
  } else if (fault == "leaves") {
    throw std::runtime_error("a failure of its own");
  }
}

void work(std::string fault, int ranks_per_node, const std::filesystem::path& folder, int& rank) {
  const auto comm = make_communicator({.backend = "mpi", .ranks_per_node = ranks_per_node, .timeout_ms = kTimeoutMs});
  rank = comm->rank();
  const auto take_suffix = [&fault](const std::string& suffix) {
    const bool is_there = fault.ends_with(suffix);
    fault.resize(fault.size() - (is_there ? suffix.size() : 0));
    return is_there;
  };
  const bool is_short = take_suffix("_in_short_sums");
  const bool is_outside = take_suffix("_outside_calls");
  const Buffer buffer = comm->allocate(kCount * sizeof(float));
  std::vector<float> elsewhere(kCount);
  for (int step = 0;; ++step) {
    const bool is_guilty = step == kDeedInStep && rank == kGuiltyRank;
    if (is_guilty) {
      std::ofstream(folder / "deed") << now_ms();
      do_deed(fault);
    }
    if (is_outside && step == kDeedInStep) {  // waiting for something else
      for (;; std::this_thread::sleep_for(milliseconds(20))) {
        comm->check_peers();
      }
    }
    if (is_short) {  // of a size that is summed by who waits for it
      comm->all_reduce_sum(view_of(std::span(elsewhere).first(kShortCount))).wait();
      continue;
    }
    const std::size_t count = is_guilty && fault == "mismatch" ? kCount - 1 : kCount;
    Work first = comm->all_reduce_sum(view_of(buffer.as<float>(count)));
    Work second = comm->all_reduce_sum(view_of(std::span(elsewhere).first(count)));
    second.wait();
    first.wait();
  }
}

void report(const std::filesystem::path& folder, int rank, const std::string& line) {
  std::int64_t deed = 0;
  std::ifstream(folder / "deed") >> deed;
  const auto path = folder / std::to_string(rank);
  std::ofstream(path.string() + ".partial") << now_ms() - deed << ' ' << line << '\n';
  std::filesystem::rename(path.string() + ".partial", path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    return 2;
  }
  const std::filesystem::path folder = argv[3];
  int rank = -1;
  try {
    work(argv[1], std::stoi(argv[2]), folder, rank);
  } catch (const Error& error) {
    report(folder, rank, name_of(error.code()) + ' ' + error.what());
  } catch (const std::runtime_error& error) {
    report(folder, rank, std::string("own ") + error.what());
  }
  end_process(1);
}
