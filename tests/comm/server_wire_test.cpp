// Numbers that travel rounded: what becomes of each, what error feedback makes good, and sums made of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "comm/server/wire.h"
#include "tests/comm/server_job.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

using server::Wire;
using server::wire_bytes;
using testing::ElementsAre;
using testing::HasSubstr;
using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<std::byte> encoded(Wire wire, const Floats& values, std::span<float> residual = {}) {
  std::vector<std::byte> bytes(wire_bytes(wire, values.size()));
  server::encode(wire, values, residual, bytes);
  return bytes;
}
Floats decoded(Wire wire, const std::vector<std::byte>& bytes, std::size_t count) {
  Floats values(count);
  server::decode(wire, bytes, values);
  return values;
}
// There and back.
Floats rounded(Wire wire, const Floats& values, std::span<float> residual = {}) {
  return decoded(wire, encoded(wire, values, residual), values.size());
}

TEST(ServerWireTest, HasNamesAndSizes) {
  EXPECT_EQ(server::wire_of("int8"), Wire::kInt8);
  EXPECT_EQ(name_of(server::wire_of("bf16")), "bf16");
  EXPECT_EQ(server::wire_of("fp32"), Wire::kAsIs);
  EXPECT_THROW((void)server::wire_of("fp16"), Error);
  EXPECT_EQ(wire_bytes(Wire::kBf16, 3), 6U);
  EXPECT_EQ(wire_bytes(Wire::kInt8, 0), 0U);
  EXPECT_EQ(wire_bytes(Wire::kInt8, 1), 5U);
  EXPECT_EQ(wire_bytes(Wire::kInt8, 256), 260U);
  EXPECT_EQ(wire_bytes(Wire::kInt8, 257), 265U);
}

TEST(ServerWireTest, Bf16RoundsToNearestEven) {
  const Floats values = {1.0F,
                         -2.5F,
                         1.0F + 0x1p-8F,      // half-way, down to even
                         1.0F + 3 * 0x1p-8F,  // half-way, up to even
                         1.0F + 0x1.8p-8F,
                         -0.0F,
                         0x1p-130F,  // subnormal
                         std::numeric_limits<float>::max(),
                         kInfinity,
                         -kInfinity};
  const Floats expected = {1.0F,  -2.5F,     1.0F,      1.0F + 0x1p-6F, 1.0F + 0x1p-7F,
                           -0.0F, 0x1p-130F, kInfinity, kInfinity,      -kInfinity};
  EXPECT_TRUE(test::same_bits(rounded(Wire::kBf16, values), expected));
  EXPECT_TRUE(std::isnan(rounded(Wire::kBf16, {kNan})[0]));
  const auto narrow = std::bit_cast<float>(0x7f800001U);  // a NaN whose set bits are all below
  EXPECT_TRUE(std::isnan(rounded(Wire::kBf16, {narrow})[0]));
  // Whatever part of a vector they are in.
  const Floats many = test::leaf_values<float>(0, 1000);
  const Floats all = rounded(Wire::kBf16, many);
  for (std::size_t i = 0; i < many.size(); ++i) {
    ASSERT_EQ(all[i], rounded(Wire::kBf16, {many[i]})[0]) << i;
    ASSERT_LE(std::abs(all[i] - many[i]), std::abs(many[i]) * 0x1p-8F) << i;
  }
}

TEST(ServerWireTest, Int8IsAScaleAndWholeNumbers) {
  const std::vector<std::byte> bytes = encoded(Wire::kInt8, {127, -127, 2.5F, 3.5F, 0.25F, -60});
  float scale = 0;
  std::memcpy(&scale, bytes.data(), sizeof(scale));
  EXPECT_EQ(scale, 1.0F);
  std::vector<int> numbers;
  for (std::size_t i = sizeof(scale); i < bytes.size(); ++i) {
    numbers.push_back(static_cast<std::int8_t>(bytes[i]));
  }
  EXPECT_THAT(numbers, ElementsAre(127, -127, 2, 4, 0, -60));
  EXPECT_THAT(decoded(Wire::kInt8, bytes, 6), ElementsAre(127, -127, 2, 4, 0, -60));
}

