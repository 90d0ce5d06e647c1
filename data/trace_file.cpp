#include "data/trace_file.h"

#include <fmt/format.h>

#include <iterator>
#include <string>

namespace lockstep {

TraceFile::TraceFile(const std::filesystem::path& path) : file_(File::open_or_create(path)), size_(file_.size()) {
  if (size_ > 0) {
    std::byte last{};
    file_.read_exactly(size_ - 1, {&last, 1});
    if (last != std::byte{'\n'}) {
      file_.write(size_, std::as_bytes(std::span("\n", 1)));
      ++size_;
    }
  }
}

void TraceFile::append(std::span<const TraceLine> lines) {
  std::string text;
  for (const TraceLine& line : lines) {
    fmt::format_to(std::back_inserter(text), "{} {} {} {}\n", line.step, line.micro_batch, line.sample,
                   line.tokens.hex());
  }
  file_.write(size_, std::as_bytes(std::span(text)));
  size_ += text.size();
}

std::filesystem::path TraceFile::path_of_rank(const std::filesystem::path& trace, int rank) {
  std::filesystem::path path = trace;
  path += fmt::format(".rank{}", rank);
  return path;
}

}  // namespace lockstep
