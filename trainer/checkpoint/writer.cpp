#include "trainer/checkpoint/writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "trainer/checkpoint/background_thread.h"
#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/files.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/checkpoint/share_writer.h"
#include "trainer/formats/ggml_blocks.h"
#include "trainer/formats/hashing_file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// Thrown through a job whose owner goes away.
struct Cancelled {};

void check_options(const ParameterLayout& layout, const CheckpointOptions& options) {
  require(options.world >= 1 && options.rank >= 0 && options.rank < options.world, "checkpoint: rank {} of {}",
          options.rank, options.world);
  require(layout.total() > 0, "checkpoint: the model has no parameters");
  require(options.keep >= 1, "checkpoint: keep is {}, expected at least 1", options.keep);
  require(options.max_mb_per_s >= 0, "checkpoint: max_mb_per_s is {}, expected 0 or more", options.max_mb_per_s);
  require(std::ranges::find(kWeightTypes, options.model_dtype) != kWeightTypes.end(),
          "checkpoint: {} cannot be {}, expected f32, bf16 or f16", options.model_file, name_of(options.model_dtype));
  const ElementRange& range = options.range;
  require(range.begin <= range.end && range.end <= layout.total() && range.begin % ParameterLayout::kAlignment == 0 &&
              range.end % ParameterLayout::kAlignment == 0,
          "checkpoint: rank {} cannot save elements [{}, {}) of {}: borders are multiples of {}", options.rank,
          range.begin, range.end, layout.total(), ParameterLayout::kAlignment);
  for (const auto& [name, text] : options.texts) {
    require(!name.empty() && name[0] != '.' && name.find('/') == std::string::npos && name != kManifestName &&
                !name.ends_with(".safetensors"),
            "checkpoint: {} cannot be the name of a file beside the model", name);
  }
}

void check_source(const ParameterLayout& layout, const CheckpointOptions& options, const CheckpointSource& source) {
  const std::uint64_t n = options.range.size();
  const std::uint64_t master = options.model_dtype == DType::kF32 ? 0 : n;
  require(source.exp_avg.size() == n && source.exp_avg_sq.size() == n && source.master.size() == master,
          "checkpoint: rank {} was given {}, {} and {} elements of exp_avg, exp_avg_sq and master, expected {}, {}, {}",
          options.rank, source.exp_avg.size(), source.exp_avg_sq.size(), source.master.size(), n, n, master);
  if (options.rank == 0) {
    require(source.weights.count == layout.total(), "checkpoint: rank 0 was given {} weights, expected {}",
            source.weights.count, layout.total());
    require(source.weights.dtype == DType::kF32 || source.weights.dtype == options.model_dtype,
            "checkpoint: rank 0 was given weights of type {}, expected f32 or {}", name_of(source.weights.dtype),
            name_of(options.model_dtype));
    require(source.weights.device == source.device, "checkpoint: weights lie on another device than the rest");
  }
  require(source.device.kind == DeviceKind::kCpu || options.copy_from_device != nullptr,
          "checkpoint: the state is expected in the CPU's memory");
}

// Without its middle when it is longer than `most`: what failed stands at the beginning, why at the end.
std::string shortened(const std::string& message, std::size_t most) {
  if (message.size() <= most) {
    return message;
  }
  constexpr std::string_view kGap = " ... ";
  const std::size_t tail = most / 2;
  return message.substr(0, most - kGap.size() - tail) + std::string(kGap) + message.substr(message.size() - tail);
}

}  // namespace

struct CheckpointWriter::Impl {
  Impl(ParameterLayout l, CheckpointOptions o)
      : layout(std::move(l)), options(std::move(o)), thread(!options.background) {}

  ParameterLayout layout;
  CheckpointOptions options;
  Buffer weights_copy;  // rank 0: what goes into model.safetensors
  Buffer state_copy;    // exp_avg, exp_avg_sq, master
  CheckpointShare share;
  RunPosition position;
  WrittenShare written;  // by the last share job, for the publish job
  bool busy = false;
  bool concluding = false;  // rank 0: publishing or discarding was started

