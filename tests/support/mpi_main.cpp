// main() of the tests that mpirun starts: every rank runs every test.
//
// Rank 0 prints as usual; the other ranks print failures only, each line with the rank before it. A test that fails on
// one rank ends that rank at once, and with it the run: in the tests that follow, the ranks would wait for each other's
// deadlines.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>

namespace {

class FailureListener final : public testing::EmptyTestEventListener {
 public:
  explicit FailureListener(std::string rank) : rank_(std::move(rank)) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed() && rank_ != "0") {
      const char* const file = result.file_name() == nullptr ? "" : result.file_name();
      std::cerr << "[rank " << rank_ << "] " << file << ":" << result.line_number() << ": " << result.message()
                << std::endl;
    }
  }

  void OnTestEnd(const testing::TestInfo& info) override {
    if (info.result()->Failed()) {
      std::cerr << "[rank " << rank_ << "] failed: " << info.test_suite_name() << "." << info.name() << std::endl;
      std::fflush(nullptr);
      // mpirun ends the other ranks as soon as it sees this one end; they shall print theirs before.
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      std::_Exit(1);
    }
  }

 private:
  const std::string rank_;
};

std::string own_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* const rank = std::getenv(name)) {
      return rank;
    }
  }
  return "0";
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const std::string rank = own_rank();
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (rank != "0") {
    delete listeners.Release(listeners.default_result_printer());
  }
  listeners.Append(new FailureListener(rank));
  return RUN_ALL_TESTS();
}
