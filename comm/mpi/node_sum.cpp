#include "comm/mpi/node_sum.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <functional>
#include <new>
#include <utility>

#include "base/error.h"
#include "comm/mpi/check.h"
#include "comm/sum_tree.h"

namespace lockstep::mpi {
namespace {

constexpr std::size_t kControlBytes = 4096;
// Two of these a rank: small enough for the second-level cache, large enough that the flags cost nothing.
constexpr std::size_t kPieceBytes = std::size_t{512} << 10;
// Parts of a rank begin at multiples of this many elements, so that two ranks seldom write to one cache line.
constexpr std::size_t kPartGrain = 16;

BufferView piece_of(const BufferView& data, std::size_t piece) {
  const std::size_t length = kPieceBytes / size_of(data.dtype);
  const std::size_t begin = std::min(piece * length, data.count);
  return data.slice(begin, std::min(length, data.count - begin));
}

void copy_in(const BufferView& data, std::size_t piece, std::byte* staging) {
  const BufferView view = piece_of(data, piece);
  if (view.count > 0) {
    std::memcpy(staging, view.data, view.size_bytes());
  }
}

}  // namespace

NodeSum::NodeSum(MPI_Comm node, std::vector<int> ranks, Exchange* between_nodes, Watch& watch)
    : node_(node), ranks_(std::move(ranks)), between_nodes_(between_nodes), watch_(watch) {
  static_assert(sizeof(Control) <= kControlBytes);
  int rank = 0;
  check(MPI_Comm_rank(node_, &rank), "MPI_Comm_rank");
  local_rank_ = static_cast<std::size_t>(rank);
  control_window_ = SharedWindow::allocate(node_, kControlBytes + 2 * kPieceBytes, watch_);
  if (!control_window_) {
    fail(ErrorCode::kUnsupported,
         "comm: /dev/shm has no room for {} ranks x {} KiB; enlarge it (containers: --shm-size) or set "
         "comm.ranks_per_node: 1",
         ranks_.size(), (kControlBytes + 2 * kPieceBytes) >> 10);
  }
}

std::optional<NodeSum::Allocation> NodeSum::allocate(std::size_t size_bytes) {
  free_unused();
  auto window = SharedWindow::allocate(node_, size_bytes, watch_);
  if (!window) {
    return {};
  }
  auto in_use = std::make_shared<std::atomic<bool>>(true);
  void* const data = window->segment(local_rank_);
  windows_.push_back({++windows_so_far_, std::move(*window), in_use});
  return Allocation{data, std::move(in_use)};
}

bool NodeSum::has_memory_in_use() const {
  return std::any_of(windows_.begin(), windows_.end(), [](const DataWindow& window) { return window.in_use->load(); });
}

void NodeSum::free_unused() {
  in_use_here_.clear();
  for (const DataWindow& window : windows_) {
    in_use_here_.push_back(*window.in_use ? 1 : 0);
  }
  in_use_anywhere_.assign(in_use_here_.size(), 0);
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(in_use_here_.data(), in_use_anywhere_.data(), static_cast<int>(in_use_here_.size()), MPI_UINT8_T,
                       MPI_MAX, node_, &request),
        "MPI_Iallreduce");
  wait_for(request, watch_, -1);
  std::vector<DataWindow> kept;
  for (std::size_t i = 0; i < in_use_anywhere_.size(); ++i) {
    if (in_use_anywhere_[i] != 0) {
      kept.push_back(std::move(windows_[i]));
    } else {
      windows_[i].window.free();
    }
  }
  windows_ = std::move(kept);
}

void NodeSum::close() {
  for (DataWindow& window : windows_) {
    window.window.free();
  }
  windows_.clear();
  control_window_->free();
}

void NodeSum::sum(const BufferView& data) {
  Control& own = control(local_rank_);
  own.place = find(data);
  if (own.place.window == 0) {
    copy_in(data, 0, staging(local_rank_, 0));
  }
  own.arrived.raise_to(pieces_so_far_ + 1);
  wait_for_all(&Control::arrived, pieces_so_far_ + 1);
  if (is_in_windows_everywhere(own.place)) {
    sum_in_place(data);
  } else {
    sum_in_pieces(data);
  }
}

bool NodeSum::is_in_windows_everywhere(const Place& own) const {
  bool in_windows = true;
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    const Place& other = control(r).place;
    require(other.count == own.count && other.dtype == own.dtype,
            "all_reduce_sum: {} sums {} x {}, {} sums {} x {}: expected the same call on all ranks",
            watch_.peers().name_of(ranks_[local_rank_]), own.count, name_of(own.dtype),
            watch_.peers().name_of(ranks_[r]), other.count, name_of(other.dtype));
    in_windows = in_windows && other.window != 0;
  }
  return between_nodes_ == nullptr ? in_windows : between_nodes_->agree(own.count, own.dtype, in_windows);
}

