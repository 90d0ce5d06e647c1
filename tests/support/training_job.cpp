#include "tests/support/training_job.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "base/random.h"

namespace lockstep {
namespace {

// Words that follow one another by a rule with some chance in it, so that there is something to learn.
std::string make_text(int words) {
  std::string text;
  std::uint32_t word = 1;
  for (int i = 0; i < words; ++i) {
    word = (word * 7 + philox({5, 6}, static_cast<std::uint64_t>(i))[0] % 3) % 101;
    text += "w" + std::to_string(word) + (i % 11 == 10 ? "\n" : " ");
  }
  return text;
}

constexpr const char* kConfig = R"(
run: {dir: RUNS}
model: {family: gpt2, layers: 2, heads: 2, width: 32, context: 32, dropout: 0.1}
data: {train: DATA/train, valid: DATA/valid}
train: {steps: 24, micro_batches: 8, micro_batch_size: 2, precision: fp32}
optimizer: {lr: 1.0e-3}
schedule: {warmup_steps: 5}
comm: {bucket_mib: 1, timeout_s: 60}
checkpoint: {every_steps: 6}
evaluate: {every_steps: 8, batches: 3}
)";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

}  // namespace

TrainingJob::TrainingJob(Programs programs) : programs_(std::move(programs)) {
  std::ofstream(folder_ / "text.txt") << make_text(12000);
  const ProcessResult packed = run_process({programs_.lockstep, "pack", "--format", "text", "--tokenizer", "bytes",
                                            "--split", "0.9,0.1,0", "--out", folder_ / "data", folder_ / "text.txt"});
  if (packed.exit_code != 0) {
    throw std::runtime_error(packed.err);
  }
  std::ofstream(folder_ / "job.yaml") << replaced(replaced(kConfig, "RUNS", folder_ / "runs"), "DATA",
                                                  folder_ / "data");
}

std::vector<std::string> TrainingJob::pack_conversations() const {
  std::ofstream file(folder_ / "chats.jsonl");
  for (std::size_t i = 0; i < 60; ++i) {
    file << R"({"instruction": "count to )" << i % 9 << R"(", "output": ")" << std::string("123456789", i % 9 + 1)
         << "\"}\n";
  }
  file.close();
  const std::filesystem::path chats = folder_ / "chats";
  const ProcessResult packed =
      run_process({programs_.lockstep, "pack", "--format", "chat", "--template", "default", "--tokenizer", "bytes",
                   "--split", "0.8,0.2,0", "--out", chats, folder_ / "chats.jsonl"});
  if (packed.exit_code != 0) {
    throw std::runtime_error(packed.err);
  }
  return {"data.train=" + (chats / "train").string(), "data.valid=" + (chats / "valid").string()};
}

std::filesystem::path TrainingJob::checkpoints(const std::string& run) const {
  return folder() / "runs" / run / "checkpoints";
}

std::vector<std::string> TrainingJob::command(const Run& run) const {
  std::vector<std::string> words = {
      programs_.mpirun, std::to_string(run.ranks), programs_.lockstep, "train", folder_ / "job.yaml",
      "--set",          "run.name=" + run.name};
  for (const std::string& setting : run.settings) {
    words.insert(words.end(), {"--set", setting});
  }
  words.insert(words.end(), run.options.begin(), run.options.end());
  return words;
}

ProcessResult TrainingJob::train(const Run& run) const { return run_process(command(run)); }

TrainingJob::ServedRun TrainingJob::start_with_servers(const Run& run, int servers, Ranks ranks) const {
  // Open MPI, were it started, would not find this component and end the process.
  const std::vector<std::string> environment = {"LOCKSTEP_TOKEN_FILE=" + (folder() / "token").string(),
                                                "OMPI_MCA_pml=none_of_this_name"};
  ServedRun served;
  std::string addresses;
  for (int i = 1; i <= servers; ++i) {
    const int first = (i - 1) * run.parts_a_server + 1;
    const int last = i * run.parts_a_server;
    const std::string part = std::to_string(first) + (last > first ? "-" + std::to_string(last) : "") + "/" +
                             std::to_string(servers * run.parts_a_server);
    std::vector<std::string> serve = {programs_.lockstep,        "serve",  "--port", "0", "--workers",
                                      std::to_string(run.ranks), "--part", part};
    serve.insert(serve.end(), run.serve_options.begin(), run.serve_options.end());
    Process& process = *served.servers.emplace_back(std::make_unique<Process>(serve, environment));
    std::string lines;
    for (int tries = 0; tries < 1000 && std::count(lines.begin(), lines.end(), '\n') < run.parts_a_server; ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      lines = process.out();
    }
    std::replace(lines.begin(), lines.end(), '\n', ',');
    addresses += lines;
    const std::string address = lines.substr(0, lines.find(','));
    serve[3] = address.substr(address.rfind(':') + 1);
    served.server_starts.push_back({serve, environment});
  }
  addresses.pop_back();
  const std::vector<std::string> with_mpirun = command(run);
  std::vector<std::string> train(with_mpirun.begin() + 2, with_mpirun.end());
  train.insert(train.end(), {"--set", "comm.backend=server", "--set", "comm.servers=" + addresses});
  for (int rank = 0; rank < run.ranks; ++rank) {
    std::vector<std::string> own = environment;
    if (ranks == Ranks::kByHand) {
      own.push_back("LOCKSTEP_RANK=" + std::to_string(rank));
      own.push_back("LOCKSTEP_WORLD_SIZE=" + std::to_string(run.ranks));
    }
    served.worker_starts.push_back({train, own});
    served.workers.push_back(served.worker_starts.back().again());
  }
  return served;
}

TrainingJob::Result TrainingJob::result(const std::string& run) const { return results(run).back(); }

std::vector<TrainingJob::Result> TrainingJob::results(const std::string& run) const {
  std::vector<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoints(run))) {
    if (entry.path().extension().empty()) {
      folders.push_back(entry.path());
    }
  }
  if (folders.empty()) {
    throw std::runtime_error(checkpoints(run).string() + " holds no checkpoint");
  }
  std::sort(folders.begin(), folders.end());
  std::vector<Result> results;
  for (const std::filesystem::path& folder : folders) {
    const ProcessResult inspected = run_process({programs_.lockstep, "inspect", "--json", "--verify", folder});
    const auto json = nlohmann::json::parse(inspected.out, nullptr, false);
    if (inspected.exit_code != 0 || !json.is_object() || !json.value("intact", false)) {
      throw std::runtime_error("inspect " + folder.string() + ": " + inspected.err + inspected.out);
    }
    results.push_back({json.at("digest").get<std::string>(), json.at("step").get<int>()});
  }
  return results;
}

std::vector<std::string> TrainingJob::curve(const std::string& run) const {
  std::vector<std::string> lines;
  std::ifstream file(folder() / "runs" / run / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    auto json = nlohmann::json::parse(line);
    for (const char* key : {"tokens_per_s", "step_ms", "data_ms", "comm_ms", "comm_exposed_ms", "checkpoint_ms", "mfu",
                            "world", "staleness"}) {
      json.erase(key);
    }
    lines.push_back(json.dump());
  }
  return lines;
}

}  // namespace lockstep
