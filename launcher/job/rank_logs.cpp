#include "launcher/job/rank_logs.h"

#include <fmt/format.h>

#include <utility>

namespace lockstep {

RankLogs::RankLogs(std::filesystem::path run) : run_(std::move(run)) {}

std::filesystem::path RankLogs::path(int rank) const {
  return run_ / "logs" / (rank < 0 ? std::string("starter.log") : fmt::format("rank-{:05}.log", rank));
}

std::filesystem::path RankLogs::path_of_server(int server) const {
  return run_ / "logs" / fmt::format("server-{:05}.log", server);
}

void RankLogs::begin_attempt(const std::string& title) {
  flush();
  title_ = title;
  files_.clear();
  waiting_.clear();
  waiting_bytes_ = 0;
}

void RankLogs::write(const OutputLine& line) { write(path(line.rank), line.text); }

void RankLogs::write_of_server(int server, const std::string& text) { write(path_of_server(server), text); }

void RankLogs::write(const std::filesystem::path& file, const std::string& text) {
  if (waiting_bytes_ < kMostWaitingBytes) {
    waiting_[file] += text + "\n";
    waiting_bytes_ += text.size() + 1;
  }
}

void RankLogs::flush() {
  std::error_code error;
  if (waiting_.empty() || !std::filesystem::is_directory(run_, error)) {
    return;
  }
  std::filesystem::create_directory(run_ / "logs", error);
  for (const auto& [path, text] : waiting_) {
    std::ofstream& file = files_[path];
    if (!file.is_open()) {
      file.open(path, std::ios::app);
      file << "--- " << title_ << "\n";
    }
    file.clear();  // a full disk may have room again
    file << text << std::flush;
  }
  waiting_.clear();
  waiting_bytes_ = 0;
}

}  // namespace lockstep
