#include "trainer/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "trainer/config_keys.h"

namespace lockstep {
namespace {

// The least that a run needs.
constexpr const char* kSmall = R"(
model: {layers: 2, heads: 4, width: 64, context: 32}
data: {train: corpus/train}
train: {steps: 100}
)";

// A file that uses every section, as the documentation shows it.
constexpr const char* kWhole = R"(
run:        {name: shakespeare, dir: runs, seed: 1337}
model:      {family: gpt2, layers: 6, heads: 6, width: 384, context: 256}
data:       {train: data/shakespeare/train, valid: data/shakespeare/valid, sequence: 256}
train:      {steps: 2000, micro_batches: 8, micro_batch_size: 8, precision: bf16, determinism: elastic}
optimizer:  {name: adamw, lr: 1.0e-3, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, clip_norm: 1.0}
schedule:   {name: cosine, warmup_steps: 100, min_lr: 1.0e-4}
comm:       {backend: auto, bucket_mib: 25, zero: 0}
checkpoint: {every_steps: 200, keep: 3, background: true}
evaluate:   {every_steps: 200, batches: 20}
)";

Config parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return parse_config(yaml, "gpt.yaml", overrides);
}

// The message of the Error(kUsage) that reading gives.
std::string refusal(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    (void)parse(yaml, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    return error.what();
  }
  return "no error";
}

std::string refusal_of_set(const std::string& override_text) { return refusal(kSmall, {override_text}); }

TEST(ConfigTest, RefusesPreferencesOfDataWithoutPairs) {
  EXPECT_NO_THROW(check_no_preference(parse(kSmall, {"preference.loss=sigmoid", "preference.beta=0.1"})));
  const auto refusal_of = [](const char* key) {
    return message_of_error(ErrorCode::kUsage, [&] { check_no_preference(parse(kSmall, {key})); });
  };
  EXPECT_EQ(refusal_of("preference.loss=hinge"),
            "preference.loss is hinge, but data.train, corpus/train, holds no pairs; pack it with --format pairs");
  EXPECT_EQ(refusal_of("preference.sft=0.5"),
            "preference.sft is 0.5, but data.train, corpus/train, holds no pairs; pack it with --format pairs");
}

TEST(ConfigTest, TakesADeviceByItsKindAlone) {
  EXPECT_EQ(parse(std::string(kSmall) + "device: cuda\n").device.kind, DeviceWish::kCuda);
  EXPECT_EQ(parse(kSmall, {"device=cpu"}).device.kind, DeviceWish::kCpu);
  const Config config = parse(std::string(kSmall) + "device: {kind: cuda, share: true, tf32: true}\n");
  EXPECT_EQ(config.device.kind, DeviceWish::kCuda);
  EXPECT_TRUE(config.device.share);
  EXPECT_TRUE(config.device.tf32);
  EXPECT_FALSE(parse(kSmall).device.tf32);
  EXPECT_EQ(parse(kSmall).device.kind, DeviceWish::kAuto);
  EXPECT_EQ(refusal_of_set("device=gpu"), "--set: device.kind is gpu; expected one of auto, cpu, cuda");
}

TEST(ConfigTest, ReadsEverySection) {
  const Config config = parse(kWhole);
  EXPECT_EQ(config.run.name, "shakespeare");
  EXPECT_EQ(config.run.seed, 1337U);
  EXPECT_EQ(config.model.family, ModelFamily::kGpt2);
  EXPECT_EQ(config.model.width, 384);
  EXPECT_EQ(config.data.valid, "data/shakespeare/valid");
  EXPECT_EQ(config.train.steps, 2000);
  EXPECT_EQ(config.train.precision, Precision::kBf16);
  EXPECT_EQ(config.optimizer.lr, 1e-3);
  EXPECT_EQ(config.optimizer.betas, (std::array<double, 2>{0.9, 0.95}));
  EXPECT_EQ(config.schedule.name, ScheduleName::kCosine);
  EXPECT_EQ(config.comm.bucket_mib, 25);
  EXPECT_TRUE(config.checkpoint.background);
  EXPECT_EQ(config.evaluate.batches, 20);
}

