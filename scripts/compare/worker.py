"""What the workers of JAX and PyTorch share: their command line, the protocol and tables.

    WORKER WORKLOAD [SPEC] [--system NAME] [--device cpu|cuda] [--half]

WORKLOAD is mlp, dit or ops, SPEC its sizes as JSON. The protocol is described in ../compare.py."""
import argparse
import json
import math
import sys
import time

import numpy as np

POOL = 8  # batches that training steps take turns with
ADAMW = dict(b1=0.9, b2=0.999, eps=1e-8, decay=0.01)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=["mlp", "dit", "ops"])
    parser.add_argument("spec", nargs="?", default="{}", type=json.loads)
    parser.add_argument("--system", default="")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--half", action="store_true")
    return parser.parse_args()


def positions(spec):
    """Sines and cosines of the row, then of the column: [tokens, dim]."""
    side, quarter = spec["img"] // spec["patch"], spec["dim"] // 4
    frequency = 1.0 / 10000 ** (np.arange(quarter) / quarter)
    row, column = (p.reshape(-1, 1) * frequency for p in np.mgrid[:side, :side])
    return np.concatenate([f(a) for a in (row, column) for f in (np.sin, np.cos)], 1).astype(np.float32)


def frequencies():
    return np.exp(-math.log(10000) * np.arange(128) / 128).astype(np.float32)


def parse(key):
    """`NAME:SIZES:DTYPE.PASS` of an operation."""
    body, action = key.split(".")
    name, sizes, dtype = body.split(":")
    return name, [int(s) for s in sizes.split("x")], dtype, action


def shapes(name, sizes, channels_last):
    """Shapes of an operation's inputs; of pictures and heads in the order that the system prefers."""
    match name, sizes:
        case "matmul", [m, k, n]:
            return [(m, k), (k, n)]
        case "softmax", [r, c]:
            return [(r, c)]
        case "layernorm", [r, c]:
            return [(r, c), (c,), (c,)]
        case "conv2d", [b, s, c]:
            return [(b, s, s, c), (3, 3, c, c)] if channels_last else [(b, c, s, s), (c, c, 3, 3)]
        case "attention", [b, h, t, d]:
            return [(b, t, h, d) if channels_last else (b, h, t, d)] * 3
    raise SystemExit(f"no operation {name} of {len(sizes)} sizes")


def say(**fields):
    print(json.dumps(fields), flush=True)


def serve(work, warm, **about):
    """Answers requests. `work(n, key)` does n runs, waits for the device and gives the last loss."""
    began = time.perf_counter()
    loss = work(1, "") if warm else 0.0
    say(ready=1, first_step_s=time.perf_counter() - began, loss=loss, **about)
    for line in sys.stdin:
        words = line.split()
        if not words or words[0] != "run":
            break
        n, key = int(words[1]), words[2] if len(words) > 2 else ""
        began = time.perf_counter()
        loss = work(n, key)
        say(ms=(time.perf_counter() - began) * 1e3, n=n, loss=loss)
