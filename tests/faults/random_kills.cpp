// Kills a training job again and again and holds its result against an undisturbed run.
//
//   random_kills PROGRAM MPIRUN KILLS SEED fp32|bf16|fp16
//
// Each round starts the job on a random number of ranks and ends it with SIGKILL at a random moment: one rank, or all
// of them together with mpirun. Every other kill waits for a save to be under way. Ends with one line that says how
// many kills were survived, how many of them fell into a save, and whether the digests are equal; exit code 1 when they
// are not.
#include <dirent.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>

#include "tests/support/training_job.h"

namespace lockstep {
namespace {

using std::chrono::milliseconds;

const std::vector<std::string> kSettings = {"checkpoint.every_steps=3", "model.width=128",
                                            "data.valid=", "evaluate.every_steps=0", "schedule.name=constant"};
constexpr int kStepsPerKill = 3;

// The job's processes below `parent`: mpirun's children that run the program.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  DIR* folder = opendir("/proc");
  while (const dirent* entry = readdir(folder)) {
    std::ifstream stat(fmt::format("/proc/{}/stat", entry->d_name));
    std::string pid;
    std::string name;
    std::string state;
    pid_t its_parent = 0;
    if (stat >> pid >> name >> state >> its_parent && its_parent == parent && name == "(lockstep)") {
      children.push_back(std::stoi(pid));
    }
  }
  closedir(folder);
  return children;
}

// The folders of saves that have begun and not ended, by inode: one of a killed job stays until the next job tidies up.
std::set<ino_t> partial_folders(const std::filesystem::path& checkpoints) {
  std::set<ino_t> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoints, error)) {
    struct stat info = {};
    if (entry.path().extension() == ".partial" && stat(entry.path().c_str(), &info) == 0) {
      found.insert(info.st_ino);
    }
  }
  return found;
}

class Campaign {
 public:
  Campaign(const TrainingJob& job, std::uint64_t seed, std::string precision)
      : job_(job), random_(seed), precision_(std::move(precision)) {}

  // One round: start, wait, kill. Returns whether the kill came before the job ended by itself.
  bool round(int number, int steps) {
    const int ranks = 1 << pick(0, 3);
    std::vector<std::string> settings = settings_for(steps);
    if (ranks >= 4 && pick(0, 1) == 0) {
      settings.push_back("comm.ranks_per_node=" + std::to_string(pick(1, 2)));
    }
    settings.push_back("comm.zero=" + std::to_string(pick(0, 1)));
    settings.push_back(pick(0, 3) == 0 ? "checkpoint.background=false" : "checkpoint.background=true");
    const std::set<ino_t> left = partial_folders(job_.checkpoints("killed"));
    const auto save_under_way = [&] {
      const std::set<ino_t> now = partial_folders(job_.checkpoints("killed"));
      return std::any_of(now.begin(), now.end(), [&](ino_t folder) { return !left.contains(folder); });
    };
    Process process(job_.command({"killed", ranks, settings}));
    wait_for_ranks(process, ranks);
    std::this_thread::sleep_for(milliseconds(pick(0, 1500)));
    const bool aimed = number % 2 == 1;
    for (int i = 0; aimed && i < 10000 && process.is_running() && !save_under_way(); ++i) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    std::this_thread::sleep_for(milliseconds(aimed ? pick(0, 10) : 0));
    const std::vector<pid_t> victims = children_of(process.pid());
    if (victims.empty()) {
      process.wait();
      return false;
    }
    const bool in_save = save_under_way();
    const bool all = pick(0, 1) == 0;
    if (all) {
      process.send(SIGKILL);
      for (const pid_t victim : victims) {
        kill(victim, SIGKILL);
      }
    } else {
      kill(victims[static_cast<std::size_t>(pick(0, static_cast<int>(victims.size()) - 1))], SIGKILL);
    }
    process.wait();
    wait_for_end(victims);
    ++kills;
    kills_in_save += in_save ? 1 : 0;
    kills_of_all += all ? 1 : 0;
    return true;
  }

