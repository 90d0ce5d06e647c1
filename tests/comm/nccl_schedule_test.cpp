// The schedule of sums between GPUs, carried out for all ranks at once in the memory of this process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "comm/nccl/schedule.h"
#include "comm/sum_tree.h"
#include "tests/comm/tree_reference.h"

namespace lockstep::nccl {
namespace {

using testing::ElementsAre;

struct Message {
  std::size_t peer = 0;
  ElementRange range;

  friend bool operator==(const Message&, const Message&) = default;
};

// Between two points at which ranks meet.
struct Step {
  std::vector<Message> sends;
  std::vector<Message> receives;
  ElementRange added;
  std::uint64_t gathered_part = 0;
  ElementRange gathered_and_added;
};

class Recorder {
 public:
  void begin_messages() { steps_.emplace_back(); }
  void send(const ElementRange& range, std::size_t peer) { steps_.back().sends.push_back({peer, range}); }
  void receive(std::size_t peer, const ElementRange& range) { steps_.back().receives.push_back({peer, range}); }
  void end_messages() {}
  void add(const ElementRange& range) { steps_.back().added = range; }
  void gather(std::uint64_t part_elements) { steps_.emplace_back().gathered_part = part_elements; }
  void gather_and_add(const ElementRange& range) { steps_.emplace_back().gathered_and_added = range; }

  [[nodiscard]] const std::vector<Step>& steps() const { return steps_; }

 private:
  std::vector<Step> steps_;
};

// Every rank's buffer and slots, with numbers for which the order of adding shows.
template <typename T>
class World {
 public:
  World(std::size_t ranks, std::size_t count, std::uint64_t piece_elements)
      : piece_elements_(piece_elements), slots_(ranks, std::vector<std::vector<T>>(ranks)) {
    for (std::size_t r = 0; r < ranks; ++r) {
      data_.push_back(test::leaf_values<T>(static_cast<int>(r), count));
    }
    expected_ = test::reference_sum(data_);
  }

  void all_reduce() {
    run([this](const Exchange& exchange, Recorder& recorder) {
      std::vector<ElementRange> parts(ranks());
      nccl::all_reduce(exchange, cut_all_reduce(expected_.size(), ranks(), sizeof(T)), parts, recorder);
    });
  }
  void reduce_scatter(const std::vector<ElementRange>& owned) {
    run([&owned](const Exchange& exchange, Recorder& recorder) { nccl::reduce_scatter(exchange, owned, recorder); });
  }

  void expect_sum(std::size_t rank, const ElementRange& range) const {
    EXPECT_TRUE(test::same_bits(part(data_[rank], range), part(expected_, range)))
        << "rank " << rank << " of " << ranks() << ", [" << range.begin << ", " << range.end << ")";
  }
  [[nodiscard]] std::size_t ranks() const { return data_.size(); }

 private:
  static std::span<const T> part(const std::vector<T>& values, const ElementRange& range) {
    return std::span(values).subspan(range.begin, range.size());
  }

  template <typename Schedule>
  void run(const Schedule& schedule) {
    std::vector<Recorder> recorders(ranks());
    for (std::size_t r = 0; r < ranks(); ++r) {
      schedule(Exchange{r, ranks(), 0, piece_elements_}, recorders[r]);
      ASSERT_EQ(recorders[r].steps().size(), recorders[0].steps().size()) << "rank " << r;
    }
    for (std::size_t s = 0; s < recorders[0].steps().size(); ++s) {
      std::vector<Step> steps;
      for (const Recorder& recorder : recorders) {
        steps.push_back(recorder.steps()[s]);
      }
      deliver(steps);
      for (std::size_t r = 0; r < ranks(); ++r) {
        add(r, steps[r].added);
      }
      gather(steps);
    }
  }

  // What r sends to q is what q receives from r, and nothing else is received.
  void deliver(const std::vector<Step>& steps) {
    std::size_t sent = 0;
    std::size_t received = 0;
    for (std::size_t r = 0; r < ranks(); ++r) {
      received += steps[r].receives.size();
      for (const Message& message : steps[r].sends) {
        ++sent;
        EXPECT_TRUE(message.peer != r || ranks() == 1) << "a rank sends to itself";
        EXPECT_LE(message.range.size(), piece_elements_);
        EXPECT_THAT(steps[message.peer].receives, testing::Contains(Message{r, message.range}));
        const std::span<const T> values = part(data_[r], message.range);
        slots_[message.peer][r].assign(values.begin(), values.end());
      }
    }
    EXPECT_EQ(sent, received);
  }