TEST(ServerWireTest, EachBlockHasAScaleOfItsOwn) {
  Floats values(2 * server::kInt8Block + 1, 1.0F);
  values[0] = 127;
  values[server::kInt8Block] = 254;
  values[2 * server::kInt8Block] = 508;
  const Floats found = rounded(Wire::kInt8, values);
  EXPECT_EQ(found[1], 1.0F);
  EXPECT_EQ(found[server::kInt8Block + 1], 0.0F);  // a half of the scale, to even
  EXPECT_EQ(found[2 * server::kInt8Block], 508.0F);
}

TEST(ServerWireTest, WhatRoundingTookComesBackInLaterCalls) {
  const Floats values = {127, 0.375F, -0.375F, 2.5F};
  Floats residual(values.size());
  EXPECT_THAT(rounded(Wire::kInt8, values, residual), ElementsAre(127, 0, 0, 2));
  EXPECT_THAT(residual, ElementsAre(0, 0.375F, -0.375F, 0.5F));
  EXPECT_THAT(rounded(Wire::kInt8, values, residual), ElementsAre(127, 1, -1, 3));
  EXPECT_THAT(residual, ElementsAre(0, -0.25F, 0.25F, 0));
  EXPECT_THAT(rounded(Wire::kInt8, values, residual), ElementsAre(127, 0, 0, 2));
  EXPECT_THAT(residual, ElementsAre(0, 0.125F, -0.125F, 0.5F));
  // After eight calls nothing is missing but what still waits.
  Floats sums = {3 * 127, 1, -1, 7};
  for (int call = 3; call < 8; ++call) {
    const Floats sent = rounded(Wire::kInt8, values, residual);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i] += sent[i];
    }
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    EXPECT_EQ(sums[i] + residual[i], 8 * values[i]) << i;
  }
}

TEST(ServerWireTest, Int8LetsNothingHideThatIsNotFinite) {
  for (const float bad : {kInfinity, -kInfinity, kNan}) {
    Floats values(server::kInt8Block + 2, 1.0F);
    values[3] = bad;
    Floats residual(values.size(), 0.5F);
    const Floats found = rounded(Wire::kInt8, values, residual);
    for (std::size_t i = 0; i < server::kInt8Block; ++i) {
      ASSERT_TRUE(std::isnan(found[i])) << i;
      ASSERT_EQ(residual[i], 0.0F) << i;
    }
    EXPECT_EQ(found[server::kInt8Block], 1.5F);
  }
}

TEST(ServerWireTest, Int8KeepsForLaterWhatIsTooSmallForAScale) {
  const Floats values = {0x1p-130F, -0x1p-149F, 0};
  Floats residual(values.size());
  EXPECT_THAT(rounded(Wire::kInt8, values, residual), ElementsAre(0, 0, 0));
  EXPECT_TRUE(test::same_bits(residual, values));
}

