#include "trainer/agreement.h"

#include <exception>
#include <string>
#include <vector>

namespace lockstep {

namespace {

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

}  // namespace lockstep