  [[nodiscard]] std::vector<std::string> settings_for(int steps) const {
    std::vector<std::string> settings = kSettings;
    settings.push_back("train.steps=" + std::to_string(steps));
    settings.push_back("train.precision=" + precision_);
    // Of fp16: gradients overflow in the first step, and now and then.
    settings.insert(settings.end(), {"train.loss_scale=134217728", "train.loss_scale_window=5"});
    return settings;
  }
  // The step of the newest checkpoint, 0 before the first. Throws when the newest is damaged: a published checkpoint is
  // whole, whatever was killed.
  [[nodiscard]] int step_reached() const {
    const std::filesystem::path folder = job_.checkpoints("killed");
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      if (entry.path().extension().empty()) {
        return job_.result("killed").step;
      }
    }
    return 0;
  }

  int kills = 0;
  int kills_in_save = 0;
  int kills_of_all = 0;

 private:
  int pick(int least, int most) { return std::uniform_int_distribution<int>(least, most)(random_); }

  static void wait_for_ranks(Process& process, int ranks) {
    for (int i = 0; i < 5000 && process.is_running(); ++i) {
      if (children_of(process.pid()).size() == static_cast<std::size_t>(ranks)) {
        return;
      }
      std::this_thread::sleep_for(milliseconds(2));
    }
  }
  static void wait_for_end(const std::vector<pid_t>& processes) {
    for (const pid_t process : processes) {
      for (int i = 0; i < 5000 && kill(process, 0) == 0; ++i) {
        std::this_thread::sleep_for(milliseconds(2));
      }
    }
  }

  const TrainingJob& job_;
  std::mt19937_64 random_;
  std::string precision_;
};

int run(const Programs& programs, int kills, std::uint64_t seed, const std::string& precision) {
  const TrainingJob job(programs);
  Campaign campaign(job, seed, precision);
  int steps = 0;
  while (campaign.kills < kills) {
    // The goal moves on with what was reached, so that there is always something left to interrupt.
    const int reached = campaign.step_reached();
    steps = reached + 100 * kStepsPerKill;
    campaign.round(campaign.kills, steps);
    fmt::print("kill {}: step {} reached, {} of {} in a save\n", campaign.kills, reached, campaign.kills_in_save,
               campaign.kills);
    std::fflush(stdout);
  }
  steps = campaign.step_reached() + 5;  // on a slow machine no kill may have left time for a save
  std::vector<std::string> settings = campaign.settings_for(steps);
  const ProcessResult last = job.train({"killed", 2, settings});
  settings.push_back("checkpoint.every_steps=0");
  const ProcessResult undisturbed = job.train({"undisturbed", 2, settings});
  if (last.exit_code != 0 || undisturbed.exit_code != 0) {
    fmt::print("the last run failed: {}{}\n", last.err, undisturbed.err);
    return 1;
  }
  const TrainingJob::Result killed_result = job.result("killed");
  const TrainingJob::Result expected = job.result("undisturbed");
  fmt::print("survived {} kills ({} in a save, {} of all ranks) over {} steps: digest {}, undisturbed {}: {}\n",
             campaign.kills, campaign.kills_in_save, campaign.kills_of_all, killed_result.step, killed_result.digest,
             expected.digest, killed_result == expected ? "equal" : "DIFFERENT");
  return killed_result == expected ? 0 : 1;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  if (argc != 6) {
    fmt::print(stderr, "usage: random_kills PROGRAM MPIRUN KILLS SEED fp32|bf16|fp16\n");
    return 2;
  }
  try {
    return lockstep::run({argv[1], argv[2]}, std::stoi(argv[3]), std::stoull(argv[4]), argv[5]);
  } catch (const std::exception& error) {
    fmt::print(stderr, "random_kills: {}\n", error.what());
    return 1;
  }
}
