// LLaMA-Factory's training files: what becomes of their keys, and a run from one.
#include "launcher/llama_factory/llama_factory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "data/text/tokenizer.h"
#include "launcher/job_config.h"
#include "tests/support/error_matcher.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::HasSubstr;

// A model folder, two datasets and their dataset_info.json.
class LlamaFactoryTest : public testing::Test {
 protected:
  LlamaFactoryTest() {
    fs::create_directories(folder_ / "data");
    std::ofstream(folder_ / "data" / "dataset_info.json")
        << R"({"sums": {"file_name": "sums.json"}, "talks": {"file_name": "talks.jsonl", "formatting": "sharegpt"},
               "pairs": {"file_name": "p.json", "ranking": true}, "lines": {"file_name": "l.jsonl", "columns": {"prompt": "text"}},
               "turned": {"file_name": "sums.json", "columns": {"prompt": "output", "response": "instruction"}}})";
    std::ofstream sums(folder_ / "data" / "sums.json");
    sums << "[";
    for (int i = 0; i < 40; ++i) {
      sums << (i == 0 ? "" : ",") << R"({"instruction": ")" << i << R"( + 1", "output": ")" << i + 1 << "\"}";
    }
    sums << "]";
    std::ofstream(folder_ / "data" / "talks.jsonl")
        << R"({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]})"
        << "\n";
    std::ofstream(folder_ / "data" / "l.jsonl") << R"({"text": "once"})"
                                                << "\n";
    fs::create_directories(folder_ / "model");
    // As transformers has made it, but for a vocabulary of bytes.
    const Tokenizer bytes = Tokenizer::bytes();
    write_file_atomic(folder_ / "model" / "tokenizer.json", bytes.to_json());
    std::string config = read_file(fs::path(LOCKSTEP_GOLDEN_MODELS) / "llama" / "config.json");
    replace(config, "\"vocab_size\": 61", "\"vocab_size\": " + std::to_string(bytes.vocab_size()));
    replace(config, "\"max_position_embeddings\": 32", "\"max_position_embeddings\": 64");
    write_file_atomic(folder_ / "model" / "config.json", config);
  }
  static void replace(std::string& text, const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
  }

  [[nodiscard]] std::string yaml(const std::string& more = "") const {
    return "### model\nmodel_name_or_path: " + (folder_ / "model").string() +
           "\ntrust_remote_code: true\n\n### method\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 4\n"
           "lora_target: all\n\n### dataset\ndataset: sums,talks\ndataset_dir: " +
           (folder_ / "data").string() +
           "\ntemplate: default\ncutoff_len: 128\noutput_dir: " + (folder_ / "saves" / "sums" / "sft").string() +
           "/\nlogging_steps: 10\nsave_steps: 20\nplot_loss: true\noverwrite_output_dir: "
           "true\nper_device_train_batch_size: "
           "2\ngradient_accumulation_steps: 4\nlearning_rate: 1.0e-3\nnum_train_epochs: 2.0\nlr_scheduler_type: "
           "cosine\nwarmup_ratio: 0.1\nresume_from_checkpoint: null\n" +
           more;
  }
  [[nodiscard]] LlamaFactoryJob read(const std::string& more = "", int world = 1) const {
    return read_llama_factory(yaml(more), "sft.yaml", world);
  }
  [[nodiscard]] std::string refusal(const std::string& more) const {
    return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(read(more)); });
  }
  // Of the file that config() has written.
  [[nodiscard]] JobConfig job_config(int world) const {
    const std::filesystem::path path = folder_ / "sft.yaml";
    return parse_job_config(read_job_config(path), path, {}, world);
  }
  [[nodiscard]] Config config(const std::string& more = "") const {
    write_file_atomic(folder_ / "sft.yaml", yaml(more));
    return job_config(2).config;
  }

  TemporaryFolder folder_;
};

TEST_F(LlamaFactoryTest, IsToldFromAConfigurationOfOurs) {
  EXPECT_TRUE(is_llama_factory(yaml()));
  EXPECT_FALSE(is_llama_factory("model: {from: a}\ntrain: {steps: 3}\n"));
  EXPECT_FALSE(is_llama_factory("stage: [sft"));
  EXPECT_FALSE(is_llama_factory(""));
}

