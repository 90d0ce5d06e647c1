// The tests of this program run once more with oneDNN held to lesser instruction sets (CMakeLists.txt): this one makes
// sure that it is.
#include <gtest/gtest.h>

#include <cstdlib>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "ops/backend.h"

namespace lockstep {
namespace {

TEST(InstructionSet, IsTheOneThatOneDnnIsHeldTo) {
  const char* const variable = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string limit = variable == nullptr ? "" : variable;
  const auto uses = [](dnnl::cpu_isa wanted) {
    const auto bits = static_cast<unsigned>(wanted);
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & bits) == bits;
  };
  const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                          __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  EXPECT_EQ(uses(dnnl::cpu_isa::avx2), has_avx2 && limit != "SSE41");
  EXPECT_EQ(uses(dnnl::cpu_isa::avx512_core), has_avx512 && (limit.empty() || limit == "AVX512_CORE"));
  EXPECT_FALSE(make_cpu_backend(1)->has_native(DType::kF16));
  if (limit == "SSE41" || limit == "AVX2") {
    EXPECT_FALSE(make_cpu_backend(1)->has_native(DType::kBF16));
  }
}

}  // namespace
}  // namespace lockstep
