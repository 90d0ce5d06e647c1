// Error handling across ranks: what fails on one rank fails on all, so that none is left waiting.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/pack/pack.h"

namespace lockstep {

// Runs `work` on every rank and returns all ranks' results, by rank. When it threw on some, throws the Error of the
// lowest of them on every rank. Any other exception counts as Error(kIo).
std::vector<std::string> gather_together(const PackPeers& peers, const std::function<std::string()>& work);

// The same for work that has no result.
void together(const PackPeers& peers, const std::function<void()>& work);

// Runs `work` on rank 0 and returns its result on every rank.
std::string on_first_rank(const PackPeers& peers, const std::function<std::string()>& work);

}  // namespace lockstep