TEST(ConfigTest, FillsInDefaults) {
  const Config config = parse(kSmall);
  EXPECT_EQ(config.run.name, "gpt");  // the file's name
  EXPECT_EQ(config.run.dir, "runs");
  EXPECT_EQ(config.train.micro_batches, 0);
  EXPECT_EQ(config.train.determinism, Determinism::kElastic);
  EXPECT_EQ(config.optimizer.clip_norm, 1.0);
  EXPECT_EQ(config.checkpoint.keep, 3);
}

TEST(ConfigTest, LaysOverridesOverTheFileAndTheLastWins) {
  const Config config = parse(kWhole, {"model.layers=12", "optimizer.betas=[0.8, 0.9]", "run.name=a=b", "train.steps=5",
                                       "train.steps=700", "checkpoint.background=false", "data.valid=elsewhere"});
  EXPECT_EQ(config.model.layers, 12);
  EXPECT_EQ(config.optimizer.betas, (std::array<double, 2>{0.8, 0.9}));
  EXPECT_EQ(config.run.name, "a=b");
  EXPECT_EQ(config.train.steps, 700);
  EXPECT_FALSE(config.checkpoint.background);
  EXPECT_EQ(config.data.valid, "elsewhere");
}

TEST(ConfigTest, TakesRequiredKeysFromOverridesToo) {
  const Config config =
      parse("model: {layers: 2, heads: 4, width: 64}\n", {"data.train=x", "train.steps=3", "data.sequence=16"});
  EXPECT_EQ(config.data.train, "x");
  EXPECT_EQ(config.data.sequence, 16);
}

TEST(ConfigTest, PrintsWhatReadsBackToTheSameValue) {
  Config config = parse(kWhole);
  EXPECT_EQ(parse(to_yaml(config)), config);
  EXPECT_EQ(to_yaml(parse(to_yaml(config))), to_yaml(config));

  // Doubles that have no short decimal form, texts that look like something else.
  config.optimizer.lr = 0.1 + 0.2;
  config.optimizer.eps = 1.0 / 3.0 * 1e-12;
  config.run.seed = 0xffffffffffffffffU;
  for (const std::string text :
       {"null", "true", "12", "a: b # c", " spaces ", "line\nbreak", "\"quoted\\\"", "grüße", "~"}) {
    config.data.trace = text;
    EXPECT_EQ(parse(to_yaml(config)), config) << to_yaml(config);
  }
}

TEST(ConfigTest, NamesTheNearestKeyWithFileAndLine) {
  EXPECT_EQ(refusal("model:\n  layers: 2\n  haeds: 4\n"),
            "gpt.yaml:3: model.haeds is not a key; did you mean model.heads?");
  EXPECT_EQ(refusal("\nmodle: {layers: 2}\n"), "gpt.yaml:2: modle is not a section; did you mean model?");
  EXPECT_EQ(
      refusal_of_set("optimizer.learning_rate=1"),
      "--set optimizer.learning_rate=1: optimizer.learning_rate is not a key; optimizer has name, lr, betas, eps, "
      "weight_decay, clip_norm");
  EXPECT_EQ(refusal_of_set("model.layrs=12"),
            "--set model.layrs=12: model.layrs is not a key; did you mean model.layers?");
}

TEST(ConfigTest, FindsAKeyThatStandsInTheWrongSection) {
  EXPECT_EQ(refusal("model:\n  sequence: 64\n"),
            "gpt.yaml:2: model.sequence is not a key; did you mean data.sequence?");
  EXPECT_EQ(refusal_of_set("lr=1"), "--set lr=1: lr is not a key; did you mean optimizer.lr?");
}

