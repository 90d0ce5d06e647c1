// Errors that all ranks know of, and what all ranks must have alike.
#pragma once

#include <functional>
#include <span>
#include <string>

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

struct SharedFact {
  std::string name;  // "optimizer.lr"
  std::string value;
};
// Collective. Every rank has the same names in the same order. Throws AgreedError(kUsage) that names the first rank and
// the first fact of it that differ from rank 0's.
void require_alike(std::span<const SharedFact> facts, Communicator& communicator);

}  // namespace lockstep
