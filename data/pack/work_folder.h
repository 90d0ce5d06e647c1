// The output folder of a pack run, finished or not.
//
//   OUT/.pack/pack.json             the settings of the run in progress
//   OUT/.pack/lock                  locked while a run is alive
//   OUT/.pack/tokenizer.json        the vocabulary that was trained
//   OUT/.pack/train-00012.h5        unit 12's shard of the split train
//   OUT/.pack/unit-00012.json       unit 12 is finished: its record
//   OUT/.pack/publishing            what was in OUT before is gone, and shards are being moved there
//   OUT/train/00000.h5 ...          shards, numbered without gaps
//   OUT/train/{tokenizer,dataset}.json
//   OUT/pack.json                   the settings of the finished run
//
// Everything is used by rank 0 alone, but for folder() and write_record().
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "data/dataset.h"
#include "data/pack/split.h"
#include "data/pack/unit_packer.h"

namespace lockstep {

// What makes two runs the same, as names and values: "seed" -> "1337".
using PackSettings = std::vector<std::pair<std::string, std::string>>;

class WorkFolder {
 public:
  WorkFolder(std::filesystem::path out, PackSettings settings, Shares shares);

  [[nodiscard]] const std::filesystem::path& out() const { return out_; }
  // OUT/.pack
  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }

  // Whether a run of the same settings has finished here and its datasets are whole, by all but their checksums: then
  // nothing is to be done. Where one is not, `damage` says what is wrong with it. Throws Error(kUsage) when OUT cannot
  // be looked at or written to, or holds something else that packing would touch: another run's, saying what differs,
  // or files that no OUT/pack.json accounts for. What `overwrite` lets go is none of that: false.
  // `when_other` is PackOptions'.
  [[nodiscard]] bool is_complete(Overwrite overwrite, const std::string& when_other, std::string& damage) const;
  // Whether a run of other settings has finished here.
  [[nodiscard]] bool holds_other() const;

  // Makes OUT/.pack ready for a run: takes the lock, removes what unfinished other runs left and keeps what one of the
  // same settings finished. A finished dataset stays until publish(). Throws Error(kUsage) when OUT cannot be written
  // to or another run is at work in it.
  void begin();

  // The records of finished units whose shards are still there. A record that is damaged counts for nothing.
  [[nodiscard]] std::vector<UnitRecord> finished_units(std::size_t units) const;
  void write_record(const UnitRecord& record) const;

  // Removes the datasets that an earlier run left, moves the shards to their final places, and writes tokenizer.json,
  // dataset.json and OUT/pack.json, in this order: a run that is killed in between does it again. `records` holds every
  // unit, in order.
  struct Description {
    std::string tokenizer_json;
    DatasetKind kind = DatasetKind::kText;
    std::string chat_template;  // its name
    std::string own_template;   // tokenizer_config.json of the model's own template, empty: none is written
  };
  void publish(const std::vector<UnitRecord>& records, const DatasetTokenizer& tokenizer,
               const Description& description);

  // Removes all that this run made, for input that cannot be packed. A dataset that was there before stays.
  void discard();

  // OUT/train and so on.
  [[nodiscard]] std::filesystem::path split_folder(std::size_t split) const;

 private:
  [[nodiscard]] bool has_same_settings(const std::filesystem::path& file) const;
  [[nodiscard]] bool look_for_finished(Overwrite overwrite, const std::string& when_other, std::string& damage) const;
  [[nodiscard]] bool datasets_are_whole(std::string& damage) const;
  void make_place() const;
  // The files in the folder of a split that a dataset consists of, and what is left of writing them.
  [[nodiscard]] std::vector<std::filesystem::path> files_of_dataset(std::size_t split) const;
  void remove_datasets() const;
  void take_lock();
  [[nodiscard]] DatasetInfo place_shards(std::size_t split, const std::vector<UnitRecord>& records) const;

  std::filesystem::path out_;
  std::filesystem::path folder_;
  PackSettings settings_;
  Shares shares_;
  std::filesystem::path first_created_;  // the topmost folder that begin() made
  bool goes_on_ = false;                 // begin() found what another run left
  std::optional<File> lock_;
};

}  // namespace lockstep
