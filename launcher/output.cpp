#include "launcher/output.h"

#include <cstdio>

#include "base/error.h"

namespace lockstep {

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    fail_errno("write to stdout");
  }
}

}  // namespace lockstep