TEST(ConfigTest, ChecksRangesAndSaysWhatWasFoundAndExpected) {
  EXPECT_EQ(refusal("model:\n  layers: 0\n"), "gpt.yaml:2: model.layers is 0; expected an integer from 1 to 10000");
  EXPECT_EQ(refusal_of_set("model.dropout=1"), "--set: model.dropout is 1; expected a number from 0 to below 1");
  EXPECT_EQ(refusal_of_set("optimizer.lr=0"), "--set: optimizer.lr is 0; expected a number above 0");
  EXPECT_EQ(refusal_of_set("optimizer.weight_decay=-1"),
            "--set: optimizer.weight_decay is -1; expected a number of at least 0");
  EXPECT_EQ(refusal_of_set("optimizer.betas=[0.9, 1.0]"),
            "--set: optimizer.betas is [0.9, 1.0]; expected two numbers from 0 to below 1");
  EXPECT_EQ(refusal_of_set("train.micro_batches=0"),
            "--set: train.micro_batches is 0; expected auto or an integer from 1 to 65536");
}

TEST(ConfigTest, ChecksTypes) {
  EXPECT_EQ(refusal_of_set("train.steps=1e3"),
            "--set: train.steps is 1e3; expected auto or an integer from 0 to 1000000000000");
  EXPECT_EQ(refusal_of_set("train.steps="),
            "--set: train.steps is empty; expected auto or an integer from 0 to 1000000000000");
  EXPECT_EQ(refusal_of_set("model.layers=99999999999"),
            "--set: model.layers is 99999999999; expected an integer from 1 to 10000");
  EXPECT_EQ(refusal_of_set("checkpoint.background=yes"), "--set: checkpoint.background is yes; expected true or false");
  EXPECT_EQ(refusal_of_set("model.family=bert"),
            "--set: model.family is bert; expected one of gpt2, llama, mistral, qwen2, qwen3");
  EXPECT_EQ(refusal_of_set("optimizer.lr=nan"), "--set: optimizer.lr is nan; expected a number above 0");
  EXPECT_EQ(refusal_of_set("optimizer.weight_decay=inf"),
            "--set: optimizer.weight_decay is inf; expected a number of at least 0");
  EXPECT_EQ(refusal_of_set("optimizer.betas=0.9"),
            "--set: optimizer.betas is 0.9; expected two numbers from 0 to below 1");
  EXPECT_EQ(refusal_of_set("comm.zero=2"), "--set: comm.zero is 2; expected an integer from 0 to 1");
  EXPECT_EQ(refusal_of_set("comm.mode=later"), "--set: comm.mode is later; expected one of sync, bounded, async");
  EXPECT_EQ(refusal_of_set("comm.backend=gloo"),
            "--set: comm.backend is gloo; expected one of auto, self, mpi, nccl, server");
  EXPECT_EQ(refusal("model:\n  layers: [2]\n"),
            "gpt.yaml:2: model.layers is a list; expected an integer from 1 to 10000");
}

TEST(ConfigTest, RefusesWhatIsNotAConfiguration) {
  EXPECT_THAT(refusal("model: {layers: 2"), testing::StartsWith("gpt.yaml:1: this is not YAML: "));
  EXPECT_EQ(refusal("- a\n- b\n"), "gpt.yaml:1: expected sections such as model: and train:, found a list");
  EXPECT_EQ(refusal("just text"), "gpt.yaml:1: expected sections such as model: and train:, found a text");
  EXPECT_EQ(refusal("model: 7\n"), "gpt.yaml:1: model is 7; expected keys and values");
  EXPECT_EQ(refusal("model:\n  layers: 2\n  layers: 3\n"), "gpt.yaml:3: model.layers stands here for the second time");
  EXPECT_EQ(refusal("model: {layers: 2}\nmodel: {heads: 2}\n"), "gpt.yaml:2: model stands here for the second time");
  EXPECT_EQ(refusal_of_set("model.layers"), "--set model.layers: expected key=value, such as model.layers=12");
  EXPECT_THAT(refusal(std::string("\0\x01\xff", 3)), testing::StartsWith("gpt.yaml"));
}

TEST(ConfigTest, NamesAMissingKeyAndWhatItIs) {
  EXPECT_EQ(refusal(""), "gpt.yaml: model.layers is missing: transformer blocks; expected an integer from 1 to 10000");
  EXPECT_EQ(refusal("model: {layers: 2, heads: 2, width: 64, context: 8}\ntrain: {steps: 1}\n"),
            "gpt.yaml: data.train is missing: dataset folder to train on; expected a text");
  EXPECT_EQ(refusal("model: {layers: 2, heads: 2, width: 64}\ndata: {train: x}\ntrain: {steps: 1}\n"),
            "gpt.yaml: neither data.sequence nor model.context is given; expected at least one of them");
}

