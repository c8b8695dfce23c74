#!/usr/bin/env python3
"""Times the same work in dnx, JAX, PyTorch, burn and meganeura, in alternation, and prints medians.

    scripts/compare.py                       mlp, dit and ops on the processor and on one graphics adapter
    scripts/compare.py mlp dit --systems dnx-gpu,burn,meganeura --adapter llvmpipe
    scripts/compare.py --gpu                 large products, DiT-B/2, DiT-XL/2, attention, on a real GPU
    scripts/compare.py --gpu --small         the same list at sizes that software Vulkan manages

One command does everything: what a system needs is installed or built under --folder when it is missing (JAX and
PyTorch from PyPI at pinned versions, burn and meganeura from crates.io at the versions of their lock files, dnx from
this repository), every system's worker is started and makes its first run, and then they take turns: a few seconds
each, in another order every round, while the others are stopped (SIGSTOP). A worker that fails is named with the last
line it wrote to stderr, a system that cannot do a piece of work with the reason, and the others go on.

A worker is a process that is told its work on the command line, prints {"ready": 1, ...} as one line of JSON after
its first run, and then answers each line `run N [KEY]` with {"ms": total, "n": N, "loss": x}, the device waited for.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGES = ["jax==0.10.2", "torch==2.15.0", "numpy==2.4.6"]
TIMEOUT = 1800  # seconds for one answer; software Vulkan compiles for minutes


# ---- workloads


@dataclasses.dataclass
class Work:
    """What is timed: a training step (`mlp`, `dit`) of these sizes, or single operations, each by its key."""

    name: str
    kind: str
    spec: dict
    keys: tuple = ("",)
    half: bool = False
    large: bool = False  # workers do not fit beside each other: they are started anew in each round

    def flops(self, key):
        """Of the matrix products alone; a gradient costs twice its product. None where there are none."""
        if self.kind == "ops":
            return operation_flops(key)
        return 3 * (mlp_flops if self.kind == "mlp" else dit_flops)(self.spec)


def mlp_flops(s):
    w = [3] + [s["hidden"]] * s["layers"] + [2]
    return 2 * s["batch"] * sum(a * b for a, b in zip(w, w[1:]))


def dit_flops(s):
    d, tokens, patch = s["dim"], (s["img"] // s["patch"]) ** 2, s["patch"] ** 2 * s["chan"]
    block = tokens * 24 * d * d + 4 * tokens * tokens * d + 12 * d * d
    return s["batch"] * (s["depth"] * block + 4 * tokens * patch * d + 2 * (256 * d + d * d) + 4 * d * d)


def operation_flops(key):
    body, action = key.split(".")
    name, sizes, _ = body.split(":")
    n = [int(s) for s in sizes.split("x")]
    forward = {
        "matmul": lambda: 2 * n[0] * n[1] * n[2],
        "conv2d": lambda: 18 * n[0] * n[1] ** 2 * n[2] ** 2,
        "attention": lambda: 4 * n[0] * n[1] * n[2] ** 2 * n[3],
    }.get(name)
    return forward and forward() * {"f": 1, "fb": 3, "jvp": 3}[action]


def dit(img, chan, patch, dim, depth, heads, classes, batch):
    names = "img chan patch dim depth heads classes batch".split()
    return dict(zip(names, (img, chan, patch, dim, depth, heads, classes, batch)), lr=1e-4)


def workloads(gpu, small):
    """By name, in the order of the tables."""
    if gpu:
        side, heads = (256, "1x2x{t}x64") if small else (4096, "{b}x16x{t}x64")
        products = tuple(f"matmul:{side}x{side}x{side}:{d}.f" for d in ("f32", "f16"))
        shapes = [heads.format(b=16384 // t, t=t) for t in ((16, 64, 256) if small else (256, 1024, 4096))]
        attention = tuple(f"attention:{s}:{d}.{a}" for d in ("f32", "f16") for s in shapes for a in ("f", "fb", "jvp"))
        b2, xl2 = dit(32, 4, 2, 768, 12, 12, 1000, 64), dit(32, 4, 2, 1152, 28, 16, 1000, 64)
        if small:
            b2, xl2 = dit(8, 4, 2, 48, 2, 3, 10, 4), dit(8, 4, 2, 64, 3, 4, 10, 4)
        return [
            Work("matmul", "ops", {}, products),
            Work("dit-b2", "dit", b2, large=not small),
            Work("dit-b2-half", "dit", b2, half=True, large=not small),
            Work("dit-xl2", "dit", xl2, large=not small),
            Work("dit-xl2-half", "dit", xl2, half=True, large=not small),
            Work("attention", "ops", {}, attention),
        ]
    sizes = dict(matmul="1024x1024x1024", conv2d="16x32x64", softmax="4096x1024", layernorm="4096x1024",
                 attention="4x6x256x64")
    mlp = dict(hidden=256, layers=4, batch=512, lr=1e-3)
    tiny = dit(32, 3, 4, 192, 6, 3, 10, 32)
    if small:
        sizes = dict(matmul="64x64x64", conv2d="2x8x8", softmax="64x64", layernorm="64x64", attention="1x2x16x8")
        mlp, tiny = dict(mlp, hidden=32, layers=2, batch=16), dit(8, 4, 2, 32, 2, 2, 10, 2)
    operations = tuple(f"{name}:{s}:f32.{a}" for name, s in sizes.items() for a in ("f", "fb"))
    return [Work("mlp", "mlp", mlp), Work("dit", "dit", tiny), Work("ops", "ops", {}, operations)]


# ---- systems


class Absent(Exception):
    """Why a system cannot be timed here."""


class Machine:
    """Installs and builds, once each."""

    def __init__(self, args):
        self.args, self.folder = args, pathlib.Path(args.folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made = {}

    def once(self, name, make):
        """The result of `make`, or the reason why there is none, remembered."""
        if name not in self.made:
            try:
                self.made[name] = make()
            except (Absent, OSError, subprocess.SubprocessError) as error:
                self.made[name] = error if isinstance(error, Absent) else Absent(f"{name}: {error}")
        if isinstance(self.made[name], Absent):
            raise self.made[name]
        return self.made[name]

    def run(self, what, command, **more):
        print(f"{what}: {' '.join(map(str, command))}", flush=True)
        log = self.folder / f"{what}.log"
        with open(log, "w") as out:
            status = subprocess.run(command, stdout=out, stderr=out, **more).returncode
        if status:
            raise Absent(f"{what} failed: {last_line(log)}")

    def python(self):
        if self.args.python:
            return self.args.python
        python = self.folder / "venv" / "bin" / "python"
        if not python.exists():
            self.run("venv", [sys.executable, "-m", "venv", self.folder / "venv"])
        # Without effect where the pinned versions are there already.
        packages = [p.replace("jax=", "jax[cuda12]=") for p in PACKAGES] if self.args.gpu else PACKAGES
        self.run("pip", [python, "-m", "pip", "install", "--quiet", *packages])
        return str(python)

    def cargo(self, name, folder, *command):
        if not shutil.which("cargo"):
            raise Absent("cargo is not installed")
        target = self.folder / name
        nice = ["nice", "-n", "10"] if shutil.which("nice") else []
        env = dict(os.environ, CARGO_TARGET_DIR=str(target), CARGO_BUILD_JOBS=str(self.args.jobs))
        self.run(f"build-{name}", [*nice, "cargo", "build", "--release", "--locked", *command], cwd=folder, env=env)
        return target / "release"

    def dnx(self):
        if self.args.dnx:
            return self.args.dnx
        return self.cargo("dnx", ROOT, "-p", "dnx", "--example", "bench_worker") / "examples" / "bench_worker"

    def burn(self):
        return self.cargo("burn", HERE / "compare" / "burn") / "compare-burn"

    def meganeura(self):
        return self.cargo("meganeura", HERE / "compare" / "meganeura") / "compare-meganeura"

    def has_cuda(self, test):
        done = subprocess.run([self.once("python", self.python), "-c", test], capture_output=True, text=True)
        return done.returncode == 0 and done.stdout.strip() == "True"


def dnx(device):
    def command(machine, work):
        where = machine.args.adapter if device == "gpu" else device
        half = ["--precision", "f16"] if work.half else []
        spec = ["--spec", json.dumps(work.spec)] if work.spec else []
        return [machine.once("dnx", machine.dnx), work.kind, "--device", where, *half, *spec]

    return command


def python(script, cuda, *flags):
    def command(machine, work):
        half, device = ["--half"] if work.half else [], ["--device", "cuda" if machine.args.gpu else "cpu"]
        if machine.args.gpu and not machine.once(f"cuda for {script}", lambda: machine.has_cuda(cuda)):
            raise Absent("its installation sees no CUDA device")
        path = HERE / "compare" / f"{script}_worker.py"
        return [machine.once("python", machine.python), path, work.kind, json.dumps(work.spec), *device, *half, *flags]

    return command


def crate(name):
    def command(machine, work):
        return [machine.once(name, getattr(machine, name)), work.kind, json.dumps(work.spec)]

    return command


JAX_CUDA = "import jax; print(any(d.platform == 'gpu' for d in jax.devices()))"
TORCH_CUDA = "import torch; print(torch.cuda.is_available())"
SYSTEMS = {
    "dnx-cpu": dnx("cpu"),
    "dnx-gpu": dnx("gpu"),
    "jax": python("jax", JAX_CUDA),
    "torch": python("torch", TORCH_CUDA),
    "torch-compiled": python("torch", TORCH_CUDA, "--system", "torch-compiled"),
    "burn": crate("burn"),
    "meganeura": crate("meganeura"),
}


def refusal(system, work, key):
    """Why a system does not do a piece of work, if it does not."""
    if system == "meganeura" and work.kind != "mlp":
        return "its worker has the perceptron alone: its attention has no batch"
    if system == "burn" and (work.half or ":f16." in key):
        return "its worker is written in f32"
    if system == "burn" and key.endswith(".jvp"):
        return "it has no forward derivative"
    return None


# ---- workers


def last_line(path):
    lines = [line.strip() for line in open(path, errors="replace") if line.strip()]
    # A panic says what is wrong before it tells how to see more.
    lines = [line for line in lines if not line.startswith(("note:", "XDG_RUNTIME_DIR", "error: XDG_RUNTIME_DIR"))]
    return lines[-1] if lines else "it wrote nothing to stderr"


class Failed(Exception):
    """A worker ended, or did not answer."""


class Worker:
    """A process that is stopped except while it works."""

    def __init__(self, machine, system, work):
        command = [str(part) for part in SYSTEMS[system](machine, work)]
        self.command, self.system = command, system
        home = machine.folder / "run" / system
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / f"{work.name}.log"
        # Caches of compiled kernels are each system's own, and kept. Errors end with what is wrong.
        env = dict(os.environ, RUST_BACKTRACE="0", JAX_TRACEBACK_FILTERING="off", XDG_CACHE_HOME=str(home),
                   MESA_SHADER_CACHE_DIR=str(home / "mesa"), TORCHINDUCTOR_CACHE_DIR=str(home / "inductor"),
                   TRITON_CACHE_DIR=str(home / "triton"))
        if machine.args.icd:
            env |= dict(VK_ICD_FILENAMES=machine.args.icd, VK_DRIVER_FILES=machine.args.icd)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, cwd=home, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            self.about = self.answer()
        except Failed:
            self.end()
            raise
        self.stop()

    def answer(self):
        end = time.monotonic() + TIMEOUT
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Failed(f"no answer in {TIMEOUT} s")
            line = self.process.stdout.readline()
            if not line:
                raise Failed(f"ended with {self.process.wait()}: {last_line(self.log)}")
            if line.startswith("{"):
                return json.loads(line)

    def stop(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def run(self, n, key):
        """One burst of n runs: milliseconds a run, and the share of the processor that others used meanwhile."""
        os.kill(self.process.pid, signal.SIGCONT)
        before, own, began = busy(), self.ticks(), time.monotonic()
        try:
            self.process.stdin.write(f"run {n} {key}\n")
            self.process.stdin.flush()
        except OSError:
            raise Failed(f"ended with {self.process.wait()}: {last_line(self.log)}") from None
        done = self.answer()
        wall = max(1e-3, time.monotonic() - began) * os.sysconf("SC_CLK_TCK") * os.cpu_count()
        others = max(0.0, (busy() - before) - (self.ticks() - own)) / wall
        self.stop()
        return dict(ms=done["ms"] / n, n=n, loss=done["loss"], others=min(1.0, others))

    def ticks(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def memory_mb(self):
        lines = open(f"/proc/{self.process.pid}/status").read().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)

    def end(self):
        self.process.kill()
        self.process.wait()


def busy():
    """Ticks that all processors worked, for anyone."""
    f = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    return f[0] + f[1] + f[2] + f[5] + f[6] + f[7]


# ---- timing


def calibrated(worker, key, seconds):
    """Runs in a burst of about so many seconds."""
    worker.run(1, key)
    one = worker.run(1, key)["ms"]
    if one * 4 < seconds * 1e3:
        one = worker.run(3, key)["ms"]
    return max(1, int(seconds * 1e3 / max(one, 1e-3)))


def side_by_side(machine, work, systems, args, report):
    """Every worker is there at once; for each key they take turns."""
    workers, gone = {}, set()
    try:
        for key in work.keys:
            bursts, n = {}, {}
            for system in systems:
                if reason := refusal(system, work, key):
                    report.absent(work, key, system, reason)
                    continue
                start = lambda: workers.update({system: Worker(machine, system, work)})
                # One that failed at another key is started again; one that did not start is not.
                if system in gone or (system not in workers and not attempt(report, system, work, key, start)):
                    gone.add(system)
                    continue
                size = lambda: n.update({system: calibrated(workers[system], key, args.seconds)})
                if not attempt(report, system, work, key, size):
                    workers.pop(system).end()
            order = list(n)
            for turn in range(args.rounds):
                for system in order[turn % max(1, len(order)) :] + order[: turn % max(1, len(order))]:
                    if system not in workers:
                        continue
                    burst = lambda: bursts.setdefault(system, []).append(workers[system].run(n[system], key))
                    if not attempt(report, system, work, key, burst):
                        workers.pop(system).end()
            done = {system: (all_, workers[system]) for system, all_ in bursts.items() if system in workers}
            report.rows(work, key, {s: (b, w.about, w.command, w.memory_mb()) for s, (b, w) in done.items()})
    finally:
        for worker in workers.values():
            worker.end()


def one_at_a_time(machine, work, systems, args, report):
    """Workers that do not fit beside each other: each round starts them in turn."""
    bursts, about, left = {}, {}, list(systems)
    for turn in range(args.rounds):
        for system in left[turn % max(1, len(left)) :] + left[: turn % max(1, len(left))]:
            def visit():
                worker = Worker(machine, system, work)
                try:
                    n = calibrated(worker, "", args.seconds)
                    bursts.setdefault(system, []).append(worker.run(n, ""))
                    about[system] = (worker.about, worker.command, worker.memory_mb())
                finally:
                    worker.end()

            if not attempt(report, system, work, "", visit):
                left.remove(system)
    report.rows(work, "", {s: (bursts[s], *about[s]) for s in systems if s in left and s in bursts})


def attempt(report, system, work, key, action):
    """Whether it went well; otherwise the report says what did not."""
    try:
        action()
        return True
    except (Absent, Failed, OSError) as error:
        report.absent(work, key, system, str(error))
        return False
    except (KeyError, ValueError) as error:
        report.absent(work, key, system, f"its answer is not of the protocol: {error}")
        return False


class Report:
    """Rows for people and for programs."""

    def __init__(self, reference):
        self.reference, self.results, self.missing = reference, [], []

    def absent(self, work, key, system, reason):
        self.missing.append(dict(workload=work.name, key=key, system=system, reason=reason))
        print(f"  {work.name} {key} {system}: not timed: {reason}", flush=True)

    def rows(self, work, key, measured):
        """`measured`: by system its bursts, what it said of itself, its command, its memory."""
        if not measured:
            return
        base = next((s for s in self.reference if s in measured), None)
        print(f"\n{work.name} {key}")
        print(f"  {'':16}{'median ms':>11}{'least':>11}{'greatest':>11}{'GF/s':>9}{'ratio':>8}"
              f"{'(least, greatest)':>20}{'MB':>8}{'others':>8}")
        for system, (bursts, about, command, memory) in measured.items():
            ms = [b["ms"] for b in bursts]
            row = dict(workload=work.name, key=key, system=system, median_ms=statistics.median(ms), min_ms=min(ms),
                       max_ms=max(ms), memory_mb=memory, bursts=bursts, command=command, about=about, spec=work.spec,
                       half=work.half)
            flops = work.flops(key)
            row["gflop_per_s"] = flops / row["median_ms"] / 1e6 if flops else None
            # Rounds are paired: what disturbs one burst is likely to disturb its neighbours.
            ratios = [b["ms"] / a["ms"] for a, b in zip(measured[base][0], bursts)] if base else []
            if ratios:
                row["ratio"] = dict(to=base, median=statistics.median(ratios), min=min(ratios), max=max(ratios))
            self.results.append(row)
            rate = f"{row['gflop_per_s']:9.1f}" if flops else f"{'':9}"
            ratio = f"{row['ratio']['median']:7.2f}x" if ratios else f"{'':8}"
            spread = f"({min(ratios):.2f}, {max(ratios):.2f})" if ratios else ""
            others = statistics.mean(b["others"] for b in bursts)
            print(f"  {system:16}{row['median_ms']:11.3f}{row['min_ms']:11.3f}{row['max_ms']:11.3f}{rate}{ratio}"
                  f"{spread:>20}{memory:8.0f}{others:8.0%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help="mlp dit ops; with --gpu matmul dit-b2 dit-b2-half dit-xl2 "
                        "dit-xl2-half attention; all of them without")
    parser.add_argument("--systems", help=f"of {','.join(SYSTEMS)}; all without, with --gpu all but dnx-cpu")
    parser.add_argument("--gpu", action="store_true", help="the large workloads; JAX and PyTorch on CUDA")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--adapter", default="gpu", help="dnx-gpu's --device: gpu, gpu:1, part of a name (llvmpipe)")
    parser.add_argument("--icd", help="the Vulkan driver's JSON file, for every worker: all see one adapter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one burst")
    parser.add_argument("--folder", default=str(pathlib.Path.home() / ".cache" / "dnx-compare"))
    parser.add_argument("--python", help="an interpreter with JAX and PyTorch, instead of installing them")
    parser.add_argument("--dnx", help="a bench_worker, instead of building it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of cargo")
    parser.add_argument("--setup", action="store_true", help="installs and builds, and stops")
    parser.add_argument("--json", help="writes versions, adapters, commands and every burst")
    args = parser.parse_args()
    known = workloads(args.gpu, args.small)
    chosen = [w for w in known if not args.workloads or w.name in args.workloads]
    default = [s for s in SYSTEMS if not (args.gpu and s == "dnx-cpu")]
    systems = args.systems.split(",") if args.systems else default
    for name, there in [(w, [k.name for k in known]) for w in args.workloads] + [(s, SYSTEMS) for s in systems]:
        if name not in there:
            parser.error(f"no {name}; there are {', '.join(there)}")
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds are positive")
    machine = Machine(args)
    if args.setup:
        parts = {"jax": "python", "torch": "python"}
        for name in dict.fromkeys(parts.get(part, part) for part in (s.split("-")[0] for s in systems)):
            try:
                print(f"{name}: {machine.once(name, getattr(machine, name))}")
            except Absent as error:
                print(f"{name}: absent: {error}")
        return
    report = Report([s for s in ("dnx-gpu", "dnx-cpu") if s in systems])
    for work in chosen:
        able = []
        for system in systems:
            # What a system refuses of every key it is not started for.
            reasons = [refusal(system, work, key) for key in work.keys]
            if all(reasons):
                report.absent(work, "", system, reasons[0])
            else:
                able.append(system)
        (one_at_a_time if work.large else side_by_side)(machine, work, able, args, report)
    if args.json:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        model = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
        processor = model[0].split(":")[1].strip() if model else ""
        value = dict(time=time.strftime("%F %T"), commit=commit, processor=processor, cores=os.cpu_count(),
                     load=os.getloadavg(), arguments=sys.argv[1:], rounds=args.rounds, seconds=args.seconds,
                     results=report.results, not_timed=report.missing)
        pathlib.Path(args.json).write_text(json.dumps(value, indent=1) + "\n")
        print(f"\nwritten: {args.json}")


if __name__ == "__main__":
    main()
