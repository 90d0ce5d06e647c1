#include "comm/mpi/exchange.h"

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <utility>

#include "base/error.h"
#include "comm/mpi/check.h"
#include "comm/sum_tree.h"

namespace lockstep::mpi {
namespace {

constexpr int kTag = 2;
// A message: small enough that adding one overlaps receiving the next, and that scratch memory stays in the cache.
constexpr std::size_t kMessageBytes = std::size_t{512} << 10;
// Of the direct exchange: what one rank adds up at a time.
constexpr std::size_t kPartBytes = std::size_t{256} << 10;

std::size_t messages(const BufferView& data) { return (data.size_bytes() + kMessageBytes - 1) / kMessageBytes; }

// Message number `index` of a view that is sent in pieces.
BufferView piece(const BufferView& data, std::size_t index) {
  const std::size_t length = kMessageBytes / size_of(data.dtype);
  const std::size_t begin = index * length;
  return data.slice(begin, std::min(length, data.count - begin));
}

}  // namespace

class Exchange::Messages {
 public:
  explicit Messages(Exchange& exchange) : exchange_(exchange) {}
  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;
  ~Messages() {
    for (Message& message : open_) {
      if (message.request != MPI_REQUEST_NULL) {
        if (message.is_receive) {
          MPI_Cancel(&message.request);
        }
        MPI_Request_free(&message.request);
      }
    }
  }

  void send(const BufferView& data, std::size_t to) {
    Message& message = open_.emplace_back(Message{MPI_REQUEST_NULL, to, data.size_bytes(), false});
    check(MPI_Isend(data.data, static_cast<int>(data.size_bytes()), MPI_BYTE, static_cast<int>(to), kTag,
                    exchange_.comm_, &message.request),
          "MPI_Isend");
  }

  void receive(const BufferView& data, std::size_t from) {
    Message& message = open_.emplace_back(Message{MPI_REQUEST_NULL, from, data.size_bytes(), true});
    check(MPI_Irecv(data.data, static_cast<int>(data.size_bytes()), MPI_BYTE, static_cast<int>(from), kTag,
                    exchange_.comm_, &message.request),
          "MPI_Irecv");
  }

  // Waits for the oldest message. Throws Error(kUsage) when less came than expected.
  void finish_one() {
    Message& message = open_.front();
    const int other = exchange_.ranks_[message.other];
    MPI_Status status;
    wait_for(message.request, exchange_.watch_, other, &status);
    if (message.is_receive) {
      int bytes = 0;
      check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
      require(static_cast<std::size_t>(bytes) == message.size_bytes,
              "all_reduce_sum: {} sent {} bytes, expected {}: the ranks sum buffers of different sizes",
              exchange_.watch_.peers().name_of(other), bytes, message.size_bytes);
    }
    open_.pop_front();
  }

  void finish_all() {
    while (!open_.empty()) {
      finish_one();
    }
  }

 private:
  struct Message {
    MPI_Request request;
    std::size_t other;
    std::size_t size_bytes;
    bool is_receive;
  };

  Exchange& exchange_;
  std::deque<Message> open_;
};

Exchange::Exchange(MPI_Comm comm, std::vector<int> ranks, Watch& watch)
    : comm_(comm), ranks_(std::move(ranks)), watch_(watch) {
  int rank = 0;
  check(MPI_Comm_rank(comm_, &rank), "MPI_Comm_rank");
  rank_ = static_cast<std::size_t>(rank);
}

void Exchange::sum(const BufferView& data) {
  if (ranks_.size() == 1 || data.count == 0) {
    return;
  }
  if (std::has_single_bit(ranks_.size())) {
    halve_and_double(data);
    return;
  }
  const std::size_t block = ranks_.size() * kPartBytes / size_of(data.dtype);
  for (std::size_t begin = 0; begin < data.count; begin += block) {
    exchange_directly(data.slice(begin, std::min(block, data.count - begin)));
  }
}

bool Exchange::agree(std::size_t count, DType dtype, bool holds) {
  // The maximum of a number and of its complement are those of one number only when all are the same.
  const std::uint64_t call = std::uint64_t{count} << 8 | static_cast<std::uint64_t>(dtype);
  proposal_ = {call, ~call, holds ? 0U : 1U};
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(proposal_.data(), agreement_.data(), static_cast<int>(proposal_.size()), MPI_UINT64_T, MPI_MAX,
                       comm_, &request),
        "MPI_Iallreduce");
  wait_for(request, watch_, -1);
  require(agreement_[0] == ~agreement_[1],
          "all_reduce_sum: {} sums {} x {}, another node something else: expected the same call on all ranks",
          watch_.peers().name_of(ranks_[rank_]), count, name_of(dtype));
  return agreement_[2] == 0;
}

