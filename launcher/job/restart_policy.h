// Whether what failed is started again, and when: a whole attempt, or one of its processes.
//
// At once when it had got on since its last start, else after a pause that doubles from half a second to a minute. Not
// when a new start would only repeat the failure (bad input, a loss that is no number), after three failures at the
// same step, after three in a row before the job had ever come up, or thirty once it had, or when max_restarts have
// been made.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace lockstep {

struct Failure {
  std::string cause;
  std::int64_t step = 0;          // completed when it failed
  bool progressed = false;        // steps were done since it was started
  bool again_is_useless = false;  // a new start would fail the same way
  bool refused = false;           // for what it was given: bad input, no room
  bool is_telling = true;         // it had come up, or said what was wrong: not something that may pass by itself
  bool is_counted = true;         // false: a part of a failure that has been counted
};

class RestartPolicy {
 public:
  // `ever_opened`: the job has worked on its run before. What is refused then (a folder without room, or read-only) is
  // tried again for some minutes.
  RestartPolicy(int max_restarts, bool ever_opened) : max_restarts_(max_restarts), ever_opened_(ever_opened) {}

  void note_opened() { ever_opened_ = true; }
  [[nodiscard]] bool ever_opened() const { return ever_opened_; }

  struct Verdict {
    std::optional<int> exit_code;        // the job ends with it; otherwise a new start is due
    std::string text;                    // for people
    std::chrono::milliseconds pause{0};  // before the new start
  };
  // `what`: empty for the whole attempt, "rank 3" for a process.
  [[nodiscard]] Verdict after(const std::string& what, const Failure& failure);
  // None of so many hosts answers: a network that is down, perhaps. It may come back.
  [[nodiscard]] Verdict without_hosts(std::size_t hosts);

 private:
  struct Record {
    int refusals = 0;
    int not_up = 0;  // starts in a row
    int at_same_step = 0;
    std::int64_t failed_step = -1;
    std::chrono::milliseconds back_off{0};
  };
  const int max_restarts_;
  bool ever_opened_;
  int restarts_ = 0;
  std::map<std::string, Record> records_;
};

}  // namespace lockstep
