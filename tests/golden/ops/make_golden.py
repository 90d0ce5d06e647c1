"""Writes ops.golden: inputs, outputs and gradients of every op, computed by PyTorch in double precision on the CPU.

    python3 make_golden.py        (PyTorch 2.6; any later version should give the same to the last digits)

All inputs are multiples of 1/64 below 2 in magnitude, so that bf16 holds them exactly and one file serves both dtypes.

The file is a sequence of entries, little-endian: u32 length of the name, the name, u32 rank, u32 per size, then f32 values.
"""

import pathlib
import struct

import torch
import torch.nn.functional as F

torch.manual_seed(20240229)
torch.set_default_dtype(torch.float64)

entries = []


def save(case, **tensors):
    for name, tensor in tensors.items():
        entries.append((f"{case}/{name}", tensor.detach().to(torch.float32).contiguous()))


def values(*shape, limit=127):
    return torch.randint(-limit, limit + 1, shape).to(torch.float64) / 64


def leaf(*shape, **options):
    return values(*shape, **options).requires_grad_()


def backward(*pairs):
    """Gradients of the sum over (output, its gradient)."""
    sum((y * dy).sum() for y, dy in pairs).backward()


def linear():
    for layout in ("in_out", "out_in"):
        for bias in (True, False):
            x, w, b = leaf(5, 19), leaf(19, 9), leaf(9)
            y = x @ w + (b if bias else 0)
            dy = values(5, 9)
            backward((y, dy))
            orient = (lambda t: t) if layout == "in_out" else (lambda t: t.T)
            case = f"linear_{layout}_{'bias' if bias else 'plain'}"
            save(case, x=x, weight=orient(w), y=y, dy=dy, dx=x.grad, dweight=orient(w.grad))
            if bias:
                save(case, bias=b, dbias=b.grad)


def embedding():
    for positions in (True, False):
        tokens = torch.tensor([3, 0, 3, 10, 7, 3, 0, 1, 10, 3])  # two sequences of 5, with repetitions
        table, places = leaf(11, 21), leaf(8, 21)
        x = F.embedding(tokens, table)
        if positions:
            x = x + places[2:7].repeat(2, 1)
        dx = values(10, 21)
        backward((x, dx))
        case = f"embedding_{'positions' if positions else 'plain'}"
        save(case, tokens=tokens, table=table, x=x, dx=dx, dtable=table.grad)
        if positions:
            save(case, places=places, dplaces=places.grad)


def normalize(kind, x, gain, bias):
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], gain, bias, eps=1e-5)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * gain


def norm():
    for kind in ("layer", "rms"):
        x, gain, bias = leaf(35, 33), leaf(33), leaf(33)
        y = normalize(kind, x, gain, bias)
        dy = values(35, 33)
        backward((y, dy))
        save(f"norm_{kind}", x=x, gain=gain, y=y, dy=dy, dx=x.grad, dgain=gain.grad)
        if kind == "layer":
            save(f"norm_{kind}", bias=bias, dbias=bias.grad)

        # Multiples of 1/32 below 2, so that the sum is exact in bf16 as well.
        x = (values(4, 20, limit=31) * 2).requires_grad_()
        branch = (values(4, 20, limit=31) * 2).requires_grad_()
        gain, bias = leaf(20), leaf(20)
        total = x + branch
        y = normalize(kind, total, gain, bias)
        dy, dsum = values(4, 20), values(4, 20)
        backward((y, dy), (total, dsum))
        assert torch.equal(x.grad, branch.grad)
        save(f"add_norm_{kind}", x=x, branch=branch, gain=gain, sum=total, y=y, dy=dy, dsum=dsum, dx=x.grad, dgain=gain.grad)
        if kind == "layer":
            save(f"add_norm_{kind}", bias=bias, dbias=bias.grad)


