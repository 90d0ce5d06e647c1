// The workers that train together through a parameter server, and the collectives that they are in.
//
// A worker cuts a buffer among the servers and its part into pieces; the group adds the workers' versions of a piece
// along the tree of docs/determinism.md as they arrive, and sends the sum back while further pieces come in. It also
// passes bytes on from one worker to the others. Contributions in memory that a worker shares are added there, and the
// sum is written there.
//
// On the server's thread. What a worker sends is checked: Error(kCorrupt) when it cannot be meant, Error(kUsage) when
// it shows that ranks make different calls.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/server/block.h"
#include "comm/server/connection.h"
#include "comm/server/lateness.h"
#include "comm/server/piece_sum.h"

namespace lockstep::server {

class Group {
 public:
  // Bytes for a worker that has not yet come to the call they belong to.
  struct Gift {
    FrameHeader header;
    std::shared_ptr<Block> block;
  };
  struct Member {
    std::string name;  // "rank 1 (host node07, process 4711)"
    std::shared_ptr<Connection> connection;
    std::uint32_t rank = 0;
    std::uint64_t call = 0;  // the newest it is in
    std::deque<Gift> gifts = {};
    bool has_said_bye = false;
  };
  // Who keeps the others waiting, and what they are told.
  struct Culprit {
    std::uint32_t rank;
    Error error;
  };

  // `members` in the order of their ranks.
  Group(std::uint64_t id, std::vector<std::shared_ptr<Member>> members, Connection::Clock::time_point now);

  [[nodiscard]] std::uint64_t id() const { return id_; }
  [[nodiscard]] const std::vector<std::shared_ptr<Member>>& members() const { return members_; }

  void push(Member& member, const FrameHeader& header, std::shared_ptr<Block> block);
  void give(Member& member, const FrameHeader& header, const std::shared_ptr<Block>& block);
  // Frames of a call show that the worker is ready to receive what belongs to it.
  void enter(Member& member, std::uint64_t call);
  // Nothing when everything is there that this server could wait for.
  [[nodiscard]] std::optional<Culprit> blame(const Member& asker, const FrameHeader& header, const Who& who) const;
  void say_bye(Member& member);
  [[nodiscard]] bool has_anyone_said_bye() const;
  [[nodiscard]] bool have_all_said_bye() const;
  // Which ranks kept the others waiting for a good part of the time since the last report.
  [[nodiscard]] std::vector<Lateness::Late> take_late(Connection::Clock::time_point now) { return lateness_.take(now); }

 private:
  struct Piece {
    FrameHeader first;  // of the contribution that came first: the others have to agree with it
    PieceSum<std::shared_ptr<Block>> sum;
    std::vector<bool> has_come;
    std::vector<ElementRange> wanted;
    std::vector<std::shared_ptr<Block>> shared;  // by rank: where its contribution lies in memory that it shares
  };

  void finish(const FrameHeader& header, const Piece& piece, std::shared_ptr<Block> sum);
  void send_sum(const FrameHeader& header, const Piece& piece, const std::shared_ptr<Block>& sum);
  [[nodiscard]] std::optional<std::uint32_t> suspect(const Member& asker, const FrameHeader& header) const;

  const std::uint64_t id_;
  const std::vector<std::shared_ptr<Member>> members_;               // by rank
  std::map<std::pair<std::uint64_t, std::uint64_t>, Piece> pieces_;  // by call and first element
  Lateness lateness_;
};

}  // namespace lockstep::server
