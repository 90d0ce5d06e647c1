// A process killed at any moment of a save leaves a checkpoint that is whole, and only such.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <new>
#include <random>
#include <thread>

#include "tests/support/child_process.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/checkpoint/training_state.h"
#include "trainer/checkpoint/retention.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// The last step whose checkpoint the child knows to be published, in memory that both processes see.
class SharedStep {
 public:
  SharedStep() : memory_(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    step_ = new (memory_) std::atomic<std::uint64_t>(0);
  }
  ~SharedStep() { munmap(memory_, 4096); }
  SharedStep(const SharedStep&) = delete;
  SharedStep& operator=(const SharedStep&) = delete;
  std::atomic<std::uint64_t>& operator*() const { return *step_; }

 private:
  void* memory_;
  std::atomic<std::uint64_t>* step_;
};

// Goes on from the newest checkpoint, saving every step, until it is killed. The state of step s has seed s.
int train_until_killed(const fs::path& folder, int world, std::atomic<std::uint64_t>& published) {
  clean_leftovers(folder);
  const auto found = find_latest_checkpoint(folder, [](const DamagedCheckpoint&) {});
  std::uint64_t step = found ? found->manifest().position.step : 0;
  SimulatedJob job(folder, small_layout(), {.world = world, .background = true, .keep = 2});
  for (;;) {
    ++step;
    if (!job.save(TrainingState(small_layout(), step), position_at(step)).published) {
      return 1;
    }
    published = step;
  }
}

TEST(KilledSave, AlwaysLeavesTheNewestPublishedCheckpointWhole) {
  constexpr int kKills = 50;
  const TemporaryFolder folder;
  const SharedStep published;
  std::mt19937 random(11);
  int killed_in_a_save = 0;
  for (int kill_number = 0; kill_number < kKills; ++kill_number) {
    const std::uint64_t before = *published;
    const int world = 1 << (kill_number % 3);
    const pid_t child = start_child([&] { return train_until_killed(folder.path(), world, *published); });
    // At least one save, so that every child gets somewhere; then any moment.
    while (*published == before) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_EQ(wait_for_child(child), -SIGKILL);

    for (const std::string& name : names_in(folder.path())) {
      killed_in_a_save += name.ends_with(".partial") ? 1 : 0;
    }
    const auto found = find_latest_checkpoint(
        folder.path(), [](const DamagedCheckpoint& damaged) { ADD_FAILURE() << damaged.reason; });
    ASSERT_TRUE(found.has_value());
    const std::uint64_t step = found->manifest().position.step;
    EXPECT_GE(step, *published);
    EXPECT_LE(step, *published + 1);  // published, and killed before it could say so
    const TrainingState expected(small_layout(), step);
    TrainingState state = TrainingState::unset(small_layout());
    found->load(state.layout, state.destination());
    EXPECT_EQ(state.digest(), expected.digest());
    EXPECT_EQ(found->manifest().digest, expected.digest());
    *published = step;
  }
  RecordProperty("killed_in_a_save", killed_in_a_save);
  EXPECT_GT(killed_in_a_save, 0);
}

}  // namespace
}  // namespace lockstep
