// What launch is made of: hosts and placements, command lines, the starters' output, Slurm's words, logs.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "launcher/job/attempts.h"
#include "launcher/job/child.h"
#include "launcher/job/contact.h"
#include "launcher/job/hosts.h"
#include "launcher/job/rank_logs.h"
#include "launcher/job/slurm.h"
#include "launcher/job/start_command.h"
#include "launcher/job_config.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(HostsTest, AreReadFromAListOrAFile) {
  EXPECT_THAT(parse_hosts("a:2,b"), ElementsAre(Host{"a", 2}, Host{"b", 1}));
  const TemporaryFolder folder;
  std::ofstream(folder / "hosts") << "# the left rack\nnode-a slots=2\n\n  node-b slots=4  # new\nnode-c\n";
  EXPECT_THAT(parse_hosts((folder / "hosts").string()),
              ElementsAre(Host{"node-a", 2}, Host{"node-b", 4}, Host{"node-c", 1}));
  std::ofstream(folder / "bad") << "a slots=2\nb slots=two\n";
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)parse_hosts((folder / "bad").string()); }),
              HasSubstr("bad line 2: found two slots"));
  EXPECT_THAT(parse_hosts("node.example.org"), ElementsAre(Host{"node.example.org", 1}));
  EXPECT_THAT(parse_hosts("a.txt:2,b"), ElementsAre(Host{"a.txt", 2}, Host{"b", 1}));
  for (const char* text : {"hosts.txt", "hosts.list", "my/hosts", "./hosts", "/etc/hostz"}) {
    EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { (void)parse_hosts(text); }),
              "--hosts " + std::string(text) + ": there is no such file");
  }
  for (const char* text : {"", ",", "a,,b", "a:", "a:x", "a,a", "-oProxyCommand=x", "a b"}) {
    EXPECT_THROW((void)parse_hosts(text), Error) << text;
  }
}

TEST(HostsTest, AreGivenTheLargestPowerOfTwoOfRanks) {
  const std::vector<Host> four = {{"a", 1}, {"b", 1}, {"c", 1}, {"d", 1}};
  EXPECT_EQ(place(four, 4).ranks, 4);
  EXPECT_EQ(place({four.begin(), four.begin() + 3}, 4).ranks, 2);
  EXPECT_THAT(place({four.begin(), four.begin() + 3}, 4).hosts, ElementsAre(Host{"a", 1}, Host{"b", 1}));
  EXPECT_EQ(place(four, 2).ranks, 2);
  EXPECT_EQ(place({}, 4).ranks, 0);
  EXPECT_THAT(place({{"a", 3}, {"b", 3}}, 8).hosts, ElementsAre(Host{"a", 3}, Host{"b", 1}));
}

TEST(SlurmTest, ReadsTasksPerNode) {
  EXPECT_THAT(parse_tasks_per_node("2(x3),1"), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(parse_tasks_per_node("4"), ElementsAre(4));
  EXPECT_THROW((void)parse_tasks_per_node("2(x"), Error);
  EXPECT_THROW((void)parse_tasks_per_node("two"), Error);
}

TEST(SlurmTest, ReadsTimeLimitsAsSbatchDoes) {
  for (const auto& [text, seconds] :
       {std::pair("90", 5'400), std::pair("0:10", 60), std::pair("2:00", 120), std::pair("4:00:00", 14'400),
        std::pair("1-0", 86'400), std::pair("1-2:30", 95'400), std::pair("1-2:30:01", 95'460)}) {
    EXPECT_EQ(parse_time_limit(text), seconds) << text;
  }
  for (const char* text : {"", "0", "0:00", "UNLIMITED", "1:2:3:4", "1:x", "-1", "1-", "x-1"}) {
    EXPECT_FALSE(parse_time_limit(text).has_value()) << text;
  }
}

TEST(SlurmTest, PutsARunningJobBackAndNoOther) {
  const auto running = parse_scontrol("JobId=7 JobName=a b UserId=root(0) JobState=RUNNING Reason=None Requeue=1\n");
  EXPECT_EQ(running.at("JobState"), "RUNNING");
  EXPECT_TRUE(may_requeue(running));
  EXPECT_FALSE(may_requeue(parse_scontrol("JobId=7 JobState=CANCELLED Reason=None")));
  EXPECT_FALSE(may_requeue(parse_scontrol("JobId=7 JobState=COMPLETING")));
  EXPECT_FALSE(may_requeue(parse_scontrol("slurm_load_jobs error: Invalid job id specified")));
}

TEST(SlurmTest, IsNotThereWithoutItsVariables) {
  EXPECT_FALSE(find_slurm_job([](const std::string&) { return std::optional<std::string>(); }).has_value());
  const auto in_a_step = [](const std::string& name) -> std::optional<std::string> {
    const std::map<std::string, std::string> values = {{"SLURM_JOB_ID", "7"},
                                                       {"SLURM_STEP_ID", "0"},
                                                       {"SLURM_PROCID", "1"},
                                                       {"SLURM_STEP_NUM_TASKS", "4"},
                                                       {"PMIX_RANK", "1"}};
    const auto found = values.find(name);
    return found == values.end() ? std::nullopt : std::optional(found->second);
  };
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)find_slurm_job(in_a_step); }),
              HasSubstr("launch was itself started by srun"));
}

