// What workers, the coordinator and those who look on say to each other: one JSON object a text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "comm/control/activity.h"

namespace lockstep::control {

// A worker's first text.
struct Hello {
  int rank = 0;
  int world = 1;
  int attempt = 1;  // counts the starts of a job; a worker of an earlier one is turned away
  std::string host = {};
  std::int64_t process = 0;
  std::uint64_t process_namespace = 0;  // process numbers mean something only within one
};

struct Heartbeat {
  ActivityState activity = {};
  double cpu_seconds = 0;      // used by the process's threads, but for the one that sends this
  char thread_state = '?';     // of the main thread, as in /proc/PID/stat (R, S, D, T, ...)
  std::uint64_t io_bytes = 0;  // read from and written to files by the process
};

// A worker that ends on purpose says so, and why.
struct Farewell {
  int exit_code = 0;
  std::string message = {};       // empty when all went well
  bool again_is_useless = false;  // a new start would end the same way
};

enum class Order : std::uint8_t { kAlive, kSave, kStop, kEnd };
// From the coordinator to a worker. `reason`: of kEnd; with kAlive, what the rank that hosts the coordinator is doing.
struct Command {
  Order order = Order::kAlive;
  std::string reason = {};
};

enum class Question : std::uint8_t { kState, kSave, kStop };
// Someone who looks on, or asks for something.
struct Ask {
  Question question = Question::kState;
};

struct WorkerState {
  int rank = 0;
  std::string host = {};
  std::int64_t process = 0;
  bool connected = false;
  bool ended = false;
  double silent_seconds = 0;  // since its last sign of life
  double still_seconds = 0;   // since it last made progress
  Heartbeat last = {};
};
// The answer to any Ask.
struct JobState {
  int attempt = 1;
  int world = 1;
  bool stop_requested = false;
  std::uint64_t refused_connections = 0;
  std::vector<WorkerState> workers = {};  // by rank, those that have come up
};

using Message = std::variant<Hello, Heartbeat, Farewell, Command, Ask, JobState>;

[[nodiscard]] std::string to_text(const Message& message);
// Throws Error(kCorrupt) for what is none of these.
[[nodiscard]] Message parse_message(const std::string& text);

}  // namespace lockstep::control
