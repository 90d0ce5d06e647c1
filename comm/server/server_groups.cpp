// Which workers train together: see server.h.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/server/seating.h"
#include "comm/server/server_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

// A group that ends in order to grow takes so long at most to be one again.
constexpr milliseconds kGrowingTime{10'000};
// Workers that were told to come again finish what they compute, and go to part 0 first.
constexpr milliseconds kUntilTheyAreBack{30'000};

}  // namespace

std::vector<std::shared_ptr<Server::Impl::Worker>> Server::Impl::guests() const {
  std::vector<std::shared_ptr<Worker>> waiting;
  std::copy_if(workers_.begin(), workers_.end(), std::back_inserter(waiting),
               [](const auto& worker) { return !worker->member && !worker->is_dismissed; });
  return waiting;
}

// After every arrival, and again while time passes.
void Server::Impl::see_to_guests() {
  if (!over_ && group_) {
    see_to_latecomers();
  }
  if (!over_ && !group_) {
    leads() ? seat_guests() : seat_as_led();
  }
}

// Workers that come while a group trains.
void Server::Impl::see_to_latecomers() {
  const auto now = Clock::now();
  const std::vector<std::shared_ptr<Worker>> waiting = guests();
  const std::size_t world = group_->members().size();
  for (const std::shared_ptr<Worker>& guest : waiting) {
    const bool came_again = std::any_of(workers_.begin(), workers_.end(), [&](const auto& other) {
      return other->member && other->hello.process == guest->hello.process;
    });
    if (came_again || (!leads() && guest->hello.group > group_->id())) {
      end_group(Error(ErrorCode::kPeerLost, fmt::format("{} has come again", guest->name)));
      return;
    }
    // The one whose place it wants may be lost, and nobody has noticed yet.
    const auto grace = 2 * milliseconds(guest->hello.silence_ms);
    if (now - guest->came < grace) {
      continue;
    }
    const auto same = std::find_if(workers_.begin(), workers_.end(), [&](const auto& other) {
      return other->member && other->hello.insists && guest->hello.insists && other->hello.rank == guest->hello.rank;
    });
    if (same != workers_.end()) {
      refuse(*guest,
             fmt::format("server: {} is here already, and {} has the same rank", (*same)->name, guest->hello.name));
    } else if (world == wanted()) {
      refuse(*guest, fmt::format("server: all {} workers are here already", wanted()));
    }
  }
  const std::size_t possible = world_of(world + waiting.size(), wanted(), fewest());
  if (leads() && possible > world) {
    grows_to_ = possible;
    end_group(Error(ErrorCode::kPeerLost, fmt::format("the job grows from {} to {} workers", world, possible)));
  }
}

// Part 0 decides who trains.
void Server::Impl::seat_guests() {
  const std::vector<std::shared_ptr<Worker>> waiting = guests();
  const auto now = Clock::now();
  if (waiting.empty() && !loss_) {
    waits_since_.reset();  // whoever came has left
    return;
  }
  waits_since_ = waits_since_.value_or(now);
  for (auto a = waiting.begin(); a != waiting.end(); ++a) {
    const Hello& hello = (*a)->hello;
    const auto same = std::find_if(waiting.begin(), a, [&](const auto& other) {
      const bool wants_its_rank = hello.insists && other->hello.insists && other->hello.rank == hello.rank;
      return wants_its_rank || other->hello.process == hello.process;
    });
    if (same == a) {
      continue;
    }
    if ((*same)->hello.process == hello.process) {
      dismiss(**same, FrameType::kRegroup, Error(ErrorCode::kPeerLost, (*same)->name + " has come again"));
    } else if (now - (*a)->came >= 2 * milliseconds(hello.silence_ms)) {  // or the other is lost, unnoticed yet
      refuse(**a, fmt::format("server: {} is here already, and {} has the same rank", (*same)->name, hello.name));
    }
    return;
  }
  const bool waited_out = now - *waits_since_ >= options_.wait;
  const bool has_grown =
      grows_to_ && (waiting.size() >= *grows_to_ || now - *waits_since_ >= std::min(kGrowingTime, options_.wait));
  const bool takes_fewer = options_.min_workers > 0 && (waited_out || has_grown);
  const std::size_t world = world_of(waiting.size(), wanted(), takes_fewer ? fewest() : wanted());
  if (world > 0) {
    std::vector<Hello> hellos;
    for (const std::shared_ptr<Worker>& guest : waiting) {
      hellos.push_back(guest->hello);
    }
    std::vector<std::shared_ptr<Worker>> seated;
    for (const std::size_t guest : seats(hellos, world)) {
      seated.push_back(waiting[guest]);
    }
    const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
    const auto clock =
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(since_1970).count());
    form(seated, std::max(last_group_ + 1, clock));
  } else if (loss_ && waited_out) {
    finish(Error(loss_->code(), fmt::format("{}; {} of {} workers came within {:.0f} s", loss_->what(), waiting.size(),
                                            wanted(), std::chrono::duration<double>(options_.wait).count())));
  } else if (!loss_) {
    for (const std::shared_ptr<Worker>& guest : waiting) {
      if (now - guest->came >= guest->patience) {
        finish(
            Error(ErrorCode::kTimeout, fmt::format("start: {} kept the others waiting for {:.1f} s", missing_worker(),
                                                   std::chrono::duration<double>(now - guest->came).count())));
        return;
      }
    }
  }
}