TEST_F(LlamaFactoryTest, BecomesAConfiguration) {
  const Config c = config("bf16: true\ntf32: true\nval_size: 0.1\neval_strategy: steps\neval_steps: 5\n");
  EXPECT_EQ(c.run.name, "sft");
  EXPECT_EQ(c.run.dir, (folder_ / "saves" / "sums").string());
  EXPECT_EQ(c.run.seed, 42U);
  EXPECT_EQ(c.model.from, (folder_ / "model").string());
  EXPECT_EQ(c.tune.method, TuneMethod::kLora);
  EXPECT_EQ(c.tune.rank, 4);
  EXPECT_EQ(c.tune.alpha, 8);
  EXPECT_EQ(c.tune.targets, "all");
  EXPECT_EQ(c.data.train, (folder_ / "saves" / "sums" / "sft" / "data" / "train").string());
  EXPECT_EQ(c.data.valid, (folder_ / "saves" / "sums" / "sft" / "data" / "valid").string());
  EXPECT_EQ(c.data.sequence, 64);  // the model's context, which is less than cutoff_len
  EXPECT_EQ(c.train.micro_batch_size, 2);
  EXPECT_EQ(c.train.micro_batches, 8);  // 4 on each of 2 ranks
  EXPECT_EQ(c.train.steps, 0);
  EXPECT_EQ(c.train.epochs, 2);
  EXPECT_EQ(c.train.precision, Precision::kBf16);
  EXPECT_TRUE(c.device.tf32);
  EXPECT_EQ(c.optimizer.lr, 1e-3);
  EXPECT_EQ(c.optimizer.betas, (std::array<double, 2>{0.9, 0.999}));
  EXPECT_EQ(c.optimizer.weight_decay, 0);
  EXPECT_EQ(c.schedule.name, ScheduleName::kCosine);
  EXPECT_EQ(c.schedule.warmup_ratio, 0.1);
  EXPECT_EQ(c.checkpoint.every_steps, 20);
  EXPECT_EQ(c.evaluate.every_steps, 5);
  EXPECT_EQ(c.log.every_steps, 10);
}

TEST_F(LlamaFactoryTest, SaysWhatBecomesOfEachKey) {
  const LlamaFactoryJob job = read("", 4);
  EXPECT_THAT(job.notes, Contains("lora_rank: 4 -> tune.rank=4"));
  EXPECT_THAT(job.notes, Contains("lora_alpha: (default) -> tune.alpha=8"));
  EXPECT_THAT(job.notes, Contains("gradient_accumulation_steps: 4 -> train.micro_batches=16"));
  EXPECT_THAT(job.notes, Contains("plot_loss: true -> changes nothing here"));
  EXPECT_THAT(job.settings, Contains("optimizer.lr=0.001"));
  EXPECT_THAT(read("quantization_bit: 4\n").settings, Contains("tune.quantize=nf4"));
}

TEST_F(LlamaFactoryTest, SaysWhatIsPacked) {
  const LlamaFactoryJob job = read("max_samples: 30\nmask_history: true\nval_size: 4\n");
  ASSERT_EQ(job.packs.size(), 1U);
  const PackOptions& pack = job.packs.front();
  EXPECT_EQ(pack.format, PackFormat::kChat);
  EXPECT_EQ(pack.chat_template, "default");
  EXPECT_EQ(pack.trained_turns, TrainedTurns::kLast);
  EXPECT_EQ(pack.max_tokens, 64U);
  EXPECT_THAT(pack.inputs, testing::ElementsAre(folder_ / "data" / "sums.json", folder_ / "data" / "talks.jsonl"));
  EXPECT_EQ(pack.chat_sources.at(0).most, 30U);
  EXPECT_EQ(pack.chat_sources.at(1).format.form, ChatFormat::Form::kMessages);
  EXPECT_DOUBLE_EQ(pack.split.at(1), 4.0 / 31);
  EXPECT_EQ(read("eval_dataset: talks\n").packs.at(1).inputs.front(), folder_ / "data" / "talks.jsonl");
}