TEST(StartCommandTest, SaysWhatEachStarterNeeds) {
  StartPlan plan;
  plan.placement = {4, {{"a", 2}, {"b", 2}}};
  plan.ssh = "/bin/agent";
  plan.worker = {"lockstep", "train", "c.yaml"};
  plan.forwarded = {"X"};
  EXPECT_EQ(
      shell_line(start_command(plan)),
      "mpirun -np 4 --tag-output --bind-to none --host a:2,b:2 --mca plm_rsh_agent /bin/agent -x X lockstep train "
      "c.yaml");
  plan.mpirun_major = 5;
  EXPECT_EQ(shell_line(start_command(plan)),
            "mpirun -np 4 --output tag --bind-to none --host a:2,b:2 --prtemca plm_ssh_agent /bin/agent -x X lockstep "
            "train c.yaml");
  plan.starter = JobStarter::kSrun;
  EXPECT_EQ(shell_line(start_command(plan)),
            "SLURM_PMIX_FENCE=ring srun --mpi=pmix --label --overlap --kill-on-bad-exit=1 --cpu-bind=none "
            "--distribution=block --ntasks=4 "
            "--nodes=2 --nodelist=a,b --ntasks-per-node=2 lockstep train c.yaml");
  plan.placement.hosts = {{"a", 1}, {"b", 3}};  // at most so many on each
  EXPECT_THAT(shell_line(start_command(plan)), testing::HasSubstr(" --ntasks-per-node=3 "));
  plan = {};
  plan.placement.ranks = 4;
  plan.cores = 2;
  plan.as_root = true;
  plan.worker = {"lockstep"};
  EXPECT_EQ(shell_line(start_command(plan)),
            "mpirun -np 4 --allow-run-as-root --tag-output --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 "
            "--mca btl '^tcp' lockstep");
}

TEST(StartCommandTest, IsPrintedAsAShellTakesIt) {
  EXPECT_EQ(shell_line({{"a", "b c", "it's", ""}, {{"N", "x y"}}}), "N='x y' a 'b c' 'it'\\''s' ''");
}

