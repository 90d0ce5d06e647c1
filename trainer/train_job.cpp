#include "trainer/train_job.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "base/file.h"
#include "data/chat/chat_encoder.h"
#include "data/samples.h"
#include "data/text/tokenizer.h"
#include "trainer/agreement.h"
#include "trainer/async_loop.h"
#include "trainer/config_keys.h"
#include "trainer/device.h"
#include "trainer/device_communicator.h"
#include "trainer/model/architecture.h"
#include "trainer/node_cores.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/shared_settings.h"
#include "trainer/train_loop.h"

namespace lockstep {
namespace {

struct Data {
  DatasetInfo info;
  DatasetInfo valid_info;
  std::string valid_fingerprint;
  SavedTokenizer tokenizer;
};

// By the name of the template that the dataset in `folder` was packed with.
ChatEncoder chat_encoder(const std::string& template_name, const std::filesystem::path& folder,
                         const Tokenizer& tokenizer) {
  if (template_name != kOwnTemplateName) {
    return {ChatTemplate::named(template_name), tokenizer, TrainedTurns::kAll};
  }
  const std::optional<OwnTemplate> own = OwnTemplate::find(folder);
  require(own.has_value(),
          "{} was packed with the template of its model, which is missing there: tokenizer_config.json",
          folder.string());
  return {*own, tokenizer, TrainedTurns::kAll};
}

SavedTokenizer saved_tokenizer(const Tokenizer& tokenizer, const Dataset& dataset, std::string json) {
  const DatasetInfo& info = dataset.info();
  const std::filesystem::path& folder = dataset.folder();
  SavedTokenizer saved;
  saved.json = std::move(json);
  const auto special = [&](std::uint32_t id) {
    return SavedTokenizer::Special{id, tokenizer.has_token(id) ? std::string(tokenizer.token_bytes(id)) : ""};
  };
  saved.end_of_text = special(static_cast<std::uint32_t>(info.tokenizer.end_of_text));
  if (has_conversations(info.kind)) {
    const auto end = static_cast<std::uint32_t>(info.tokenizer.end_of_text);
    const ChatEncoder chat = chat_encoder(info.chat_template, folder, tokenizer.with_end_of_text(end));
    saved.end_of_text = special(chat.end_of_answer());
    if (chat.beginning_of_text()) {
      saved.beginning_of_text = special(*chat.beginning_of_text());
    }
    saved.chat_template = chat.to_jinja();
    saved.template_name = info.chat_template;
  }
  return saved;
}

// Reads what both datasets say of themselves and checks that they go together.
Data inspect_data(const Config& config) {
  require(!config.data.train.empty(), "data.train names no dataset");
  Dataset train = Dataset::open(config.data.train);
  Data data{train.info(), {}, {}, {}};
  std::string json = read_file(train.tokenizer_path());
  const Tokenizer tokenizer = Tokenizer::from_json(json, train.tokenizer_path().string());
  require(tokenizer.fingerprint() == data.info.tokenizer.fingerprint,
          "{} is not the tokenizer that {} was packed with (fingerprint {}, expected {})",
          train.tokenizer_path().string(), config.data.train, tokenizer.fingerprint(), data.info.tokenizer.fingerprint);
  data.tokenizer = saved_tokenizer(tokenizer, train, std::move(json));
  if (!config.data.valid.empty()) {
    const Dataset valid = Dataset::open(config.data.valid);
    require(valid.info().tokenizer.fingerprint == data.info.tokenizer.fingerprint,
            "{} was packed with the tokenizer {} and {} with {}; pack both with the same", config.data.valid,
            valid.info().tokenizer.name, config.data.train, data.info.tokenizer.name);
    require((valid.info().kind == DatasetKind::kPairs) == (data.info.kind == DatasetKind::kPairs),
            "{} holds {} and {} {}; expected pairs in both or in none", config.data.valid, name_of(valid.info().kind),
            config.data.train, name_of(data.info.kind));
    data.valid_info = valid.info();
    data.valid_fingerprint = data_fingerprint(valid.info());
  }
  return data;
}

// Completes model.* from the weights that the run starts from, and checks that they go with the data.
Config with_source_model(Config config, const Data& data) {
  if (data.info.kind != DatasetKind::kPairs) {
    check_no_preference(config);
  }
  if (config.model.from.empty()) {
    require(data.info.kind != DatasetKind::kPairs,
            "{} holds pairs of answers, and model.from names no model that is to learn from them", config.data.train);
    return config;
  }
  const std::filesystem::path folder = config.model.from;
  require(std::filesystem::is_regular_file(folder / "config.json"),
          "model.from: no config.json in {}; expected a checkpoint or a Hugging Face folder", folder.string());
  const Architecture source = from_hf_config(read_file(folder / "config.json"), (folder / "config.json").string());
  if (std::filesystem::exists(Tokenizer::file_of(folder))) {
    const Tokenizer tokenizer = Tokenizer::load(folder);
    require(tokenizer.fingerprint() == data.info.tokenizer.fingerprint,
            "{} was packed with the tokenizer {}, which is not the one in {} (model.from)", config.data.train,
            data.info.tokenizer.name, folder.string());
  }
  config.model = with_shape_of(config.model, source, folder.string());
  return config;
}

// In an epoch.
std::uint64_t samples_of(const DatasetInfo& info, const DataConfig& data, std::int64_t sequence) {
  if (has_conversations(info.kind)) {
    if (data.packing) {
      Dataset dataset = Dataset::open(data.train);
      return Samples(dataset, sequence, true).count();
    }
    return info.kind == DatasetKind::kPairs ? info.documents / 2 : info.documents;
  }
  return sequence > 0 && info.tokens > 0 ? (info.tokens - 1) / static_cast<std::uint64_t>(sequence) : 0;
}

void check_lengths(const Config& config, const Data& data) {
  const auto check = [&](const std::string& folder, const DatasetInfo& info) {
    if (has_conversations(info.kind)) {
      Dataset dataset = Dataset::open(folder);
      static_cast<void>(Samples(dataset, config.data.sequence, config.data.packing));
      return;
    }
    require(info.tokens > static_cast<std::uint64_t>(config.data.sequence),
            "{} holds {} tokens; a sample of data.sequence {} needs {}", folder, info.tokens, config.data.sequence,
            config.data.sequence + 1);
  };
  check(config.data.train, data.info);
  if (!config.data.valid.empty()) {
    check(config.data.valid, data.valid_info);
  }
}

// What ranks know of the run from groups before this one.
struct Before {
  bool has_begun = false;
  bool is_in_memory = false;
};

// Collective.
bool has_begun(const TrainRequest& request, Communicator& communicator) {
  const std::uint8_t mine = request.rejoins ? 1 : 0;
  std::vector<std::uint8_t> all(static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return std::find(all.begin(), all.end(), 1) != all.end();
}

// Rank 0 decides, all ranks follow: empty for a fresh start, and where ranks have the run's state in memory.
std::filesystem::path agree_on_checkpoint(const TrainRequest& request, const Before& before, RunLock& lock,
                                          Communicator& communicator, Log& log) {
  std::string chosen;
  run_agreed(communicator, [&] {
    if (communicator.rank() != 0) {
      return;
    }
    if (request.store == nullptr) {
      // The rank 0 before this one may stand still, and be ended only now.
      const std::chrono::seconds patience(before.has_begun ? request.config.comm.timeout_s / 2 : 0);
      lock.take(run_folder(request.config), std::max(RunLock::kPatience, patience));
    }
    if (!before.is_in_memory) {
      const std::string& resume = before.has_begun ? "auto" : request.resume;
      chosen = choose_checkpoint(checkpoints_folder(request.config), resume, log).string();
    }
  });
  return communicator.broadcast_text(chosen, 0);
}

}  // namespace

TrainEnd train(const TrainRequest& request, Communicator& communicator, Log& log) {
  control::Activity unwatched;
  control::Activity& activity = request.activity != nullptr ? *request.activity : unwatched;
  activity.enter(control::Phase::kLoading);
  const int cores = cores_on_node(communicator);
  DeviceChoice device;
  run_agreed(communicator,
             [&] { device = choose_device(request.config.device, request.config.train.precision, communicator); });
  if (!device.note.empty()) {
    log.warning("train: {}", device.note);
  }
  Data data;
  Config config;
  const auto resolved = [&] {
    return resolve(config,
                   {.world_size = communicator.world_size(),
                    .ranks_on_node = communicator.node_size(),
                    .cores_on_node = cores,
                    .vocab = static_cast<int>(data.info.tokenizer.vocabulary_size),
                    .samples = [&](std::int64_t sequence) { return samples_of(data.info, config.data, sequence); }});
  };
  const auto check = [&] {
    check_lengths(resolved(), data);
    static_cast<void>(architecture_of(resolved().model));
  };
  run_agreed(communicator, [&] {
    data = inspect_data(request.config);
    config = request.config;
    if (config.model.from.empty()) {
      check();
    }
  });

  std::optional<RankState> unused;
  const bool regroups = communicator.replaces_ranks() && request.state != nullptr;
  std::optional<RankState>& state = regroups ? *request.state : unused;
  Before before;
  if (regroups) {
    agree_on_state(state, communicator);
    before = {.has_begun = has_begun(request, communicator), .is_in_memory = state.has_value()};
  }
  RunLock lock;
  const std::filesystem::path checkpoint = agree_on_checkpoint(request, before, lock, communicator, log);
  std::optional<CheckpointReader> reader;
  run_agreed(communicator, [&] {
    if (!checkpoint.empty()) {
      // Rank 0 has verified every byte when it chose.
      reader.emplace(checkpoint, CheckpointReader::Verify::kManifestOnly);
      config = continue_config(config, reader->manifest().position.config_text, checkpoint.string());
      check_same_data(run_progress_from_json(reader->manifest().position.extra_json), data.info, config.data.train);
    } else if (state) {
      config = continue_config(config, state->config_text, "the run that the other workers have");
      check_same_data(state->progress, data.info, config.data.train);
    } else {
      config = with_source_model(config, data);
    }
    check();
    config = resolved();
  });
  std::vector<SharedFact> shared = shared_settings(config);
  shared.push_back({"the content of data.train", data_fingerprint(data.info)});
  shared.push_back({"the content of data.valid", data.valid_fingerprint});
  require_alike(shared, communicator);
  std::unique_ptr<Backend> backend;
  run_agreed(communicator, [&] { backend = make_backend(device, config.train.threads); });
  if (request.store != nullptr) {
    AsyncLoop loop({config, std::move(backend), data.info, data.valid_fingerprint, data.tokenizer,
                    request.stop_requested, request.save_requested},
                   communicator, *request.store, activity, log);
    loop.begin(reader ? &*reader : nullptr, request.resume);
    return loop.run(request.opened);
  }
  const std::unique_ptr<Communicator> of_device = make_device_communicator(config, device, communicator, *backend);
  const auto loop =
      std::make_unique<TrainLoop>(TrainLoop::Setup{config, std::move(backend), data.info, data.valid_fingerprint,
                                                   data.tokenizer, request.stop_requested, request.save_requested},
                                  of_device ? *of_device : communicator, activity, log);
  run_agreed(communicator, [&] { loop->load({reader ? &*reader : nullptr, state ? &*state : nullptr}); });
  state.reset();
  require_alike(std::array{SharedFact{"the model in model.from", loop->source_fingerprint()}}, communicator);
  TrainEnd end = TrainEnd::kFinished;
  try {
    run_agreed(communicator, [&] { loop->open(lock); });
    if (request.opened && communicator.rank() == 0) {
      request.opened(run_folder(config));
    }
    end = loop->run();
  } catch (...) {
    if (regroups) {
      state = loop->state();
    }
    throw;
  }
  activity.enter(control::Phase::kEnding);
  if (of_device) {
    of_device->close();
  }
  return end;
}

}  // namespace lockstep
