#include "comm/server/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace lockstep::server {
namespace {

std::span<float> floats(const Block& block) {
  const std::span<std::byte> bytes = block.bytes();
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

// Where they lie is no matter of what they are.
Wire as_values(Wire wire) { return wire == Wire::kInMemory ? Wire::kAsIs : wire; }

// What came as `wire`, as f32.
std::shared_ptr<Block> decoded(Wire wire, std::shared_ptr<Block> block, std::uint64_t count) {
  if (!rounds(wire)) {
    return block;
  }
  std::shared_ptr<Block> values = block->another(count * sizeof(float));
  decode(wire, block->bytes(), floats(*values));
  return values;
}

// A sum as it goes back to those who pushed their contributions as `wire`.
std::shared_ptr<Block> encoded_sum(Wire wire, std::shared_ptr<Block> sum) {
  if (!rounds(wire)) {
    return sum;
  }
  const std::span<const float> values = floats(*sum);
  std::shared_ptr<Block> block = sum->another(wire_bytes(wire_of_sum(wire), values.size()));
  encode(wire_of_sum(wire), values, {}, block->bytes());
  return block;
}

}  // namespace

Group::Group(std::uint64_t id, std::vector<std::shared_ptr<Member>> members, Connection::Clock::time_point now)
    : id_(id), members_(std::move(members)), lateness_(members_.size(), now) {}

void Group::enter(Member& member, std::uint64_t call) {
  if (call < member.call) {
    fail(ErrorCode::kCorrupt, "server: a frame of call {} after one of call {}", call, member.call);
  }
  if (call > member.call) {
    lateness_.enter(member.rank, call, Connection::Clock::now());
  }
  member.call = call;
  while (!member.gifts.empty() && member.gifts.front().header.call <= call) {
    const Gift& gift = member.gifts.front();
    member.connection->send({.header = gift.header,
                             .payload = gift.block->bytes(),
                             .owner = gift.block,
                             .payload_hash = gift.header.payload_hash});
    member.gifts.pop_front();
  }
}

void Group::push(Member& member, const FrameHeader& header, std::shared_ptr<Block> block) {
  const auto place = pieces_.try_emplace({header.call, header.begin},
                                         Piece{.first = header,
                                               .sum = {members_.size(), header.end - header.begin, header.dtype},
                                               .has_come = std::vector<bool>(members_.size()),
                                               .wanted = std::vector<ElementRange>(members_.size()),
                                               .shared = std::vector<std::shared_ptr<Block>>(members_.size())});
  Piece& piece = place.first->second;
  const FrameHeader& first = piece.first;
  if (header.rank != member.rank || piece.has_come[member.rank]) {
    fail(ErrorCode::kCorrupt, "server: elements [{}, {}) of call {} for rank {}, twice or from another", header.begin,
         header.end, header.call, header.rank);
  }
  require(header.count == first.count && header.dtype == first.dtype && header.end == first.end,
          "sum: {} adds {} {}, but {} adds {} {} (call {}); every rank makes the same calls", member.name, header.count,
          name_of(header.dtype), members_[first.rank]->name, first.count, name_of(first.dtype), header.call);
  require(as_values(header.wire) == as_values(first.wire),
          "sum: {} sends {}, but {} sends {}; comm.wire is the same for every worker", member.name,
          name_of(header.wire), members_[first.rank]->name, name_of(first.wire));
  piece.has_come[member.rank] = true;
  piece.wanted[member.rank] = {header.wanted_begin, header.wanted_end};
  if (block->is_shared()) {
    piece.shared[member.rank] = block;
  }
  if (auto sum = piece.sum.add(member.rank, decoded(header.wire, std::move(block), header.end - header.begin))) {
    finish(header, piece, encoded_sum(header.wire, std::move(*sum)));
    pieces_.erase(place.first);
  }
}

// Writes the sum where it is wanted in shared memory, and sends it to the others.
void Group::finish(const FrameHeader& header, const Piece& piece, std::shared_ptr<Block> sum) {
  bool travels = false;
  for (const std::shared_ptr<Member>& member : members_) {
    const std::shared_ptr<Block>& shared = piece.shared[member->rank];
    const ElementRange wanted = piece.wanted[member->rank];
    travels = travels || (!shared && wanted.size() > 0);
    if (shared && shared != sum) {
      const std::size_t element_bytes = size_of(header.dtype);
      const std::size_t begin = (wanted.begin - header.begin) * element_bytes;
      std::memcpy(shared->bytes().data() + begin, sum->bytes().data() + begin, wanted.size() * element_bytes);
    }
  }
  if (travels && sum->is_shared()) {
    std::shared_ptr<Block> copy = sum->another(sum->bytes().size());
    std::memcpy(copy->bytes().data(), sum->bytes().data(), sum->bytes().size());
    sum = std::move(copy);
  }
  for (const std::shared_ptr<Member>& member : members_) {
    if (piece.shared[member->rank]) {
      FrameHeader answer = {
          .type = FrameType::kSum, .dtype = header.dtype, .wire = Wire::kInMemory, .call = header.call};
      answer.count = header.count;
      answer.begin = header.begin;
      answer.end = header.end;
      member->connection->send(answer, {});
    }
  }
  if (travels) {
    send_sum(header, piece, sum);
  }
}

void Group::send_sum(const FrameHeader& header, const Piece& piece, const std::shared_ptr<Block>& sum) {
  const Wire wire = wire_of_sum(as_values(header.wire));
  const std::size_t element_bytes = rounds(wire) ? wire_bytes(wire, 1) : size_of(header.dtype);
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> hashes;  // most often all want the same
  for (const std::shared_ptr<Member>& member : members_) {
    const ElementRange wanted = piece.wanted[member->rank];
    if (wanted.size() == 0 || piece.shared[member->rank]) {
      continue;
    }
    const std::span<const std::byte> payload =
        sum->bytes().subspan((wanted.begin - header.begin) * element_bytes, wanted.size() * element_bytes);
    const auto hash = hashes.try_emplace({wanted.begin, wanted.end}, 0);
    if (hash.second) {
      hash.first->second = payload_hash_of(payload);
    }
    FrameHeader answer{.type = FrameType::kSum, .dtype = header.dtype, .wire = wire, .call = header.call};
    answer.count = header.count;
    answer.begin = wanted.begin;
    answer.end = wanted.end;
    member->connection->send({.header = answer, .payload = payload, .owner = sum, .payload_hash = hash.first->second});
  }
}

void Group::give(Member& member, const FrameHeader& header, const std::shared_ptr<Block>& block) {
  if (header.rank != member.rank) {
    fail(ErrorCode::kCorrupt, "server: a gift in the name of rank {}", header.rank);
  }
  for (const std::shared_ptr<Member>& other : members_) {
    if (other->rank == member.rank) {
      continue;
    }
    if (other->call >= header.call) {
      other->connection->send(
          {.header = header, .payload = block->bytes(), .owner = block, .payload_hash = header.payload_hash});
    } else {
      other->gifts.push_back({header, block});
    }
  }
}

// Who keeps `asker` waiting in this call: a rank that has not got so far, or has not sent its contribution.
std::optional<std::uint32_t> Group::suspect(const Member& asker, const FrameHeader& header) const {
  for (const std::shared_ptr<Member>& member : members_) {
    if (member->call < header.call) {
      return member->rank;
    }
  }
  for (const auto& [place, piece] : pieces_) {
    for (std::uint32_t rank = 0; rank < members_.size(); ++rank) {
      if (!piece.has_come[rank] && rank != asker.rank) {
        return rank;
      }
    }
  }
  const bool knows = header.rank < members_.size() && header.rank != asker.rank;
  return knows ? std::optional(header.rank) : std::nullopt;
}

std::optional<Group::Culprit> Group::blame(const Member& asker, const FrameHeader& header, const Who& who) const {
  const std::optional<std::uint32_t> rank = suspect(asker, header);
  if (!rank) {
    return {};
  }
  return Culprit{*rank, Error(ErrorCode::kTimeout, fmt::format("{}: {} kept the others waiting for {:.1f} s", who.call,
                                                               members_[*rank]->name, who.waited_ms / 1e3))};
}

void Group::say_bye(Member& member) {
  member.has_said_bye = true;
  member.connection->send(FrameHeader{.type = FrameType::kBye}, {});
}

bool Group::has_anyone_said_bye() const {
  return std::any_of(members_.begin(), members_.end(), [](const auto& member) { return member->has_said_bye; });
}

bool Group::have_all_said_bye() const {
  return std::all_of(members_.begin(), members_.end(), [](const auto& member) { return member->has_said_bye; });
}

}  // namespace lockstep::server