// Runs `body` on all workers, which end in order.
void run(int workers, int servers, Wire wire, const std::function<void(Communicator&)>& body) {
  test::ServerJob job(workers, servers);
  const std::vector<std::string> errors = test::run_workers(test::ranks_below(workers), [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 0, wire);
    body(*comm);
    comm->close();
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST(ServerWireTest, Bf16SumsAreRoundedOnTheirWayToTheServerAndBack) {
  constexpr int kWorkers = 3;
  constexpr std::size_t kCount = 600'003;
  std::vector<Floats> leaves;
  for (int rank = 0; rank < kWorkers; ++rank) {
    leaves.push_back(rounded(Wire::kBf16, test::leaf_values<float>(rank, kCount)));
  }
  const Floats expected = rounded(Wire::kBf16, test::reference_sum(leaves));
  for (const int servers : {1, 2}) {
    run(kWorkers, servers, Wire::kBf16, [&](Communicator& comm) {
      EXPECT_THAT(comm.description(), HasSubstr("of gradients that travel as bf16, not in the bits of fp32"));
      Floats values = test::leaf_values<float>(comm.rank(), kCount);
      comm.all_reduce_sum(view_of(std::span(values))).wait();
      EXPECT_TRUE(test::same_bits(values, expected));

      values = test::leaf_values<float>(comm.rank(), kCount);
      const std::vector<ElementRange> owned = {{0, 1001}, {1001, 500'000}, {500'000, kCount}};
      comm.reduce_scatter_sum(view_of(std::span(values)), owned).wait();
      const ElementRange mine = owned[static_cast<std::size_t>(comm.rank())];
      EXPECT_TRUE(test::same_bits(std::span(values).subspan(mine.begin, mine.size()),
                                  std::span(expected).subspan(mine.begin, mine.size())));
    });
  }
}

TEST(ServerWireTest, Int8SumsMakeGoodInTheNextCallOfABuffer) {
  constexpr int kWorkers = 2;
  constexpr std::size_t kCount = 5000;  // one piece, so that blocks begin at multiples of 256
  constexpr int kCalls = 3;
  std::vector<Floats> residuals(kWorkers, Floats(kCount));
  std::vector<Floats> expected;
  for (int call = 0; call < kCalls; ++call) {
    std::vector<Floats> leaves;
    for (int rank = 0; rank < kWorkers; ++rank) {
      leaves.push_back(rounded(Wire::kInt8, test::leaf_values<float>(rank + call, kCount),
                               residuals[static_cast<std::size_t>(rank)]));
    }
    expected.push_back(rounded(Wire::kBf16, test::reference_sum(leaves)));
  }
  const Floats unrelated = rounded(Wire::kBf16, test::reference_sum<float>({Floats(10, 127.0F), Floats(10, 127.0F)}));
  run(kWorkers, 1, Wire::kInt8, [&](Communicator& comm) {
    Floats values(kCount);
    for (int call = 0; call < kCalls; ++call) {
      const Floats leaf = test::leaf_values<float>(comm.rank() + call, kCount);
      std::copy(leaf.begin(), leaf.end(), values.begin());
      comm.all_reduce_sum(view_of(std::span(values))).wait();
      EXPECT_TRUE(test::same_bits(values, expected[static_cast<std::size_t>(call)])) << call;
      Floats other(10, 127.0F);
      comm.all_reduce_sum(view_of(std::span(other))).wait();
      EXPECT_EQ(other, unrelated);
    }
  });
}

TEST(ServerWireTest, WhatIsNoGradientStaysExact) {
  run(2, 2, Wire::kInt8, [](Communicator& comm) {
    constexpr std::size_t kCount = 40'000;
    std::vector<double> sums = test::leaf_values<double>(comm.rank(), kCount);
    comm.all_reduce_sum(view_of(std::span(sums))).wait();
    EXPECT_TRUE(test::same_bits(sums, test::reference_sum<double>({test::leaf_values<double>(0, kCount),
                                                                   test::leaf_values<double>(1, kCount)})));
    Floats gathered = test::leaf_values<float>(comm.rank(), kCount);
    comm.all_gather_ranges(view_of(std::span(gathered)), std::vector<ElementRange>{{0, 1000}, {1000, kCount}}).wait();
    const Floats first = test::leaf_values<float>(0, kCount);
    Floats expected = test::leaf_values<float>(1, kCount);
    std::copy_n(first.begin(), 1000, expected.begin());
    EXPECT_TRUE(test::same_bits(gathered, expected));
    comm.barrier();
  });
}

TEST(ServerWireTest, WorkersThatSendDifferentlyAreToldSo) {
  test::ServerJob job(2);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 1, rank == 0 ? Wire::kAsIs : Wire::kBf16);
    Floats values(10, 1.0F);
    comm->all_reduce_sum(view_of(std::span(values))).wait();
  });
  EXPECT_THAT(errors, testing::Each(HasSubstr("comm.wire is the same for every worker")));
}

TEST(ServerWireTest, OtherBackendsHaveNone) {
  for (const char* backend : {"auto", "self", "mpi"}) {
    CommOptions options;
    options.backend = backend;
    options.wire = "bf16";
    try {
      (void)make_communicator(options);
      FAIL() << backend;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      EXPECT_EQ(std::string(error.what()), std::string("comm.wire: found bf16, which only comm.backend: server has; "
                                                       "with ") +
                                               backend + " gradients are exchanged as fp32");
    }
  }
}

}  // namespace
}  // namespace lockstep