void Exchange::halve_and_double(const BufferView& data) {
  struct Step {
    std::size_t partner;
    Range kept;
    Range given;
  };
  std::vector<Step> steps;
  Range range{0, data.count};
  for (std::size_t distance = 1; distance < ranks_.size(); distance *= 2) {
    const Range low{range.begin, range.count / 2};
    const Range high{range.begin + low.count, range.count - low.count};
    const bool keeps_low = (rank_ & distance) == 0;
    steps.push_back({rank_ ^ distance, keeps_low ? low : high, keeps_low ? high : low});
    const Step& step = steps.back();
    trade(data.slice(step.given.begin, step.given.count), data.slice(step.kept.begin, step.kept.count), step.partner);
    range = step.kept;
  }
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    swap(data.slice(step->kept.begin, step->kept.count), data.slice(step->given.begin, step->given.count),
         step->partner);
  }
}

void Exchange::trade(const BufferView& give, const BufferView& keep, std::size_t partner) {
  Messages sends(*this);
  for (std::size_t i = 0; i < messages(give); ++i) {
    sends.send(piece(give, i), partner);
  }
  // Two receives are open at a time: one is added while the next arrives.
  scratch_.resize(std::max(scratch_.size(), 2 * kMessageBytes));
  const auto arriving = [&](std::size_t i) {
    BufferView view = piece(keep, i);
    view.data = scratch_.data() + i % 2 * kMessageBytes;
    return view;
  };
  Messages receives(*this);
  const std::size_t incoming = messages(keep);
  for (std::size_t i = 0; i < std::min<std::size_t>(2, incoming); ++i) {
    receives.receive(arriving(i), partner);
  }
  for (std::size_t i = 0; i < incoming; ++i) {
    receives.finish_one();
    add_into(piece(keep, i), arriving(i));
    if (i + 2 < incoming) {
      receives.receive(arriving(i + 2), partner);
    }
  }
  sends.finish_all();
}

void Exchange::swap(const BufferView& give, const BufferView& take, std::size_t partner) {
  Messages receives(*this);
  for (std::size_t i = 0; i < messages(take); ++i) {
    receives.receive(piece(take, i), partner);
  }
  Messages sends(*this);
  for (std::size_t i = 0; i < messages(give); ++i) {
    sends.send(piece(give, i), partner);
  }
  receives.finish_all();
  sends.finish_all();
}

void Exchange::exchange_directly(const BufferView& block) {
  const std::size_t n = ranks_.size();
  const std::size_t part_length = (block.count + n - 1) / n;
  const auto part = [&](std::size_t r) {
    const std::size_t begin = std::min(r * part_length, block.count);
    return block.slice(begin, std::min(part_length, block.count - begin));
  };
  const BufferView mine = part(rank_);
  scratch_.resize(std::max(scratch_.size(), n * kPartBytes));

  Messages receives(*this);
  Messages sends(*this);
  std::vector<const std::byte*> versions;
  for (std::size_t r = 0; r < n; ++r) {
    BufferView version = mine;
    if (r != rank_) {
      version.data = scratch_.data() + r * kPartBytes;
      receives.receive(version, r);
      sends.send(part(r), r);
    }
    versions.push_back(static_cast<const std::byte*>(version.data));
  }
  receives.finish_all();
  const std::array<std::byte*, 1> result = {static_cast<std::byte*>(mine.data)};
  tree_sum(versions, result, mine.count, mine.dtype);

  // The sums arrive where this rank's own versions were sent from, so those sends have to be over.
  sends.finish_all();
  for (std::size_t r = 0; r < n; ++r) {
    if (r != rank_) {
      receives.receive(part(r), r);
      sends.send(mine, r);
    }
  }
  receives.finish_all();
  sends.finish_all();
}

}  // namespace lockstep::mpi
