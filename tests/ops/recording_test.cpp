// Backend::record(): what is asked for again has the bits of calls that are made again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "op_harness.h"
#include "ops/functions.h"

namespace lockstep::test {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr std::int64_t kRows = 70;  // a token of all of them has two pieces in a GPU's sums
constexpr std::int64_t kWidth = 16;
constexpr std::int32_t kVocabulary = 96;

// The gradient of a table from rows that are looked up in it, and from a head that it is as well.
class TinyModel {
 public:
  explicit TinyModel(const Platform& platform)
      : graph_(platform), table_(graph_.parameter({kVocabulary, kWidth}, RandomValues(1)(kVocabulary * kWidth))) {}

  // A batch in the same memory each time.
  void set_batch(const Ids& tokens) {
    std::ranges::copy(tokens, tokens_.begin());
    std::ranges::transform(tokens, targets_.begin(), [](std::int32_t token) { return (token + 1) % kVocabulary; });
  }
  void compute() {
    const Tensor x = embedding(graph_.tape(), {tokens_, kRows, 0}, {table_, Tensor()});
    loss_ = linear_cross_entropy(graph_.tape(), x, {table_, Tensor(), WeightLayout::kOutIn}, {targets_, 0.25F});
    graph_.backend().between([this] { ++between_; });
    graph_.tape().backward(loss_.value);
  }
  struct Result {
    Values gradient;
    double loss = 0;
    friend bool operator==(const Result&, const Result&) = default;
  };
  [[nodiscard]] Result result() const { return {graph_.gradient_of(table_), loss_.sum()}; }
  [[nodiscard]] Result computed(const Ids& tokens) {
    set_batch(tokens);
    compute();
    return result();
  }
  [[nodiscard]] Backend& backend() { return graph_.backend(); }
  // How often the host's part in the midst was called.
  [[nodiscard]] int between() const { return between_; }

 private:
  Graph graph_;
  Tensor table_;
  Ids tokens_ = Ids(kRows);
  Ids targets_ = Ids(kRows);
  Loss loss_;
  int between_ = 0;
};

// Batches in which tokens have one and two pieces, and others.
std::vector<Ids> batches() {
  std::vector<Ids> batches = {Ids(kRows, 7), Ids(kRows), Ids(kRows)};
  for (std::int32_t row = 0; row < kRows; ++row) {
    batches[1][static_cast<std::size_t>(row)] = (row * 37) % kVocabulary;
    batches[2][static_cast<std::size_t>(row)] = row % 3 == 0 ? 5 : row % 2 == 0 ? 95 : row % kVocabulary;
  }
  return batches;
}

class RecordingTest : public testing::TestWithParam<Platform> {};
// Of what is recorded, which a CPU does not do.
class GpuRecordingTest : public testing::TestWithParam<Platform> {};

TEST_P(RecordingTest, GivesTheBitsOfTheCallsForWhateverIdsThereAre) {
  std::vector<TinyModel::Result> expected;
  TinyModel called(GetParam());
  for (const Ids& batch : batches()) {
    expected.push_back(called.computed(batch));
  }
  TinyModel model(GetParam());
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(model.computed(batches()[0]), expected[0]);
  }
  model.set_batch(batches()[1]);
  const std::unique_ptr<Backend::Recording> recording = model.backend().record([&] { model.compute(); });
  EXPECT_EQ(model.result(), expected[1]);
  EXPECT_EQ(model.between(), 3);
  if (GetParam().device == DeviceKind::kCpu) {
    EXPECT_EQ(recording, nullptr);
    return;
  }
  int calls = 3;
  for (const std::size_t which : {2U, 0U, 1U, 0U, 2U}) {
    model.set_batch(batches()[which]);
    recording->run();
    EXPECT_EQ(model.result(), expected[which]);
    EXPECT_EQ(model.between(), ++calls);
  }
}

TEST_P(GpuRecordingTest, GoesOnWhereLargerCallsCameInBetween) {
  TinyModel model(GetParam());
  const TinyModel::Result expected = model.computed(batches()[1]);
  const std::unique_ptr<Backend::Recording> recording = model.backend().record([&] { model.compute(); });
  // More ids, and more partial sums, than the backend had memory for.
  constexpr std::int64_t kMany = 1 << 15;
  constexpr std::int64_t kWide = 320;
  const Ids tokens(kMany, 3);
  std::vector<Buffer> memory;
  const auto zeros = [&](const Shape& shape, DType dtype) {
    memory.push_back(model.backend().allocate(static_cast<std::size_t>(shape.count()) * size_of(dtype)));
    return Tensor(memory.back().data(), shape, dtype, model.backend().device());
  };
  const Tensor dx = zeros({kMany, kWide}, GetParam().dtype);
  const Tensor table = zeros({4, kWide}, DType::kF32);
  model.backend().embedding_backward({tokens, kMany, 0}, dx, table, Tensor());
  for (int i = 0; i < 2; ++i) {
    recording->run();
    EXPECT_EQ(model.result(), expected);
  }
}

TEST_P(GpuRecordingTest, RefusesAnIdThatWasNotThereWhenItWasRecorded) {
  TinyModel model(GetParam());
  const TinyModel::Result expected = model.computed(batches()[1]);
  const std::unique_ptr<Backend::Recording> recording = model.backend().record([&] { model.compute(); });
  Ids wrong = batches()[1];
  wrong[3] = kVocabulary;
  model.set_batch(wrong);
  try {
    recording->run();
    ADD_FAILURE() << "token 96 of 96 was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    EXPECT_THAT(error.what(), testing::HasSubstr("token 3 of a batch is 96, expected one in [0, 96)"));
  }
  model.set_batch(batches()[1]);
  recording->run();
  EXPECT_EQ(model.result(), expected);
}

TEST_P(RecordingTest, LeavesTheBackendUsableWhenTheWorkFails) {
  TinyModel model(GetParam());
  const TinyModel::Result expected = model.computed(batches()[1]);
  const auto fail_after_all = [&] {
    model.compute();
    throw Error(ErrorCode::kUsage, "no");
  };
  EXPECT_THROW(static_cast<void>(model.backend().record(fail_after_all)), Error);
  const auto fail_in_between = [&] {
    model.compute();
    model.backend().between([] { throw Error(ErrorCode::kUsage, "no"); });
  };
  EXPECT_THROW(static_cast<void>(model.backend().record(fail_in_between)), Error);
  EXPECT_EQ(model.computed(batches()[1]), expected);
  const std::unique_ptr<Backend::Recording> recording = model.backend().record([&] { model.compute(); });
  EXPECT_EQ(model.result(), expected);
}

std::vector<Platform> gpu_platforms() {
  std::vector<Platform> platforms = all_platforms();
  std::erase_if(platforms, [](const Platform& platform) { return platform.device == DeviceKind::kCpu; });
  return platforms;
}

INSTANTIATE_TEST_SUITE_P(Ops, RecordingTest, testing::ValuesIn(all_platforms()), name_of_platform);
INSTANTIATE_TEST_SUITE_P(Ops, GpuRecordingTest, testing::ValuesIn(gpu_platforms()), name_of_platform);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuRecordingTest);

}  // namespace
}  // namespace lockstep::test