TEST_F(LlamaFactoryTest, PacksTwoDatasetsOfOneFile) {
  std::string text = yaml("val_size: 8\n");
  replace(text, "dataset: sums,talks", "dataset: sums,turned");
  const PackOptions pack = read_llama_factory(text, "sft.yaml", 1).packs.front();
  EXPECT_EQ(pack.chat_sources.at(0).name, "sums");
  EXPECT_EQ(pack.chat_sources.at(1).name, "turned");
  EXPECT_DOUBLE_EQ(pack.split.at(1), 8.0 / 80);
}

TEST_F(LlamaFactoryTest, TakesTextsForPretraining) {
  std::string text = yaml();
  replace(text, "stage: sft", "stage: pt");
  replace(text, "dataset: sums,talks", "dataset: lines");
  const LlamaFactoryJob job = read_llama_factory(text, "pt.yaml", 1);
  EXPECT_EQ(job.packs.front().format, PackFormat::kJsonl);
  EXPECT_EQ(job.packs.front().field, "text");
  EXPECT_EQ(
      message_of_error(ErrorCode::kUsage, [&] { (void)read_llama_factory(text + "packing: false\n", "pt.yaml", 1); }),
      "pt.yaml: packing is false, which cannot be honoured: texts follow one another");
  EXPECT_EQ(read_llama_factory(text + "max_samples: 7\n", "pt.yaml", 1).packs.front().most, 7U);
  replace(text, "dataset: lines", "dataset: lines,lines");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { (void)read_llama_factory(text, "pt.yaml", 1); }),
            "pt.yaml: the datasets lines and lines are the same file, " + (folder_ / "data" / "l.jsonl").string() +
                "; name one of them");
}

TEST_F(LlamaFactoryTest, LeavesTheDataOfARunAlone) {
  EXPECT_EQ(read().packs.front().overwrite, Overwrite::kOthers);
  const fs::path run = folder_ / "saves" / "sums" / "sft";
  fs::create_directories(run);
  write_file_atomic(run / "metrics.jsonl", "");
  std::string text = yaml();
  EXPECT_EQ(read_llama_factory(text, "sft.yaml", 1).packs.front().overwrite, Overwrite::kOthers);
  EXPECT_TRUE(read_llama_factory(text, "sft.yaml", 1).starts_over_on_other_data);
  replace(text, "overwrite_output_dir: true", "overwrite_output_dir: false");
  EXPECT_EQ(read_llama_factory(text, "sft.yaml", 1).packs.front().overwrite, Overwrite::kNothing);
  EXPECT_FALSE(read_llama_factory(text, "sft.yaml", 1).starts_over_on_other_data);
  EXPECT_EQ(read_llama_factory(text, "sft.yaml", 1, "none").packs.front().overwrite, Overwrite::kOthers);
}

TEST_F(LlamaFactoryTest, ChecksLayersBeforeItPacks) {
  std::string text = yaml();
  replace(text, "lora_target: all", "lora_target: q_proj,c_attn");
  write_file_atomic(folder_ / "sft.yaml", text);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)job_config(1); }),
              HasSubstr("tune.targets: no layer of this llama is called c_attn"));
}

TEST_F(LlamaFactoryTest, WarmsUpAsTransformersDoes) {
  std::string text = yaml();
  replace(text, "lr_scheduler_type: cosine", "lr_scheduler_type: constant");
  EXPECT_THAT(read_llama_factory(text, "c.yaml", 1).settings, testing::Not(Contains(HasSubstr("warmup"))));
  replace(text, "lr_scheduler_type: constant", "lr_scheduler_type: constant_with_warmup");
  EXPECT_THAT(read_llama_factory(text, "c.yaml", 1).settings, Contains("schedule.warmup_ratio=0.1"));
}

