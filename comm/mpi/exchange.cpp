#include "comm/mpi/exchange.h"

#include <algorithm>
#include <array>
#include <bit>
#include <span>
#include <utility>

#include "base/error.h"
#include "comm/mpi/check.h"
#include "comm/sum_tree.h"

namespace lockstep::mpi {
namespace {

constexpr int kTag = 2;
// A message: small enough that adding one overlaps receiving the next, and that scratch memory stays in the cache.
constexpr std::size_t kMessageBytes = std::size_t{512} << 10;
// Up to this size a message costs more than the bytes in it.
constexpr std::size_t kWholeBytes = std::size_t{16} << 10;
// A message that Open MPI sends over shared memory at once, with its header in 4 KiB: before a longer one it asks the
// receiver, which takes as long as a second message.
constexpr std::size_t kEagerBytes = std::size_t{3} << 10;
// Of the direct exchange: what one rank adds up at a time.
constexpr std::size_t kPartBytes = std::size_t{256} << 10;

std::size_t messages(const BufferView& data, std::size_t message_bytes = kMessageBytes) {
  return (data.size_bytes() + message_bytes - 1) / message_bytes;
}

// Message number `index` of a view that is sent in pieces.
BufferView piece(const BufferView& data, std::size_t index, std::size_t message_bytes = kMessageBytes) {
  const std::size_t length = message_bytes / size_of(data.dtype);
  const std::size_t begin = index * length;
  return data.slice(begin, std::min(length, data.count - begin));
}

}  // namespace

class Exchange::Messages {
 public:
  // `list` is empty, and this object's alone until it is destroyed.
  Messages(Exchange& exchange, std::vector<Message>& list) : exchange_(exchange), list_(list) {}
  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;
  ~Messages() {
    for (Message& message : open()) {
      if (message.request != MPI_REQUEST_NULL) {
        if (message.is_receive) {
          MPI_Cancel(&message.request);
        }
        MPI_Request_free(&message.request);
      }
    }
    list_.clear();
  }

  void send(const BufferView& data, std::size_t to) {
    Message& message = list_.emplace_back(Message{MPI_REQUEST_NULL, to, data.size_bytes(), false});
    check(MPI_Isend(data.data, static_cast<int>(data.size_bytes()), MPI_BYTE, static_cast<int>(to), kTag,
                    exchange_.comm_, &message.request),
          "MPI_Isend");
  }

  void receive(const BufferView& data, std::size_t from) {
    Message& message = list_.emplace_back(Message{MPI_REQUEST_NULL, from, data.size_bytes(), true});
    check(MPI_Irecv(data.data, static_cast<int>(data.size_bytes()), MPI_BYTE, static_cast<int>(from), kTag,
                    exchange_.comm_, &message.request),
          "MPI_Irecv");
  }

  void send_all(const BufferView& data, std::size_t to, std::size_t message_bytes = kMessageBytes) {
    for (std::size_t i = 0; i < messages(data, message_bytes); ++i) {
      send(piece(data, i, message_bytes), to);
    }
  }

  void receive_all(const BufferView& data, std::size_t from, std::size_t message_bytes = kMessageBytes) {
    for (std::size_t i = 0; i < messages(data, message_bytes); ++i) {
      receive(piece(data, i, message_bytes), from);
    }
  }

  // Waits for the oldest message. Throws Error(kUsage) when less came than expected.
  void finish_one() {
    Message& message = list_[finished_];
    const int other = exchange_.ranks_[message.other];
    MPI_Status status;
    wait_for(message.request, exchange_.watch_, other, &status);
    if (message.is_receive) {
      int bytes = 0;
      check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
      if (static_cast<std::size_t>(bytes) != message.size_bytes) {  // not require(): its names cost a short sum a third
        fail(ErrorCode::kUsage, "{}: {} sent {} bytes, expected {}: the ranks' buffers have different sizes",
             exchange_.watch_.call_name(), exchange_.watch_.peers().name_of(other), bytes, message.size_bytes);
      }
    }
    ++finished_;
  }

  void finish_all() {
    while (!open().empty()) {
      finish_one();
    }
  }

 private:
  [[nodiscard]] std::span<Message> open() { return std::span(list_).subspan(finished_); }