def attention():
    cases = {  # batch, tokens, heads, key heads, head size
        "mha": (2, 8, 2, 2, 4),
        "gqa": (2, 7, 4, 2, 6),
        "mqa": (1, 13, 3, 1, 5),
        "one_token": (3, 1, 2, 1, 8),
        "two_blocks": (1, 67, 2, 1, 16),
        "three_blocks": (1, 131, 1, 1, 8),
    }
    for name, (batch, tokens, heads, kv_heads, size) in cases.items():
        qkv = leaf(batch * tokens, (heads + 2 * kv_heads) * size)
        q, k, v = qkv.view(batch, tokens, -1, size).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
        group = heads // kv_heads
        y = F.scaled_dot_product_attention(
            q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1), is_causal=True)
        y = y.transpose(1, 2).reshape(batch * tokens, heads * size)
        dy = values(*y.shape)
        backward((y, dy))
        save(f"attention_{name}", shape=torch.tensor([batch, heads, kv_heads]), qkv=qkv, y=y, dy=dy, dqkv=qkv.grad)


def rope():
    sequences, tokens, heads, size, first = 2, 5, 3, 8, 3
    x = leaf(sequences * tokens, heads * size + 7)  # what follows the rotated heads stays as it is
    frequency = 1.0 / 10000.0 ** (torch.arange(0, size, 2).to(torch.float64) / size)
    frequency = frequency.to(torch.float32).to(torch.float64)
    angle = torch.outer(torch.arange(first, first + tokens).to(torch.float64), frequency).repeat(sequences, 1)
    cos, sin = (f(torch.cat([angle, angle], dim=-1))[:, None, :] for f in (torch.cos, torch.sin))
    rotated = x[:, : heads * size].view(-1, heads, size)
    half = torch.cat([-rotated[..., size // 2 :], rotated[..., : size // 2]], dim=-1)
    y = torch.cat([(rotated * cos + half * sin).reshape(len(x), -1), x[:, heads * size :]], dim=-1)
    dy = values(*y.shape)
    backward((y, dy))
    save("rope", x=x, frequency=frequency, y=y, dy=dy, dx=x.grad)


def activations():
    x = torch.cat([values(200), torch.tensor([-30.0, -12.0, -8.0, -5.0, -3.0, 0.0, 3.0, 5.0, 8.0, 12.0, 30.0])])
    x = x.requires_grad_()
    y = F.gelu(x, approximate="tanh")
    dy = values(*x.shape)
    backward((y, dy))
    save("gelu", x=x, y=y, dy=dy, dx=x.grad)

    gate_up = leaf(6, 2 * 35)
    gate, up = gate_up.chunk(2, dim=-1)
    y = F.silu(gate) * up
    dy = values(*y.shape)
    backward((y, dy))
    save("swiglu", x=gate_up, y=y, dy=dy, dx=gate_up.grad)


def loss():
    for layout in ("in_out", "out_in"):
        x, w = leaf(70, 11), leaf(11, 37)
        targets = torch.randint(0, 37, (70,))
        targets[torch.tensor([0, 5, 6, 69])] = -1
        scale = 1 / 64
        total = F.cross_entropy(x @ w, targets, ignore_index=-1, reduction="sum")
        (total * scale).backward()
        orient = (lambda t: t) if layout == "in_out" else (lambda t: t.T)
        save(f"loss_{layout}", x=x, weight=orient(w), targets=targets, scale=torch.tensor([scale]),
             sum=total[None], dx=x.grad, dweight=orient(w.grad))


def adamw():
    w = torch.nn.Parameter(values(37))
    optimizer = torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    save("adamw", start=w)
    for step in range(1, 6):
        w.grad = values(37)
        optimizer.step()
        state = optimizer.state[w]
        save(f"adamw_{step}", gradient=w.grad, weight=w, exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"])


for make in (linear, embedding, norm, attention, rope, activations, loss, adamw):
    make()

with open(pathlib.Path(__file__).with_name("ops.golden"), "wb") as file:
    for name, tensor in entries:
        file.write(struct.pack("<I", len(name)) + name.encode())
        file.write(struct.pack(f"<{tensor.dim() + 1}I", tensor.dim(), *tensor.shape))
        file.write(struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist()))
