#include "trainer/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "base/hash.h"

namespace lockstep {

namespace {

// Behind each value, in which it does not occur.
constexpr char kEnd = '\0';

// The code as one character, then the message.
std::string coded(ErrorCode code, const std::string& message) {
  return std::string(1, static_cast<char>('A' + static_cast<int>(code))) + message;
}

}  // namespace

void run_agreed(Communicator& communicator, const std::function<void()>& work) {
  std::string mine;  // empty when all went well
  try {
    work();
  } catch (const Error& error) {
    mine = coded(error.code(), error.what());
  } catch (const std::exception& error) {  // no memory, a file system that fails in a library
    mine = coded(ErrorCode::kIo, error.what());
  }
  for (const std::string& failure : communicator.all_gather_text(mine)) {
    if (!failure.empty()) {
      throw AgreedError(static_cast<ErrorCode>(failure.front() - 'A'), failure.substr(1));
    }
  }
}

void require_alike(std::span<const SharedFact> facts, Communicator& communicator) {
  std::string mine;
  for (const SharedFact& fact : facts) {
    mine += fact.value + kEnd;
  }
  const Hash128 hash = hash_of(mine);
  std::vector<Hash128> hashes(static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather(std::as_bytes(std::span(&hash, 1)), std::as_writable_bytes(std::span(hashes)));
  const auto other = std::ranges::find_if(hashes, [&](const Hash128& found) { return found != hashes.front(); });
  if (other == hashes.end()) {
    return;
  }
  const auto rank = static_cast<std::size_t>(other - hashes.begin());
  const std::vector<std::string> all = communicator.all_gather_text(mine);
  std::size_t begin = 0;
  std::size_t first_begin = 0;
  for (const SharedFact& fact : facts) {
    const std::string theirs = all[rank].substr(begin, all[rank].find(kEnd, begin) - begin);
    const std::string first = all[0].substr(first_begin, all[0].find(kEnd, first_begin) - first_begin);
    if (theirs != first) {
      throw AgreedError(ErrorCode::kUsage,
                        fmt::format("{} is {} on rank {}, and {} on rank 0; expected the same on every rank", fact.name,
                                    theirs, rank, first));
    }
    begin += theirs.size() + 1;
    first_begin += first.size() + 1;
  }
  throw AgreedError(ErrorCode::kUsage,
                    fmt::format("rank {} is another program than rank 0; expected the same version everywhere", rank));
}

}  // namespace lockstep
