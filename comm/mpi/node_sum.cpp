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
    : node_(node),
      ranks_(std::move(ranks)),
      between_nodes_(between_nodes),
      watch_(watch),
      arrays_(ranks_.size()),
      sources_(ranks_.size()) {
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

void NodeSum::reduce(const BufferView& data, std::span<const ElementRange> owned) {
  Control& own = control(local_rank_);
  own.place = find(data);
  if (own.place.window == 0) {
    copy_in(data, 0, staging(local_rank_, 0));
  }
  own.arrived.raise_to(pieces_so_far_ + 1);
  wait_for_all(&Control::arrived, pieces_so_far_ + 1);
  if (is_in_windows_everywhere(own.place)) {
    sum_in_place(data, owned);
  } else {
    sum_in_pieces(data, owned);
  }
}

bool NodeSum::is_in_windows_everywhere(const Place& own) const {
  bool in_windows = true;
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    const Place& other = control(r).place;
    if (other.count != own.count || other.dtype != own.dtype) {
      fail(ErrorCode::kUsage, "{}: {} works on {} x {}, {} on {} x {}: expected the same call on all ranks",
           watch_.call_name(), watch_.peers().name_of(ranks_[local_rank_]), own.count, name_of(own.dtype),
           watch_.peers().name_of(ranks_[r]), other.count, name_of(other.dtype));
    }
    in_windows = in_windows && other.window != 0;
  }
  return between_nodes_ == nullptr ? in_windows : between_nodes_->agree(own.count, own.dtype, in_windows);
}

void NodeSum::sum_in_place(const BufferView& data, std::span<const ElementRange> owned) {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    arrays_[r] = resolve(r, control(r).place);
  }
  sum_part({0, data.count}, data.dtype, owned);
  ++pieces_so_far_;
  part_ways();
}

// Piece p uses the half p % 2 of the staging memory. When piece p + 1 is copied into its half, every rank is done with
// piece p - 1, which was there before: this rank waited for that at the end of the last turn.
void NodeSum::sum_in_pieces(const BufferView& data, std::span<const ElementRange> owned) {
  Control& own = control(local_rank_);
  const bool is_staged = own.place.window == 0;
  const std::size_t pieces = std::max<std::size_t>(1, (data.size_bytes() + kPieceBytes - 1) / kPieceBytes);
  const std::size_t length = kPieceBytes / size_of(data.dtype);
  for (std::size_t p = 0; p < pieces; ++p) {
    if (p + 1 < pieces) {
      if (is_staged) {
        copy_in(data, p + 1, staging(local_rank_, p + 1));
      }
      own.arrived.raise_to(pieces_so_far_ + 2);
    }
    wait_for_all(&Control::arrived, pieces_so_far_ + 1);
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const Place& place = control(r).place;
      arrays_[r] = place.window == 0 ? staging(r, p) : resolve(r, place) + p * kPieceBytes;
    }
    const ElementRange range{p * length, std::min((p + 1) * length, data.count)};
    sum_part(range, data.dtype, owned);
    ++pieces_so_far_;
    part_ways();
    const ElementRange mine = owned.empty() ? range : intersection(range, owned[world_rank(local_rank_)]);
    if (is_staged && mine.size() > 0) {
      const BufferView target = data.slice(mine);
      std::memcpy(target.data, staging(local_rank_, p) + (mine.begin - range.begin) * size_of(data.dtype),
                  target.size_bytes());
    }
  }
}

void NodeSum::sum_part(const ElementRange& range, DType dtype, std::span<const ElementRange> owned) {
  const std::size_t ranks = ranks_.size();
  const std::size_t share = (range.size() + ranks * kPartGrain - 1) / (ranks * kPartGrain) * kPartGrain;
  const std::uint64_t begin = std::min(range.begin + local_rank_ * share, range.end);
  const ElementRange part{begin, std::min(begin + share, range.end)};
  const auto part_of_owner = [&](std::size_t local_rank) {
    return owned.empty() ? part : intersection(part, owned[world_rank(local_rank)]);
  };
  if (between_nodes_ == nullptr && owned.empty()) {
    point_at(part.begin, range, dtype);
    tree_sum(sources_, arrays_, part.size(), dtype);
    return;
  }
  if (between_nodes_ == nullptr) {
    for (std::size_t r = 0; r < ranks; ++r) {
      const ElementRange mine = part_of_owner(r);
      const std::array<std::byte*, 1> owner = {arrays_[r] + (mine.begin - range.begin) * size_of(dtype)};
      std::transform(arrays_.begin(), arrays_.end(), sources_.begin(),
                     [&](const std::byte* array) { return array + (mine.begin - range.begin) * size_of(dtype); });
      tree_sum(sources_, owner, mine.size(), dtype);
    }
    return;
  }
  point_at(part.begin, range, dtype);
  const std::array<std::byte*, 1> own = {arrays_[local_rank_]};
  tree_sum(sources_, own, part.size(), dtype);
  sum_between_nodes(part, {own[0], part.size(), dtype, Device{}}, owned);
  for (std::size_t r = 0; r < ranks; ++r) {
    const ElementRange mine = part_of_owner(r);
    if (r != local_rank_ && mine.size() > 0) {
      const std::size_t offset_bytes = (mine.begin - part.begin) * size_of(dtype);
      std::memcpy(arrays_[r] + offset_bytes, own[0] + offset_bytes, mine.size() * size_of(dtype));
    }
  }
}