  mutable std::mutex report_mutex;
  SaveReport report;

  std::chrono::steady_clock::time_point write_started;
  double written_mb = 0;

  BackgroundThread thread;  // last: it stops before anything it uses goes away

  // Whether a save writes from copies: the training goes on, or the state lies where files cannot be written from.
  [[nodiscard]] bool copies() const { return options.background || options.copy_from_device != nullptr; }
  [[nodiscard]] fs::path target() const { return options.folder / step_folder_name(position.step); }
  [[nodiscard]] fs::path partial() const { return with_suffix(target(), kPartialSuffix); }

  void allocate();
  void take_snapshot(const CheckpointSource& source);
  void set_report(SaveState state, const std::string& message);
  void write_own_share();
  void pace(std::size_t bytes);
  void publish(const std::vector<SaveReport>& reports);
  [[nodiscard]] Manifest manifest_of(const std::vector<SaveReport>& reports) const;
  void discard(const std::string& why);
};

// Touched here: pages that the first copy had to wait for would stop the training once.
void CheckpointWriter::Impl::allocate() {
  const auto touched = [](std::size_t size_bytes) {
    Buffer buffer = Buffer::allocate(size_bytes);
    if (size_bytes > 0) {
      std::memset(buffer.data(), 0, size_bytes);
    }
    return buffer;
  };
  const std::size_t kinds = options.model_dtype == DType::kF32 ? 2 : 3;
  if (options.rank == 0 && (copies() || options.model_dtype != DType::kF32)) {
    weights_copy = touched(layout.total() * size_of(options.model_dtype));
  }
  if (copies()) {
    state_copy = touched(options.range.size() * kinds * sizeof(float));
  }
}

void CheckpointWriter::Impl::take_snapshot(const CheckpointSource& source) {
  share = {position.step,       options.rank,   options.world, options.range,  options.model_file,
           options.model_dtype, source.weights, source.master, source.exp_avg, source.exp_avg_sq};
  if (copies()) {
    const std::size_t n = options.range.size();
    const std::span<float> memory = state_copy.as<float>(state_copy.size_bytes() / sizeof(float));
    std::size_t used = 0;
    for (auto* values : {&share.exp_avg, &share.exp_avg_sq, &share.master}) {
      if (!values->empty()) {
        const std::span<float> own = memory.subspan(used, n);
        if (source.device.kind == DeviceKind::kCpu) {
          std::copy(values->begin(), values->end(), own.begin());
        } else {
          options.copy_from_device({const_cast<float*>(values->data()), n, DType::kF32, source.device}, view_of(own));
        }
        *values = own;
        used += n;
      }
    }
  }
  if (options.rank != 0) {
    share.weights = {};
    return;
  }
  const BufferView own = {weights_copy.data(), layout.total(), options.model_dtype, Device{}};
  if (source.weights.dtype != options.model_dtype) {
    require(source.device.kind == DeviceKind::kCpu, "checkpoint: a GPU's weights are expected as they are saved");
    quantize(options.model_dtype == DType::kBF16 ? GgmlType::kBF16 : GgmlType::kF16, source.weights.as<float>(),
             {static_cast<std::byte*>(own.data), own.size_bytes()});
    share.weights = own;
  } else if (copies()) {
    if (source.device.kind == DeviceKind::kCpu) {
      std::memcpy(own.data, source.weights.data, source.weights.size_bytes());
    } else {
      options.copy_from_device(source.weights, own);
    }
    share.weights = own;
  }
}

void CheckpointWriter::Impl::set_report(SaveState state, const std::string& message) {
  const std::lock_guard lock(report_mutex);
  report.state = state;
  report.message.fill('\0');
  const std::string text = shortened(message, report.message.size() - 1);
  std::memcpy(report.message.data(), text.data(), text.size());
}

