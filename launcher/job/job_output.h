// What the processes of a job say: to the terminal of lockstep launch, and to the logs in the run's folder.
#pragma once

#include <deque>
#include <filesystem>
#include <string>

#include "base/log.h"
#include "launcher/job/rank_logs.h"

namespace lockstep {

class JobOutput {
 public:
  JobOutput(std::filesystem::path run, Log& log) : logs_(std::move(run)), log_(log) {}

  // See RankLogs. Lines name their rank where there are several.
  void begin_attempt(const std::string& title, bool several_ranks);
  // `rank` -1: mpirun's or srun's own, which goes to its log alone.
  void of_rank(const OutputLine& line);
  void of_server(int server, const std::string& text);
  // The last that mpirun or srun said itself in this attempt, for who asks why nothing came up.
  void show_starters_lines();
  void flush() { logs_.flush(); }

 private:
  RankLogs logs_;
  Log& log_;
  std::deque<std::string> starter_lines_;
  bool several_ranks_ = false;
};

}  // namespace lockstep
