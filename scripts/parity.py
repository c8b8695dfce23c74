"""Writes the fixtures of models/tests/parity.rs: what PyTorch says about networks, losses, gradients,
optimizers and schedules, for given weights, noise and times.

    python3 -m venv venv && venv/bin/pip install torch numpy safetensors
    venv/bin/python scripts/parity.py            # rewrites models/tests/fixtures/

Everything here is written from the formulas (Peebles and Xie 2023 for the transformer, Karras et al. 2022 for
EDM, Ho et al. 2020 and Nichol and Dhariwal 2021 for chains); optimizers and schedules are PyTorch's own.
Forward passes and gradients are computed in float64 and stored as float32.
"""
import math
import pathlib

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "models" / "tests" / "fixtures"


def store(name, tensors):
    arrays = {}
    for key, value in tensors.items():
        a = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if a.dtype == np.float64 and not key.startswith("f64."):
            a = a.astype(np.float32)
        if a.dtype == np.int64:
            a = a.astype(np.int32)
        arrays[key] = np.ascontiguousarray(a)
    path = OUT / f"{name}.safetensors"
    save_file(arrays, str(path))
    print(f"{path.name}: {len(arrays)} tensors, {path.stat().st_size} bytes")


# ---------------------------------------------------------------- the transformer


def sinusoids(t, width=256):
    half = width // 2
    freq = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / half)
    angle = t[:, None] * freq[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def positions(height, width, dim):
    """First half of the channels from the column, second from the row."""
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    row, col = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")

    def axis(p):
        a = p.reshape(-1, 1) * omega[None]
        return np.concatenate([np.sin(a), np.cos(a)], axis=1)

    return torch.tensor(np.concatenate([axis(col), axis(row)], axis=1))[None]


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attn(norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(norm(x) * (1 + scale2) + shift2)


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Final(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        return self.linear(norm(x) * (1 + scale) + shift)


class PatchEmbed(nn.Module):
    def __init__(self, channels, dim, p):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, p, stride=p)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        return self.mlp(sinusoids(t))


class LabelEmbed(nn.Module):
    def __init__(self, rows, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, dim)

    def forward(self, y):
        return self.embedding_table(y)


class Dit(nn.Module):
    def __init__(self, size, channels, dim, depth, heads, p, classes, out_channels, ratio):
        super().__init__()
        self.size, self.p, self.out_channels = size, p, out_channels
        h, w = size
        self.pos_embed = nn.Parameter(positions(h // p, w // p, dim), requires_grad=False)
        self.x_embedder = PatchEmbed(channels, dim, p)
        self.t_embedder = TimeEmbed(dim)
        self.y_embedder = LabelEmbed(classes + 1, dim)
        self.blocks = nn.ModuleList([Block(dim, heads, ratio * dim) for _ in range(depth)])
        self.final_layer = Final(dim, p * p * out_channels)

    def forward(self, x, t, y):
        """Pictures come and go as [B, H, W, C]; published weights see [B, C, H, W]."""
        h, w, p = *self.size, self.p
        z = self.x_embedder(x.permute(0, 3, 1, 2)) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            z = block(z, c)
        z = self.final_layer(z, c).reshape(-1, h // p, w // p, p, p, self.out_channels)
        return torch.einsum("nhwpqc->nhpwqc", z).reshape(-1, h, w, self.out_channels)


def dit_fixture():
    torch.manual_seed(1)
    channels, batch = 2, 3
    model = Dit((6, 4), channels, 12, 2, 3, 2, 5, 2 * channels, 2).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "pos_embed":
                # Rounded, so that the float32 file holds exactly what was computed with.
                p.copy_((0.25 * torch.randn_like(p)).float().double())
        model.pos_embed.copy_(model.pos_embed.float().double())
    rand = lambda *shape: torch.randn(*shape, dtype=torch.float64).float().double()
    x0, noise, y = rand(batch, 6, 4, channels), rand(batch, 6, 4, channels), torch.tensor([0, 5, 3])
    out = {f"param.{k}": v for k, v in model.named_parameters()}
    out |= {"x0": x0, "noise": noise, "label": y, "forward.time": torch.tensor([0.1, 0.5, 700.0])}
    out["forward.out"] = model(x0, torch.tensor([0.1, 0.5, 700.0]).double(), y)[..., :channels]

    wide = lambda t: t[:, None, None, None]

    def record(name, time, per_sample):
        model.zero_grad()
        loss = per_sample.mean()
        loss.backward()
        out[f"{name}.time"], out[f"{name}.loss"] = time, loss.reshape(1)
        out[f"{name}.per_sample"] = per_sample
        for k, v in model.named_parameters():
            if v.requires_grad and (name == "sit" or k in ("blocks.0.attn.qkv.weight", "final_layer.linear.bias")):
                out[f"{name}.grad.{k}"] = v.grad.clone()

    mse = lambda a, b: ((a - b) ** 2).mean(dim=(1, 2, 3))
    net = lambda x, t: model(x, t, y)[..., :channels]

    t = torch.tensor([0.15, 0.5, 0.9]).float().double()
    record("sit", t, mse(net((1 - wide(t)) * x0 + wide(t) * noise, t), noise - x0))

    s, sd = torch.tensor([0.02, 0.7, 12.0]).float().double(), 0.5
    xt = x0 + wide(s) * noise
    skip, c_out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    denoised = wide(skip) * xt + wide(c_out) * net(xt / wide((s**2 + sd**2).sqrt()), s.log() / 4)
    record("edm", s, (s**2 + sd**2) / (s * sd) ** 2 * mse(denoised, x0))

    steps = torch.tensor([3, 400, 990])
    bar = torch.tensor(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[steps]
    xt = wide(bar.sqrt()) * x0 + wide((1 - bar).sqrt()) * noise
    record("ddpm", steps.double(), mse(net(xt, steps.double()), noise))
    v = wide(bar.sqrt()) * noise - wide((1 - bar).sqrt()) * x0
    record("ddpm_v", steps.double(), mse(net(xt, steps.double()), v))
    record("ddpm_x0", steps.double(), mse(net(xt, steps.double()), x0))
    store("dit", out)


# ---------------------------------------------------------------- optimizers and averages


def optim_fixture():
    g = np.random.default_rng(2)
    shapes, steps = {"w": (5, 3), "b": (4,)}, 5
    start = {k: g.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    # Of very different sizes from step to step, zeros included, so that the moments matter.
    grads = [{k: (g.normal(size=s) * 10.0 ** g.integers(-4, 2) * (g.random(s) > 0.2)).astype(np.float32)
              for k, s in shapes.items()} for _ in range(steps)]
    out = {f"start.{k}": v for k, v in start.items()}
    out |= {f"grad.{i}.{k}": v for i, gs in enumerate(grads) for k, v in gs.items()}

    def run(name, make, clip=None, ema=None):
        params = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in start.items()}
        opt = make(list(params.values()))
        average = {k: p.detach().clone() for k, p in params.items()}
        for i in range(steps):
            for k, p in params.items():
                p.grad = torch.tensor(grads[i][k], dtype=torch.float64)
            if clip:
                norm = nn.utils.clip_grad_norm_(list(params.values()), clip)
                out[f"{name}.{i}.norm"] = norm.reshape(1)
            opt.step()
            for k, p in params.items():
                out[f"{name}.{i}.{k}"] = p.detach().clone()
                if ema:
                    d = min(ema, (1 + i) / (10 + i))
                    average[k] = d * average[k] + (1 - d) * p.detach()
                    out[f"{name}.{i}.ema.{k}"] = average[k].clone()

    run("adamw", lambda p: torch.optim.AdamW(p, 1e-2, (0.9, 0.999), 1e-8, 0.1), ema=0.15)
    run("adam", lambda p: torch.optim.Adam(p, 1e-2, (0.8, 0.95), 1e-6, 0.1), clip=1.0)
    run("sgd", lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=0.1))
    run("sgd_plain", lambda p: torch.optim.SGD(p, 1e-2), clip=0.5)
    store("optim", out)


# ---------------------------------------------------------------- schedules


def schedule_fixture():
    from torch.optim import lr_scheduler as L

    out, steps = {}, 40

    def trace(name, make):
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        sched, lrs = make(opt), []
        for _ in range(steps):
            lrs.append(opt.param_groups[0]["lr"])
            opt.step()
            sched.step()
        out[f"lr.{name}"] = np.array(lrs)

    trace("constant", lambda o: L.ConstantLR(o, 1.0))
    # CosineAnnealingLR is periodic and LinearLR is not: the last value is held from step 30 on.
    hold = lambda s: min(s, 30)
    trace("cosine", lambda o: L.LambdaLR(o, lambda s: 0.1 + 0.45 * (1 + math.cos(math.pi * hold(s) / 30))))
    trace("linear", lambda o: L.LinearLR(o, 1.0, 0.2, 30))
    trace("step", lambda o: L.StepLR(o, 7, 0.9))
    warm = lambda o: L.LinearLR(o, 1 / 8, 1.0, 7)
    trace("warmup_constant", warm)
    trace("warmup_cosine", lambda o: L.SequentialLR(o, [warm(o), L.CosineAnnealingLR(o, 40)], [8]))

    for name, beta in {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "cosine": np.array([min(1 - (math.cos(((i + 1) / 1000 + 0.008) / 1.008 * math.pi / 2)
                                     / math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2)) ** 2, 0.999)
                            for i in range(1000)]),
        "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    }.items():
        out[f"f64.alpha_bar.{name}"] = np.cumprod(1 - beta)[::37]
    out["f64.time"] = np.array([0.0, 0.5, 0.999, 37.0, 500.0, 999.0])
    out["f64.time_embedding"] = sinusoids(torch.tensor(out["f64.time"]))[:, ::9]
    store("schedules", out)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    dit_fixture()
    optim_fixture()
    schedule_fixture()
