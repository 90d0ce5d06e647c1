#!/usr/bin/env python3
"""Makes the small models of this folder and what PyTorch computes with them.

    python3 -m venv venv && venv/bin/pip install torch transformers peft safetensors
    venv/bin/python tests/golden/model/make_models.py

Made with torch 2.6.0, transformers 5.23.0 and peft 0.21.2 on the CPU, in fp32. Each folder NAME holds

    config.json, model.safetensors   as transformers saves a model; or adapter_config.json, adapter_model.safetensors as
                                     peft does, P being the trained parameters
    expected.safetensors             inputs and targets [rows, sequence] (targets of -1 are not trained on),
                                     logits [rows, sequence, vocab], loss (mean over the targets), gradient_norm, and
                                     gradient.P, weight.P, exp_avg.P, exp_avg_sq.P for each parameter P: its gradient,
                                     and its state after three steps of AdamW on the same batch. To keep the files
                                     small, of these four only every STRIDEth element is there; STRIDE shares no factor
                                     with the widths, so all rows and all columns are met.
"""

import pathlib

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

FOLDER = pathlib.Path(__file__).parent
VOCAB, WIDTH, CONTEXT, ROWS, SEQUENCE, STRIDE = 61, 32, 32, 2, 24, 5

# tests/trainer/model/golden_test.cpp says the same. Epsilon is far above the rounding of gradients that are zero in
# exact arithmetic (of GPT-2's key biases): AdamW would blow it up to steps of full size.
LEARNING_RATES = (1e-3, 2e-3, 5e-4)
BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 1e-5, 0.1, 0.5


def gpt2():
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, attn_implementation="eager"))


def with_rotary_positions(model, config, rope=None, **options):
    """llama, or one of its relatives."""
    return model(config(**({
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0} | (rope or {}),
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "attn_implementation": "eager"} | options)))


def llama(tied, rope=None):
    return with_rotary_positions(LlamaForCausalLM, LlamaConfig, rope, tie_word_embeddings=tied)


# Waves of 6.3, 30, 140 and 664 positions: left alone, stretched in part, and whole.
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0}


def randomize(model, generator):
    """Far from the usual start, so that every part of the model matters in the result."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.copy_(0.15 * noise)
            else:
                parameter.copy_(parameter.mean() + 0.1 * noise)


def mean_loss(model, inputs, targets):
    logits = model(input_ids=inputs, use_cache=False).logits
    return logits, F.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1), ignore_index=-1)


def thinned(tensor):
    return tensor.detach().reshape(-1)[::STRIDE].clone()


def clip(parameters):
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters)).item()
    for p in parameters:
        p.grad.mul_(min(1.0, CLIP_NORM / norm))


def make(name, model, seed):
    generator = torch.Generator().manual_seed(seed)
    randomize(model, generator)
    model.eval()
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_expected(folder, model, dict(model.named_parameters()), generator)


def make_adapter(name, base, seed, **options):
    """Adapters of peft on one of the models above, which keeps its weights."""
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(FOLDER / base, attn_implementation="eager"),
                           LoraConfig(task_type="CAUSAL_LM", **options))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        with torch.no_grad():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.eval()
    folder = FOLDER / name
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    # As they are called in the file.
    save_expected(folder, model, {n.replace(".default", "").replace(".modules_to_save", "")
                                   .replace("magnitude_vector.weight", "magnitude_vector"): p
                                  for n, p in trained.items()}, generator)


def save_expected(folder, model, parameters, generator):
    inputs = torch.randint(VOCAB, (ROWS, SEQUENCE), generator=generator)
    targets = torch.randint(VOCAB, (ROWS, SEQUENCE), generator=generator)
    targets[0, :5] = -1
    targets[1, -1] = -1
    logits, loss = mean_loss(model, inputs, targets)
    expected = {
        "inputs": inputs.int(), "targets": targets.int(), "logits": logits.detach(), "loss": loss.detach().reshape(1)}

    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
         {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0}],
        lr=0.0, betas=BETAS, eps=EPSILON)
    for step, learning_rate in enumerate(LEARNING_RATES):
        optimizer.zero_grad()
        _, loss = mean_loss(model, inputs, targets)
        loss.backward()
        if step == 0:
            squares = sum((p.grad.double() ** 2).sum() for p in parameters.values())
            expected["gradient_norm"] = torch.sqrt(squares).float().reshape(1)
            expected |= {f"gradient.{n}": thinned(p.grad) for n, p in parameters.items()}
        clip(parameters.values())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    for n, p in parameters.items():
        expected[f"weight.{n}"] = thinned(p)
        for kind in ("exp_avg", "exp_avg_sq"):
            expected[f"{kind}.{n}"] = thinned(optimizer.state[p][kind])
    save_file(expected, folder / "expected.safetensors")
    print(f"{folder.name}: loss {expected['loss'].item():.4f}, gradient norm {expected['gradient_norm'].item():.4f}")


make("gpt2", gpt2(), seed=1)
make("llama", llama(tied=False), seed=2)
make("llama-tied", llama(tied=True), seed=3)
make("llama3", llama(tied=True, rope=LLAMA3_ROPE), seed=4)
make("llama-linear", llama(tied=True, rope=LINEAR_ROPE), seed=5)
make("mistral", with_rotary_positions(
    MistralForCausalLM, MistralConfig, head_dim=16, sliding_window=None, tie_word_embeddings=False), seed=6)
make("qwen2", with_rotary_positions(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True), seed=7)
make("qwen3", with_rotary_positions(Qwen3ForCausalLM, Qwen3Config, head_dim=16, tie_word_embeddings=True), seed=8)

make_adapter("gpt2-lora", "gpt2", seed=11, r=4, lora_alpha=6, use_rslora=True, bias="all",
             target_modules=["c_attn", "c_proj", "c_fc"])
make_adapter("llama-lora", "llama", seed=12, r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
             modules_to_save=["lm_head", "norm"])
make_adapter("gpt2-dora", "gpt2", seed=14, r=4, lora_alpha=6, use_dora=True, bias="lora_only",
             target_modules=["c_attn", "c_proj"])
make_adapter("llama-dora", "llama", seed=15, r=3, lora_alpha=6, use_dora=True,
             target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
make_adapter("qwen2-lora", "qwen2", seed=13, r=4, lora_alpha=8, target_modules="all-linear", bias="lora_only")