TEST_F(LlamaFactoryTest, TakesPairsForPreferences) {
  std::string text = yaml("pref_beta: 0.2\npref_loss: ipo\nloraplus_lr_ratio: 16\nneat_packing: true\n");
  replace(text, "stage: sft", "stage: dpo");
  replace(text, "dataset: sums,talks", "dataset: pairs");
  const LlamaFactoryJob job = read_llama_factory(text, "dpo.yaml", 1);
  EXPECT_EQ(job.packs.front().format, PackFormat::kPairs);
  EXPECT_TRUE(job.packs.front().chat_sources.at(0).format.is_pairs);
  for (const char* setting :
       {"preference.loss=ipo", "preference.beta=0.2", "preference.sft=0", "tune.lora_plus=16", "data.packing=true"}) {
    EXPECT_THAT(job.settings, Contains(setting));
  }
  const auto refusal_of = [](const std::string& changed) {
    return message_of_error(ErrorCode::kUsage, [&] { (void)read_llama_factory(changed, "dpo.yaml", 1); });
  };
  EXPECT_EQ(refusal_of(text + "ref_model: another\n"),
            "dpo.yaml: ref_model is another, which cannot be honoured; the reference is the model itself");
  replace(text, "pref_loss: ipo", "pref_loss: orpo");
  EXPECT_EQ(refusal_of(text), "dpo.yaml: pref_loss is orpo, which cannot be honoured; expected sigmoid, hinge or ipo");
}

TEST_F(LlamaFactoryTest, TakesWhatAsksForNothingInAnySpelling) {
  std::string switches;
  for (const char* key : {"do_predict", "pissa_init", "pissa_convert", "use_galore", "use_apollo", "streaming",
                          "train_on_prompt", "predict_with_generate", "group_by_length", "fp16"}) {
    for (const char* value : {"False", "no", "OFF", "false"}) {
      EXPECT_NO_THROW(static_cast<void>(read(std::string(key) + ": " + value + "\n"))) << key << " " << value;
    }
    switches += std::string(key) + ": False\n";
  }
  EXPECT_EQ(read(switches + "enable_thinking: True\nignore_pad_token_for_loss: On\n").settings, read().settings);
  for (const char* value : {"yes", "True", "ON", "true"}) {
    EXPECT_THAT(read(std::string("bf16: ") + value + "\n").settings, Contains("train.precision=bf16"));
    EXPECT_THAT(read(std::string("fp16: ") + value + "\n").settings, Contains("train.precision=fp16"));
  }
}

TEST_F(LlamaFactoryTest, TakesAnythingInKeysThatChangeNothing) {
  const LlamaFactoryJob job = read(
      "gradient_checkpointing_kwargs: {use_reentrant: false}\nfsdp_config:\n  fsdp_offload: {params: [a, b]}\n"
      "report_to: [tensorboard, wandb]\n");
  for (const char* note : {"gradient_checkpointing_kwargs: {use_reentrant: false} -> changes nothing here",
                           "fsdp_config: {fsdp_offload: {params: [a, b]}} -> changes nothing here",
                           "report_to: tensorboard,wandb -> changes nothing here"}) {
    EXPECT_THAT(job.notes, Contains(note));
  }
  EXPECT_EQ(job.settings, read().settings);
}

TEST_F(LlamaFactoryTest, KeepsTheBestByItsLoss) {
  const LlamaFactoryJob best = read(
      "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: false\n"
      "optim: adamw_torch_fused\n");
  EXPECT_THAT(best.settings, Contains("checkpoint.keep_best=true"));
  EXPECT_THAT(best.notes, Contains("optim: adamw_torch_fused -> optimizer.name=adamw"));
  const LlamaFactoryJob any = read("metric_for_best_model: accuracy\n");
  EXPECT_THAT(any.notes, Contains("metric_for_best_model: accuracy -> changes nothing without load_best_model_at_end"));
  EXPECT_THAT(any.settings, testing::Not(Contains(HasSubstr("keep_best"))));
}

