// The state of ranks that outlive their group, handed to those that have less.
#include "trainer/rank_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/comm/server_job.h"

namespace lockstep {
namespace {

using testing::Each;

constexpr std::uint64_t kElements = 1'000;

RankState state_of(std::int64_t completed, float first) {
  RankState state;
  state.completed = completed;
  state.tokens = 64U * static_cast<std::uint64_t>(completed);
  state.progress.best_validation_loss = 2.5;
  state.progress.loss_scale = {4096, 17};
  state.config_text = "run:\n  name: \"a\"\n";
  state.last_lines = "{\"step\": 7}\n";
  state.save_pending = true;
  state.validation_loss = 2.75;
  state.allocate(kElements);
  const std::span<float> values = state.values.as<float>(3 * kElements);
  std::iota(values.begin(), values.end(), first);
  return state;
}

void expect_state(const std::optional<RankState>& found, std::int64_t completed, float first) {
  ASSERT_TRUE(found);
  const RankState expected = state_of(completed, first);
  EXPECT_EQ(found->completed, completed);
  EXPECT_EQ(found->tokens, expected.tokens);
  EXPECT_EQ(found->progress, expected.progress);
  EXPECT_EQ(found->config_text, expected.config_text);
  EXPECT_EQ(found->last_lines, expected.last_lines);
  EXPECT_EQ(found->save_pending, expected.save_pending);
  EXPECT_EQ(found->validation_loss, expected.validation_loss);
  ASSERT_EQ(found->elements, kElements);
  EXPECT_TRUE(std::ranges::equal(found->weights(), expected.weights()));
  EXPECT_TRUE(std::ranges::equal(found->exp_avg(), expected.exp_avg()));
  EXPECT_TRUE(std::ranges::equal(found->exp_avg_sq(), expected.exp_avg_sq()));
}

TEST(RankStateTest, AllGetTheStateOfTheOneThatIsFurthest) {
  test::ServerJob job(4);
  const std::vector<std::string> errors = test::run_workers(test::ranks_below(4), [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 1);
    std::optional<RankState> nobodys;
    EXPECT_EQ(agree_on_state(nobodys, *comm), std::nullopt);
    std::optional<RankState> own;
    if (rank != 1) {  // 0 is a step behind, 1 is new
      own = state_of(rank == 0 ? 6 : 7, rank == 0 ? -5.0F : 3.0F);
    }
    EXPECT_EQ(agree_on_state(own, *comm), 2);
    expect_state(own, 7, 3.0F);
    comm->close();
  });
  EXPECT_THAT(errors, Each(""));
}

// Lets so many broadcasts through.
class Breaking final : public Communicator {
 public:
  Breaking(Communicator& inner, int broadcasts) : inner_(inner), left_(broadcasts) {}
  [[nodiscard]] int rank() const override { return inner_.rank(); }
  [[nodiscard]] int world_size() const override { return inner_.world_size(); }
  [[nodiscard]] int node_size() const override { return inner_.node_size(); }
  [[nodiscard]] std::string description() const override { return inner_.description(); }
  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return inner_.allocate(size_bytes); }
  [[nodiscard]] Work all_reduce_sum(BufferView data) override { return inner_.all_reduce_sum(data); }
  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override {
    return inner_.reduce_scatter_sum(data, owned);
  }
  [[nodiscard]] Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) override {
    return inner_.all_gather_ranges(data, owned);
  }
  void broadcast(std::span<std::byte> bytes, int root) override {
    if (left_-- == 0) {
      throw Error(ErrorCode::kPeerLost, "lost in between");
    }
    inner_.broadcast(bytes, root);
  }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override { inner_.all_gather(mine, all); }
  void barrier() override { inner_.barrier(); }
  [[nodiscard]] double time_library_sum(BufferView, int) override { return 0; }

 private:
  Communicator& inner_;
  int left_;
};

// Whatever is lost on the way, nobody takes a state for whole that is not, and who has one keeps it.
TEST(RankStateTest, ATransferThatFailsLeavesNoHalfState) {
  for (int broadcasts = 0; broadcasts < 4; ++broadcasts) {
    SCOPED_TRACE(broadcasts);
    test::ServerJob job(2);
    bool has_failed = false;
    static_cast<void>(test::run_workers({0, 1}, [&](int rank) {
      const auto comm = make_server_communicator(job.options(rank), 1);
      Breaking breaking(*comm, rank == 1 ? broadcasts : 100);
      std::optional<RankState> own;
      if (rank == 0) {
        own = state_of(7, 3.0F);
      }
      try {
        agree_on_state(own, breaking);
        comm->barrier();
      } catch (const Error&) {
        has_failed = has_failed || rank == 1;
        if (rank == 0) {
          expect_state(own, 7, 3.0F);
        } else {
          EXPECT_FALSE(own);
        }
        throw;
      }
      expect_state(own, 7, 3.0F);
    }));
    EXPECT_EQ(has_failed, broadcasts < 3);  // the text's length, the text, the values
  }
}

}  // namespace
}  // namespace lockstep
