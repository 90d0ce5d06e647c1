// Adapters: exported, laid over their model and merged with it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/text/tokenizer.h"
#include "tests/launcher/model_commands_fixture.h"
#include "trainer/formats/safetensors.h"
#include "trainer/gguf_model.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;

// gpt2's head is its embedding: peft keeps the head as it was unless it is told otherwise, and wants it in the file.
TEST_F(ModelCommandsTest, ExportASharedEmbeddingAsPeftWantsIt) {
  const std::string from = "model.from=" + checkpoint().string();
  ASSERT_EQ(job_->train({"shared",
                         1,
                         {from, "tune.method=lora", "tune.rank=4", "tune.also_train=wte", "train.steps=4",
                          "optimizer.lr=1e-2"}})
                .exit_code,
            0);
  const fs::path shared = job_->folder() / "runs" / "shared";
  const fs::path adapters = job_->folder() / "shared-adapters";
  ASSERT_EQ(lockstep("export", {"--model", shared, "--to", "adapter", "--type", "f32", "--out", adapters}).exit_code,
            0);
  auto config = nlohmann::json::parse(read_file(adapters / "adapter_config.json"));
  EXPECT_EQ(config.at("ensure_weight_tying"), true);
  {
    const SafetensorsFile file(adapters / "adapter_model.safetensors");
    const auto values = [&](const std::string& name) {
      std::vector<float> read(file.get(name).count());
      file.read_f32(file.get(name), 0, read);
      return read;
    };
    EXPECT_EQ(values("base_model.model.lm_head.weight"), values("base_model.model.transformer.wte.weight"));
  }
  const fs::path apart = job_->folder() / "shared-1";
  const fs::path whole = job_->folder() / "shared-2";
  const auto merge = [&](const fs::path& model, const fs::path& out) {
    return lockstep("merge", {"--model", model, "--adapter", adapters, "--type", "f32", "--out", out});
  };
  EXPECT_EQ(merge(run(), apart).err.find("error"), std::string::npos);
  ASSERT_EQ(lockstep("merge", {"--model", shared, "--type", "f32", "--out", whole}).exit_code, 0);
  EXPECT_EQ(read_file(apart / "model.safetensors"), read_file(whole / "model.safetensors"));
  // The model beneath is known by its fingerprint.
  EXPECT_THAT(merge(whole, job_->folder() / "shared-3").err, HasSubstr("was trained on another model than"));
  config["ensure_weight_tying"] = false;
  write_file_atomic(adapters / "adapter_config.json", config.dump());
  EXPECT_THAT(merge(run(), job_->folder() / "shared-3").err,
              HasSubstr("trains the embedding apart from the head, which are one in its model"));
  EXPECT_FALSE(fs::exists(job_->folder() / "shared-3"));
}