TEST(ConfigTest, ChecksKeysAgainstEachOther) {
  EXPECT_EQ(refusal_of_set("model.heads=5"), "gpt.yaml: model.width is 64; expected a multiple of model.heads, 5");
  EXPECT_EQ(refusal_of_set("model.kv_heads=2"), "gpt.yaml: model.kv_heads is 2; gpt2 has as many as model.heads, 4");
  EXPECT_EQ(refusal_of_set("model.head_dim=8"),
            "gpt.yaml: model.head_dim is 8; gpt2 has model.width / model.heads, 16");
  EXPECT_EQ(refusal_of_set("model.rope_scaling=linear"),
            "gpt.yaml: model.rope_scaling is linear; gpt2 has no rotary positions");
  EXPECT_EQ(refusal(kSmall, {"model.family=llama", "model.rope_scaling=llama3", "model.rope_low_freq_factor=4"}),
            "gpt.yaml: model.rope_low_freq_factor is 4; expected less than model.rope_high_freq_factor, 4");
  EXPECT_EQ(refusal(kSmall, {"model.family=llama", "model.kv_heads=3"}),
            "gpt.yaml: model.kv_heads is 3; expected a divisor of model.heads, 4");
  EXPECT_EQ(
      refusal(kSmall, {"model.family=llama", "model.heads=64"}),
      "gpt.yaml: a head is 1 wide (model.head_dim, or model.width / model.heads); rotary positions need an even width");
  EXPECT_EQ(refusal_of_set("data.sequence=33"), "gpt.yaml: data.sequence is 33; expected at most model.context, 32");
  EXPECT_EQ(refusal_of_set("train.micro_batches=12"),
            "gpt.yaml: train.micro_batches is 12; determinism: elastic needs a power of two");
  EXPECT_EQ(refusal_of_set("schedule.min_lr=1"),
            "gpt.yaml: schedule.min_lr is 1; expected at most optimizer.lr, 0.0003");
  EXPECT_EQ(
      refusal(kSmall, {"schedule.name=wsd", "schedule.warmup_steps=60", "schedule.decay_steps=50"}),
      "gpt.yaml: schedule.warmup_steps and decay_steps are 60 and 50; expected at most train.steps together, 100");
  EXPECT_EQ(refusal_of_set("evaluate.every_steps=10"),
            "gpt.yaml: evaluate.every_steps is 10, but data.valid names no dataset");
  EXPECT_EQ(refusal(kSmall, {"data.valid=v", "evaluate.patience=2"}),
            "gpt.yaml: evaluate.patience is 2; it needs evaluations, so set evaluate.every_steps");
  EXPECT_EQ(refusal_of_set("checkpoint.keep_best=true"),
            "gpt.yaml: checkpoint.keep_best needs a validation loss, but data.valid names no dataset");
  EXPECT_EQ(refusal_of_set("run.name=a/b"),
            "gpt.yaml: run.name is a/b; expected the name of a folder, without / and not beginning with a dot");
}

TEST(ConfigTest, TunesOnlyWhatStandsOnAModel) {
  EXPECT_EQ(refusal_of_set("tune.method=lora"),
            "gpt.yaml: tune.method is lora, but model.from names no model whose weights stay as they are");
  EXPECT_EQ(refusal(kSmall, {"tune.method=full", "tune.also_train=ln_f"}),
            "gpt.yaml: tune.also_train is ln_f, but tune.method full trains everything");
  EXPECT_EQ(refusal(kSmall, {"tune.method=full", "tune.quantize=nf4"}),
            "gpt.yaml: tune.quantize is nf4, but tune.method full trains everything");
  EXPECT_EQ(refusal(kSmall, {"model.from=base", "tune.rank=16"}),
            "gpt.yaml: tune.rank is given, but tune.method is not; expected one of full, freeze, lora");
  EXPECT_EQ(parse(kSmall, {"tune.method=full", "tune.rank=16"}).tune.rank, 16);
  EXPECT_EQ(refusal(kSmall, {"model.from=base", "tune.method=lora", "tune.targets="}),
            "gpt.yaml: tune.targets is empty; expected all, or names of layers separated by commas");
  const Config config = parse(kSmall, {"model.from=base", "tune.method=lora", "tune.rank=16", "tune.rslora=true"});
  EXPECT_EQ(config.tune.scale(), 8);  // 2 rank / sqrt(rank)
}

