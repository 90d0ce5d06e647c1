// A server's part of the weights, and what it writes down of it: nothing is lost or applied twice.
#include "comm/server/store_journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tests/comm/store_job.h"
#include "tests/support/temporary_folder.h"

namespace lockstep::server {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr std::size_t kCount = 37;
constexpr ElementRange kRange{10, 10 + kCount};
constexpr int kWorkers = 2;
const Open kOpen{.id = 1,
                 .elements = 100,
                 .steps = 1000,
                 .max_staleness = 3,
                 .leads = 0,
                 .has_reached_end = 0,
                 .description = "as a test has it\n"};

Store new_store(StoreJournal* journal = nullptr) {
  Store store(kOpen, kRange, kWorkers, test::make_halving_rule, journal);
  for (std::size_t i = 0; i < kCount; ++i) {
    store.values(StoreArray::kWeights)[i] = static_cast<float>(i);
  }
  store.start(0);
  return store;
}

// `pushes` in all, of both ranks in turn.
void push(Store& store, std::uint64_t pushes) {
  while (store.state().applied < pushes) {
    const auto rank = static_cast<std::uint32_t>(store.state().applied % kWorkers);
    const std::uint64_t step = store.state().completed[rank];
    const std::uint64_t version = store.state().applied - std::min<std::uint64_t>(store.state().applied, rank);
    ASSERT_TRUE(store.apply(rank, {step, version, 0.25F}, test::gradient_of(rank, step, kCount)));
  }
}

std::unique_ptr<Store> recover(StoreJournal& journal) {
  return Store::recover(journal, kWorkers, test::make_halving_rule);
}

fs::path only_log(const fs::path& folder) {
  std::vector<fs::path> logs;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().string().find(".log-") != std::string::npos) {
      logs.push_back(entry.path());
    }
  }
  EXPECT_EQ(logs.size(), 1U);
  return logs.at(0);
}

TEST(StoreTest, AppliesEachGradientOnceAndCountsHowFarItWasBehind) {
  Store store = new_store();
  const std::vector<float> gradient = test::gradient_of(0, 0, kCount);
  EXPECT_EQ(store.apply(0, {0, 0, 1.0F}, gradient), 0U);
  const std::vector<float> once = store.state().weights;
  EXPECT_EQ(once[5], 2.5F + gradient[5]);
  EXPECT_EQ(store.apply(0, {0, 0, 1.0F}, gradient), std::nullopt);
  EXPECT_EQ(store.state().weights, once);
  EXPECT_EQ(store.apply(1, {0, 0, 1.0F}, gradient), 1U);
  EXPECT_EQ(store.apply(1, {1, 2, 1.0F}, gradient), 0U);
  EXPECT_EQ(store.state().applied, 3U);
  EXPECT_EQ(store.state().completed, (std::vector<std::uint64_t>{1, 2}));
  EXPECT_EQ(store.state().staleness, (Staleness{.pushes = 3, .sum = 1, .max = 1}));
}

TEST(StoreTest, RefusesGradientsThatAreNotTheNextOrOfNoWeightsThatWere) {
  Store store = new_store();
  const std::vector<float> gradient(kCount);
  EXPECT_THROW((void)store.apply(0, {1, 0, 1.0F}, gradient), Error);
  EXPECT_THROW((void)store.apply(0, {0, 1, 1.0F}, gradient), Error);
  EXPECT_EQ(store.state().applied, 0U);
}

TEST(StoreTest, AStartAfterACheckpointCountsItsSteps) {
  Store store(kOpen, kRange, kWorkers, test::make_halving_rule, nullptr);
  EXPECT_FALSE(store.is_started());
  store.start(50);
  EXPECT_TRUE(store.is_started());
  EXPECT_EQ(store.state().applied, 100U);
  EXPECT_EQ(store.state().completed, (std::vector<std::uint64_t>{50, 50}));
}

TEST(StoreJournalTest, AFolderWithoutAStateHasNone) {
  const TemporaryFolder folder;
  StoreJournal journal(folder / "state", 0, 1);
  EXPECT_EQ(recover(journal), nullptr);
}

