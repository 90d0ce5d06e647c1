// Columns that dataset_info.json names, looked for in the rows.
#pragma once

#include <cstdint>

#include "data/pack/plan.h"

namespace lockstep {

// Throws Error(kUsage) for a source one of whose named columns stands in no row that is taken of its files, saying
// which files those are and what their rows have. Reads rows until each column was seen: few, where all is well. Rows
// that are not JSON objects count for nothing. `longest` is that of an object, in bytes.
void check_named_columns(const Plan& plan, std::uint64_t longest);

}  // namespace lockstep