TEST(ConfigTest, CountsStepsByEpochs) {
  EXPECT_EQ(refusal_of_set("train.steps=auto"),
            "gpt.yaml: neither train.steps nor train.epochs is given; expected one of them");
  const Config written = parse(kSmall, {"train.steps=auto", "train.epochs=2.5", "schedule.warmup_ratio=0.1",
                                        "train.micro_batches=4", "train.micro_batch_size=2", "schedule.name=wsd"});
  EXPECT_EQ(written.train.steps, 0);
  const auto resolved = [&](Config config) {
    return resolve(std::move(config), {.vocab = 257, .samples = [](std::int64_t sequence) {
                                         EXPECT_EQ(sequence, 32);
                                         return std::uint64_t{101};
                                       }});
  };
  const Config config = resolved(written);
  EXPECT_EQ(config.train.steps, 32);  // 252.5 samples, eight a step
  EXPECT_EQ(config.schedule.warmup_steps, 4);
  EXPECT_EQ(config.schedule.decay_steps, 3);
  EXPECT_EQ(resolved(config), config);
  Config by_steps = written;
  by_steps.train.steps = 7;
  EXPECT_EQ(resolved(by_steps).train.steps, 7);
}

TEST(ConfigTest, DerivesTheFirstLossScaleOfFp16FromTheTokensOfAStep) {
  const auto loss_scale = [](const std::vector<std::string>& settings) {
    return resolve(parse(kSmall, settings), {.vocab = 257}).train.loss_scale;
  };
  const std::vector<std::string> step = {"train.precision=fp16", "train.micro_batches=4", "train.micro_batch_size=3"};
  EXPECT_EQ(loss_scale(step), 8 * 512);  // 384 tokens
  std::vector<std::string> set = step;
  set.push_back("train.loss_scale=2");
  EXPECT_EQ(loss_scale(set), 2);
  EXPECT_EQ(loss_scale({"train.precision=bf16"}), 0);
  EXPECT_EQ(refusal_of_set("train.loss_scale=1000"),
            "gpt.yaml: train.loss_scale is 1000; expected auto or a power of two");
  EXPECT_EQ(refusal_of_set("train.loss_scale=0"),
            "--set: train.loss_scale is 0; expected auto or a number from 1 to 1099511627776");
  EXPECT_EQ(refusal_of_set("train.loss_scale_window=0"),
            "--set: train.loss_scale_window is 0; expected an integer from 1 to 1000000000000");
  const Config int8 = parse(kSmall, {"train.precision=bf16", "comm.wire=int8", "comm.backend=server"});
  EXPECT_EQ(int8.comm.wire, "int8");
  EXPECT_THROW((void)parse(kSmall, {"train.precision=fp16", "comm.wire=int8", "comm.backend=server"}), Error);
}

TEST(ConfigTest, TakesAWarmupLongerThanTheRun) {
  EXPECT_EQ(parse(kSmall, {"schedule.warmup_steps=101"}).schedule.warmup_steps, 101);
}

TEST(ConfigTest, TakesAnyNumberOfMicroBatchesUnderFixedDeterminism) {
  EXPECT_EQ(parse(kSmall, {"train.determinism=fixed", "train.micro_batches=12"}).train.micro_batches, 12);
}