// A base model ends its texts with one token, and the answers that its adapters have learnt end with another.
TEST_F(ModelCommandsTest, GiveAMergedModelTheEndOfItsAnswers) {
  const fs::path tokenizer = job_->folder() / "marks.json";
  fs::copy(checkpoint() / "tokenizer.json", tokenizer);
  const std::uint32_t start = Tokenizer::load(tokenizer).vocab_size();
  const std::uint32_t end = start + 1;
  change_json(tokenizer, [&](nlohmann::json& json) {
    json["added_tokens"].push_back({{"id", start}, {"content", "<|im_start|>"}, {"special", true}});
    json["added_tokens"].push_back({{"id", end}, {"content", "<|im_end|>"}, {"special", true}});
  });
  const fs::path texts = job_->folder() / "marks";
  ASSERT_EQ(lockstep("pack", {"--format", "text", "--tokenizer", tokenizer, "--split", "1", "--out", texts,
                              job_->folder() / "text.txt"})
                .exit_code,
            0);
  const Words alone = {"data.valid=", "evaluate.every_steps=0", "train.steps=2"};
  const auto with = [&](Words more) {
    more.insert(more.end(), alone.begin(), alone.end());
    return more;
  };
  ASSERT_EQ(job_->train({"marks", 1, with({"data.train=" + (texts / "train").string()})}).exit_code, 0);
  const fs::path base = job_->folder() / "marks-base";
  ASSERT_EQ(lockstep("export", {"--model", job_->folder() / "runs" / "marks", "--to", "safetensors", "--out", base})
                .exit_code,
            0);
  const auto before = nlohmann::json::parse(read_file(base / "config.json")).at("eos_token_id");
  ASSERT_NE(before, end);
  write_file_atomic(base / "generation_config.json",
                    nlohmann::json({{"eos_token_id", {before, 7}}, {"top_k", 20}}).dump());
  change_json(base / "tokenizer_config.json", [](nlohmann::json& json) {
    json.erase("bos_token");
    json["pad_token"] = "<|im_start|>";
  });

  const fs::path chats = job_->folder() / "marks.jsonl";
  write_file_atomic(chats, R"({"instruction": "hi", "output": "yo"})");
  const fs::path packed = job_->folder() / "marks-chats";
  ASSERT_EQ(lockstep("pack", {"--format", "chat", "--template", "chatml", "--tokenizer", base, "--split", "1", "--out",
                              packed, chats})
                .exit_code,
            0);
  const ProcessResult tuned = job_->train(
      {"marks-lora", 1,
       with({"data.train=" + (packed / "train").string(), "model.from=" + base.string(), "tune.method=lora"})});
  ASSERT_EQ(tuned.exit_code, 0) << tuned.err;
  const fs::path lora = job_->folder() / "runs" / "marks-lora";
  const fs::path merged = job_->folder() / "marks-merged";
  const ProcessResult merge = lockstep("merge", {"--model", lora, "--out", merged});
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  const auto file = [&](const char* name) { return nlohmann::json::parse(read_file(merged / name)); };
  EXPECT_EQ(file("config.json").at("eos_token_id"), nlohmann::json({end, before}));
  EXPECT_EQ(file("generation_config.json"), nlohmann::json({{"eos_token_id", {end, before, 7}}, {"top_k", 20}}));
  const nlohmann::json of_tokenizer = file("tokenizer_config.json");
  EXPECT_EQ(of_tokenizer.at("eos_token"), "<|im_end|>");
  EXPECT_EQ(of_tokenizer.at("pad_token"), "<|im_start|>");
  EXPECT_FALSE(of_tokenizer.contains("bos_token"));
  EXPECT_TRUE(of_tokenizer.contains("chat_template"));

  const fs::path gguf = job_->folder() / "marks.gguf";
  ASSERT_EQ(lockstep("export", {"--model", lora, "--to", "gguf", "--type", "f32", "--out", gguf}).exit_code, 0);
  EXPECT_THAT(GgufModel(gguf).text_ends().ends, testing::ElementsAre(static_cast<std::int32_t>(end)));
}

TEST_F(ModelCommandsTest, LayAdaptersOverTheirModelAndMergeThem) {
  const std::string from = "model.from=" + checkpoint().string();
  ASSERT_EQ(job_->train({"lora", 1, {from, "tune.method=lora", "tune.rank=4", "train.steps=20", "optimizer.lr=1e-2"}})
                .exit_code,
            0);
  const fs::path lora = job_->folder() / "runs" / "lora";
  const fs::path adapters = job_->checkpoints("lora") / "step-00000020";
  const Words likeliest = {"--temperature", "0"};
  const std::string tuned = generate(likeliest, lora).out;
  EXPECT_NE(tuned, text(likeliest));
  EXPECT_EQ(generate({"--temperature", "0", "--adapter", adapters}).out, tuned);
  EXPECT_EQ(generate({"--temperature", "0", "--adapter", lora}).out, tuned);

  const fs::path merged = job_->folder() / "merged";
  const ProcessResult merge =
      lockstep("merge", {"--model", run(), "--adapter", lora, "--type", "f32", "--out", merged});
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  EXPECT_THAT(merge.out, EndsWith(adapters.string() + " over " + checkpoint().string() + "\n"));
  EXPECT_EQ(generate(likeliest, merged).out, tuned);
  const fs::path merged_alone = job_->folder() / "merged-alone";
  EXPECT_EQ(lockstep("merge", {"--model", lora, "--type", "f32", "--out", merged_alone}).exit_code, 0);
  EXPECT_EQ(read_file(merged_alone / "model.safetensors"), read_file(merged / "model.safetensors"));
  EXPECT_THAT(lockstep("merge", {"--model", run(), "--out", job_->folder() / "none"}).err,
              HasSubstr("has nothing that stands beside a model; --adapter DIR names it"));
  const fs::path apart = job_->folder() / "apart";
  ASSERT_EQ(lockstep("export", {"--model", lora, "--to", "adapter", "--type", "f32", "--out", apart}).exit_code, 0);
  EXPECT_EQ(generate(likeliest, apart).out, tuned);
  EXPECT_THAT(lockstep("inspect", {apart}).out, AllOf(HasSubstr("rank 4, scale 2, of c_attn,c_proj,c_fc"),
                                                      HasSubstr("trained on   " + checkpoint().string())));
  EXPECT_THAT(lockstep("inspect", {adapters}).out, HasSubstr(", fingerprint "));

  const auto verified =
      nlohmann::json::parse(lockstep("verify", {"--model", run(), "--adapter", lora, merged, apart, "--json"}).out);
  const auto& rows = verified.at("compared");
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(verified.at("model").at("kind"), "adapter");
  EXPECT_EQ(rows[0].at("name"), "base without the adapter");
  EXPECT_GT(rows[0].at("mean_kl").get<double>(), 1e-3);
  EXPECT_EQ(rows[1].at("kind"), "safetensors");
  EXPECT_LT(rows[1].at("mean_kl").get<double>(), 1e-9);
  EXPECT_LT(rows[1].at("relative_difference").get<double>(), 1e-4);
  EXPECT_EQ(rows[2].at("kind"), "adapter");
  EXPECT_EQ(rows[2].at("max_difference"), 0);
  // Adapters over a file of the same weights.
  const fs::path base = job_->folder() / "base.gguf";
  ASSERT_EQ(lockstep("export", {"--model", run(), "--to", "gguf", "--type", "f32", "--out", base}).exit_code, 0);
  EXPECT_EQ(generate({"--temperature", "0", "--adapter", lora}, base).out, tuned);

  // Losses are the same to the rounding of sums in another order.
  const auto loss = [&](const fs::path& model) {
    return nlohmann::json::parse(eval({"--json"}, model).out).at("loss").get<double>();
  };
  EXPECT_NEAR(loss(merged), loss(lora), 1e-5);
  EXPECT_LT(loss(lora), loss(run()) - 0.01);
}

