// Whether a person watches, and how wide their terminal is.
#pragma once

#include <functional>

#include "comm/rank_environment.h"

namespace lockstep {

// A function that gives the width of the terminal on which stderr ends, and 0 when it ends elsewhere. Under mpirun
// stderr is a pipe to mpirun; then mpirun's own stderr counts. LOCKSTEP_PROGRESS=bar or lines decides instead of the
// detection. Throws Error(kUsage) for another value of LOCKSTEP_PROGRESS.
[[nodiscard]] std::function<int()> terminal_columns(const EnvironmentLookup& environment, Starter starter);

}  // namespace lockstep
