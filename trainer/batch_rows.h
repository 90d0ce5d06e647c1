// A batch as the model takes it.
#pragma once

#include "data/batch_loader.h"
#include "trainer/model/transformer.h"

namespace lockstep {

// Views of `batch`.
[[nodiscard]] inline Transformer::Rows rows_of(const TokenBatch& batch) {
  return {batch.inputs, batch.targets, batch.rows(), batch.row_tokens, batch.lengths};
}

}  // namespace lockstep
