// From the third step on a training step takes no memory from the system: nothing large is allocated, nothing
// stays, and no page is touched for the first time. oneDNN allocates room for packed operands in each product; that
// comes from what the C library has kept of the last one, so it shows in no page fault.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <oneapi/dnnl/dnnl.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/heap.h"
#include "base/random.h"
#include "comm/communicator.h"
#include "trainer/config.h"
#include "trainer/train_step.h"

namespace {

// The smallest activation of the model below is 128 KiB. MPI now and then takes 8 KiB for its lists.
constexpr std::size_t kLarge = 16384;
std::atomic<bool> is_counting = false;
thread_local bool is_in_onednn = false;
std::atomic<std::size_t> large_allocations = 0;
std::atomic<std::size_t> largest_bytes = 0;

void note(std::size_t size_bytes) {
  if (is_counting && !is_in_onednn && size_bytes >= kLarge) {
    ++large_allocations;
    largest_bytes = std::max(largest_bytes.load(), size_bytes);
  }
}

}  // namespace

// The C library's own functions under names that it keeps for programs that put theirs in front. Operator new, oneDNN
// and MPI all come through these.
extern "C" {
void* __libc_malloc(std::size_t size_bytes);
void* __libc_calloc(std::size_t count, std::size_t size_bytes);
void* __libc_realloc(void* memory, std::size_t size_bytes);
void* __libc_memalign(std::size_t alignment, std::size_t size_bytes);

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void* malloc(std::size_t size_bytes) {
  note(size_bytes);
  return __libc_malloc(size_bytes);
}
void* calloc(std::size_t count, std::size_t size_bytes) {
  note(count * size_bytes);
  return __libc_calloc(count, size_bytes);
}
void* realloc(void* memory, std::size_t size_bytes) {
  note(size_bytes);
  return __libc_realloc(memory, size_bytes);
}
void* memalign(std::size_t alignment, std::size_t size_bytes) {
  note(size_bytes);
  return __libc_memalign(alignment, size_bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t size_bytes) { return memalign(alignment, size_bytes); }
int posix_memalign(void** memory, std::size_t alignment, std::size_t size_bytes) {
  *memory = memalign(alignment, size_bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
#endif

// In front of oneDNN's own.
dnnl_status_t dnnl_primitive_execute(const_dnnl_primitive_t primitive, dnnl_stream_t stream, int count,
                                     const dnnl_exec_arg_t* arguments) {
  static const auto execute =
      reinterpret_cast<decltype(&dnnl_primitive_execute)>(::dlsym(RTLD_NEXT, "dnnl_primitive_execute"));
  is_in_onednn = true;
  const dnnl_status_t status = execute(primitive, stream, count, arguments);
  is_in_onednn = false;
  return status;
}
}

long page_faults() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

namespace lockstep {
namespace {

struct Case {
  const char* name;
  std::vector<std::string> settings;
};

void PrintTo(const Case& tried, std::ostream* stream) { *stream << tried.name; }

constexpr const char* kConfig = R"(
run:   {name: steady}
model: {family: gpt2, layers: 3, heads: 4, width: 128, context: 128, vocab: 997, dropout: 0.1}
data:  {train: none, sequence: 128}
train: {steps: 10, micro_batches: 8, micro_batch_size: 2, threads: 1}
comm:  {bucket_mib: 1}
)";

class SteadyStepTest : public testing::TestWithParam<Case> {};

TEST_P(SteadyStepTest, AllocatesNothing) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer has an allocator of its own";
#endif
  keep_freed_memory();
  const auto communicator = make_communicator({.timeout_ms = 60'000});
  {
    const Config config =
        resolve(parse_config(kConfig, "steady.yaml", GetParam().settings), {.world_size = communicator->world_size(),
                                                                            .ranks_on_node = communicator->node_size(),
                                                                            .cores_on_node = 1,
                                                                            .vocab = 997});
    const auto backend = make_cpu_backend(config.train.threads);
    TrainStep step(config, *communicator, *backend);
    step.replica().initialize(1);
    TokenBatch batch;
    for (std::uint64_t i = 0; i < 2 * 128; ++i) {
      batch.inputs.push_back(static_cast<std::int32_t>(mix64(i) % 997));
      batch.targets.push_back(static_cast<std::int32_t>(mix64(i + 1000) % 997));
    }
    batch.row_tokens = 128;
    batch.step_inputs = batch.step_targets = 8 * 2 * 128;
    std::int64_t completed = 0;
    const auto run = [&] {
      static_cast<void>(step.compute_gradients(completed, [&]() -> const TokenBatch& { return batch; }));
      step.finish_gradients();
      const double norm = step.gradient_norm(completed);
      EXPECT_GT(norm, 0.0);
      step.update(completed, 1e-3, norm);
      ++completed;
    };
    run();
    run();
    communicator->barrier();
    const std::size_t reserved = step.arena().reserved_bytes();
    const std::size_t in_use = mallinfo2().uordblks;
    long fewest_faults = std::numeric_limits<long>::max();
    large_allocations = 0;
    is_counting = true;
    for (int i = 0; i < 5; ++i) {
      const long faults = page_faults();
      run();
      fewest_faults = std::min(fewest_faults, page_faults() - faults);
    }
    is_counting = false;
    // A system that is short of memory takes pages away now and then. With fresh memory it would be hundreds in every
    // step.
    EXPECT_LT(fewest_faults, 100);
    EXPECT_EQ(large_allocations, 0U) << "up to " << largest_bytes << " bytes";
    EXPECT_EQ(step.arena().reserved_bytes(), reserved);
    EXPECT_LT(mallinfo2().uordblks, in_use + kLarge);
  }
  communicator->close();
}

INSTANTIATE_TEST_SUITE_P(
    Settings, SteadyStepTest,
    testing::Values(Case{"fp32", {}}, Case{"bf16", {"train.precision=bf16"}}, Case{"sharded", {"comm.zero=1"}},
                    Case{"recomputed", {"train.recompute=block", "train.precision=bf16", "comm.zero=1"}},
                    Case{"llama", {"model.family=llama", "model.kv_heads=2", "train.recompute=attention"}}),
    [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace lockstep