void NodeSum::sum_in_place(const BufferView& data) {
  std::vector<std::byte*> arrays;
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    arrays.push_back(resolve(r, control(r).place));
  }
  sum_part(arrays, data.count, data.dtype);
  ++pieces_so_far_;
  control(local_rank_).done.raise_to(pieces_so_far_);
  wait_for_all(&Control::done, pieces_so_far_);
}

// Piece p uses the half p % 2 of the staging memory. When piece p + 1 is copied into its half, every rank is done with
// piece p - 1, which was there before: this rank waited for that at the end of the last turn.
void NodeSum::sum_in_pieces(const BufferView& data) {
  Control& own = control(local_rank_);
  const bool is_staged = own.place.window == 0;
  const std::size_t pieces = std::max<std::size_t>(1, (data.size_bytes() + kPieceBytes - 1) / kPieceBytes);
  for (std::size_t p = 0; p < pieces; ++p) {
    if (p + 1 < pieces) {
      if (is_staged) {
        copy_in(data, p + 1, staging(local_rank_, p + 1));
      }
      own.arrived.raise_to(pieces_so_far_ + 2);
    }
    wait_for_all(&Control::arrived, pieces_so_far_ + 1);
    std::vector<std::byte*> arrays;
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const Place& place = control(r).place;
      arrays.push_back(place.window == 0 ? staging(r, p) : resolve(r, place) + p * kPieceBytes);
    }
    const BufferView piece = piece_of(data, p);
    sum_part(arrays, piece.count, piece.dtype);
    ++pieces_so_far_;
    own.done.raise_to(pieces_so_far_);
    wait_for_all(&Control::done, pieces_so_far_);
    if (is_staged && piece.count > 0) {
      std::memcpy(piece.data, staging(local_rank_, p), piece.size_bytes());
    }
  }
}

void NodeSum::sum_part(const std::vector<std::byte*>& arrays, std::size_t count, DType dtype) {
  const std::size_t ranks = ranks_.size();
  const std::size_t share = (count + ranks * kPartGrain - 1) / (ranks * kPartGrain) * kPartGrain;
  const std::size_t begin = std::min(local_rank_ * share, count);
  const std::size_t length = std::min(share, count - begin);
  std::vector<std::byte*> parts;
  for (std::byte* array : arrays) {
    parts.push_back(array + begin * size_of(dtype));
  }
  const std::vector<const std::byte*> sources(parts.begin(), parts.end());
  if (between_nodes_ == nullptr) {
    tree_sum(sources, parts, length, dtype);
    return;
  }
  const std::array<std::byte*, 1> own = {parts[local_rank_]};
  tree_sum(sources, own, length, dtype);
  between_nodes_->sum({own[0], length, dtype, Device{}});
  for (std::size_t r = 0; r < ranks && length > 0; ++r) {
    if (r != local_rank_) {
      std::memcpy(parts[r], own[0], length * size_of(dtype));
    }
  }
}

NodeSum::Control& NodeSum::control(std::size_t local_rank) const {
  // The pages were zeroed before any rank could see them, which is how a Control begins.
  return *std::launder(reinterpret_cast<Control*>(control_window_->segment(local_rank)));
}

std::byte* NodeSum::staging(std::size_t local_rank, std::size_t piece) const {
  return control_window_->segment(local_rank) + kControlBytes + piece % 2 * kPieceBytes;
}

NodeSum::Place NodeSum::find(const BufferView& data) const {
  Place place{data.count, 0, 0, data.dtype};
  const auto* const begin = static_cast<const std::byte*>(data.data);
  for (const DataWindow& candidate : windows_) {
    const std::byte* const segment = candidate.window.segment(local_rank_);
    const std::size_t segment_bytes = candidate.window.segment_bytes();
    const std::less_equal<> at_most;
    if (at_most(segment, begin) && at_most(begin + data.size_bytes(), segment + segment_bytes)) {
      place.window = candidate.number;
      place.offset_bytes = static_cast<std::uint64_t>(begin - segment);
      break;
    }
  }
  return place;
}

std::byte* NodeSum::resolve(std::size_t local_rank, const Place& place) const {
  const auto window = std::find_if(windows_.begin(), windows_.end(),
                                   [&](const DataWindow& candidate) { return candidate.number == place.window; });
  assert(window != windows_.end());
  return window->window.segment(local_rank) + place.offset_bytes;
}

void NodeSum::wait_for_all(Flag Control::*flag, std::uint32_t number) {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    (control(r).*flag).wait_for(number, watch_, ranks_[r]);
  }
}

}  // namespace lockstep::mpi
