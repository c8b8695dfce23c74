"""The JAX worker of compare.py: one jitted step on a dict of arrays, the state donated. Linear layers see
[batch * tokens, features]; XLA's cpu backend is slower on three dims."""
import os

import worker

A = worker.arguments()
if A.device == "cpu":
    os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"

import jax
import jax.numpy as jnp



def precise(half):
    """Products of f32 are of f32, as in the other systems; those of f16 are left to the compiler."""
    jax.config.update("jax_default_matmul_precision", "default" if half else "float32")


precise(A.half)
HALF = jnp.float16 if A.half else jnp.float32
# cuDNN's fused attention takes 16 bits only.
FUSED = "cudnn" if A.device == "cuda" else None


def linear(p, name, x):
    """Products in HALF, sums and results as the compiler likes them."""
    w, b = p[name + ".w"], p[name + ".b"]
    flat = x.reshape(-1, x.shape[-1]).astype(HALF) @ w.astype(HALF) + b.astype(HALF)
    return flat.reshape(*x.shape[:-1], -1)


def attention(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation=FUSED if q.dtype == jnp.float16 else None)


def widths(s):
    return [3] + [s["hidden"]] * s["layers"] + [2]


def layers(s):
    """Names of linear layers with their widths; a zero is a layer that starts at zero."""
    if A.workload == "mlp":
        w = widths(s)
        return [(f"l{i}", a, b, 1) for i, (a, b) in enumerate(zip(w, w[1:]))]
    d, p = s["dim"], s["patch"] ** 2 * s["chan"]
    block = [("ada", d, 6 * d, 0), ("qkv", d, 3 * d, 1), ("proj", d, d, 1), ("fc1", d, 4 * d, 1), ("fc2", 4 * d, d, 1)]
    blocks = [(f"b{i}.{name}", *rest) for i in range(s["depth"]) for name, *rest in block]
    return [("patch", p, d, 1), ("t1", 256, d, 1), ("t2", d, d, 1), *blocks, ("fada", d, 2 * d, 0), ("out", d, p, 0)]


def parameters(s):
    p, key = {}, jax.random.key(0)
    for i, (name, a, b, scale) in enumerate(layers(s)):
        p[name + ".w"] = scale * a**-0.5 * jax.random.normal(jax.random.fold_in(key, i), (a, b))
        p[name + ".b"] = jnp.zeros(b)
    if A.workload == "dit":
        p["label"] = 0.02 * jax.random.normal(key, (s["classes"] + 1, s["dim"]))
    return p


def mlp_loss(s, p, x0, eps, t):
    t = t[:, None]
    h = jnp.concatenate([jnp.exp(-t) * x0 + jnp.sqrt(1 - jnp.exp(-2 * t)) * eps, t], 1)
    for i in range(s["layers"] + 1):
        h = linear(p, f"l{i}", jax.nn.silu(h) if i else h)
    return jnp.mean((h.astype(jnp.float32) - eps) ** 2)


def modulated(x, shift, scale):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


def dit(s, p, x, t, y):
    side, patch, chan, dim = s["img"] // s["patch"], s["patch"], s["chan"], s["dim"]
    batch, tokens = x.shape[0], side * side
    patches = x.reshape(batch, side, patch, side, patch, chan).transpose(0, 1, 3, 2, 4, 5).reshape(batch, tokens, -1)
    angles = 1000 * t[:, None] * worker.frequencies()
    time = linear(p, "t1", jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], 1))
    condition = jax.nn.silu(linear(p, "t2", jax.nn.silu(time)).astype(jnp.float32) + p["label"][y])
    h = linear(p, "patch", patches).astype(jnp.float32) + worker.positions(s)  # the residual stream is f32
    for i in range(s["depth"]):
        m = jnp.split(linear(p, f"b{i}.ada", condition)[:, None], 6, -1)
        qkv = linear(p, f"b{i}.qkv", modulated(h, m[0], m[1])).reshape(batch, tokens, 3, s["heads"], -1)
        mixed = attention(*(qkv[:, :, j] for j in range(3))).reshape(batch, tokens, dim)
        h = h + m[2] * linear(p, f"b{i}.proj", mixed)
        hidden = linear(p, f"b{i}.fc1", modulated(h, m[3], m[4]))
        h = h + m[5] * linear(p, f"b{i}.fc2", jax.nn.gelu(hidden, approximate=True))
    m = jnp.split(linear(p, "fada", condition)[:, None], 2, -1)
    out = linear(p, "out", modulated(h, *m)).reshape(batch, side, side, patch, patch, chan)
    return out.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def dit_loss(s, p, x0, eps, t, y):
    tt = t[:, None, None, None]
    return jnp.mean((dit(s, p, (1 - tt) * x0 + tt * eps, t, y).astype(jnp.float32) - (eps - x0)) ** 2)


