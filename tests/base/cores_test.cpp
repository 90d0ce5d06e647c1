#include "base/cores.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <fstream>

#include "tests/support/child_process.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

class CoreQuotaTest : public testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path) << text;
  }
  TemporaryFolder folder_;
};

TEST_F(CoreQuotaTest, IsNoneWhereNothingIsSaid) {
  EXPECT_EQ(core_quota(folder_.path()), 0);
  write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(core_quota(folder_.path()), 0);
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(core_quota(folder_.path()), 0);
}

TEST_F(CoreQuotaTest, IsTheContainersOwn) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  EXPECT_EQ(core_quota(folder_.path()), 2);
  write("sys/fs/cgroup/cpu.max", "20000 100000\n");
  EXPECT_EQ(core_quota(folder_.path()), 1);
}

TEST_F(CoreQuotaTest, IsTheTightestOnTheWayToTheTop) {
  write("proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  write("sys/fs/cgroup/slurm/job_7/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000\n");
  write("sys/fs/cgroup/slurm/cpu.max", "1600000 100000\n");
  EXPECT_EQ(core_quota(folder_.path()), 4);
}

TEST_F(CoreQuotaTest, IsReadFromVersionOneToo) {
  write("proc/self/cgroup", "5:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(core_quota(folder_.path()), 0);
  write("sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us", "300000\n");
  write("sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(core_quota(folder_.path()), 3);
}

TEST(AllowedCores, FollowTheAffinity) {
  const auto pinned = [] {
    cpu_set_t one;
    CPU_ZERO(&one);
    const int core = allowed_cores().back();
    CPU_SET(core, &one);
    return sched_setaffinity(0, sizeof(one), &one) == 0 && allowed_cores() == std::vector<int>{core} &&
                   usable_cores() == 1
               ? 0
               : 1;
  };
  EXPECT_EQ(wait_for_child(start_child(pinned)), 0);
}

TEST(CoresOfHost, AreTheUnionOfWhatItsProcessesMayUse) {
  const std::vector<std::string> unbound = {describe_cores("a", {0, 1}), describe_cores("a", {0, 1})};
  EXPECT_EQ(cores_of_host("a", unbound), 2);
  const std::vector<std::string> bound = {describe_cores("a", {0, 1}), describe_cores("b", {0, 1, 2, 3}),
                                          describe_cores("a", {2, 3})};
  EXPECT_EQ(cores_of_host("a", bound), 4);
  EXPECT_EQ(cores_of_host("b", bound), 4);
}

}  // namespace
}  // namespace lockstep