TEST(StarterOutputTest, TellsWhoseLineItIs) {
  const auto expect = [](JobStarter starter, const char* line, int rank, bool is_error, const char* text,
                         int mpirun_major = 4) {
    const OutputLine parsed = parse_output(starter, mpirun_major, line);
    EXPECT_EQ(parsed.rank, rank) << line;
    EXPECT_EQ(parsed.is_error, is_error) << line;
    EXPECT_EQ(parsed.text, text) << line;
  };
  expect(JobStarter::kMpirun, "[1,3]<stderr>:train: x", 3, true, "train: x");
  expect(JobStarter::kMpirun, "[1,0]<stdout>: indented", 0, false, " indented");
  expect(JobStarter::kMpirun, "[1,0]<stdout>:", 0, false, "");
  expect(JobStarter::kMpirun, "[prterun-host-12@1,11]<stderr>: train", 11, true, "train", 5);
  expect(JobStarter::kMpirun, "[1,0]<stdout>:   indented", 0, false, "  indented", 5);
  expect(JobStarter::kMpirun, "[1,0]<stdout>: ", 0, false, "", 5);
  expect(JobStarter::kMpirun, "mpirun noticed that", -1, false, "mpirun noticed that");
  expect(JobStarter::kMpirun, "[host:123] *** Process received signal", -1, false,
         "[host:123] *** Process received signal");
  expect(JobStarter::kMpirun, "", -1, false, "");
  expect(JobStarter::kSrun, "3: train: x", 3, false, "train: x");
  expect(JobStarter::kSrun, " 12: x", 12, false, "x");
  expect(JobStarter::kSrun, "srun: error: n1: task 0: Killed", -1, false, "srun: error: n1: task 0: Killed");
  EXPECT_EQ(parse_mpirun_version("mpirun (Open MPI) 4.1.4\n"), 4);
  EXPECT_EQ(parse_mpirun_version("mpirun (Open MPI) 5.0.7\n"), 5);
  EXPECT_THROW((void)parse_mpirun_version("HYDRA build details:"), Error);
}

TEST(BatchScriptTest, QuotesWhatAShellWouldCut) {
  BatchOptions options;
  options.name = "my run";
  options.folder = "/home/a b";
  options.output = "/data/my run/slurm-%j.log";
  options.command = {"lockstep", "launch", "it's.yaml"};
  EXPECT_THAT(batch_script(options),
              testing::AllOf(testing::HasSubstr("\n#SBATCH --job-name='my run'\n"),
                             testing::HasSubstr("\n#SBATCH --chdir='/home/a b'\n"),
                             testing::HasSubstr("\n#SBATCH --output='/data/my run/slurm-%j.log'\n"),
                             testing::EndsWith("\nexec lockstep launch 'it'\\''s.yaml'\n")));
}

TEST(ContactTest, IsPassedInAVariableAndAFileOfItsOwner) {
  const Contact contact{{{"10.0.0.1", "10.1.0.1"}, 4711, control::JobToken::random()}, 3, "4711_2"};
  const std::string text = to_text(contact);
  const auto read = contact_from([&](const std::string&) { return std::optional(text); });
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(to_text(*read), text);
  for (const std::string& bad : {std::string("x"), std::string("1/2/3/4/5"), text.substr(0, text.rfind('/'))}) {
    EXPECT_THROW((void)contact_from([&](const std::string&) { return std::optional(bad); }), Error) << bad;
  }
  EXPECT_FALSE(contact_from([](const std::string&) { return std::optional<std::string>(); }).has_value());

  const TemporaryFolder folder;
  EXPECT_FALSE(read_contact_file(folder.path()).has_value());
  write_contact_file(folder.path(), contact);
  EXPECT_EQ(to_text(*read_contact_file(folder.path())), text);
  EXPECT_EQ(fs::status(contact_file(folder.path())).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST(LaunchedConfigTest, IsPassedInAVariableOfOneLine) {
  const std::string text = "run: {name: \"a;b\"}\n# \xe9\tis Latin-1\r\n";
  const std::string digits = to_config_variable(text, "job.yaml");
  EXPECT_EQ(digits.find_first_not_of("0123456789abcdef"), std::string::npos);
  const auto read = [](const std::string& value) {
    return launched_config(
        [&](const std::string& name) { return name == "LOCKSTEP_CONFIG_TEXT" ? std::optional(value) : std::nullopt; });
  };
  EXPECT_EQ(read(digits), text);
  EXPECT_FALSE(read("").has_value());
  for (const char* bad : {"0", "0g", "6", "-1", "run"}) {
    EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)read(bad); }),
                HasSubstr("LOCKSTEP_CONFIG_TEXT is not what lockstep launch sets"))
        << bad;
  }
  const std::string longest(60'000, '#');
  EXPECT_EQ(read(to_config_variable(longest, "job.yaml")), longest);
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { (void)to_config_variable(longest + "#", "job.yaml"); }),
            "job.yaml: found 60001 bytes, expected at most 60000 in a file that is launched");
}

