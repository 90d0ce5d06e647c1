#include "launcher/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"

namespace lockstep {

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    fail_errno("write to stdout");
  }
}

std::string one_line(std::string_view message) {
  constexpr std::size_t kMost = 2000;
  std::size_t end = std::min(message.size(), kMost);
  while (end > 0 && end < message.size() && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) {
    --end;  // no half characters
  }
  std::string line;
  for (const char c : message.substr(0, end)) {
    if (c == '\n') {
      line += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      line += c;
    }
  }
  return end < message.size() ? line + "..." : line;
}

}  // namespace lockstep
