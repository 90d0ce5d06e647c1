// Every configuration key, once.
#include "trainer/config_keys.h"

namespace lockstep {
namespace {

constexpr ConfigRange from_to(double min, double max) { return {.min = min, .max = max}; }
constexpr ConfigRange at_least(double min) { return {.min = min}; }
constexpr ConfigRange above(double min) { return {.min = min, .excludes_min = true}; }
constexpr ConfigRange kShare = {.min = 0, .max = 1, .excludes_max = true};  // [0, 1)

#define LOCKSTEP_SLOT(member) [](Config& config) -> ConfigSlot { return &config.member; }

std::vector<ConfigKey> device_keys() {
  return {
      {.name = "device.kind",
       .slot = LOCKSTEP_SLOT(device.kind),
       .help = "what ranks compute on; device: cuda is short for it; auto: a GPU each where all of them have one"},
      {.name = "device.share", .slot = LOCKSTEP_SLOT(device.share), .help = "several ranks may use one GPU"},
      {.name = "device.tf32",
       .slot = LOCKSTEP_SLOT(device.tf32),
       .help = "products in fp32 on a GPU's tensor cores, which round what they multiply to 10 bits; CPUs never do"},
      {.name = "device.graph",
       .slot = LOCKSTEP_SLOT(device.graph),
       .help = "forward and backward passes in CUDA graphs, which start faster: for small models; text without dropout "
               "only"},
  };
}

std::vector<ConfigKey> model_keys() {
  return {
      {.name = "model.family", .slot = LOCKSTEP_SLOT(model.family), .help = "architecture"},
      {.name = "model.layers",
       .slot = LOCKSTEP_SLOT(model.layers),
       .help = "transformer blocks",
       .range = from_to(1, 10000),
       .required = true},
      {.name = "model.heads",
       .slot = LOCKSTEP_SLOT(model.heads),
       .help = "attention heads; they divide width where head_dim is 0",
       .range = from_to(1, 65536),
       .required = true},
      {.name = "model.kv_heads",
       .slot = LOCKSTEP_SLOT(model.kv_heads),
       .help = "not gpt2: heads that hold keys and values; they divide heads; 0: heads",
       .range = from_to(0, 65536)},
      {.name = "model.head_dim",
       .slot = LOCKSTEP_SLOT(model.head_dim),
       .help = "not gpt2: width of a head; 0: width / heads",
       .range = from_to(0, 65536)},
      {.name = "model.width",
       .slot = LOCKSTEP_SLOT(model.width),
       .help = "size of the embedding",
       .range = from_to(1, 1048576),
       .required = true},
      {.name = "model.hidden",
       .slot = LOCKSTEP_SLOT(model.hidden),
       .help = "width of the MLP; 0: 4 width (gpt2), 8/3 width rounded up to a multiple of 64 (the others)",
       .range = from_to(0, 4194304)},
      {.name = "model.context",
       .slot = LOCKSTEP_SLOT(model.context),
       .help = "positions the model knows; 0: data.sequence",
       .range = from_to(0, 16777216)},
      {.name = "model.vocab",
       .slot = LOCKSTEP_SLOT(model.vocab),
       .help = "rows of the token embedding; 0: as many as the data's tokenizer has tokens",
       .range = from_to(0, 16777216)},
      {.name = "model.dropout",
       .slot = LOCKSTEP_SLOT(model.dropout),
       .help = "share of activations that training drops",
       .range = kShare},
      {.name = "model.tied", .slot = LOCKSTEP_SLOT(model.tied), .help = "the output head is the token embedding"},
      {.name = "model.bias", .slot = LOCKSTEP_SLOT(model.bias), .help = "gpt2: biases in linear layers and norms"},
      {.name = "model.rope_theta",
       .slot = LOCKSTEP_SLOT(model.rope_theta),
       .help = "not gpt2: base of the rotary frequencies",
       .range = above(0)},
      {.name = "model.rope_scaling",
       .slot = LOCKSTEP_SLOT(model.rope_scaling),
       .help = "not gpt2: how rotary frequencies are stretched for long contexts"},
      {.name = "model.rope_factor",
       .slot = LOCKSTEP_SLOT(model.rope_factor),
       .help = "linear and llama3: how far",
       .range = at_least(1)},
      {.name = "model.rope_low_freq_factor",
       .slot = LOCKSTEP_SLOT(model.rope_low_freq_factor),
       .help = "llama3: waves longer than rope_original_context / this are stretched whole",
       .range = above(0)},
      {.name = "model.rope_high_freq_factor",
       .slot = LOCKSTEP_SLOT(model.rope_high_freq_factor),
       .help = "llama3: waves shorter than rope_original_context / this are left alone",
       .range = above(0)},
      {.name = "model.rope_original_context",
       .slot = LOCKSTEP_SLOT(model.rope_original_context),
       .help = "llama3: the context before stretching",
       .range = from_to(1, 16777216)},
      {.name = "model.norm_eps",
       .slot = LOCKSTEP_SLOT(model.norm_eps),
       .help = "added to the variance in norms",
       .range = above(0)},
      {.name = "model.from",
       .slot = LOCKSTEP_SLOT(model.from),
       .help = "folder with a checkpoint whose weights the run starts from; empty: random weights"},
  };
}

std::vector<ConfigKey> tune_keys() {
  return {
      {.name = "tune.method",
       .slot = LOCKSTEP_SLOT(tune.method),
       .help = "what of model.from is trained: everything, the last blocks, or low-rank adapters"},
      {.name = "tune.blocks",
       .slot = LOCKSTEP_SLOT(tune.blocks),
       .help = "freeze: how many of the last blocks are trained",
       .range = from_to(0, 10000)},
      {.name = "tune.targets",
       .slot = LOCKSTEP_SLOT(tune.targets),
       .help = "lora: linear layers with adapters, \"q_proj,v_proj\" say; all: each but the head"},
      {.name = "tune.rank",
       .slot = LOCKSTEP_SLOT(tune.rank),
       .help = "lora: of the adapters' matrices",
       .range = from_to(1, 65536)},
      {.name = "tune.alpha",
       .slot = LOCKSTEP_SLOT(tune.alpha),
       .help = "lora: adapters count alpha / rank times; 0: 2 rank",
       .range = at_least(0)},
      {.name = "tune.dropout",
       .slot = LOCKSTEP_SLOT(tune.dropout),
       .help = "lora: share of the adapters' inputs that training drops",
       .range = kShare},
      {.name = "tune.rslora",
       .slot = LOCKSTEP_SLOT(tune.rslora),
       .help = "lora: adapters count alpha / sqrt(rank) times"},
      {.name = "tune.dora",
       .slot = LOCKSTEP_SLOT(tune.dora),
       .help = "lora: adapters turn the outputs' weights, whose lengths are trained apart (DoRA)"},
      {.name = "tune.lora_plus",
       .slot = LOCKSTEP_SLOT(tune.lora_plus),
       .help = "lora: the second matrices learn so many times as fast (LoRA+: 16)",
       .range = above(0)},
      {.name = "tune.bias",
       .slot = LOCKSTEP_SLOT(tune.bias),
       .help = "lora: biases that are trained as well; lora_only: those of layers with adapters"},
      {.name = "tune.also_train",
       .slot = LOCKSTEP_SLOT(tune.also_train),
       .help = "freeze, lora: layers that are trained whole besides, \"embed_tokens,lm_head\" say"},
      {.name = "tune.quantize",
       .slot = LOCKSTEP_SLOT(tune.quantize),
       .help =
           "freeze, lora: matrices of blocks that are not trained are kept in 8.5 (q8_0) or 4.5 bits (nf4) a value"},
  };
}

std::vector<ConfigKey> preference_keys() {
  return {
      {.name = "preference.loss",
       .slot = LOCKSTEP_SLOT(preference.loss),
       .help = "of a dataset of pairs: how the better answer is to be preferred (DPO)"},
      {.name = "preference.beta",
       .slot = LOCKSTEP_SLOT(preference.beta),
       .help = "how closely the model keeps to the one of model.from",
       .range = above(0)},
      {.name = "preference.label_smoothing",
       .slot = LOCKSTEP_SLOT(preference.label_smoothing),
       .help = "sigmoid: share of pairs taken to be the wrong way round",
       .range = {.min = 0, .max = 0.5, .excludes_max = true}},
      {.name = "preference.sft",
       .slot = LOCKSTEP_SLOT(preference.sft),
       .help = "weight of the better answer's own loss beside it",
       .range = at_least(0)},
  };
}

std::vector<ConfigKey> data_and_train_keys() {
  return {
      {.name = "data.train", .slot = LOCKSTEP_SLOT(data.train), .help = "dataset folder to train on", .required = true},
      {.name = "data.valid",
       .slot = LOCKSTEP_SLOT(data.valid),
       .help = "dataset folder to evaluate on; empty: no evaluation"},
      {.name = "data.sequence",
       .slot = LOCKSTEP_SLOT(data.sequence),
       .help = "tokens in a sample, at most model.context; 0: model.context",
       .range = from_to(0, 16777216)},
      {.name = "data.packing",
       .slot = LOCKSTEP_SLOT(data.packing),
       .help = "conversations: as many to a sample as data.sequence holds; they do not attend to one another"},
      {.name = "data.trace",
       .slot = LOCKSTEP_SLOT(data.trace),
       .help = "file prefix: each rank writes which samples it read; empty: off"},
      {.name = "data.read_ahead",
       .slot = LOCKSTEP_SLOT(data.read_ahead),
       .help = "batches that the reading thread is ahead",
       .range = from_to(1, 1024)},
      {.name = "train.steps",
       .slot = LOCKSTEP_SLOT(train.steps),
       .help = "optimizer steps of the whole run; auto: what train.epochs needs",
       .range = from_to(0, 1e12),
       .word_for_zero = "auto"},
      {.name = "train.epochs",
       .slot = LOCKSTEP_SLOT(train.epochs),
       .help = "passes over data.train, where train.steps is auto; the last step is a whole one",
       .range = from_to(0, 1e9)},
      {.name = "train.micro_batches",
       .slot = LOCKSTEP_SLOT(train.micro_batches),
       .help = "pieces of a step's batch, shared out among the ranks; auto: the larger of 8 and the rank count",
       .range = from_to(1, 65536),
       .word_for_zero = "auto"},
      {.name = "train.micro_batch_size",
       .slot = LOCKSTEP_SLOT(train.micro_batch_size),
       .help = "samples in a micro-batch",
       .range = from_to(1, 65536)},
      {.name = "train.precision",
       .slot = LOCKSTEP_SLOT(train.precision),
       .help = "of activations and products; master weights are fp32 either way; fp16 is for GPUs without bf16"},
      {.name = "train.loss_scale",
       .slot = LOCKSTEP_SLOT(train.loss_scale),
       .help =
           "fp16: what the loss is multiplied by at first, halved where gradients overflow; a power of two; auto: the "
           "next from 8 times the tokens of a step on",
       .range = from_to(1, 0x1p40),
       .word_for_zero = "auto"},
      {.name = "train.loss_scale_window",
       .slot = LOCKSTEP_SLOT(train.loss_scale_window),
       .help = "fp16: steps without overflow after which the loss's scale doubles",
       .range = from_to(1, 1e12)},
      {.name = "train.determinism",
       .slot = LOCKSTEP_SLOT(train.determinism),
       .help = "elastic: the same bits on 1, 2, 4, ... ranks; fixed: any rank count, the same bits for the same count"},
      {.name = "train.recompute",
       .slot = LOCKSTEP_SLOT(train.recompute),
       .help = "what the backward pass computes again instead of keeping it: the attention half of each block, or the "
               "whole block; the same bits in less memory"},
      {.name = "train.embedding_noise",
       .slot = LOCKSTEP_SLOT(train.embedding_noise),
       .help =
           "NEFTune: noise of up to this / sqrt(tokens of a sequence * model.width) is added to embeddings in training",
       .range = at_least(0)},
      {.name = "train.threads",
       .slot = LOCKSTEP_SLOT(train.threads),
       .help = "of each rank; 0: the node's cores divided by its ranks",
       .range = from_to(0, 4096)},
  };
}

std::vector<ConfigKey> optimizer_keys() {
  return {
      {.name = "optimizer.name", .slot = LOCKSTEP_SLOT(optimizer.name), .help = "update rule"},
      {.name = "optimizer.lr", .slot = LOCKSTEP_SLOT(optimizer.lr), .help = "highest learning rate", .range = above(0)},
      {.name = "optimizer.betas",
       .slot = LOCKSTEP_SLOT(optimizer.betas),
       .help = "decay of the two moments",
       .range = kShare},
      {.name = "optimizer.eps",
       .slot = LOCKSTEP_SLOT(optimizer.eps),
       .help = "added to the second moment's root",
       .range = above(0)},
      {.name = "optimizer.weight_decay",
       .slot = LOCKSTEP_SLOT(optimizer.weight_decay),
       .help = "of matrices; biases and norms do not decay",
       .range = at_least(0)},
      {.name = "optimizer.clip_norm",
       .slot = LOCKSTEP_SLOT(optimizer.clip_norm),
       .help = "longer gradients are scaled to this norm; 0: off",
       .range = at_least(0)},
      {.name = "schedule.name", .slot = LOCKSTEP_SLOT(schedule.name), .help = "shape of the learning rate"},
      {.name = "schedule.warmup_steps",
       .slot = LOCKSTEP_SLOT(schedule.warmup_steps),
       .help = "steps of linear rise to optimizer.lr",
       .range = from_to(0, 1e12)},
      {.name = "schedule.warmup_ratio",
       .slot = LOCKSTEP_SLOT(schedule.warmup_ratio),
       .help = "the same as a share of the run's steps, where schedule.warmup_steps is 0",
       .range = from_to(0, 1)},
      {.name = "schedule.min_lr",
       .slot = LOCKSTEP_SLOT(schedule.min_lr),
       .help = "learning rate of the last step (linear, cosine, wsd)",
       .range = at_least(0)},
      {.name = "schedule.decay_steps",
       .slot = LOCKSTEP_SLOT(schedule.decay_steps),
       .help = "wsd: length of the final decay; 0: a tenth of train.steps",
       .range = from_to(0, 1e12)},
  };
}

std::vector<ConfigKey> job_keys() {
  return {
      {.name = "comm.backend",
       .slot = LOCKSTEP_SLOT(comm.backend),
       .help = "how ranks exchange gradients; auto: mpi when started with several ranks, nccl where each has a GPU; "
               "server: through lockstep serve",
       .choices = {"auto", "self", "mpi", "nccl", "server"}},
      {.name = "comm.servers",
       .slot = LOCKSTEP_SLOT(comm.servers),
       .help = "server: HOST:PORT of every lockstep serve, with commas between, in the order of their parts; "
               "HOST:FIRST-LAST for several parts of one"},
      {.name = "comm.tls_ca",
       .slot = LOCKSTEP_SLOT(comm.tls_ca),
       .help = "server: PEM file with the certificate of the servers or of who issued it; turns TLS on, empty: off"},
      {.name = "comm.wire",
       .slot = LOCKSTEP_SLOT(comm.wire),
       .help =
           "server: how gradients travel. bf16 and int8 are half and 3/8 of the bytes, rounded: not the bits of fp32, "
           "and others on each number of ranks; int8 makes good in the next step what it lost",
       .choices = {"fp32", "bf16", "int8"}},
      {.name = "comm.shared_memory",
       .slot = LOCKSTEP_SLOT(comm.shared_memory),
       .help = "server: sums by servers on the rank's own machine are made in memory that both share; the bits are the "
               "same either way"},
      {.name = "comm.mode",
       .slot = LOCKSTEP_SLOT(comm.mode),
       .help =
           "server: sync: steps of all ranks together, with the same bits as elsewhere; bounded, async: servers hold "
           "the weights, and each rank goes its own pace, in bounded at most comm.max_staleness steps ahead",
       .choices = {"sync", "bounded", "async"}},
      {.name = "comm.max_staleness",
       .slot = LOCKSTEP_SLOT(comm.max_staleness),
       .help = "bounded: how many steps a rank may be ahead of the slowest one",
       .range = from_to(0, 1000000)},
      {.name = "comm.bucket_mib",
       .slot = LOCKSTEP_SLOT(comm.bucket_mib),
       .help = "gradients are exchanged in pieces of this many MiB while the backward pass runs",
       .range = from_to(1, 4096)},
      {.name = "comm.zero",
       .slot = LOCKSTEP_SLOT(comm.zero),
       .help = "1: each rank holds and updates its part of the optimizer's state; the same bits in less memory",
       .range = from_to(0, 1)},
      {.name = "comm.ranks_per_node",
       .slot = LOCKSTEP_SLOT(comm.ranks_per_node),
       .help = "overrides how many ranks are taken to share a node; 0: as detected",
       .range = from_to(0, 65536)},
      {.name = "comm.timeout_s",
       .slot = LOCKSTEP_SLOT(comm.timeout_s),
       .help = "seconds a rank may keep the others waiting before the run fails and names it",
       .range = from_to(1, 604800)},
      {.name = "comm.silence_s",
       .slot = LOCKSTEP_SLOT(comm.silence_s),
       .help = "seconds after which a rank that gives no sign of life is named and the run ended; 0: nobody watches",
       .range = from_to(0, 604800)},
      {.name = "comm.stuck_s",
       .slot = LOCKSTEP_SLOT(comm.stuck_s),
       .help = "seconds a rank that answers may stand still (in a system call, say) before the run is ended for it",
       .range = from_to(1, 604800)},
      {.name = "checkpoint.every_steps",
       .slot = LOCKSTEP_SLOT(checkpoint.every_steps),
       .help = "0: only at the end and when told to stop",
       .range = from_to(0, 1e12)},
      {.name = "checkpoint.keep",
       .slot = LOCKSTEP_SLOT(checkpoint.keep),
       .help = "newest checkpoints that stay on disk",
       .range = from_to(1, 1000000)},
      {.name = "checkpoint.background",
       .slot = LOCKSTEP_SLOT(checkpoint.background),
       .help = "write while training goes on"},
      {.name = "checkpoint.keep_best",
       .slot = LOCKSTEP_SLOT(checkpoint.keep_best),
       .help = "also keep the one with the lowest validation loss"},
      {.name = "evaluate.every_steps",
       .slot = LOCKSTEP_SLOT(evaluate.every_steps),
       .help = "0: only at the end",
       .range = from_to(0, 1e12)},
      {.name = "evaluate.batches",
       .slot = LOCKSTEP_SLOT(evaluate.batches),
       .help = "batches of validation data in an evaluation",
       .range = from_to(1, 1000000000)},
      {.name = "evaluate.patience",
       .slot = LOCKSTEP_SLOT(evaluate.patience),
       .help = "stop after this many evaluations without improvement; 0: never",
       .range = from_to(0, 1000000000)},
      {.name = "evaluate.min_delta",
       .slot = LOCKSTEP_SLOT(evaluate.min_delta),
       .help = "a smaller drop of the validation loss is no improvement",
       .range = at_least(0)},
      {.name = "log.every_steps",
       .slot = LOCKSTEP_SLOT(log.every_steps),
       .help = "a line each so many steps where no bar is drawn; 0: one every ten seconds",
       .range = from_to(0, 1e12)},
  };
}

std::vector<ConfigKey> all_keys() {
  std::vector<ConfigKey> keys = {
      {.name = "run.name",
       .slot = LOCKSTEP_SLOT(run.name),
       .help = "folder below run.dir; empty: the configuration file's name"},
      {.name = "run.dir", .slot = LOCKSTEP_SLOT(run.dir), .help = "folder that holds the runs"},
      {.name = "run.seed",
       .slot = LOCKSTEP_SLOT(run.seed),
       .help = "of initial weights, sample order and dropout",
       .range = at_least(0)},
  };
  for (auto part :
       {device_keys, model_keys, tune_keys, preference_keys, data_and_train_keys, optimizer_keys, job_keys}) {
    const std::vector<ConfigKey> more = part();
    keys.insert(keys.end(), more.begin(), more.end());
  }
  return keys;
}

#undef LOCKSTEP_SLOT

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = all_keys();
  return keys;
}

}  // namespace lockstep