  Exchange& exchange_;
  std::vector<Message>& list_;  // open from finished_ on
  std::size_t finished_ = 0;
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
  if (!std::has_single_bit(ranks_.size())) {
    for_each_block(data, [&](const BufferView& block, std::size_t /*begin*/) {
      sum_part(block);
      const auto part = [&](std::size_t member) { return part_of(member, block.count); };
      const std::vector<ElementRange> whole(ranks_.size(), ElementRange{0, block.count});
      deliver(block, part, whole);
    });
  } else if (data.size_bytes() <= kWholeBytes) {
    double_whole(data);
  } else {
    halve(data);
    double_back(data);
  }
}

void Exchange::reduce_scatter(const BufferView& data, std::span<const ElementRange> owned) {
  if (ranks_.size() == 1 || data.count == 0) {
    return;
  }
  if (!std::has_single_bit(ranks_.size())) {
    for_each_block(data, [&](const BufferView& block, std::size_t begin) {
      sum_part(block);
      const auto part = [&](std::size_t member) {
        const ElementRange in_block = part_of(member, block.count);
        return ElementRange{begin + in_block.begin, begin + in_block.end};
      };
      deliver(data, part, owned);
    });
  } else if (data.size_bytes() <= kWholeBytes) {
    double_whole(data);
  } else {
    halve(data);
    deliver(
        data, [&](std::size_t member) { return halving_steps(member, data.count).back().kept; }, owned);
  }
}

void Exchange::all_gather(const BufferView& data, std::span<const ElementRange> owned) {
  deliver(
      data, [&](std::size_t member) { return owned[member]; },
      std::vector<ElementRange>(ranks_.size(), ElementRange{0, data.count}));
}

template <typename Use>
void Exchange::for_each_block(const BufferView& data, const Use& use) const {
  const std::size_t length = ranks_.size() * kPartBytes / size_of(data.dtype);
  for (std::size_t begin = 0; begin < data.count; begin += length) {
    use(data.slice(begin, std::min(length, data.count - begin)), begin);
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
  if (agreement_[0] != ~agreement_[1]) {
    fail(ErrorCode::kUsage,
         "{}: {} works on {} x {}, another node on something else: expected the same call on all ranks",
         watch_.call_name(), watch_.peers().name_of(ranks_[rank_]), count, name_of(dtype));
  }
  return agreement_[2] == 0;
}

void Exchange::double_whole(const BufferView& data) {
  scratch_.resize(std::max(scratch_.size(), data.size_bytes()));
  BufferView version = data;
  version.data = scratch_.data();
  const std::size_t message_bytes = data.size_bytes() <= 2 * kEagerBytes ? kEagerBytes : kMessageBytes;
  for (std::size_t distance = 1; distance < ranks_.size(); distance *= 2) {
    swap(data, version, rank_ ^ distance, message_bytes);
    add_into(data, version);
  }
}

std::vector<Exchange::Step> Exchange::halving_steps(std::size_t member, std::size_t count) const {
  std::vector<Step> steps;
  ElementRange range{0, count};
  for (std::size_t distance = 1; distance < ranks_.size(); distance *= 2) {
    const std::uint64_t middle = range.begin + range.size() / 2;
    const ElementRange low{range.begin, middle};
    const ElementRange high{middle, range.end};
    const bool keeps_low = (member & distance) == 0;
    steps.push_back({member ^ distance, keeps_low ? low : high, keeps_low ? high : low});
    range = steps.back().kept;
  }
  return steps;
}

void Exchange::halve(const BufferView& data) {
  for (const Step& step : halving_steps(rank_, data.count)) {
    trade(data.slice(step.given), data.slice(step.kept), step.partner);
  }
}

void Exchange::double_back(const BufferView& data) {
  const std::vector<Step> steps = halving_steps(rank_, data.count);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    swap(data.slice(step->kept), data.slice(step->given), step->partner, kMessageBytes);
  }
}

void Exchange::trade(const BufferView& give, const BufferView& keep, std::size_t partner) {
  Messages sends(*this, sends_);
  sends.send_all(give, partner);
  // Two receives are open at a time: one is added while the next arrives.
  scratch_.resize(std::max(scratch_.size(), 2 * kMessageBytes));
  const auto arriving = [&](std::size_t i) {
    BufferView view = piece(keep, i);
    view.data = scratch_.data() + i % 2 * kMessageBytes;
    return view;
  };
  Messages receives(*this, receives_);
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

void Exchange::swap(const BufferView& give, const BufferView& take, std::size_t partner, std::size_t message_bytes) {
  Messages receives(*this, receives_);
  receives.receive_all(take, partner, message_bytes);
  Messages sends(*this, sends_);
  sends.send_all(give, partner, message_bytes);
  receives.finish_all();
  sends.finish_all();
}

ElementRange Exchange::part_of(std::size_t member, std::size_t count) const {
  const std::size_t length = (count + ranks_.size() - 1) / ranks_.size();
  return {std::min(member * length, count), std::min((member + 1) * length, count)};
}

void Exchange::sum_part(const BufferView& block) {
  const std::size_t n = ranks_.size();
  const BufferView mine = block.slice(part_of(rank_, block.count));
  scratch_.resize(std::max(scratch_.size(), n * kPartBytes));

  Messages receives(*this, receives_);
  Messages sends(*this, sends_);
  std::vector<const std::byte*> versions;
  for (std::size_t r = 0; r < n; ++r) {
    BufferView version = mine;
    if (r != rank_) {
      version.data = scratch_.data() + r * kPartBytes;
      receives.receive(version, r);
      sends.send(block.slice(part_of(r, block.count)), r);
    }
    versions.push_back(static_cast<const std::byte*>(version.data));
  }
  receives.finish_all();
  const std::array<std::byte*, 1> result = {static_cast<std::byte*>(mine.data)};
  tree_sum(versions, result, mine.count, mine.dtype);
  // Finished sums arrive where this member's own versions were sent from, so those sends have to be over.
  sends.finish_all();
}

template <typename Finished>
void Exchange::deliver(const BufferView& data, const Finished& finished, std::span<const ElementRange> owned) {
  Messages receives(*this, receives_);
  Messages sends(*this, sends_);
  const ElementRange mine = finished(rank_);
  for (std::size_t m = 0; m < ranks_.size(); ++m) {
    if (m != rank_) {
      receives.receive_all(data.slice(intersection(finished(m), owned[rank_])), m);
      sends.send_all(data.slice(intersection(mine, owned[m])), m);
    }
  }
  receives.finish_all();
  sends.finish_all();
}

}  // namespace lockstep::mpi
