#include "ops/cuda/embedding.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/cuda/row_groups.h"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T>
struct Lookup {
  const std::int32_t* tokens;
  std::int64_t rows_per_sequence;
  std::int64_t first_position;
  std::int64_t columns;
  const T* tokens_table;
  const T* positions_table;  // null: none
  T* x;
  template <int N>
  __device__ void at(std::int64_t i) const {
    const std::int64_t row = i / columns;
    const std::int64_t column = i % columns;
    Values<N> values = load<N>(tokens_table + tokens[row] * columns + column);
    if (positions_table != nullptr) {
      const std::int64_t position = first_position + row % rows_per_sequence;
      const Values<N> other = load<N>(positions_table + position * columns + column);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        values.v[k] += other.v[k];
      }
    }
    store(values, x + i);
  }
};

// A block for a piece and some columns: the sum of its rows goes to the table when the token has no other piece, else
// into partial[piece].
template <int N, typename T>
__global__ void add_pieces(const T* dx, int columns, const std::int32_t* rows, const RowGroups::Piece* pieces,
                           float* table, float* partial) {
  const RowGroups::Piece piece = pieces[blockIdx.x];
  if (piece.count == 0) {
    return;
  }
  for (int column = static_cast<int>(threadIdx.x) * N; column < columns; column += kThreads * N) {
    Values<N> sum = {};
#pragma unroll 4
    for (int r = 0; r < piece.count; ++r) {
      const Values<N> values = load<N>(dx + std::int64_t{rows[piece.begin + r]} * columns + column);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum.v[k] += values.v[k];
      }
    }
    if (piece.pieces == 1) {
      float* target = table + std::int64_t{piece.token} * columns + column;
      const Values<N> before = load<N>(target);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum.v[k] = before.v[k] + sum.v[k];
      }
      store(sum, target);
    } else {
      store(sum, partial + std::int64_t{blockIdx.x} * columns + column);
    }
  }
}

// A block for a token of several pieces: adds their sums in order.
template <int N>
__global__ void add_partial_sums(int columns, const RowGroups::Piece* pieces, const float* partial, float* table) {
  const RowGroups::Piece piece = pieces[blockIdx.x];
  if (piece.pieces < 2) {
    return;
  }
  for (int column = static_cast<int>(threadIdx.x) * N; column < columns; column += kThreads * N) {
    Values<N> sum = load<N>(table + std::int64_t{piece.token} * columns + column);
#pragma unroll 4
    for (int p = 0; p < piece.pieces; ++p) {
      const Values<N> values = load<N>(partial + (std::int64_t{blockIdx.x} + p) * columns + column);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum.v[k] += values.v[k];
      }
    }
    store(sum, table + std::int64_t{piece.token} * columns + column);
  }
}

// The sequences of a batch have the same positions: each position's rows are added in their order.
template <typename T>
struct AddPositions {
  const T* dx;
  std::int64_t rows;
  std::int64_t rows_per_sequence;
  std::int64_t columns;
  float* table;  // from the first position on
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> sum = load<N>(table + i);
#pragma unroll 4
    for (std::int64_t row = i / columns; row < rows; row += rows_per_sequence) {
      const Values<N> values = load<N>(dx + row * columns + i % columns);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum.v[k] += values.v[k];
      }
    }
    store(sum, table + i);
  }
};

// Rows and pieces travel together.
static_assert(sizeof(RowGroups::Piece) == 4 * sizeof(std::int32_t));
std::size_t padded_rows(std::size_t rows) { return (rows + 3) / 4 * 4; }
std::size_t packed_size(std::size_t rows, std::size_t pieces) { return padded_rows(rows) + pieces * 4; }

// `to` may have room for more pieces: those are empty.
void pack_groups(const RowGroups& groups, std::span<std::int32_t> to) {
  std::fill(to.begin(), to.end(), 0);
  std::memcpy(to.data(), groups.rows.data(), groups.rows.size() * sizeof(std::int32_t));
  std::memcpy(to.data() + padded_rows(groups.rows.size()), groups.pieces.data(),
              groups.pieces.size() * sizeof(RowGroups::Piece));
}

// A recorded launch has blocks for as many pieces as there can be.
template <int N, typename T>
void add_tokens(std::span<const std::int32_t> tokens, std::int64_t vocabulary, const T* dx, int columns, float* table,
                IdUpload& upload, Scratch& scratch, cudaStream_t stream) {
  const std::size_t most = most_pieces(tokens.size(), vocabulary);
  thread_local RowGroups groups;
  group_rows(tokens, vocabulary, groups);
  const std::size_t count = upload.is_recording() ? most : groups.pieces.size();
  IdUpload::Fill fill = [](std::span<std::int32_t> to) { pack_groups(groups, to); };
  if (upload.is_recording()) {
    fill = [tokens, vocabulary](std::span<std::int32_t> to) {
      group_rows(tokens, vocabulary, groups);
      pack_groups(groups, to);
    };
  }
  const std::int32_t* rows =
      upload(packed_size(tokens.size(), count), packed_size(tokens.size(), most), std::move(fill));
  const auto* pieces = reinterpret_cast<const RowGroups::Piece*>(rows + padded_rows(tokens.size()));
  const auto blocks = static_cast<unsigned>(count);
  const std::size_t several = most_pieces_of_several(tokens.size());
  auto* partial = scratch.get<float>(several * static_cast<std::size_t>(columns));
  launch("embedding's gradient", add_pieces<N, T>, {blocks, kThreads}, stream, dx, columns, rows, pieces, table, partial);
  if (several > 0) {  // those come first
    const auto blocks_of_several = static_cast<unsigned>(std::min(count, several));
    launch("embedding's gradient", add_partial_sums<N>, {blocks_of_several, kThreads}, stream, columns, pieces, partial,
           table);
  }
}

}  // namespace

void embedding_forward(const Backend::Embedding& embedding, const std::int32_t* tokens, const Tensor& tokens_table,
                       const Tensor& positions_table, const Tensor& x, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    const bool in_packs =
        x.dim(-1) % kPack == 0 && are_aligned({tokens_table.data(), positions_table.data(), x.data()});
    sweep(x.count(), in_packs, stream, "embedding",
          Lookup<T>{tokens, embedding.rows_per_sequence, embedding.first_position, x.dim(-1),
                    pointer<T>(tokens_table.data()), pointer<T>(positions_table.data()), pointer<T>(x.data())});
  });
}

void embedding_backward(const Backend::Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                        const Tensor& dpositions_table, IdUpload& upload, Scratch& scratch, cudaStream_t stream) {
  if (dx.count() == 0) {
    return;
  }
  with_working_type(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    const T* gradient = pointer<T>(dx.data());
    float* table = pointer<float>(dtokens_table.data());
    const auto columns = static_cast<int>(dx.dim(-1));
    const bool in_packs = columns % kPack == 0 && are_aligned({gradient, table, dpositions_table.data()});
    if (in_packs) {
      add_tokens<kPack>(embedding.tokens, dtokens_table.dim(0), gradient, columns, table, upload, scratch, stream);
    } else {
      add_tokens<1>(embedding.tokens, dtokens_table.dim(0), gradient, columns, table, upload, scratch, stream);
    }
    if (dpositions_table.is_defined()) {
      const std::int64_t positions = std::min(embedding.rows_per_sequence, dx.rows());
      sweep(positions * columns, in_packs, stream, "positions' gradient",
            AddPositions<T>{gradient, dx.rows(), embedding.rows_per_sequence, columns,
                            pointer<float>(dpositions_table.data()) + embedding.first_position * columns});
    }
  });
}

}  // namespace lockstep::cuda
