// What tensor cores do and C++ has no words for: products of pieces of matrices that lie in the registers of a warp,
// and the ways there. Only code of kernels includes it: in tests/cuda_emulator a file of the same name takes its place.
//
// A piece is spread over the lanes of a warp; of two elements (bf16 or f16) in a register the first is the lower half.
// Lane 4 g + t holds
// (PTX ISA, "Matrix fragments for mma.m16n8k16")
//   of A[16, 16]: a[0] row g, columns 2 t and 2 t + 1; a[1] row g + 8; a[2] and a[3] the same, 8 columns on
//   of B[16, 8]:  b0 column g, rows 2 t and 2 t + 1; b1 the same, 8 rows on
//   of D[16, 8]:  d[0] and d[1] row g, columns 2 t and 2 t + 1; d[2] and d[3] row g + 8
// All lanes of a warp call together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "ops/cuda/card.cuh"

namespace lockstep::cuda {

// d += a b, with sums in f32, of elements T. Turing has no such products of bf16.
template <typename T>
__device__ void add_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ inline void add_product<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The product of 8 columns of A, that is a[0] and a[1], and 8 rows of B: what Turing has.
__device__ inline void add_half_product(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b));
}
template <>
__device__ inline void add_product<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (kIsForTuring) {
    add_half_product(d, a[0], a[1], b0);
    add_half_product(d, a[2], a[3], b1);
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four matrices of 8 x 8 elements of 16 bits from shared memory: `row` of lane 8 i + r is row r of matrix i, aligned to
// 16 bytes. Of each, lane 4 g + t gets elements 2 t and 2 t + 1 of row g.
__device__ inline void load_matrices(unsigned (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
// The same of the transposed matrices: lane 4 g + t gets elements g of rows 2 t and 2 t + 1.
__device__ inline void load_transposed_matrices(unsigned (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Starts a copy of kBytes (4 or 16, to which both addresses are aligned) from global to shared memory, or of zeros
// where `is_there` is false: `from` may then be anything. Each thread calls by itself. Nobody writes to `from` while
// the kernel runs.
template <int kBytes>
__device__ void start_copy(void* to, const void* from, bool is_there) {
  if constexpr (kIsForTuring) {  // has no such copies: it is done at once
    using Word = std::conditional_t<kBytes == 16, uint4, unsigned>;
    static_assert(sizeof(Word) == kBytes);
    *static_cast<Word*>(to) = is_there ? __ldg(static_cast<const Word*>(from)) : Word{};
  } else {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const std::size_t global = __cvta_generic_to_global(from);
    const int size = is_there ? kBytes : 0;
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(size) : "memory");
    } else {
      static_assert(kBytes == 4);
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(size) : "memory");
    }
  }
}
// Returns when the thread's own copies are done. Other threads see them after a barrier.
__device__ inline void wait_for_copies() {
  if constexpr (!kIsForTuring) {
    asm volatile("cp.async.wait_all;" ::: "memory");
  }
}

// 2^x, to two units in the last place; 0 below 2^-126.
__device__ inline float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace lockstep::cuda