TEST_F(LlamaFactoryTest, RefusesWhatItCannotHonour) {
  EXPECT_EQ(refusal("quantization_bit: 3\n"), "sft.yaml: quantization_bit is 3, expected 4 or 8");
  EXPECT_EQ(refusal("use_galore: true\n"),
            "sft.yaml: use_galore is true, which cannot be honoured: there is nothing like it yet");
  EXPECT_EQ(
      refusal("group_by_length: true\n"),
      "sft.yaml: group_by_length is true, which cannot be honoured: data.packing has samples of about one length");
  EXPECT_EQ(refusal("max_samples: -1\n"), "sft.yaml: max_samples is -1, expected at least 1");
  EXPECT_EQ(refusal("max_grad_norm: -1\n"), "sft.yaml: max_grad_norm is -1, expected at least 0");
  EXPECT_EQ(refusal("seed: 1e300\n"), "sft.yaml: seed is 1e+300, expected a whole number");
  EXPECT_EQ(refusal("learning_rte: 1\n"),
            "sft.yaml: learning_rte is 1, which is not known here; remove it to go on without");
  EXPECT_EQ(refusal("seed: one\n"), "sft.yaml: seed is one, expected a number");
  EXPECT_EQ(refusal("bf16: 1\n"), "sft.yaml: bf16 is 1, expected true or false");
  EXPECT_EQ(refusal("bf16: true\nfp16: true\n"), "sft.yaml: bf16 and fp16 are both true; expected one of them at most");
  for (const char* optimizer : {"sgd", "adamw_torch_8bit", "adamw_8bit", "paged_adamw_32bit", "adamw_hf"}) {
    EXPECT_EQ(refusal(std::string("optim: ") + optimizer + "\n"),
              std::string("sft.yaml: optim is ") + optimizer +
                  ", which cannot be honoured; expected adamw_torch or adamw_torch_fused");
  }
  EXPECT_EQ(refusal("load_best_model_at_end: true\nmetric_for_best_model: eval_accuracy\n"),
            "sft.yaml: metric_for_best_model is eval_accuracy, which cannot be honoured; expected loss or eval_loss");
  EXPECT_EQ(refusal("load_best_model_at_end: true\ngreater_is_better: True\n"),
            "sft.yaml: greater_is_better is True, which cannot be honoured: the best loss is the lowest");
  EXPECT_EQ(refusal("streaming: Yes\n"),
            "sft.yaml: streaming is Yes, which cannot be honoured: lockstep pack --help says what can be had");
  EXPECT_EQ(refusal("enable_thinking: off\n"),
            "sft.yaml: enable_thinking is off, which cannot be honoured: lockstep pack --help says what can be had");
  EXPECT_EQ(refusal("pissa_init: maybe\n"), "sft.yaml: pissa_init is maybe, expected true or false");
  EXPECT_EQ(refusal("lora_alpha: {a: 1}\n"), "sft.yaml: lora_alpha is a map, expected a value or a list");
  EXPECT_EQ(refusal("eval_dataset: [a, [b]]\n"), "sft.yaml: eval_dataset holds a list or map, expected values");
  EXPECT_EQ(refusal("lr_scheduler_kwargs: {min_lr: 0.1, powers: [1, null]}\n"),
            "sft.yaml: lr_scheduler_kwargs is {min_lr: 0.1, powers: [1, null]}, which is not known here; remove it to "
            "go on without");
  EXPECT_EQ(refusal("stage: sft\n"), "sft.yaml: stage stands here for the second time");
  EXPECT_THAT(refusal("eval_dataset: pairs\n"),
              HasSubstr("dataset pairs holds pairs of answers (ranking), and stage is sft"));
  EXPECT_THAT(refusal("eval_dataset: none-such\n"),
              HasSubstr("no dataset is called none-such; expected lines, pairs, sums, talks, turned"));
  std::string text = yaml();
  replace(text, "stage: sft", "stage: ppo");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { (void)read_llama_factory(text, "sft.yaml", 1); }),
            "sft.yaml: stage is ppo, which cannot be honoured; expected pt, sft or dpo");
  text = yaml();
  replace(text, (folder_ / "model").string(), "meta-llama/Meta-Llama-3-8B");
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)read_llama_factory(text, "sft.yaml", 1); }),
              HasSubstr("model_name_or_path is meta-llama/Meta-Llama-3-8B, where no config.json is"));
}

// The model has weights: one step over packed data from nothing makes one of that shape.
class LlamaFactoryRunTest : public LlamaFactoryTest {
 protected:
  void make_weights() const;
};