TEST_F(ModelCommandsTest, RefuseAdaptersThatDoNotFit) {
  const std::string from = "model.from=" + checkpoint().string();
  ASSERT_EQ(job_->train({"fits", 1, {from, "tune.method=lora", "train.steps=2"}}).exit_code, 0);
  ASSERT_EQ(job_->train({"another", 1, {"run.seed=9", "train.steps=2"}}).exit_code, 0);
  const fs::path fits = job_->folder() / "runs" / "fits";
  const fs::path another = job_->folder() / "runs" / "another";
  const fs::path out = job_->folder() / "nothing";
  const auto refusal = [&](const fs::path& model, const fs::path& adapter) {
    const ProcessResult result = lockstep("merge", {"--model", model, "--adapter", adapter, "--out", out});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_FALSE(fs::exists(out));
    return result.err;
  };
  EXPECT_THAT(refusal(another, fits), HasSubstr("was trained on another model than " + another.string()));
  EXPECT_THAT(refusal(run(), another), HasSubstr("holds a whole model; expected adapters (adapter_config.json)"));
  EXPECT_THAT(refusal(fits, fits), HasSubstr("adapters stand beside a whole model"));

  const fs::path copy = job_->folder() / "peft";
  ASSERT_EQ(lockstep("export", {"--model", fits, "--to", "adapter", "--out", copy}).exit_code, 0);
  const std::string config = read_file(copy / "adapter_config.json");
  const auto with = [&](const std::string& key, const nlohmann::json& value) {
    nlohmann::json changed = nlohmann::json::parse(config);
    changed[key] = value;
    write_file_atomic(copy / "adapter_config.json", changed.dump());
    return refusal(run(), copy);
  };
  EXPECT_THAT(with("peft_type", "LOHA"), HasSubstr("peft_type is LOHA, expected LORA"));
  EXPECT_THAT(with("use_qalora", true), HasSubstr("use_qalora is true, which is not supported"));
  EXPECT_THAT(with("init_lora_weights", "pissa"), HasSubstr("which changes the base model"));
  EXPECT_THAT(with("target_modules", ".*proj"), HasSubstr("target_modules is the pattern .*proj"));
  EXPECT_THAT(with("target_modules", {"c_attn"}), HasSubstr("nothing is known to do with tensor"));
  EXPECT_THAT(with("r", 16), HasSubstr("has shape [32, 8], expected [32, 16]"));
  EXPECT_THAT(with("r", 0), HasSubstr("r is 0, expected at least 1"));
  EXPECT_THAT(with("r", "many"), HasSubstr("r is \"many\""));
  write_file_atomic(copy / "adapter_config.json", config.substr(0, config.size() / 2));
  EXPECT_THAT(refusal(run(), copy), HasSubstr("expected a JSON object"));
}

}  // namespace
}  // namespace lockstep