// Across snapshots, and beside another part in the same folder.
TEST(StoreJournalTest, WhatWasAppliedIsThereToTheBit) {
  Store undisturbed = new_store();
  push(undisturbed, 100);
  for (const std::uint64_t pushes : {0U, 1U, 23U, 24U, 25U, 60U, 100U}) {
    const TemporaryFolder folder;
    StoreJournal other(folder.path(), 1, 2);
    Store beside = new_store(&other);
    {
      StoreJournal journal(folder.path(), 0, 2);
      Store store = new_store(&journal);
      push(store, pushes);
    }
    StoreJournal journal(folder.path(), 0, 2);
    const std::unique_ptr<Store> store = recover(journal);
    ASSERT_NE(store, nullptr);
    Store expected = new_store();
    push(expected, pushes);
    EXPECT_EQ(store->state(), expected.state()) << pushes;
    push(*store, 100);
    EXPECT_EQ(store->state(), undisturbed.state()) << pushes;
  }
}

TEST(StoreJournalTest, ARecordThatWasCutOffIsMadeAgain) {
  Store undisturbed = new_store();
  push(undisturbed, 10);
  const std::uint64_t record_bytes = 56 + kCount * sizeof(float);
  for (std::uint64_t cut = 1; cut < record_bytes; cut += 17) {
    const TemporaryFolder folder;
    {
      StoreJournal journal(folder.path(), 0, 1);
      Store store = new_store(&journal);
      push(store, 10);
    }
    const fs::path log = only_log(folder.path());
    EXPECT_EQ(fs::file_size(log), 10 * record_bytes);
    fs::resize_file(log, 10 * record_bytes - cut);
    StoreJournal journal(folder.path(), 0, 1);
    const std::unique_ptr<Store> store = recover(journal);
    EXPECT_EQ(store->state().applied, 9U);
    EXPECT_EQ(fs::file_size(log), 9 * record_bytes);
    push(*store, 10);
    EXPECT_EQ(store->state(), undisturbed.state());
  }
}

void flip_byte(const fs::path& path, std::uint64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  const auto byte = static_cast<char>(file.get() ^ 1);
  file.seekp(static_cast<std::streamoff>(at));
  file.put(byte);
}

TEST(StoreJournalTest, DamageIsRefusedNotSkipped) {
  const TemporaryFolder folder;
  {
    StoreJournal journal(folder.path(), 0, 1);
    Store store = new_store(&journal);
    push(store, 3);
  }
  const auto problem = [&]() -> std::string {
    try {
      StoreJournal journal(folder.path(), 0, 1);
      (void)recover(journal);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
      return error.what();
    }
    return "";
  };
  flip_byte(only_log(folder.path()), 60);
  EXPECT_THAT(problem(), HasSubstr("record 1 of 3 is damaged"));
  const fs::path snapshot = folder.path() / "part-1-of-1.snapshot";
  const std::uint64_t size = fs::file_size(snapshot);
  for (std::uint64_t at = 0; at < size; at += 29) {
    flip_byte(snapshot, at);
    std::string found;
    try {
      StoreJournal journal(folder.path(), 0, 1);
      (void)journal.load();
    } catch (const Error& error) {
      found = error.what();
    }
    EXPECT_THAT(found, HasSubstr("part-1-of-1.snapshot")) << at;
    flip_byte(snapshot, at);
  }
  fs::resize_file(snapshot, 20);
  EXPECT_THAT(problem(), HasSubstr("is damaged"));
}

TEST(StoreJournalTest, KeepsOthersOutAndForgetsWhatHasEnded) {
  const TemporaryFolder folder;
  StoreJournal journal(folder.path(), 0, 1);
  EXPECT_THROW(StoreJournal(folder.path(), 0, 1), Error);
  Store store = new_store(&journal);
  push(store, 3);
  EXPECT_THROW((void)Store::recover(journal, 3, test::make_halving_rule), Error);
  journal.clear();
  EXPECT_EQ(recover(journal), nullptr);
}

}  // namespace
}  // namespace lockstep::server
