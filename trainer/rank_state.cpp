#include "trainer/rank_state.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace lockstep {
namespace {

using nlohmann::json;

constexpr std::size_t kBroadcastBytes = std::size_t{256} << 20;

// All but the values.
std::string to_text(const RankState& state) {
  return json{{"completed", state.completed},
              {"tokens", state.tokens},
              {"progress", to_json(state.progress)},
              {"config", state.config_text},
              {"last_lines", state.last_lines},
              {"save_pending", state.save_pending},
              {"validation_loss", state.validation_loss ? json(*state.validation_loss) : json()},
              {"elements", state.elements}}
      .dump();
}

RankState state_from(const std::string& text) {
  const json object = json::parse(text);
  RankState state;
  object.at("completed").get_to(state.completed);
  object.at("tokens").get_to(state.tokens);
  state.progress = run_progress_from_json(object.at("progress").get<std::string>());
  object.at("config").get_to(state.config_text);
  object.at("last_lines").get_to(state.last_lines);
  object.at("save_pending").get_to(state.save_pending);
  object.at("elements").get_to(state.elements);
  if (const json& loss = object.at("validation_loss"); !loss.is_null()) {
    state.validation_loss = loss.get<double>();
  }
  return state;
}

}  // namespace

void RankState::allocate(std::uint64_t count) {
  elements = count;
  values = Buffer::allocate(3 * count * sizeof(float));
}

std::optional<int> agree_on_state(std::optional<RankState>& own, Communicator& communicator) {
  const std::int64_t mine = own ? own->completed : -1;
  std::vector<std::int64_t> all(static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  const auto furthest = std::max_element(all.begin(), all.end());
  if (*furthest < 0) {
    return {};
  }
  const int donor = static_cast<int>(furthest - all.begin());
  RankState agreed = state_from(communicator.broadcast_text(own ? to_text(*own) : "", donor));
  const bool has_values = own && own->completed == *furthest;
  if (!has_values) {
    own.reset();  // what is older is of no use; a transfer that fails half-way must not pass for a state
    agreed.allocate(agreed.elements);
  }
  if (!std::all_of(all.begin(), all.end(), [&](std::int64_t completed) { return completed == *furthest; })) {
    Buffer& values = has_values ? own->values : agreed.values;
    const std::span<std::byte> bytes = std::as_writable_bytes(values.as<float>(3 * agreed.elements));
    for (std::size_t begin = 0; begin < bytes.size(); begin += kBroadcastBytes) {
      communicator.broadcast(bytes.subspan(begin, std::min(kBroadcastBytes, bytes.size() - begin)), donor);
    }
  }
  if (has_values) {
    std::swap(agreed.values, own->values);
  }
  own = std::move(agreed);
  return donor;
}

}  // namespace lockstep
