// A Log whose output a test can read.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/log.h"

namespace lockstep {

class CapturedLog {
 public:
  explicit CapturedLog(LogOptions options = {}) : log_(to_stream(std::move(options), memory_.stream)) {}

  [[nodiscard]] Log& log() { return log_; }
  // What was written since the last call.
  std::string take() {
    std::fflush(memory_.stream);
    const std::string all(memory_.text, memory_.size);
    const std::string fresh = all.substr(taken_);
    taken_ = all.size();
    return fresh;
  }

 private:
  struct Memory {
    char* text = nullptr;
    std::size_t size = 0;
    std::FILE* stream = open_memstream(&text, &size);

    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
      std::fclose(stream);
      std::free(text);
    }
  };
  static LogOptions to_stream(LogOptions options, std::FILE* stream) {
    options.stream = stream;
    return options;
  }

  Memory memory_;  // outlives log_, which writes until its end
  Log log_;
  std::size_t taken_ = 0;
};

}  // namespace lockstep
