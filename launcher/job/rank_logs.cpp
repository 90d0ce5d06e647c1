#include "launcher/job/rank_logs.h"

#include <fmt/format.h>

#include <utility>

namespace lockstep {

RankLogs::RankLogs(std::filesystem::path run) : run_(std::move(run)) {}

std::filesystem::path RankLogs::path(int rank) const {
  return run_ / "logs" / (rank < 0 ? std::string("starter.log") : fmt::format("rank-{:05}.log", rank));
}

void RankLogs::begin_attempt(const std::string& title) {
  flush();
  title_ = title;
  files_.clear();
  waiting_.clear();
  waiting_bytes_ = 0;
}

void RankLogs::write(const OutputLine& line) {
  if (waiting_bytes_ < kMostWaitingBytes) {
    waiting_[line.rank] += line.text + "\n";
    waiting_bytes_ += line.text.size() + 1;
  }
}

void RankLogs::flush() {
  std::error_code error;
  if (waiting_.empty() || !std::filesystem::is_directory(run_, error)) {
    return;
  }
  std::filesystem::create_directory(run_ / "logs", error);
  for (const auto& [rank, text] : waiting_) {
    std::ofstream& file = files_[rank];
    if (!file.is_open()) {
      file.open(path(rank), std::ios::app);
      file << "--- " << title_ << "\n";
    }
    file.clear();  // a full disk may have room again
    file << text << std::flush;
  }
  waiting_.clear();
  waiting_bytes_ = 0;
}

}  // namespace lockstep