  void add(std::size_t rank, const ElementRange& range) {
    if (range.size() == 0) {
      return;
    }
    std::vector<const std::byte*> sources;
    T* const own = data_[rank].data() + range.begin;
    for (std::size_t peer = 0; peer < ranks(); ++peer) {
      const bool is_own = peer == rank && ranks() > 1;
      ASSERT_TRUE(is_own || slots_[rank][peer].size() == range.size());
      sources.push_back(reinterpret_cast<const std::byte*>(is_own ? own : slots_[rank][peer].data()));
    }
    const std::vector<std::byte*> destinations = {reinterpret_cast<std::byte*>(own)};
    tree_sum(sources, destinations, range.size(), kDTypeOf<T>);
    slots_[rank].assign(ranks(), {});  // a slot serves one addition
  }

  void gather(const std::vector<Step>& steps) {
    const Step& step = steps[0];
    for (const Step& other : steps) {
      ASSERT_EQ(other.gathered_part, step.gathered_part);
      ASSERT_EQ(other.gathered_and_added, step.gathered_and_added);
    }
    for (std::size_t owner = 0; owner < ranks(); ++owner) {
      for (std::size_t r = 0; r < ranks(); ++r) {
        std::copy_n(data_[owner].begin() + static_cast<std::ptrdiff_t>(owner * step.gathered_part), step.gathered_part,
                    data_[r].begin() + static_cast<std::ptrdiff_t>(owner * step.gathered_part));
      }
    }
    if (step.gathered_and_added.size() > 0) {
      std::vector<std::vector<T>> versions;
      for (const std::vector<T>& values : data_) {
        const std::span<const T> version = part(values, step.gathered_and_added);
        versions.emplace_back(version.begin(), version.end());
      }
      const std::vector<T> sum = test::reference_sum(versions);
      for (std::vector<T>& values : data_) {
        std::copy(sum.begin(), sum.end(), values.begin() + static_cast<std::ptrdiff_t>(step.gathered_and_added.begin));
      }
    }
  }

