// Every call of the communicator through parameter servers, compared bit by bit with the plain definition of the tree.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>

#include "tests/comm/server_job.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

// More than one piece, and one that is not full, in the last.
constexpr std::size_t kSizes[] = {0, 1, 3, 1000, 600'003};

template <typename T>
const std::vector<T>& expected_sum(int world, std::size_t count) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::size_t>, std::vector<T>> known;
  const std::lock_guard lock(mutex);
  std::vector<T>& sum = known[{world, count}];
  if (sum.empty() && count > 0) {
    std::vector<std::vector<T>> leaves;
    for (int rank = 0; rank < world; ++rank) {
      leaves.push_back(test::leaf_values<T>(rank, count));
    }
    sum = test::reference_sum(leaves);
  }
  return sum;
}

// Which workers share memory with the servers.
enum class Sharing { kNone, kAll, kSome, kOthers };

std::string suffix_of(Sharing sharing) {
  constexpr std::array<const char*, 4> kSuffixes = {"", "_in_memory", "_some_in_memory", "_others_in_memory"};
  return kSuffixes[static_cast<std::size_t>(sharing)];
}

// The parameters: workers, servers, sharing.
class ServerCommunicatorTest : public testing::TestWithParam<std::tuple<int, int, Sharing>> {
 protected:
  [[nodiscard]] static int world() { return std::get<0>(GetParam()); }

  // Runs `body` on all workers, which end in order.
  static void run(const std::function<void(Communicator&)>& body) {
    test::ServerJob job(world(), std::get<1>(GetParam()));
    const std::vector<std::string> errors = test::run_workers(test::ranks_below(world()), [&](int rank) {
      server::Session::Options options = job.options(rank);
      const Sharing sharing = std::get<2>(GetParam());
      options.shares_memory = sharing == Sharing::kAll || (sharing == Sharing::kSome && rank % 3 != 1) ||
                              (sharing == Sharing::kOthers && rank % 3 == 1);
      const auto comm = make_server_communicator(std::move(options), 0);
      EXPECT_EQ(comm->rank(), rank);
      body(*comm);
      comm->close();
    });
    EXPECT_THAT(errors, testing::Each(""));
    for (int server = 0; server < std::get<1>(GetParam()); ++server) {
      const server::Server::End end = job.end(static_cast<std::size_t>(server));
      EXPECT_TRUE(end.orderly) << end.cause;
    }
  }
};

// Cut unevenly, with ranks that own nothing.
std::vector<ElementRange> uneven_ranges(int world, std::size_t count) {
  std::vector<ElementRange> ranges;
  std::uint64_t begin = 0;
  for (int rank = 0; rank < world; ++rank) {
    const std::uint64_t left = count - begin;
    const std::uint64_t size = rank + 1 == world ? left : rank % 3 == 1 ? 0 : left / 2 + left % 2;
    ranges.push_back({begin, begin + size});
    begin += size;
  }
  return ranges;
}

// Of which elements from the `skipped`-th on hold these values, in memory from the communicator.
template <typename T>
class Allocated {
 public:
  Allocated(Communicator& comm, const std::vector<T>& values, std::size_t skipped = 0)
      : buffer_(comm.allocate((values.size() + skipped) * sizeof(T))),
        values_(buffer_.as<T>(values.size() + skipped).subspan(skipped)) {
    std::copy(values.begin(), values.end(), values_.begin());
    std::vector<float> elements(8);  // some for each server, which has then said whether it uses the memory
    comm.all_reduce_sum(view_of(std::span(elements))).wait();
  }
  [[nodiscard]] std::span<T> values() const { return values_; }

 private:
  Buffer buffer_;
  std::span<T> values_;
};

template <typename T>
void expect_sums(Communicator& comm) {
  for (const std::size_t count : kSizes) {
    const Allocated<T> memory(comm, test::leaf_values<T>(comm.rank(), count), 5);
    const std::span<T> values = memory.values();
    comm.all_reduce_sum(view_of(values)).wait();
    EXPECT_TRUE(test::same_bits(values, expected_sum<T>(comm.world_size(), count))) << count << " elements";
  }
}

TEST_P(ServerCommunicatorTest, LeavesTheTreeSumOnEveryWorker) {
  run([](Communicator& comm) {
    EXPECT_EQ(comm.world_size(), world());
    EXPECT_EQ(comm.node_size(), world());
    expect_sums<float>(comm);
    expect_sums<double>(comm);
  });
}