void CheckpointWriter::Impl::write_own_share() {
  try {
    write_started = std::chrono::steady_clock::now();
    written_mb = 0;
    written = write_share(partial(), layout, share, options.texts, [this](std::size_t bytes) { pace(bytes); });
    {
      const std::lock_guard lock(report_mutex);
      report.file_bytes = written.state.bytes;
      report.file_hash = written.state.hash;
      report.digest_sum = written.digest_sum;
    }
    set_report(SaveState::kWritten, {});
  } catch (const Cancelled&) {
    return;
  } catch (const std::exception& error) {
    set_report(SaveState::kFailed, error.what());
  }
}

// Lets the job run at most max_mb_per_s fast, and ends it when the writer is destroyed.
void CheckpointWriter::Impl::pace(std::size_t bytes) {
  double ahead_s = 0;
  if (options.max_mb_per_s > 0) {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - write_started;
    ahead_s = std::max(0.0, written_mb / options.max_mb_per_s - elapsed.count());
  }
  written_mb += static_cast<double>(bytes) * 1e-6;
  if (!thread.sleep_for(ahead_s)) {
    throw Cancelled{};
  }
}

Manifest CheckpointWriter::Impl::manifest_of(const std::vector<SaveReport>& reports) const {
  Manifest manifest{position, options.world, options.model_file, options.model_dtype, {}, layout, {}, written.others};
  Hash128 sum;
  for (const SaveReport& r : reports) {
    const std::string name = state_file_name(static_cast<int>(r.rank), options.world);
    manifest.files.push_back({name, r.file_bytes, r.file_hash});
    manifest.shards.push_back({name, r.range});
    sum = StateDigest::combine(sum, r.digest_sum);
  }
  std::stable_sort(manifest.shards.begin(), manifest.shards.end(), [](const StateShard& a, const StateShard& b) {
    return std::pair(a.range.begin, a.range.end) < std::pair(b.range.begin, b.range.end);
  });
  manifest.digest = StateDigest::finish(layout, sum);
  return manifest;
}

void CheckpointWriter::Impl::publish(const std::vector<SaveReport>& reports) {
  try {
    const Manifest manifest = manifest_of(reports);
    const std::string text = manifest_text(manifest);
    // What cannot be read back must not be published: ranges with holes, say.
    (void)parse_manifest(text, kManifestName);
    std::unordered_set<std::string> names;
    for (const CheckpointFile& file : manifest.files) {
      names.insert(file.name);
    }
    for (const auto& entry : fs::directory_iterator(partial())) {
      if (!names.contains(entry.path().filename().string())) {
        fs::remove_all(entry.path());
      }
    }
    if (const std::string problem = first_problem(partial(), manifest, FileCheck::kSize); !problem.empty()) {
      discard(fmt::format("{} on rank 0's side: is run.dir on a file system that all nodes share?", problem));
      return;
    }
    HashingFileWriter file(partial() / kManifestName);
    file.write(text);
    file.sync();
    sync_folder(partial());
    publish_folder(partial(), target());
  } catch (const std::exception& error) {
    discard(error.what());
    return;
  }
  std::string trouble;
  try {
    finish_publishing(partial(), target());
    apply_retention(options.folder, {options.keep, options.keep_best});
  } catch (const std::exception& error) {
    trouble = error.what();
  }
  set_report(SaveState::kPublished, trouble);
}

void CheckpointWriter::Impl::discard(const std::string& why) {
  std::error_code ignored;  // clean_leftovers() tries again at the next start
  fs::remove_all(partial(), ignored);
  set_report(SaveState::kDiscarded, why);
}

