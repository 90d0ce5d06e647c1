// RUN/logs/: what each rank wrote, a file a rank, and each parameter server, and what mpirun or srun itself said.
#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "launcher/job/start_command.h"

namespace lockstep {

class RankLogs {
 public:
  // The files are made when RUN is there: a job that is refused leaves nothing. Lines wait in memory until then.
  explicit RankLogs(std::filesystem::path run);

  // A line above what follows in every file: "attempt 2 on 4 ranks, 2026-11-26T07:03:11Z".
  void begin_attempt(const std::string& title);
  void write(const OutputLine& line);
  // Parameter servers count from 1, as in --part.
  void write_of_server(int server, const std::string& text);
  // Nothing here throws: a log that cannot be written is not a reason to lose a run.
  void flush();

  // RUN/logs/rank-00003.log, RUN/logs/starter.log for rank -1.
  [[nodiscard]] std::filesystem::path path(int rank) const;
  // RUN/logs/server-00001.log
  [[nodiscard]] std::filesystem::path path_of_server(int server) const;

 private:
  void write(const std::filesystem::path& file, const std::string& text);

  static constexpr std::size_t kMostWaitingBytes = std::size_t{4} << 20;

  std::filesystem::path run_;
  std::string title_;
  std::map<std::filesystem::path, std::string> waiting_;
  std::map<std::filesystem::path, std::ofstream> files_;
  std::size_t waiting_bytes_ = 0;
};

}  // namespace lockstep
