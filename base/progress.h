// How far a long piece of work is: a bar that is redrawn in place on a terminal, a plain line now and then elsewhere.
//
//   train  37%  [=====>         ]  740/2000  loss 2.3451  12.3k tokens/s  1:23 left
//   train: step 740 of 2000 (37%), loss 2.3451, 12.3k tokens/s, 1:23 left
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "base/log.h"

namespace lockstep {

// The fields of update() are texts such as "loss 2.3451" and "12.3k tokens/s", the most important first: narrow
// terminals drop the last ones.
struct ProgressOptions {
  std::string what;                // "train", "pack": the first word of the line
  std::string unit = "step";       // what is counted, in the singular
  std::uint64_t total = 0;         // 0: not known; then no bar, share or time left is shown
  std::uint64_t start = 0;         // what was already done when the clock started (a resumed run)
  double redraw_interval_s = 0.1;  // on a terminal
  double line_interval_s = 10;     // elsewhere
  std::uint64_t line_every = 0;    // elsewhere: a line each time `done` reaches a multiple of it, instead of by time
  std::function<double()> now_s = {};  // a monotonic clock; empty: std::chrono::steady_clock
};

class Progress {
 public:
  // `log` must outlive it.
  Progress(Log& log, ProgressOptions options);
  // Takes the bar off the terminal.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Whether update(done) would show something: a caller may skip preparing fields otherwise.
  [[nodiscard]] bool due(std::uint64_t done) const;
  // Shows the state if it is due; always when done reaches the total. One thread at a time.
  void update(std::uint64_t done, std::span<const std::string> fields = {});
  // Takes the bar away and leaves one line that says how much was done and how long it took.
  void finish(std::uint64_t done, std::span<const std::string> fields = {});

 private:
  [[nodiscard]] std::optional<double> seconds_left(std::uint64_t done, double now_s) const;
  [[nodiscard]] std::string bar(std::uint64_t done, std::span<const std::string> fields, double now_s,
                                int columns) const;
  [[nodiscard]] std::string line(std::uint64_t done, std::span<const std::string> fields, double now_s) const;

  Log& log_;
  ProgressOptions options_;
  double start_s_ = 0;
  double last_shown_s_ = 0;
  bool shown_ = false;
  bool finished_ = false;
};

// "1:23", "2:03:09", "3d 04:05".
[[nodiscard]] std::string format_duration(double seconds);
// Three digits and a suffix: "987", "12.3k", "4.56M", "7.89G".
[[nodiscard]] std::string format_count(double value);
// "987 B", "12.3 KiB", "4.56 MiB".
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);

}  // namespace lockstep
