#include "launcher/job/job_watch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/process.h"

namespace lockstep {
namespace {

// A new start gives the same: nothing in the surroundings is to blame.
bool again_is_useless(const std::exception& error) {
  const auto* const known = dynamic_cast<const Error*>(&error);
  return known != nullptr && (known->code() == ErrorCode::kUsage || known->code() == ErrorCode::kUnsupported ||
                              known->code() == ErrorCode::kDiverged);
}

// What another rank's end caused says nothing of its own.
bool is_consequence(const std::exception& error) {
  const auto* const known = dynamic_cast<const Error*>(&error);
  return known != nullptr && (known->code() == ErrorCode::kPeerLost || known->code() == ErrorCode::kTimeout);
}

}  // namespace

JobWatch::JobWatch(const CommConfig& config, const RankEnvironment& ranks, const EnvironmentLookup& environment,
                   Log& log)
    : config_(config), ranks_(ranks), log_(log), contact_(contact_from(environment)) {
  launched_ = contact_.has_value();
  if (launched_ && config_.silence_s > 0 && ranks_.world_size > 0) {
    connect(*contact_, ranks_);
  }
}

JobWatch::~JobWatch() = default;

void JobWatch::join(Communicator& communicator) {
  if (config_.silence_s == 0 || client_ || config_.backend == "server") {
    return;
  }
  ranks_.rank = communicator.rank();
  ranks_.world_size = communicator.world_size();
  if (!launched_) {
    std::string text;
    if (ranks_.rank == 0) {
      const bool on_one_machine = communicator.node_size() == communicator.world_size();
      control::Coordinator::Options options;
      options.on_this_machine_only = on_one_machine;
      options.silence_ms = config_.silence_s * 1000;
      options.still_ms = config_.stuck_s * 1000;
      options.start_ms = config_.timeout_s * 1000;
      options.own_phase = [this] {
        const control::ActivityState now = activity_.now();
        return control::describe(now.phase, now.step, now.part);
      };
      options.on_trouble = [this](const std::vector<control::Trouble>& found) {
        std::string fatal;
        for (const control::Trouble& trouble : found) {
          if (trouble.fatal) {
            fatal += (fatal.empty() ? "" : "; ") + trouble.text;
          } else if (trouble.kind != control::TroubleKind::kFailed) {  // which says so itself
            log_.warning("{}", trouble.text);
          }
        }
        if (!fatal.empty()) {
          end(fatal);
        }
      };
      Contact contact;
      contact.address.token = options.token;
      contact.address.hosts = on_one_machine ? std::vector<std::string>{"127.0.0.1"} : own_addresses();
      coordinator_ = std::make_unique<control::Coordinator>(std::move(options));
      coordinator_->begin_attempt(1, ranks_.world_size);
      contact.address.port = coordinator_->port();
      text = to_text(contact);
    }
    text = communicator.broadcast_text(text, 0);
    contact_ = contact_from([&text](const std::string&) { return std::optional(text); });
  }
  connect(*contact_, ranks_);
}

void JobWatch::connect(const Contact& contact, const RankEnvironment& ranks) {
  control::Client::Options options;
  options.coordinator = contact.address;
  options.hello = {.rank = ranks.rank,
                   .world = ranks.world_size,
                   .attempt = contact.attempt,
                   .host = host_name(),
                   .process = ::getpid(),
                   .process_namespace = process_namespace()};
  options.silence_ms = config_.silence_s * 1000;
  options.on_request = [this](control::Order order) {
    (order == control::Order::kStop ? stop_requested_ : save_requested_).store(true);
  };
  options.on_end = [this](const std::string& reason) {
    // Rank 0 hears the same, says it, and mpirun then ends the others. They speak up when that does not happen.
    if (!launched_ && ranks_.rank != 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(std::min(1'000 + 50 * ranks_.rank, 3'000)));
    }
    end(reason);
  };
  options.on_coordinator_gone = [this](const std::string& last_phase) {
    if (launched_) {
      log_.warning("train: lockstep launch, which started this job, is gone; saving and stopping");
      stop_requested_.store(true);
      return;
    }
    if (ranks_.rank != 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(std::min(1'000 + 50 * ranks_.rank, 3'000)));
      end("rank 0 is gone" + (last_phase.empty() ? "" : "; last seen in " + last_phase));
    }
  };
  client_ = std::make_unique<control::Client>(std::move(options), activity_);
}

void JobWatch::end(const std::string& reason) {
  const std::lock_guard lock(ending_);
  if (over_) {
    return;
  }
  // Said by lockstep launch where that is in charge, unless it is what cannot be reached.
  const std::string prefix = ranks_.rank == 0 ? "" : fmt::format("[rank {}] ", ranks_.rank);
  if (!launched_ || reason.find("coordinator") != std::string::npos) {
    const std::string line = fmt::format("{}lockstep train: {}\n", prefix, reason);
    log_.clear_status();
    std::fwrite(line.data(), 1, line.size(), stderr);
  }
  end_process(1);
}

void JobWatch::publish(const std::filesystem::path& run) {
  if (!contact_ || ranks_.rank != 0) {
    return;
  }
  try {
    write_contact_file(run, *contact_);
    published_ = run;
  } catch (const Error& error) {
    log_.warning("status: {}; lockstep status will not find this job", error.what());
  }
}

void JobWatch::farewell(int exit_code, const std::exception* error) {
  {
    const std::lock_guard lock(ending_);
    over_ = true;
  }
  control::Farewell farewell;
  farewell.exit_code = exit_code;
  if (error != nullptr) {
    farewell.message = is_consequence(*error) ? "" : error->what();
    farewell.again_is_useless = again_is_useless(*error);
  }
  if (client_) {
    client_->farewell(farewell);
  }
  if (coordinator_) {
    coordinator_->wait_for_farewells(1'000);
  }
  if (!published_.empty() && !launched_) {
    std::error_code ignored;
    std::filesystem::remove(contact_file(published_), ignored);
  }
}

}  // namespace lockstep
