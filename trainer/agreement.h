// Errors that all ranks know of.
#pragma once

#include <functional>

#include "base/error.h"
#include "comm/communicator.h"

namespace lockstep {

// The same Error, thrown on every rank: rank 0 tells the person, the others end quietly.
class AgreedError : public Error {
 public:
  using Error::Error;
};

// Runs `work` on every rank and returns when all have. When it threw on some, throws the error of the lowest such rank
// as an AgreedError on all. `work` makes no collective calls of its own.
void run_agreed(Communicator& communicator, const std::function<void()>& work);

}  // namespace lockstep
