#include "trainer/agreement.h"

#include <string>
#include <vector>

namespace lockstep {

void run_agreed(Communicator& communicator, const std::function<void()>& work) {
  std::string mine;  // the code as one character, then the message; empty when all went well
  try {
    work();
  } catch (const Error& error) {
    mine = std::string(1, static_cast<char>('A' + static_cast<int>(error.code()))) + error.what();
  }
  for (const std::string& failure : communicator.all_gather_text(mine)) {
    if (!failure.empty()) {
      throw AgreedError(static_cast<ErrorCode>(failure.front() - 'A'), failure.substr(1));
    }
  }
}

}  // namespace lockstep
