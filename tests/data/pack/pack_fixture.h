// Ranks in threads, corpora, and what a pack run left, for tests.
#pragma once

#include <gtest/gtest.h>

#include <barrier>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "data/dataset.h"
#include "data/pack/pack.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {

// Peers for the ranks of a job that are threads of this process.
class ThreadPeers {
 public:
  explicit ThreadPeers(int world) : world_(world), texts_(static_cast<std::size_t>(world)), barrier_(world) {}

  [[nodiscard]] PackPeers of_rank(int rank) {
    PackPeers peers;
    peers.rank = rank;
    peers.world = world_;
    peers.all_gather = [this, rank](const std::string& mine) { return exchange(rank, mine); };
    peers.broadcast = [this, rank](const std::string& text, int root) {
      return exchange(rank, text)[static_cast<std::size_t>(root)];
    };
    return peers;
  }

 private:
  std::vector<std::string> exchange(int rank, const std::string& mine) {
    texts_[static_cast<std::size_t>(rank)] = mine;
    barrier_.arrive_and_wait();
    std::vector<std::string> all = texts_;
    barrier_.arrive_and_wait();
    return all;
  }

  int world_;
  std::vector<std::string> texts_;
  std::barrier<> barrier_;
};

// Runs pack() on `world` ranks. Throws what it threw on rank 0, and checks that every rank ended in the same way.
inline PackResult pack_on_ranks(int world, const PackOptions& options, const PackHooks& hooks = {}) {
  ThreadPeers peers(world);
  std::vector<PackResult> results(static_cast<std::size_t>(world));
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(world));
  std::vector<std::string> messages(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      const auto r = static_cast<std::size_t>(rank);
      try {
        results[r] = pack(options, peers.of_rank(rank), hooks);
      } catch (const std::exception& error) {
        errors[r] = std::current_exception();
        messages[r] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t r = 1; r < results.size(); ++r) {
    EXPECT_EQ(messages[r], messages[0]) << "rank " << r;
    EXPECT_EQ(results[r].splits.size(), results[0].splits.size()) << "rank " << r;
  }
  if (errors[0]) {
    std::rethrow_exception(errors[0]);
  }
  return results[0];
}

// Every file under a folder, by its relative path.
inline std::map<std::string, std::string> contents_of(const std::filesystem::path& folder) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      contents[entry.path().lexically_relative(folder).string()] = read_file(entry.path());
    }
  }
  return contents;
}

// What two runs gave, compared without printing megabytes.
inline void expect_same_files(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto files_a = contents_of(a);
  const auto files_b = contents_of(b);
  EXPECT_EQ(files_a.size(), files_b.size());
  for (const auto& [name, contents] : files_a) {
    EXPECT_TRUE(files_b.contains(name) && files_b.at(name) == contents) << name << " differs";
  }
}

// A split of a packed corpus, decoded by the bytes tokenizer: its documents, in order.
inline std::vector<std::string> documents_of(const std::filesystem::path& folder) {
  Dataset dataset = Dataset::open(folder);
  dataset.verify();
  std::vector<std::int32_t> tokens(dataset.info().tokens);
  dataset.read(0, tokens);
  std::vector<std::string> documents(1);
  for (const std::int32_t token : tokens) {
    if (token == 256) {
      documents.emplace_back();
    } else {
      documents.back() += static_cast<char>(token);
    }
  }
  EXPECT_EQ(documents.back(), "") << "the last document has no end";
  documents.pop_back();
  EXPECT_EQ(dataset.document_offsets().size(), documents.size());
  return documents;
}

// Lines of pseudo-random words, of which there are 700: `bytes` of text that depends on `seed` alone.
inline std::string random_text(std::size_t bytes, std::uint64_t seed) {
  const RandomKey key = random_key(seed, RandomUse::kGeneration);
  std::string text;
  for (std::uint64_t i = 0; text.size() < bytes; ++i) {
    const auto choice = philox(key, i);
    const std::uint64_t letters = mix64(choice[0] % 700);
    for (std::size_t c = 0; c < 1 + letters % 7; ++c) {
      text += static_cast<char>('a' + (letters >> (8 + 4 * c)) % 16);
    }
    text += choice[1] % 8 == 0 ? '\n' : ' ';
  }
  text.resize(bytes);
  return text;
}

class PackTest : public testing::Test {
 protected:
  PackTest() {
    std::filesystem::create_directory(folder_ / "in");
    options_.format = PackFormat::kText;
    options_.tokenizer = "bytes";
    options_.inputs = {folder_ / "in"};
    options_.out = folder_ / "out";
    options_.split = {1.0};
    options_.shard_mib = 1;
  }

  void write_input(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_ / ("in/" + name);
    std::filesystem::create_directories(path.parent_path());
    write_file_atomic(path, text);
  }

  TemporaryFolder folder_;
  PackOptions options_;
};

}  // namespace lockstep
