#include "data/pack/inputs.h"

#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <set>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "data/pack/split.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

bool matches(const std::string& name, const std::vector<std::string>& patterns) {
  return patterns.empty() || std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
           if (pattern.starts_with('!')) {
             return ::fnmatch(pattern.c_str() + 1, name.c_str(), 0) != 0;
           }
           return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
         });
}

bool looks_binary(const fs::path& path) {
  std::array<std::byte, 8192> head;
  const std::size_t size = File::open_to_read(path).read_some(0, head);
  return std::find(head.begin(), head.begin() + static_cast<std::ptrdiff_t>(size), std::byte{0}) !=
         head.begin() + static_cast<std::ptrdiff_t>(size);
}

[[noreturn]] void fail_unreadable(const fs::path& path, int error) {
  fail(ErrorCode::kUsage, "cannot read {}: {}", path.string(), std::generic_category().message(error));
}

InputFile describe(const fs::path& path, std::string name) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0 || ::access(path.c_str(), R_OK) != 0) {
    fail_unreadable(path, errno);
  }
  return {path, std::move(name), static_cast<std::uint64_t>(info.st_size),
          std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec, 0};
}

// Collects what find_inputs promises.
class InputFinder {
 public:
  explicit InputFinder(const PackOptions& options) : options_(options) {
    std::error_code no_such_folder;  // then nothing lies in it
    const fs::path out = fs::canonical(options.out, no_such_folder);
    if (!no_such_folder) {
      written_ = {out / ".pack", out / "pack.json"};
      for (const std::string_view split : kSplitNames) {
        written_.insert(out / split);
      }
    }
  }

  void add_input(const fs::path& input, std::size_t number) {
    number_ = number;
    std::error_code error;
    const fs::path path = fs::canonical(input, error);
    if (error) {
      fail_unreadable(input, error.value());
    }
    for (fs::path place = path; place.has_relative_path(); place = place.parent_path()) {
      require(!written_.contains(place), "{} lies where the output is written, in {}; use another --out",
              input.string(), options_.out.string());
    }
    if (fs::is_directory(path)) {
      add_folder(path);
    } else {
      require(fs::is_regular_file(path), "{} is neither a file nor a folder", input.string());
      add_file(path, path.filename().string());
    }
  }

  [[nodiscard]] std::vector<InputFile> take() {
    std::stable_sort(files_.begin(), files_.end(),
                     [](const InputFile& a, const InputFile& b) { return a.path < b.path; });
    return std::move(files_);
  }

 private:
  void add_folder(const fs::path& folder) {
    std::error_code error;
    fs::recursive_directory_iterator entry(folder, error);
    for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
      if (written_.contains(entry->path())) {
        entry.disable_recursion_pending();
        continue;
      }
      if (entry->symlink_status().type() == fs::file_type::regular &&
          matches(entry->path().filename().string(), options_.include)) {
        add_file(entry->path(), entry->path().lexically_relative(folder).string());
      }
    }
    if (error) {
      fail_unreadable(folder, error.value());
    }
  }

  void add_file(const fs::path& path, std::string name) {
    const bool is_entry = !options_.chat_sources.empty() && !options_.chat_sources.at(number_).name.empty();
    if (!is_entry) {
      const auto [first, is_new] = seen_.emplace(path, number_);
      if (!is_new) {
        require_alike(path, first->second);
        return;
      }
    }
    InputFile file = describe(path, std::move(name));
    file.input = number_;
    if (file.size > 0 && !(options_.skip_binary && looks_binary(path))) {
      files_.push_back(std::move(file));
    }
  }

  // A file that is found again counts once, which must not cost it what the other input says of it.
  void require_alike(const fs::path& path, std::size_t first) const {
    if (options_.chat_sources.empty()) {
      return;
    }
    const ChatSource& a = options_.chat_sources.at(first);
    const ChatSource& b = options_.chat_sources.at(number_);
    require(a.weight == 1 && b.weight == 1 && a.most == b.most && a.format == b.format,
            "{} is found under two inputs, {} (weight {}) and {} (weight {}); give it once, with one weight",
            path.string(), options_.inputs[first].string(), a.weight, options_.inputs[number_].string(), b.weight);
  }

  const PackOptions& options_;
  std::size_t number_ = 0;                // of the input that is searched
  std::set<fs::path> written_;            // the places in `out` that packing writes to
  std::map<fs::path, std::size_t> seen_;  // files, but for those of entries, and the input that each is of
  std::vector<InputFile> files_;
};

}  // namespace

std::vector<InputFile> find_inputs(const PackOptions& options) {
  require(!options.inputs.empty(), "no input given");
  InputFinder finder(options);
  for (std::size_t i = 0; i < options.inputs.size(); ++i) {
    finder.add_input(options.inputs[i], i);
  }
  std::vector<InputFile> files = finder.take();
  require(!files.empty(), "the input is empty: no file with content{} under {}",
          options.include.empty() ? "" : " that --include matches", options.inputs.front().string());
  return files;
}

std::string place_in_file(const File& file, std::uint64_t at) {
  constexpr std::uint64_t kBlockBytes = std::uint64_t{1} << 20;
  std::uint64_t number = 1;
  std::string block;
  for (std::uint64_t begin = 0; begin < at; begin += block.size()) {
    block.resize(std::min(kBlockBytes, at - begin));
    file.read_exactly(begin, std::as_writable_bytes(std::span(block)));
    number += static_cast<std::uint64_t>(std::count(block.begin(), block.end(), '\n'));
  }
  return fmt::format("{} line {}", file.path().string(), number);
}

std::string fingerprint_of(const std::vector<InputFile>& files) {
  Hasher hasher;
  for (const InputFile& file : files) {
    hasher.update(fmt::format("{}:{} {} {}\n", file.name.size(), file.name, file.size, file.modified_ns));
  }
  return hasher.finish().hex();
}

}  // namespace lockstep
