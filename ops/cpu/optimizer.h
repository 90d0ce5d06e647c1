// Updates of the flat parameters. What they compute is said in ops/backend.h.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void adamw(const AdamW& adamw, ThreadPool& pool);

}  // namespace lockstep::cpu