def trainer(s):
    dims = (s["batch"], 2) if A.workload == "mlp" else (s["batch"], s["img"], s["img"], s["chan"])
    pool, o = jax.random.normal(jax.random.key(1), (worker.POOL, *dims)), worker.ADAMW

    def step(p, m, v, count):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(2), count), 4)
        x0 = pool[count % worker.POOL]
        t = jax.random.uniform(keys[1], dims[:1], minval=0.001, maxval=0.999)
        batch = [x0, jax.random.normal(keys[0], dims), t]
        if A.workload == "dit":
            y = jax.random.randint(keys[2], dims[:1], 0, s["classes"])
            batch.append(jnp.where(jax.random.uniform(keys[3], dims[:1]) < 0.1, s["classes"], y))
        loss = mlp_loss if A.workload == "mlp" else dit_loss
        value, g = jax.value_and_grad(lambda p: loss(s, p, *batch))(p)
        count = count + 1
        m = jax.tree.map(lambda m, g: o["b1"] * m + (1 - o["b1"]) * g, m, g)
        v = jax.tree.map(lambda v, g: o["b2"] * v + (1 - o["b2"]) * g * g, v, g)
        c1, c2 = 1 - o["b1"] ** count, 1 - o["b2"] ** count

        def update(p, m, v):
            return p * (1 - s["lr"] * o["decay"]) - s["lr"] * (m / c1) / (jnp.sqrt(v / c2) + o["eps"])

        return (jax.tree.map(update, p, m, v), m, v, count), value

    p = parameters(s)
    state = (p, jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p), jnp.int32(0))
    # The small network's steps run as one program: calling one takes as long as much of its work. The transformer's
    # would take a minute to compile that way, and run no quicker.
    many = lambda n, state: jax.lax.fori_loop(0, n, lambda _, both: step(*both[0]), (state, jnp.float32(0)))
    looped = jax.jit(many, donate_argnums=1)
    once = jax.jit(step, donate_argnums=(0, 1, 2, 3))

    def work(n, _):
        nonlocal state
        if A.workload == "mlp":
            state, loss = looped(n, state)
        else:
            for _ in range(n):
                state, loss = once(*state)
        jax.block_until_ready(state)
        return float(loss)

    return work


def layer_norm(x, scale, shift):
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift).astype(x.dtype)


def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def single(key):
    name, sizes, dtype, action = worker.parse(key)
    bodies = dict(matmul=jnp.matmul, softmax=jax.nn.softmax, layernorm=layer_norm, conv2d=conv, attention=attention)
    precise(dtype == "f16")
    body, dtype = bodies[name], dict(f32=jnp.float32, f16=jnp.float16)[dtype]
    if name == "attention" and action == "jvp":
        # The fused kernels have no forward derivative.
        body = jax.nn.dot_product_attention
    draw = lambda i, shape: jax.random.normal(jax.random.fold_in(jax.random.key(3), i), shape, dtype)
    inputs = [draw(i, shape) for i, shape in enumerate(worker.shapes(name, sizes, channels_last=True))]
    match action:
        case "f":
            f, args = body, inputs
        case "fb":
            def f(cotangent, *inputs):
                y, pull = jax.vjp(body, *inputs)
                return y, pull(cotangent)

            args = [draw(9, jax.eval_shape(body, *inputs).shape), *inputs]
        case "jvp":
            def f(*args):
                return jax.jvp(body, args[: len(inputs)], args[len(inputs) :])

            args = [*inputs, *(draw(10 + i, x.shape) for i, x in enumerate(inputs))]
    jitted = jax.jit(f)
    return lambda: jitted(*args)


def singles():
    ready = {}

    def work(n, key):
        if key not in ready:
            ready.clear()
            ready[key] = single(key)
        for _ in range(n):
            result = ready[key]()
            if A.device == "cpu":
                jax.block_until_ready(result)
        jax.block_until_ready(result)
        return 0.0

    return work


device = jax.devices()[0]
training = A.workload != "ops"
worker.serve(
    trainer(A.spec) if training else singles(),
    training,
    version=f"jax {jax.__version__}",
    adapter=f"{device.platform}: {device.device_kind}",
)
