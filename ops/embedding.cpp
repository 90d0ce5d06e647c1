#include "base/error.h"
#include "ops/functions.h"

namespace lockstep {
namespace {

void check(const TokenRows& rows, const EmbeddingTables& tables) {
  require(tables.tokens.shape().rank() == 2, "embedding: table {}, expected two dimensions", tables.tokens.shape());
  const std::int64_t vocabulary = tables.tokens.dim(0);
  for (std::size_t i = 0; i < rows.tokens.size(); ++i) {
    const std::int32_t token = rows.tokens[i];
    require(token >= 0 && token < vocabulary, "embedding: token {} at row {} is outside the vocabulary of {}", token, i,
            vocabulary);
  }
  if (tables.positions.is_defined()) {
    require(tables.positions.shape().rank() == 2 && tables.positions.dim(1) == tables.tokens.dim(1),
            "embedding: positions {} do not fit tokens {}", tables.positions.shape(), tables.tokens.shape());
    require(rows.first_position + rows.sequence <= tables.positions.dim(0),
            "embedding: a sequence of {} from position {} is longer than the context of {}", rows.sequence,
            rows.first_position, tables.positions.dim(0));
  }
}

}  // namespace

// x[n] = tokens[token n] + positions[position n]; each row of dx is added to the rows it came from.
Tensor embedding(Tape& tape, const TokenRows& rows, const EmbeddingTables& tables) {
  check(rows, tables);

  const auto n = static_cast<std::int64_t>(rows.tokens.size());
  const Tensor x =
      tape.make_output({n, tables.tokens.dim(1)}, tables.tokens.dtype(), {&tables.tokens, &tables.positions});
  const Backend::Embedding lookup{rows.tokens, rows.sequence, rows.first_position};
  tape.backend().embedding_forward(lookup, tables.tokens, tables.positions, x);

  tape.record(x, {&tables.tokens, &tables.positions}, [x, lookup, tables](Gradients& gradients) {
    const Tensor dx = gradients.take(x);
    Backend& backend = gradients.backend();
    const auto zeroed = [&](const Tensor& table) {
      if (!table.is_defined()) {
        return Tensor();
      }
      const auto gradient = gradients.of_parameter(table);
      if (!gradient.accumulate) {
        backend.fill_zero(gradient.value);
      }
      return gradient.value;
    };
    const Tensor dtokens = zeroed(tables.tokens);
    const Tensor dpositions = zeroed(tables.positions);
    backend.embedding_backward(lookup, dx, dtokens, dpositions);
  });
  return x;
}

}  // namespace lockstep
