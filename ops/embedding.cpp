#include <algorithm>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/sequences.h"

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
    const std::int64_t longest = rows.lengths.empty() ? rows.sequence : std::ranges::max(rows.lengths);
    require(rows.first_position + longest <= tables.positions.dim(0),
            "embedding: a sequence of {} from position {} is longer than the context of {}", longest,
            rows.first_position, tables.positions.dim(0));
  }
}

// Where there are no positions, all rows are one call's.
template <typename Call>
void for_each_lookup(const TokenRows& rows, bool has_positions, const Tensor& x, const Call& call) {
  const auto count = static_cast<std::int64_t>(rows.tokens.size());
  if (!has_positions || rows.lengths.empty()) {
    call(Backend::Embedding{rows.tokens, has_positions ? rows.sequence : count, rows.first_position}, x);
    return;
  }
  for_each_sequence("embedding", count, count, rows.lengths, [&](const SequenceRows& sequence) {
    const auto begin = static_cast<std::size_t>(sequence.begin);
    call(Backend::Embedding{rows.tokens.subspan(begin, static_cast<std::size_t>(sequence.length)), sequence.length,
                            rows.first_position},
         x.slice(sequence.begin, sequence.length));
  });
}

}  // namespace

// x[n] = tokens[token n] + positions[position n]; each row of dx is added to the rows it came from.
Tensor embedding(Tape& tape, const TokenRows& rows, const EmbeddingTables& tables) {
  check(rows, tables);

  const auto n = static_cast<std::int64_t>(rows.tokens.size());
  const Tensor x =
      tape.make_output({n, tables.tokens.dim(1)}, tables.tokens.dtype(), {&tables.tokens, &tables.positions});
  const bool has_positions = tables.positions.is_defined();
  for_each_lookup(rows, has_positions, x, [&](const Backend::Embedding& lookup, const Tensor& found) {
    tape.backend().embedding_forward(lookup, tables.tokens, tables.positions, found);
  });

  tape.record(x, {&tables.tokens, &tables.positions}, [x, rows, tables](Gradients& gradients) {
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
    for_each_lookup(rows, dpositions.is_defined(), dx, [&](const Backend::Embedding& lookup, const Tensor& part) {
      backend.embedding_backward(lookup, part, dtokens, dpositions);
    });
  });
  return x;
}

}  // namespace lockstep