TEST(ChildTest, HandsOverLinesAndItsExitCode) {
  const ChildResult result =
      run_child({{"sh", "-c", "echo one; echo $A >&2; printf two; exit 3"}, {{"A", "b"}}}, 5'000);
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.output, testing::AllOf(HasSubstr("one\n"), HasSubstr("b\n"), HasSubstr("two\n")));
  EXPECT_EQ(run_child({{"sh", "-c", "kill -9 $$"}}, 5'000).exit_code, 128 + 9);
  EXPECT_LE(run_child({{"sh", "-c", "yes | head -c 5000000"}}, 5'000).output.size(), (1U << 20) + 10);
  EXPECT_TRUE(run_child({{"sleep", "30"}}, 100).timed_out);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [] { (void)run_child({{"no-such-program"}}, 100); }),
              HasSubstr("no-such-program: no such program in PATH"));
}

TEST(ChildTest, HasNoneOfTheFilesOfItsParent) {
  const int file = ::open("/dev/null", O_RDONLY);
  EXPECT_EQ(run_child({{"sh", "-c", "[ ! -e /proc/$$/fd/" + std::to_string(file) + " ]"}}, 5'000).exit_code, 0);
  ::close(file);
}

TEST(ChildTest, ReadsWhatIsWritten) {
  Child child({.arguments = {"sh", "-c", "read -r line; echo \"<$line>\""}, .has_input = true});
  child.write("one\ntwo\n");
  std::string output;
  while (!child.exit_code()) {
    child.read(10, [&](Child::Stream, const std::string& line) { output += line; });
  }
  child.read(0, [&](Child::Stream, const std::string& line) { output += line; });
  EXPECT_EQ(output, "<one>");
  child.write("three\n");  // to nobody
}

TEST(RankLogsTest, WaitForTheRunsFolder) {
  const TemporaryFolder folder;
  const fs::path run = folder / "run";
  RankLogs logs(run);
  logs.begin_attempt("attempt 1");
  logs.write({3, true, "early"});
  logs.flush();
  EXPECT_FALSE(fs::exists(run));
  fs::create_directory(run);
  logs.write({3, true, "late"});
  logs.write({-1, false, "mpirun"});
  logs.write_of_server(2, "serving");
  logs.begin_attempt("attempt 2");
  logs.write({3, false, "again"});
  logs.flush();
  EXPECT_EQ(read_file(logs.path(3)), "--- attempt 1\nearly\nlate\n--- attempt 2\nagain\n");
  EXPECT_EQ(read_file(run / "logs" / "starter.log"), "--- attempt 1\nmpirun\n");
  EXPECT_EQ(read_file(run / "logs" / "server-00002.log"), "--- attempt 1\nserving\n");
}

TEST(AttemptsTest, AreAppendedAndReadBack) {
  const TemporaryFolder folder;
  EXPECT_EQ(append_attempt(
                folder.path(),
                {.number = 1, .ranks = 4, .hosts = {"a"}, .slurm_job = "7", .opened = true, .cause = "rank 3 is gone"}),
            "");
  std::ofstream(attempts_file(folder.path()), std::ios::app) << "{\"attempt\": 2, cut";
  EXPECT_EQ(append_attempt(folder.path(), {.number = 3, .exit_code = 75, .recovered_s = 1.5}), "");
  const std::vector<Attempt> all = read_attempts(folder.path());
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0].cause, "rank 3 is gone");
  EXPECT_EQ(all[0].slurm_job, "7");
  EXPECT_TRUE(all[0].opened);
  EXPECT_EQ(all[1].number, 3);
  EXPECT_EQ(all[1].recovered_s, 1.5);
  const Replacement replacement = {
      .attempt = 3, .process = "rank 1", .host = "b", .step = 7, .cause = "rank 1 is gone"};
  EXPECT_EQ(append_replacement(folder.path(), replacement), "");
  EXPECT_EQ(read_attempts(folder.path()).size(), 2U);
  ASSERT_EQ(read_replacements(folder.path()).size(), 1U);
  EXPECT_EQ(read_replacements(folder.path())[0].cause, "rank 1 is gone");
  EXPECT_EQ(append_attempt(folder / "none", {}), "");
  EXPECT_FALSE(fs::exists(folder / "none"));
}

}  // namespace
}  // namespace lockstep
