#include "ops/sequences.h"

#include <cstddef>
#include <initializer_list>

namespace lockstep {
namespace {

template <typename Attention>
Attention of_sequence(const Attention& all, const SequenceRows& rows,
                      std::initializer_list<RowsView Attention::*> views) {
  Attention one = all;
  one.lengths = {};
  one.shape.query_length = one.shape.key_length = one.shape.key_capacity = rows.length;
  one.dropout.key = key_of_sequence(all.dropout.key, rows.index);
  for (RowsView Attention::*const view : views) {
    (one.*view).data = static_cast<std::byte*>((one.*view).data) +
                       static_cast<std::size_t>(rows.begin * (one.*view).row_stride) * size_of(all.dtype);
  }
  if (all.log_sum_exp.is_defined()) {
    one.log_sum_exp = all.log_sum_exp.reshaped({all.shape.query_length, all.shape.heads})
                          .slice(rows.begin, rows.length)
                          .reshaped({1, all.shape.heads, rows.length});
  }
  return one;
}

}  // namespace

AttentionForward attention_of_sequence(const AttentionForward& all, const SequenceRows& rows) {
  using A = AttentionForward;
  return of_sequence(all, rows, {&A::q, &A::k, &A::v, &A::out});
}

AttentionBackward attention_of_sequence(const AttentionBackward& all, const SequenceRows& rows) {
  using A = AttentionBackward;
  return of_sequence(all, rows, {&A::q, &A::k, &A::v, &A::out, &A::dout, &A::dq, &A::dk, &A::dv});
}

}  // namespace lockstep