TEST(ConfigTest, SaysWhichFileIsMissing) {
  const TemporaryFolder folder;
  try {
    (void)load_config(folder / "none.yaml", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_EQ(error.what(), (folder / "none.yaml").string() + " does not exist");
  }
  write_file_atomic(folder / "small.yaml", kSmall);
  EXPECT_EQ(load_config(folder / "small.yaml", {}).run.name, "small");
}

TEST(ConfigReferenceTest, ShowsEveryKeyOfThePrintedConfiguration) {
  const std::string reference = config_reference();
  const std::string yaml = to_yaml(parse(kSmall));
  std::size_t keys = 0;
  for (std::size_t line = 0; line < yaml.size(); line = yaml.find('\n', line) + 1) {
    if (yaml.compare(line, 2, "  ") == 0) {
      const std::string name = yaml.substr(line, yaml.find(':', line) - line + 1);
      EXPECT_NE(reference.find(name), std::string::npos) << name;
      ++keys;
    }
  }
  EXPECT_GT(keys, 40U);
  EXPECT_NE(reference.find("  layers:           (required)    transformer blocks; an integer from 1 to 10000\n"),
            std::string::npos)
      << reference;
}

TEST(ResolveTest, ReplacesEverythingThatIsDerived) {
  const Config config = resolve(parse(kSmall), {.world_size = 2, .ranks_on_node = 2, .cores_on_node = 8, .vocab = 257});
  EXPECT_EQ(config.model.kv_heads, 4);
  EXPECT_EQ(config.model.hidden, 256);
  EXPECT_EQ(config.data.sequence, 32);
  EXPECT_EQ(config.model.vocab, 257);
  EXPECT_EQ(config.train.micro_batches, 8);
  EXPECT_EQ(config.train.threads, 4);
}

TEST(ResolveTest, RoundsTheHiddenWidthOfLlamaUpToAMultipleOf64) {
  const auto hidden = [](const std::string& width) {
    return resolve(parse(kSmall, {"model.family=llama", "model.width=" + width}), {.vocab = 257}).model.hidden;
  };
  EXPECT_EQ(hidden("24"), 64);       // 64 exactly
  EXPECT_EQ(hidden("32"), 128);      // 85.3
  EXPECT_EQ(hidden("768"), 2048);    // exactly
  EXPECT_EQ(hidden("4096"), 10944);  // 10922.7
}

TEST(ResolveTest, GivesEveryRankAMicroBatchByDefault) {
  EXPECT_EQ(resolve(parse(kSmall), {.world_size = 32, .vocab = 257}).train.micro_batches, 32);
}

TEST(ResolveTest, AnswersTheSameWhenItIsResolvedAgain) {
  const JobFacts facts = {.world_size = 2, .ranks_on_node = 2, .cores_on_node = 8, .vocab = 257};
  const Config config = resolve(parse(kSmall), facts);
  EXPECT_EQ(resolve(config, facts), config);
  EXPECT_EQ(parse(to_yaml(config)), config);
}

std::string refusal_of_job(const std::vector<std::string>& overrides, const JobFacts& facts) {
  try {
    (void)resolve(parse(kSmall, overrides), facts);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    return error.what();
  }
  return "no error";
}

TEST(ResolveTest, RefusesRankCountsThatCannotKeepThePromise) {
  EXPECT_EQ(refusal_of_job({}, {.world_size = 3, .vocab = 257}),
            "the job has 3 ranks; determinism: elastic needs a power of two (determinism: fixed takes any number)");
  EXPECT_EQ(
      refusal_of_job({"train.micro_batches=4"}, {.world_size = 8, .vocab = 257}),
      "the job has 8 ranks, but a step has 4 micro-batches (train.micro_batches); expected at most as many ranks");
  EXPECT_EQ(refusal_of_job({"train.determinism=fixed"}, {.world_size = 3, .vocab = 257}), "no error");
}

TEST(ResolveTest, RefusesAVocabularySmallerThanTheTokenizers) {
  EXPECT_EQ(refusal_of_job({"model.vocab=256"}, {.vocab = 257}),
            "model.vocab is 256; the data's tokenizer has 257 tokens");
  EXPECT_EQ(refusal_of_job({"model.vocab=320"}, {.vocab = 257}), "no error");
}

}  // namespace
}  // namespace lockstep
