#!/usr/bin/env python3
"""Losses, rewards and gradients of preferences over pairs of answers: preference.safetensors.

The model is llama-lora (make_models.py), the reference is the model beneath it. Each answer is computed by itself, in
a batch of one. Needs torch, transformers, peft and safetensors:

    python3 tests/golden/model/make_preference.py
"""
import pathlib

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FOLDER = pathlib.Path(__file__).parent
STRIDE = 5  # as in make_models.py
LENGTHS = [7, 11, 14, 5]  # inputs of chosen and rejected, pair after pair
PROMPTS = [3, 3, 2, 2]  # leading inputs whose targets do not count
VOCAB = 61
BETA = 0.3
KINDS = {
    "sigmoid": lambda z, m: -F.logsigmoid(z),
    "smooth": lambda z, m: -0.8 * F.logsigmoid(z) - 0.2 * F.logsigmoid(-z),
    "hinge": lambda z, m: torch.relu(1 - z),
    "ipo": lambda z, m: (m - 1 / (2 * BETA)) ** 2,
}
SFT = {"smooth": 0.5}  # weight of the chosen answer's mean loss


def log_likelihood(model, inputs, targets, mean):
    logits = model(input_ids=inputs[None], use_cache=False).logits[0]
    picked = torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets.clamp(min=0)]
    counts = targets >= 0
    return picked[counts].mean() if mean else picked[counts].sum()


generator = torch.Generator().manual_seed(21)
inputs = [torch.randint(VOCAB, (n,), generator=generator) for n in LENGTHS]
targets = [torch.randint(VOCAB, (n,), generator=generator) for n in LENGTHS]
for target, prompt in zip(targets, PROMPTS):
    target[:prompt] = -1

base = AutoModelForCausalLM.from_pretrained(FOLDER / "llama", attn_implementation="eager")
reference = {}
with torch.no_grad():
    for mean in (False, True):
        reference[mean] = [log_likelihood(base, i, t, mean) for i, t in zip(inputs, targets)]
model = PeftModel.from_pretrained(base, FOLDER / "llama-lora", is_trainable=True)
model.eval()
trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

saved = {"inputs": torch.cat(inputs).int(), "targets": torch.cat(targets).int(),
         "lengths": torch.tensor(LENGTHS).int()}
for kind, loss_of in KINDS.items():
    model.zero_grad()
    mean = kind == "ipo"
    gains = [log_likelihood(model, i, t, mean) - r for i, t, r in zip(inputs, targets, reference[mean])]
    loss = 0
    for chosen in range(0, len(gains), 2):
        margin = gains[chosen] - gains[chosen + 1]
        loss = loss + loss_of(BETA * margin, margin) / (len(gains) // 2)
        if kind in SFT:
            own = -log_likelihood(model, inputs[chosen], targets[chosen], True)
            loss = loss + SFT[kind] * own / (len(gains) // 2)
    loss.backward()
    saved[f"{kind}.loss"] = loss.detach().reshape(1)
    saved[f"{kind}.rewards"] = BETA * torch.stack(gains).detach()
    for name, parameter in trained.items():
        name = name.replace(".default", "").replace(".modules_to_save", "")
        saved[f"{kind}.gradient.{name}"] = parameter.grad.reshape(-1)[::STRIDE].clone()
    print(f"{kind}: loss {loss.item():.4f}, rewards {saved[f'{kind}.rewards'].tolist()}")
save_file(saved, FOLDER / "preference.safetensors")