ElementRange balanced_range(const ParameterLayout& layout, int rank, int world, DType model_dtype) {
  constexpr std::uint64_t kAlignment = ParameterLayout::kAlignment;
  const std::uint64_t blocks = layout.total() / kAlignment;
  const auto ranks = static_cast<std::uint64_t>(world);
  const std::uint64_t model_bytes = size_of(model_dtype);
  const std::uint64_t state_bytes = (model_dtype == DType::kF32 ? 2 : 3) * sizeof(float);
  // Rank 0 takes blocks * first / (ranks * state_bytes), so that each rank writes blocks * (model + state) / ranks
  // bytes.
  const std::uint64_t all = model_bytes + state_bytes;
  const std::uint64_t first = all > ranks * model_bytes ? all - ranks * model_bytes : 0;
  const std::uint64_t rank0 = world == 1 ? blocks : blocks * first / (ranks * state_bytes);
  const auto border = [&](int r) {
    if (r == 0) {
      return std::uint64_t{0};
    }
    const std::uint64_t rest = blocks - rank0;
    const auto before = static_cast<std::uint64_t>(r - 1);
    return (rank0 + (world == 1 ? 0 : rest * before / (ranks - 1))) * kAlignment;
  };
  return {border(rank), border(rank + 1)};
}

CheckpointWriter::CheckpointWriter(ParameterLayout layout, CheckpointOptions options) {
  check_options(layout, options);
  impl_ = std::make_unique<Impl>(std::move(layout), std::move(options));
  impl_->allocate();
}
CheckpointWriter::~CheckpointWriter() = default;

bool CheckpointWriter::busy() const { return impl_->busy; }

void CheckpointWriter::begin(const RunPosition& position, const CheckpointSource& source) {
  Impl& impl = *impl_;
  require(!impl.busy, "checkpoint: step {} is to be saved while step {} still is", position.step, impl.position.step);
  check_source(impl.layout, impl.options, source);
  impl.busy = true;
  impl.concluding = false;
  impl.position = position;
  {
    const std::lock_guard lock(impl.report_mutex);
    impl.report = {};
    impl.report.rank = static_cast<std::uint32_t>(impl.options.rank);
    impl.report.step = position.step;
    impl.report.range = impl.options.range;
  }
  impl.take_snapshot(source);
  impl.set_report(SaveState::kWriting, {});
  impl.thread.post([&impl] { impl.write_own_share(); });
}

SaveReport CheckpointWriter::report() const {
  const std::lock_guard lock(impl_->report_mutex);
  return impl_->report;
}

std::optional<SaveOutcome> CheckpointWriter::advance(std::span<const SaveReport> reports) {
  Impl& impl = *impl_;
  require(reports.size() == static_cast<std::size_t>(impl.options.world), "checkpoint: {} reports of {} ranks",
          reports.size(), impl.options.world);
  if (!impl.busy) {
    return std::nullopt;
  }
  const std::uint64_t step = impl.position.step;
  const SaveReport& root = reports[0];
  if (root.step == step && (root.state == SaveState::kPublished || root.state == SaveState::kDiscarded)) {
    impl.busy = false;
    impl.thread.wait();  // the last job has reported; let it return
    impl.set_report(SaveState::kIdle, {});
    return SaveOutcome{step, root.state == SaveState::kPublished, std::string(root.message_text())};
  }
  const auto settled = [step](const SaveReport& r) {
    return r.step == step && (r.state == SaveState::kWritten || r.state == SaveState::kFailed);
  };
  if (impl.options.rank != 0 || impl.concluding || !std::all_of(reports.begin(), reports.end(), settled)) {
    return std::nullopt;
  }
  impl.concluding = true;
  impl.thread.wait();
  impl.set_report(SaveState::kWriting, {});
  const auto failed =
      std::find_if(reports.begin(), reports.end(), [](const SaveReport& r) { return r.state == SaveState::kFailed; });
  if (failed != reports.end()) {
    impl.thread.post(
        [&impl, why = fmt::format("rank {}: {}", failed->rank, failed->message_text())] { impl.discard(why); });
  } else {
    impl.thread.post([&impl, all = std::vector(reports.begin(), reports.end())] { impl.publish(all); });
  }
  return std::nullopt;
}

void CheckpointWriter::wait() { impl_->thread.wait(); }

}  // namespace lockstep