void NodeSum::sum_between_nodes(const ElementRange& part, const BufferView& own, std::span<const ElementRange> owned) {
  if (owned.empty()) {
    between_nodes_->sum(own);
    return;
  }
  between_nodes_owned_.clear();
  for (std::size_t first = 0; first < owned.size(); first += ranks_.size()) {
    const ElementRange node = intersection(part, {owned[first].begin, owned[first + ranks_.size() - 1].end});
    between_nodes_owned_.push_back({node.begin - part.begin, node.end - part.begin});
  }
  between_nodes_->reduce_scatter(own, between_nodes_owned_);
}

void NodeSum::point_at(std::uint64_t begin, const ElementRange& range, DType dtype) {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    arrays_[r] += (begin - range.begin) * size_of(dtype);
    sources_[r] = arrays_[r];
  }
}

void NodeSum::all_gather(const BufferView& data, std::span<const ElementRange> owned) {
  if (between_nodes_ != nullptr) {
    between_nodes_owned_.clear();
    for (std::size_t first = 0; first < owned.size(); first += ranks_.size()) {
      between_nodes_owned_.push_back(owned[first + local_rank_]);
    }
    between_nodes_->all_gather(data, between_nodes_owned_);
  }
  Control& own = control(local_rank_);
  own.place = find(data);
  arrive();
  if (is_in_windows_everywhere(own.place)) {
    gather_in_place(data, owned);
  } else {
    gather_in_pieces(data, owned);
  }
}

template <typename Use>
void NodeSum::for_each_range_at(std::size_t local_rank, std::span<const ElementRange> owned, const Use& use) const {
  for (std::size_t first = 0; first < owned.size(); first += ranks_.size()) {
    if (owned[first + local_rank].size() > 0) {
      use(owned[first + local_rank]);
    }
  }
}

void NodeSum::gather_in_place(const BufferView& data, std::span<const ElementRange> owned) {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    if (r == local_rank_) {
      continue;
    }
    const std::byte* const source = resolve(r, control(r).place);
    for_each_range_at(r, owned, [&](const ElementRange& range) {
      const BufferView target = data.slice(range);
      std::memcpy(target.data, source + range.begin * size_of(data.dtype), target.size_bytes());
    });
  }
  part_ways();
}

// Every rank puts a piece of what it has into its staging memory, and the others take it from there.
void NodeSum::gather_in_pieces(const BufferView& data, std::span<const ElementRange> owned) {
  part_ways();  // the places were compared
  const std::size_t length = kPieceBytes / size_of(data.dtype);
  for (std::size_t first = 0; first < owned.size(); first += ranks_.size()) {
    const auto of_node = owned.subspan(first, ranks_.size());
    std::uint64_t longest = 0;
    for (const ElementRange& range : of_node) {
      longest = std::max(longest, range.size());
    }
    for (std::uint64_t begin = 0; begin < longest; begin += length) {
      const auto piece = [&](std::size_t local_rank) {
        const ElementRange& range = of_node[local_rank];
        return data.slice(intersection(range, {range.begin + begin, range.begin + begin + length}));
      };
      const BufferView own = piece(local_rank_);
      if (own.count > 0) {
        std::memcpy(staging(local_rank_, 0), own.data, own.size_bytes());
      }
      arrive();
      for (std::size_t r = 0; r < ranks_.size(); ++r) {
        const BufferView target = piece(r);
        if (r != local_rank_ && target.count > 0) {
          std::memcpy(target.data, staging(r, 0), target.size_bytes());
        }
      }
      part_ways();
    }
  }
}

void NodeSum::arrive() {
  control(local_rank_).arrived.raise_to(++pieces_so_far_);
  wait_for_all(&Control::arrived, pieces_so_far_);
}

void NodeSum::part_ways() {
  control(local_rank_).done.raise_to(pieces_so_far_);
  wait_for_all(&Control::done, pieces_so_far_);
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