void LlamaFactoryRunTest::make_weights() const {
  const std::string data = (folder_ / "made").string();
  ASSERT_EQ(run_process({LOCKSTEP_PROGRAM, "pack", "--format", "chat", "--template", "default", "--tokenizer",
                         (folder_ / "model").string(), "--split", "1", "--out", data,
                         (folder_ / "data" / "sums.json").string()})
                .exit_code,
            0);
  write_file_atomic(folder_ / "base.yaml",
                    "run: {name: base, dir: " + (folder_ / "runs").string() +
                        "}\nmodel: {family: llama, layers: 1, width: 32, heads: 4, context: 64}\ndata: {train: " +
                        data + "/train}\ntrain: {steps: 1}\n");
  const ProcessResult base = run_process({LOCKSTEP_PROGRAM, "train", (folder_ / "base.yaml").string()});
  ASSERT_EQ(base.exit_code, 0) << base.err;
  fs::remove_all(folder_ / "model");
  fs::copy(folder_ / "runs" / "base" / "checkpoints" / "step-00000001", folder_ / "model");
}

// Packed, trained, and the same bits on two ranks, whose batches are the same when they are set.
TEST_F(LlamaFactoryRunTest, Trains) {
  ASSERT_NO_FATAL_FAILURE(make_weights());
  write_file_atomic(folder_ / "sft.yaml", yaml("val_size: 0.1\n"));
  const auto train = [&](int ranks, const std::string& name) {
    const ProcessResult result =
        run_process({LOCKSTEP_MPIRUN, std::to_string(ranks), LOCKSTEP_PROGRAM, "train", (folder_ / "sft.yaml").string(),
                     "--set", "train.micro_batches=4", "--set", "run.name=" + name});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.err;
  };
  const std::string said = train(1, "one");
  EXPECT_THAT(said, HasSubstr("train: lora_rank: 4 -> tune.rank=4"));
  train(2, "two");
  const auto digest = [&](const std::string& name) {
    const std::string told =
        run_process({LOCKSTEP_PROGRAM, "inspect", (folder_ / "saves" / "sums" / name).string()}).out;
    return told.substr(told.find("digest"));
  };
  EXPECT_EQ(digest("one"), digest("two"));
  EXPECT_THAT(digest("one"), HasSubstr("digest "));
}

// A run whose file asks for other data ends with what may have changed; told to start over it packs anew.
TEST_F(LlamaFactoryRunTest, PacksAnewWhereItStartsOver) {
  ASSERT_NO_FATAL_FAILURE(make_weights());
  std::string text = yaml();
  replace(text, "overwrite_output_dir: true", "overwrite_output_dir: false");
  const auto train = [&](const std::vector<std::string>& more) {
    write_file_atomic(folder_ / "sft.yaml", text);
    std::vector<std::string> command = {LOCKSTEP_PROGRAM, "train", (folder_ / "sft.yaml").string()};
    command.insert(command.end(), more.begin(), more.end());
    return run_process(command);
  };
  const ProcessResult first = train({});
  ASSERT_EQ(first.exit_code, 0) << first.err;

  replace(text, "cutoff_len: 128", "cutoff_len: 32");
  const std::string run = (folder_ / "saves" / "sums" / "sft").string();
  const ProcessResult refused = train({});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err,
              HasSubstr("sft.yaml: the run in output_dir, " + run +
                        ", is trained on other data than this asks for; dataset, eval_dataset, dataset_dir, template, "
                        "cutoff_len, max_samples, val_size, mask_history, model_name_or_path or files that they name "
                        "have changed since: undo that, name another output_dir, or start over with --resume none"));
  const ProcessResult anew = train({"--resume", "none"});
  EXPECT_EQ(anew.exit_code, 0) << anew.err;

  replace(text, "dataset: sums,talks", "dataset: sums");
  EXPECT_EQ(train({}).exit_code, 2);
  replace(text, "overwrite_output_dir: false", "overwrite_output_dir: true");
  const ProcessResult over = train({});
  EXPECT_EQ(over.exit_code, 0) << over.err;
  EXPECT_THAT(over.err, HasSubstr(run + "/data is packed anew, and overwrite_output_dir is true: starting over"));
  EXPECT_THAT(train({}).err, testing::Not(HasSubstr("starting over")));
}

}  // namespace
}  // namespace lockstep
