"""The PyTorch worker of compare.py, eager or with the loss compiled (--system torch-compiled)."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import worker

A = worker.arguments()
torch.manual_seed(0)
torch.set_default_device(A.device)
# Products of f32 are of f32, as in the other systems.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.benchmark = True


def wait():
    if A.device == "cuda":
        torch.cuda.synchronize()


def compiled(f):
    return torch.compile(f) if A.system == "torch-compiled" else f


def zero(a, b):
    layer = nn.Linear(a, b)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Mlp(nn.Module):
    def __init__(self, s):
        super().__init__()
        widths = [3] + [s["hidden"]] * s["layers"] + [2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def loss(self, x0, eps, t):
        t = t[:, None]
        h = torch.cat([torch.exp(-t) * x0 + torch.sqrt(1 - torch.exp(-2 * t)) * eps, t], 1)
        for i, layer in enumerate(self.layers):
            h = layer(F.silu(h) if i else h)
        return (h.float() - eps).square().mean()


def modulated(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.ada = heads, zero(dim, 6 * dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, h, condition):
        batch, tokens, dim = h.shape
        m = self.ada(condition)[:, None].chunk(6, -1)
        qkv = self.qkv(modulated(h, m[0], m[1])).view(batch, tokens, 3, self.heads, dim // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        h = h + m[2] * self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return h + m[5] * self.fc2(F.gelu(self.fc1(modulated(h, m[3], m[4])), approximate="tanh"))


class Dit(nn.Module):
    def __init__(self, s):
        super().__init__()
        dim, width = s["dim"], s["patch"] ** 2 * s["chan"]
        self.s, self.patch = s, nn.Linear(width, dim)
        self.t1, self.t2, self.label = nn.Linear(256, dim), nn.Linear(dim, dim), nn.Embedding(s["classes"] + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, s["heads"]) for _ in range(s["depth"]))
        self.fada, self.out = zero(dim, 2 * dim), zero(dim, width)
        self.register_buffer("positions", torch.tensor(worker.positions(s)))
        self.register_buffer("frequencies", torch.tensor(worker.frequencies()))

    def forward(self, x, t, y):
        s, batch = self.s, x.shape[0]
        side, p, chan = s["img"] // s["patch"], s["patch"], s["chan"]
        patches = x.view(batch, side, p, side, p, chan).permute(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)
        angles = 1000 * t[:, None] * self.frequencies
        time = self.t2(F.silu(self.t1(torch.cat([angles.cos(), angles.sin()], 1))))
        condition, h = F.silu(time + self.label(y)), self.patch(patches) + self.positions
        for block in self.blocks:
            h = block(h, condition)
        m = self.fada(condition)[:, None].chunk(2, -1)
        out = self.out(modulated(h, *m)).view(batch, side, side, p, p, chan)
        return out.permute(0, 1, 3, 2, 4, 5).reshape(x.shape)

    def loss(self, x0, eps, t, y):
        tt = t[:, None, None, None]
        return (self((1 - tt) * x0 + tt * eps, t, y).float() - (eps - x0)).square().mean()


def trainer(s):
    model = Mlp(s) if A.workload == "mlp" else Dit(s)
    dims = (s["batch"], 2) if A.workload == "mlp" else (s["batch"], s["img"], s["img"], s["chan"])
    pool, o = torch.randn(worker.POOL, *dims), worker.ADAMW
    optimizer = torch.optim.AdamW(
        model.parameters(), s["lr"], (o["b1"], o["b2"]), o["eps"], o["decay"], fused=True
    )
    loss_of, at = compiled(model.loss), 0

    def draw():
        x0 = pool[at % worker.POOL]
        batch = [x0, torch.randn_like(x0), 0.001 + 0.998 * torch.rand(s["batch"])]
        if A.workload == "dit":
            y = torch.randint(0, s["classes"], (s["batch"],))
            batch.append(torch.where(torch.rand(s["batch"]) < 0.1, s["classes"], y))
        return batch

    def work(n, _):
        nonlocal at
        for _ in range(n):
            with torch.autocast(A.device, torch.float16, enabled=A.half):
                loss = loss_of(*draw())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at += 1
        wait()
        return loss.item()

    return work


def single(key):
    name, sizes, dtype, action = worker.parse(key)
    dtype = dict(f32=torch.float32, f16=torch.float16)[dtype]
    body = dict(
        matmul=torch.matmul,
        softmax=lambda x: F.softmax(x, -1),
        layernorm=lambda x, scale, shift: F.layer_norm(x, scale.shape, scale, shift),
        conv2d=lambda x, w: F.conv2d(x, w, padding=1),
        attention=F.scaled_dot_product_attention,
    )[name]
    inputs = [torch.randn(shape, dtype=dtype) for shape in worker.shapes(name, sizes, channels_last=False)]
    if action == "jvp":
        tangents = [torch.randn_like(x) for x in inputs]

        def differentiated(*args):
            # The fused kernels have no forward derivative.
            with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
                return torch.func.jvp(body, args[: len(inputs)], args[len(inputs) :])

        f, args = compiled(differentiated), (*inputs, *tangents)
        return lambda: f(*args)
    f = compiled(body)
    if action == "f":
        def forward():
            with torch.no_grad():
                return f(*inputs)

        return forward
    inputs = [x.requires_grad_() for x in inputs]
    cotangent = torch.randn_like(body(*inputs))

    def gradients():
        y = f(*inputs)
        return y, torch.autograd.grad(y, inputs, cotangent)

    return gradients


def singles():
    ready = {}

    def work(n, key):
        if key not in ready:
            ready.clear()
            ready[key] = single(key)
        for _ in range(n):
            ready[key]()
        wait()
        return 0.0

    return work


adapter = torch.cuda.get_device_name() if A.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
training = A.workload != "ops"
worker.serve(
    trainer(A.spec) if training else singles(), training, version=f"torch {torch.__version__}", adapter=adapter
)
