// The tests of this program run once more with oneDNN held to lesser instruction sets (CMakeLists.txt): this one makes
// sure that it is.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "ops/backend.h"

namespace lockstep {
namespace {

TEST(InstructionSet, IsTheOneThatOneDnnIsHeldTo) {
  const char* const limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr) {
    GTEST_SKIP() << "no limit";
  }
  const std::map<std::string, dnnl::cpu_isa> names = {
      {"SSE41", dnnl::cpu_isa::sse41}, {"AVX2", dnnl::cpu_isa::avx2}, {"AVX512_CORE", dnnl::cpu_isa::avx512_core}};
  // A processor may have less than that.
  EXPECT_LE(static_cast<int>(dnnl::get_effective_cpu_isa()), static_cast<int>(names.at(limit)));
  if (std::string(limit) != "AVX512_CORE") {
    EXPECT_FALSE(make_cpu_backend(1)->has_native(DType::kBF16));
  }
}

}  // namespace
}  // namespace lockstep