  const std::uint64_t piece_elements_;
  std::vector<std::vector<T>> data_;                // [rank]
  std::vector<std::vector<std::vector<T>>> slots_;  // [rank][peer]
  std::vector<T> expected_;
};

class NcclScheduleTest : public testing::TestWithParam<std::size_t> {};

TEST_P(NcclScheduleTest, LeavesTheTreeSumOnEveryRank) {
  for (const std::size_t count : {1U, 3U, 8192U, 8193U, 8195U, 20'011U}) {
    for (const std::uint64_t piece_elements : {100U, 1U << 20}) {
      World<float> world(GetParam(), count, piece_elements);
      world.all_reduce();
      for (std::size_t r = 0; r < world.ranks(); ++r) {
        world.expect_sum(r, {0, count});
      }
    }
  }
  World<double> world(GetParam(), 5000, 77);
  world.all_reduce();
  for (std::size_t r = 0; r < world.ranks(); ++r) {
    world.expect_sum(r, {0, 5000});
  }
}

TEST_P(NcclScheduleTest, LeavesEveryOwnerItsSum) {
  // Rank r has 37 r + 1 elements and every third none at all.
  std::vector<ElementRange> owned;
  for (std::size_t r = 0; r < GetParam(); ++r) {
    const std::uint64_t begin = owned.empty() ? 0 : owned.back().end;
    owned.push_back({begin, begin + (r % 3 == 2 ? 0 : 37 * r + 1)});
  }
  for (const std::uint64_t piece_elements : {1U, 7U, 1000U}) {
    World<float> world(GetParam(), owned.back().end, piece_elements);
    world.reduce_scatter(owned);
    for (std::size_t r = 0; r < world.ranks(); ++r) {
      world.expect_sum(r, owned[r]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclScheduleTest, testing::Values(1, 2, 3, 4, 5, 7, 8, 16),
                         testing::PrintToStringParamName());

TEST(NcclExchangeTest, FitsTheScratchMemoryForAnyNumberOfRanks) {
  for (std::size_t ranks = 1; ranks <= kMaxRanks; ++ranks) {
    for (const std::size_t element_bytes : {4U, 8U}) {
      const Exchange exchange = make_exchange(ranks - 1, ranks, element_bytes);
      EXPECT_GT(exchange.piece_elements, 0U);
      EXPECT_EQ(exchange.piece_elements * element_bytes % kAlignmentBytes, 0U);
      EXPECT_LE(exchange.piece_elements * element_bytes + kAlignmentBytes, exchange.slot_bytes);
      EXPECT_LE(ranks * exchange.slot_bytes, kScratchBytes);
      // What is gathered whole: short buffers, and what the largest part leaves over.
      const std::uint64_t short_count = kWholeBytes / element_bytes;
      EXPECT_LE(ranks * short_count * element_bytes, kScratchBytes);
      const Cut cut = cut_all_reduce(short_count + 1, ranks, element_bytes);
      EXPECT_LE(ranks * cut.rest.size() * element_bytes, kScratchBytes);
    }
  }
}

TEST(NcclExchangeTest, SendsToItselfOnlyWhenAlone) {
  EXPECT_TRUE(make_exchange(0, 1, 4).sends_to(0));
  EXPECT_FALSE(make_exchange(1, 2, 4).sends_to(1));
  EXPECT_TRUE(make_exchange(1, 2, 4).sends_to(0));
}

TEST(NcclCutTest, MakesAlignedPartsOfOneSize) {
  const Cut cut = cut_all_reduce(100'003, 8, 4);
  EXPECT_EQ(cut.part_elements, 12'500U);
  EXPECT_EQ(cut.rest, (ElementRange{100'000, 100'003}));
  EXPECT_EQ(cut_all_reduce(1U << 20, 8, 8).rest.size(), 0U);
  EXPECT_EQ(cut_all_reduce(10'007, 1, 8).part_elements, 10'006U);
}

TEST(NcclCutTest, LeavesShortBuffersWhole) {
  EXPECT_EQ(cut_all_reduce(8192, 2, 4).part_elements, 0U);
  EXPECT_EQ(cut_all_reduce(8192, 2, 4).rest, (ElementRange{0, 8192}));
  EXPECT_GT(cut_all_reduce(8193, 2, 4).part_elements, 0U);
  EXPECT_EQ(cut_all_reduce(0, 2, 4).rest.size(), 0U);
}

TEST(NcclPieceTest, CutsWhatARankOwns) {
  const ElementRange owned{10, 35};
  EXPECT_EQ(piece_of(owned, 0, 10), (ElementRange{10, 20}));
  EXPECT_EQ(piece_of(owned, 2, 10), (ElementRange{30, 35}));
  EXPECT_EQ(piece_of(owned, 3, 10).size(), 0U);
  EXPECT_EQ(round_count(std::vector<ElementRange>{{0, 10}, {10, 35}, {35, 35}}, 10), 3U);
  EXPECT_EQ(round_count(std::vector<ElementRange>{{0, 0}}, 10), 0U);
}

TEST(NcclEqualSizeTest, WantsEqualNeighbours) {
  EXPECT_EQ(equal_size(std::vector<ElementRange>{{0, 5}}), 5U);
  EXPECT_EQ(equal_size(std::vector<ElementRange>{{5, 10}, {10, 15}, {15, 20}}), 5U);
  EXPECT_EQ(equal_size(std::vector<ElementRange>{{0, 5}, {5, 9}}), std::nullopt);
  EXPECT_EQ(equal_size(std::vector<ElementRange>{{0, 5}, {6, 11}}), std::nullopt);
  EXPECT_EQ(equal_size(std::vector<ElementRange>{{0, 0}, {0, 0}}), 0U);
}

TEST(NcclScheduleStepsTest, SendEachOwnerItsPieceInEveryRound) {
  const std::vector<ElementRange> owned = {{0, 4}, {4, 10}};
  Recorder recorder;
  reduce_scatter(Exchange{0, 2, 0, 4}, owned, recorder);
  ASSERT_EQ(recorder.steps().size(), 2U);
  EXPECT_THAT(recorder.steps()[0].sends, ElementsAre(Message{1, {4, 8}}));
  EXPECT_THAT(recorder.steps()[0].receives, ElementsAre(Message{1, {0, 4}}));
  EXPECT_EQ(recorder.steps()[0].added, (ElementRange{0, 4}));
  EXPECT_THAT(recorder.steps()[1].sends, ElementsAre(Message{1, {8, 10}}));
  EXPECT_THAT(recorder.steps()[1].receives, ElementsAre());
  EXPECT_EQ(recorder.steps()[1].added.size(), 0U);
}

}  // namespace
}  // namespace lockstep::nccl