// Other parts take the groups that part 0 made up, once they are complete.
void Server::Impl::seat_as_led() {
  const std::vector<std::shared_ptr<Worker>> waiting = guests();
  std::uint64_t newest = 0;
  for (const std::shared_ptr<Worker>& guest : waiting) {
    newest = std::max(newest, guest->hello.group);
  }
  std::vector<std::shared_ptr<Worker>> seated;
  for (const std::shared_ptr<Worker>& guest : waiting) {
    const bool is_new = guest->hello.group == newest && guest->hello.group > last_group_;
    if (!is_new || Clock::now() - guest->came >= guest->patience) {
      dismiss(*guest, FrameType::kRegroup,
              Error(ErrorCode::kTimeout, "the other workers have not come to this server"));
      continue;
    }
    seated.resize(guest->hello.world);
    seated[guest->hello.rank] = guest;
  }
  if (!seated.empty() && std::find(seated.begin(), seated.end(), nullptr) == seated.end()) {
    form(seated, newest);
  } else if (loss_ && Clock::now() - *waits_since_ >= 2 * options_.wait + kUntilTheyAreBack) {
    finish(*loss_);  // part 0 has given up by now
  }
}

void Server::Impl::form(const std::vector<std::shared_ptr<Worker>>& workers, std::uint64_t id) {
  const auto world = static_cast<std::uint32_t>(workers.size());
  std::vector<std::shared_ptr<Group::Member>> members;
  for (std::uint32_t rank = 0; rank < world; ++rank) {
    Worker& worker = *workers[rank];
    worker.name = fmt::format("rank {} ({})", rank, worker.hello.name);
    worker.group = id;
    worker.member = std::make_shared<Group::Member>(
        Group::Member{.name = worker.name, .connection = worker.connection, .rank = rank});
    members.push_back(worker.member);
    worker.connection->send({.type = FrameType::kWelcome}, encode(Welcome{rank, world, id}));
  }
  group_ = std::make_shared<Group>(id, std::move(members), Clock::now());
  last_group_ = id;
  last_world_ = world;
  left_ = 0;
  waits_since_.reset();
  grows_to_.reset();
  loss_.reset();
  say(LogLevel::kInfo, world == wanted() ? fmt::format("all {} workers are here", world)
                                         : fmt::format("going on with {} of {} workers", world, wanted()));
}

std::string Server::Impl::missing_worker() const {
  std::vector<bool> has_come(wanted());
  std::size_t without_rank = 0;
  for (const std::shared_ptr<Worker>& guest : guests()) {
    if (guest->hello.rank < wanted()) {
      has_come[guest->hello.rank] = true;
    } else {
      ++without_rank;
    }
  }
  std::size_t rank = 0;
  for (; rank < wanted() && (has_come[rank] || without_rank > 0); ++rank) {
    without_rank -= has_come[rank] ? 0 : 1;
  }
  return fmt::format("rank {}, which has not come,", rank);
}

}  // namespace lockstep::server