TEST_P(ServerCommunicatorTest, SumsSeveralAtATimeInRangesOfABuffer) {
  constexpr std::size_t kBuckets = 20;
  constexpr std::size_t kBucket = 30'000;
  run([](Communicator& comm) {
    const Buffer buffer = comm.allocate(kBuckets * kBucket * sizeof(float));
    const std::span<float> values = buffer.as<float>(kBuckets * kBucket);
    for (int round = 0; round < 2; ++round) {
      const std::vector<float> mine = test::leaf_values<float>(comm.rank(), values.size());
      std::copy(mine.begin(), mine.end(), values.begin());
      std::vector<Work> works;
      for (std::size_t b = kBuckets; b-- > 0;) {
        works.push_back(comm.all_reduce_sum(view_of(values).slice(b * kBucket, kBucket)));
      }
      for (Work& work : works) {
        work.wait();
      }
      EXPECT_TRUE(test::same_bits(values, expected_sum<float>(comm.world_size(), values.size())));
    }
  });
}

TEST_P(ServerCommunicatorTest, ProceedsWhileTheCallerComputes) {
  run([](Communicator& comm) {
    std::vector<float> values = test::leaf_values<float>(comm.rank(), 600'003);
    const Work work = comm.all_reduce_sum(view_of(std::span(values)));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!work.is_done() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    EXPECT_TRUE(work.is_done());
    EXPECT_TRUE(test::same_bits(values, expected_sum<float>(comm.world_size(), values.size())));
  });
}

TEST_P(ServerCommunicatorTest, GivesEachRankItsPartOfTheSum) {
  run([](Communicator& comm) {
    for (const std::size_t count : kSizes) {
      const std::vector<ElementRange> owned = uneven_ranges(comm.world_size(), count);
      const Allocated<float> memory(comm, test::leaf_values<float>(comm.rank(), count));
      const std::span<float> values = memory.values();
      comm.reduce_scatter_sum(view_of(values), owned).wait();
      const ElementRange mine = owned[static_cast<std::size_t>(comm.rank())];
      const std::vector<float>& sums = expected_sum<float>(comm.world_size(), count);
      EXPECT_TRUE(
          test::same_bits(values.subspan(mine.begin, mine.size()), std::span(sums).subspan(mine.begin, mine.size())))
          << count;
    }
  });
}

TEST_P(ServerCommunicatorTest, GathersRangesAndChangesNothingElse) {
  static constexpr float kUntouched = 0.5F;
  run([](Communicator& comm) {
    for (const std::size_t count : kSizes) {
      std::vector<ElementRange> owned = uneven_ranges(comm.world_size(), count);
      std::vector<float> wanted(count, kUntouched);
      std::vector<float> values(count, kUntouched);
      for (std::size_t rank = 0; rank < owned.size(); ++rank) {
        if (owned[rank].size() > 2) {
          --owned[rank].end;  // gaps between the ranges
        }
        const std::vector<float> leaf = test::leaf_values<float>(static_cast<int>(rank), count);
        for (std::size_t i = owned[rank].begin; i < owned[rank].end; ++i) {
          wanted[i] = leaf[i];
          values[i] = static_cast<int>(rank) == comm.rank() ? leaf[i] : kUntouched;
        }
      }
      comm.all_gather_ranges(view_of(std::span(values)), owned).wait();
      EXPECT_TRUE(test::same_bits(values, wanted)) << count;
    }
  });
}

TEST_P(ServerCommunicatorTest, BroadcastsAndGathersWhatIsLargerAndSmallerThanAPiece) {
  run([](Communicator& comm) {
    const auto ranks = static_cast<std::size_t>(comm.world_size());
    for (const std::size_t count : {0U, 1U, 1000U, 300'001U}) {
      const int root = comm.world_size() - 1;
      std::vector<int> expected(count);
      std::iota(expected.begin(), expected.end(), root);
      std::vector<int> values = comm.rank() == root ? expected : std::vector<int>(count, -1);
      comm.broadcast(std::as_writable_bytes(std::span(values)), root);
      EXPECT_EQ(values, expected);

      const std::vector<int> mine(count, comm.rank() + 10);
      std::vector<int> all(count * ranks, -1);
      comm.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
      for (std::size_t i = 0; i < all.size(); ++i) {
        ASSERT_EQ(all[i], static_cast<int>(i / count) + 10);
      }
    }
    const std::vector<std::string> texts =
        comm.all_gather_text(std::string(static_cast<std::size_t>(comm.rank()), 'x'));
    for (std::size_t r = 0; r < ranks; ++r) {
      EXPECT_EQ(texts[r], std::string(r, 'x'));
    }
  });
}

// A worker may run through sums and gatherings long before the others come to them.
TEST_P(ServerCommunicatorTest, LetsAWorkerRunAhead) {
  run([](Communicator& comm) {
    constexpr std::size_t kCount = 50'000;
    std::vector<float> sum = test::leaf_values<float>(comm.rank(), kCount);
    std::vector<float> gathered(kCount * static_cast<std::size_t>(comm.world_size()));
    const std::vector<ElementRange> owned = uneven_ranges(comm.world_size(), gathered.size());
    const ElementRange mine = owned[static_cast<std::size_t>(comm.rank())];
    std::fill(gathered.begin() + static_cast<std::ptrdiff_t>(mine.begin),
              gathered.begin() + static_cast<std::ptrdiff_t>(mine.end), 1.0F);
    std::this_thread::sleep_for(std::chrono::milliseconds(20) * comm.rank());
    Work gathering = comm.all_gather_ranges(view_of(std::span(gathered)), owned);
    Work summing = comm.all_reduce_sum(view_of(std::span(sum)));
    summing.wait();
    gathering.wait();
    EXPECT_TRUE(test::same_bits(sum, expected_sum<float>(comm.world_size(), kCount)));
    EXPECT_TRUE(std::all_of(gathered.begin(), gathered.end(), [](float value) { return value == 1.0F; }));
  });
}

std::string name_of_case(const testing::TestParamInfo<std::tuple<int, int, Sharing>>& instance) {
  return std::to_string(std::get<0>(instance.param)) + "_workers_" + std::to_string(std::get<1>(instance.param)) +
         "_servers" + suffix_of(std::get<2>(instance.param));
}

INSTANTIATE_TEST_SUITE_P(WorkersAndServers, ServerCommunicatorTest,
                         testing::Combine(testing::Values(1, 2, 3, 4, 8), testing::Values(1, 2),
                                          testing::Values(Sharing::kNone, Sharing::kAll)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(SomeShare, ServerCommunicatorTest,
                         testing::Combine(testing::Values(3, 8), testing::Values(2),
                                          testing::Values(Sharing::kSome, Sharing::kOthers)),
                         name_of_case);

TEST(ServerCommunicatorRanksTest, AreGivenInTheOrderOfArrival) {
  test::ServerJob job(3, 2);
  std::mutex mutex;
  std::vector<int> ranks;
  const std::vector<std::string> errors = test::run_workers({-1, -1, -1}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 2);
    EXPECT_EQ(comm->node_size(), comm->rank() < 2 ? 2 : 1);
    {
      const std::lock_guard lock(mutex);
      ranks.push_back(comm->rank());
    }
    comm->close();
  });
  EXPECT_THAT(errors, testing::Each(""));
  EXPECT_THAT(ranks, testing::UnorderedElementsAre(0, 1, 2));
}

TEST(ServerAddressesTest, AreHostsWithPorts) {
  using server::parse_addresses;
  using server::ServerAddress;
  EXPECT_THAT(parse_addresses("node01:7070,10.0.0.2:8080"),
              testing::ElementsAre(ServerAddress{"node01", "7070"}, ServerAddress{"10.0.0.2", "8080"}));
  EXPECT_THAT(parse_addresses("[::1]:70"), testing::ElementsAre(ServerAddress{"::1", "70"}));
  EXPECT_THAT(parse_addresses("a:7070-7072,b:1-1"),
              testing::ElementsAre(ServerAddress{"a", "7070"}, ServerAddress{"a", "7071"}, ServerAddress{"a", "7072"},
                                   ServerAddress{"b", "1"}));
  for (const char* bad : {"", "node", "node:", ":70", "node:x", "a:1,", "a:1,,b:2", "a:2-1", "a:1-", "a:-1", "a:1-2-3",
                          "a:65536", "a:1-65536", "a:999999"}) {
    EXPECT_THROW((void)parse_addresses(bad), Error) << bad;
  }
}

}  // namespace
}  // namespace lockstep
