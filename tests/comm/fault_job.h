// What the programs of fault_test.sh share: the bad deed, and the report of who gets an Error.
//
// PROGRAM FAULT RANKS_PER_NODE REPORT_FOLDER: four ranks sum in a loop until rank 2 does something bad. Every rank that
// gets an Error writes "CODE MILLISECONDS MESSAGE" to REPORT_FOLDER/RANK, the milliseconds counted from the bad deed as
// the file REPORT_FOLDER/deed tells it, and ends. fault_test.sh judges the reports.
#pragma once

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/error.h"
#include "comm/communicator.h"

namespace lockstep::test {

inline constexpr int kGuiltyRank = 2;
inline constexpr int kDeedInStep = 5;
inline constexpr int kTimeoutMs = 1500;
inline constexpr auto kLongerThanTimeout = std::chrono::milliseconds(4000);

inline std::int64_t now_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

inline std::string name_of(ErrorCode code) {
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
inline void stop_for(std::chrono::milliseconds duration) {
  const pid_t self = ::getpid();
  if (::fork() == 0) {
    ::usleep(static_cast<useconds_t>(duration.count() * 1000));
    ::kill(self, SIGCONT);
    ::_exit(0);
  }
  ::raise(SIGSTOP);
}

inline void do_deed_named(const std::string& fault) {
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

// Rank 2's, once.
inline void do_deed(const std::string& fault, const std::filesystem::path& folder) {
  std::ofstream(folder / "deed") << now_ms();
  do_deed_named(fault);
}

inline void report(const std::filesystem::path& folder, int rank, const std::string& line) {
  std::int64_t deed = 0;
  std::ifstream(folder / "deed") >> deed;
  const auto path = folder / std::to_string(rank);
  std::ofstream(path.string() + ".partial") << now_ms() - deed << ' ' << line << '\n';
  std::filesystem::rename(path.string() + ".partial", path);
}

struct FaultyJob {
  std::string fault;
  int ranks_per_node = 0;
  std::filesystem::path folder;
  int rank = -1;  // to be set by what works
};

// main() of such a program; `work` sums until it throws.
template <typename Work>
int run_faulty_job(int argc, char** argv, const Work& work) {
  if (argc != 4) {
    return 2;
  }
  FaultyJob job{argv[1], std::stoi(argv[2]), argv[3]};
  try {
    work(job);
  } catch (const Error& error) {
    report(job.folder, job.rank, name_of(error.code()) + ' ' + error.what());
  } catch (const std::runtime_error& error) {
    report(job.folder, job.rank, std::string("own ") + error.what());
  }
  end_process(1);
}

}  // namespace lockstep::test
