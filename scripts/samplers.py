"""Writes models/tests/fixtures/samplers.json: what the schedulers of diffusers make of one start, one law and one
noise, which models/tests/schedulers.rs holds our samplers to.

    python3 -m venv venv && venv/bin/pip install torch scipy torchsde diffusers==0.35.1
    venv/bin/python scripts/samplers.py

The network is the exact denoiser of a mixture of two Gaussians. Noise is drawn here and recorded; schedulers get it
through `randn_tensor`. A case holds the levels (time, alpha, sigma), the start, the noise and states by level, all of
x = alpha x0 + sigma n; schedulers that hold x / alpha are converted.
"""
import importlib
import json
import math
import pathlib

import numpy as np
import torch
import diffusers

OUT = pathlib.Path(__file__).resolve().parent.parent / "models" / "tests" / "fixtures" / "samplers.json"
MEANS, STDS, WEIGHTS = [[0.6, -0.2], [-0.7, 0.5]], [0.3, 0.45], [0.6, 0.4]
CASES = []


def denoise(x, alpha, sigma):
    """Expected data of the state x."""
    x = np.asarray(x, dtype=np.float64).reshape(-1)
    logs, means = [], []
    for m, s, w in zip(MEANS, STDS, WEIGHTS):
        var = (alpha * s) ** 2 + sigma**2
        d = x - alpha * np.array(m)
        logs.append(math.log(w) - 0.5 * d @ d / var - 0.5 * len(x) * math.log(var))
        means.append(np.array(m) + alpha * s * s / var * d)
    p = np.exp(np.array(logs) - max(logs))
    return (p / p.sum()) @ np.array(means)


class Draws:
    """Recorded noise, handed out by whatever asks a scheduler's module for some."""

    def __init__(self, seed):
        self.random, self.drawn = np.random.default_rng(seed), []

    def next(self, *_, **__):
        z = self.random.standard_normal(2)
        self.drawn.append(z)
        return torch.tensor(z).reshape(1, 2)

    def patch(self, scheduler):
        module = importlib.import_module(type(scheduler).__module__)
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = self.next
        if hasattr(module, "BrownianTreeNoiseSampler"):
            module.BrownianTreeNoiseSampler = lambda *_, **__: BrownianPath(self)


class BrownianPath:
    """Increments of a Brownian path over sigma, divided by their deviation: first to a point within a step, then over
    the whole step. What comes after the point is a draw of its own."""

    def __init__(self, draws):
        self.draws, self.start = draws, None

    def __call__(self, start, end):
        start, end = float(start), float(end)
        if start != self.start:
            self.start, self.point = start, end
            self.parts = [self.draws.next(), self.draws.next()]
            return self.parts[0]
        share = (start - self.point) / (start - end)
        return math.sqrt(share) * self.parts[0] + math.sqrt(1.0 - share) * self.parts[1]


def tensor(x):
    return torch.tensor(np.asarray(x, dtype=np.float64)).reshape(1, 2)


def vp(sigma):
    """alpha and sigma of a variance-preserving state whose ratio is sigma."""
    alpha = 1.0 / math.sqrt(1.0 + sigma * sigma)
    return alpha, sigma * alpha


def emit(name, config, levels, start, states, draws, path="chain"):
    """levels: (time, alpha, sigma); states: {level index: x}."""
    CASES.append(
        dict(
            name=name,
            path=path,
            config=config,
            levels=[[float(v) for v in level] for level in levels],
            start=[float(v) for v in np.asarray(start).reshape(-1)],
            states=[[int(i), [float(v) for v in np.asarray(x).reshape(-1)]] for i, x in states.items()],
            noise=[[float(v) for v in z] for z in draws.drawn],
        )
    )


def by_sigma(name, config, scheduler, steps, holds_ratio, seed=0, noise_at_start=False):
    """Schedulers with a list of sigmas = sigma / alpha. `holds_ratio`: their state is x / alpha. Those of two
    evaluations a step are recorded at the end alone."""
    scheduler.set_timesteps(steps)
    draws = Draws(seed)
    draws.patch(scheduler)
    sigmas = [float(s) for s in scheduler.sigmas]
    single = len(scheduler.timesteps) == steps
    if not single:
        sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s != sigmas[i - 1]]
    levels = [(0.0, *vp(s)) for s in sigmas]
    alpha, sigma = vp(sigmas[0])
    start = sigma * np.array([0.8, -1.1]) + alpha * np.array([0.3, 0.1])
    x = tensor(start / alpha if holds_ratio else start)
    states = {}
    for i, t in enumerate(scheduler.timesteps):
        if holds_ratio:
            # What scales the network's input says which level is asked.
            s = float(scheduler.scale_model_input(torch.ones(1, 2), t)[0, 0])
            ratio = math.sqrt(1.0 / (s * s) - 1.0)
            alpha, sigma = vp(ratio)
            y = x.numpy().reshape(-1)
            eps = (y - denoise(alpha * y, alpha, sigma)) / ratio
        else:
            alpha, sigma = vp(sigmas[i])
            y = x.numpy().reshape(-1)
            eps = (y - alpha * denoise(y, alpha, sigma)) / sigma
        x = scheduler.step(tensor(eps), t, x).prev_sample.double()
        if single:
            scale = levels[i + 1][1] if holds_ratio else 1.0
            states[i + 1] = scale * x.numpy()
    states[len(levels) - 1] = (levels[-1][1] if holds_ratio else 1.0) * x.numpy()
    emit(name, config, levels, start, states, draws)


def by_alpha(name, config, scheduler, steps, call=None, seed=0, timesteps=None, end="clean"):
    """Schedulers that look alpha_bar up by the step."""
    scheduler.set_timesteps(steps)
    draws = Draws(seed)
    draws.patch(scheduler)
    bars = scheduler.alphas_cumprod.double().numpy()
    at = lambda t: (float(t), math.sqrt(bars[t]), math.sqrt(1.0 - bars[t]))
    ts = [int(t) for t in scheduler.timesteps]
    unique = [t for i, t in enumerate(ts) if t not in ts[:i]] if timesteps is None else timesteps
    last = (0.0, 1.0, 0.0) if end == "clean" else at(0)
    levels = [at(t) for t in unique] + [last]
    _, alpha, sigma = levels[0]
    start = sigma * np.array([0.8, -1.1]) + alpha * np.array([0.3, 0.1])
    x, states = tensor(start), {}
    single = len(ts) == steps
    for i, t in enumerate(scheduler.timesteps):
        _, alpha, sigma = at(int(t))
        y = x.numpy().reshape(-1)
        eps = (y - alpha * denoise(y, alpha, sigma)) / sigma
        x = (call or (lambda s, e, t, x, d: s.step(e, t, x).prev_sample))(scheduler, tensor(eps), t, x, draws)
        x = x.double()
        if single:
            states[i + 1] = x.numpy()
    states[len(levels) - 1] = x.numpy()
    emit(name, config, levels, start, states, draws)


def flow(name, config, scheduler, steps, seed=0):
    scheduler.set_timesteps(steps)
    draws = Draws(seed)
    draws.patch(scheduler)
    sigmas = [float(s) for s in scheduler.sigmas]
    asked = sigmas
    single = len(scheduler.timesteps) == steps
    if not single:
        sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s != sigmas[i - 1]]
    levels = [(s, 1.0 - s, s) for s in sigmas]
    start = sigmas[0] * np.array([0.8, -1.1]) + (1.0 - sigmas[0]) * np.array([0.3, 0.1])
    x, states = tensor(start), {}
    if not hasattr(torch, "randn_like_original"):
        torch.randn_like_original = torch.randn_like
    torch.randn_like = draws.next
    for i, t in enumerate(scheduler.timesteps):
        s = asked[i]
        y = x.numpy().reshape(-1)
        x0 = denoise(y, 1.0 - s, s)
        x = scheduler.step(tensor((y - x0) / s), t, x).prev_sample.double()
        if single:
            states[i + 1] = x.numpy()
    torch.randn_like = torch.randn_like_original
    states[len(levels) - 1] = x.numpy()
    emit(name, config, levels, start, states, draws, path="linear")


def consistency():
    s = diffusers.CMStochasticIterativeScheduler()
    s.set_timesteps(4)
    draws = Draws(5)
    draws.patch(s)
    sigmas = [float(v) for v in s.sigmas]
    levels = [(v, 1.0, v) for v in sigmas]
    start = sigmas[0] * np.array([0.8, -1.1])
    x, states = tensor(start), {}
    for i, t in enumerate(s.timesteps):
        s.scale_model_input(x, t)
        c_skip, c_out = (float(c) for c in s.get_scalings_for_boundary_condition(sigmas[i]))
        y = x.numpy().reshape(-1)
        out = (denoise(y, 1.0, sigmas[i]) - c_skip * y) / c_out
        x = s.step(tensor(out), t, x).prev_sample.double()
        states[i + 1] = x.numpy()
    emit("consistency", 'sampler = "consistency"', levels, start, states, draws, path="ve")


def scm():
    s = diffusers.SCMScheduler()
    s.set_timesteps(3, max_timesteps=1.5708, intermediate_timesteps=None)
    draws = Draws(6)
    draws.patch(s)
    times = [float(t) for t in s.timesteps]
    sd = s.config.sigma_data
    levels = [(t, math.cos(t), sd * math.sin(t)) for t in times]
    start = levels[0][2] * np.array([0.8, -1.1])
    x, states = tensor(start), {}
    for i, t in enumerate(s.timesteps[:-1]):
        y = x.numpy().reshape(-1)
        out = (math.cos(times[i]) * y - denoise(y, levels[i][1], levels[i][2])) / math.sin(times[i])
        x = s.step(tensor(out), t, x).prev_sample.double()
        states[i + 1] = x.numpy()
    emit("scm", 'sampler = "scm"', levels, start, states, draws, path="linear")


def sde_ve(steps=8):
    s = diffusers.ScoreSdeVeScheduler(sigma_max=20.0, snr=0.16)
    s.set_timesteps(steps)
    s.set_sigmas(steps)
    draws = Draws(7)
    draws.patch(s)
    sigmas = [float(v) for v in s.discrete_sigmas][::-1]
    levels = [(v, 1.0, v) for v in sigmas] + [(0.0, 1.0, 0.0)]
    start = sigmas[0] * np.array([0.8, -1.1])
    x, states = tensor(start), {}
    score = lambda x, v: tensor((denoise(x.numpy(), 1.0, v) - x.numpy().reshape(-1)) / (v * v))
    for i, t in enumerate(s.timesteps):
        out = s.step_pred(score(x, sigmas[i]), t, x)
        x = out.prev_sample.double()
        states[i + 1] = (out.prev_sample_mean if i == steps - 1 else x).double().numpy()
    emit("reverse diffusion", 'sampler = "predictor_corrector"\ncorrector_steps = 0', levels, start, states, draws, path="ve")


def ipndm(steps=10):
    s = diffusers.IPNDMScheduler()
    s.set_timesteps(steps)
    # Its first level is pure noise, which it takes for data at zero; we begin at the second.
    a, b = s.alphas.double().numpy(), s.betas.double().numpy()
    levels = [(0.0, a[i], b[i]) for i in range(1, steps + 1)]
    start = b[1] * np.array([0.8, -1.1])
    x, states = tensor(start), {}
    for i in range(1, steps):
        y = x.numpy().reshape(-1)
        eps = (y - a[i] * denoise(y, a[i], b[i])) / b[i]
        x = s.step(tensor((eps - b[i] * y) / a[i]), s.timesteps[i], x).prev_sample.double()
        states[i] = x.numpy()
    emit("ipndm", 'sampler = "ipndm"', levels, start, states, Draws(0))


def main():
    D = diffusers
    clean = dict(clip_sample=False)
    for n in (10, 20):
        by_sigma(f"euler {n}", 'sampler = "euler"', D.EulerDiscreteScheduler(), n, True)
    by_sigma("euler karras", 'sampler = "euler"', D.EulerDiscreteScheduler(use_karras_sigmas=True), 10, True)
    by_sigma("euler exponential", 'sampler = "euler"', D.EulerDiscreteScheduler(use_exponential_sigmas=True), 10, True)
    by_sigma("euler beta", 'sampler = "euler"', D.EulerDiscreteScheduler(use_beta_sigmas=True), 10, True)
    by_sigma("euler_ancestral", 'sampler = "euler_ancestral"', D.EulerAncestralDiscreteScheduler(), 10, True, 1)
    by_sigma("heun", 'sampler = "heun"', D.HeunDiscreteScheduler(), 10, True)
    by_sigma("lms", 'sampler = "lms"', D.LMSDiscreteScheduler(), 10, True)
    by_sigma("dpm2", 'sampler = "dpm2"', D.KDPM2DiscreteScheduler(), 10, True)
    by_sigma("dpm2_ancestral", 'sampler = "dpm2_ancestral"', D.KDPM2AncestralDiscreteScheduler(), 10, True, 2)
    by_sigma("dpmpp_sde", 'sampler = "dpmpp_sde"', D.DPMSolverSDEScheduler(), 10, True, 11)
    karras = D.DPMSolverSDEScheduler(use_karras_sigmas=True)
    by_sigma("dpmpp_sde karras", 'sampler = "dpmpp_sde"', karras, 10, True, 12)
    M, S = D.DPMSolverMultistepScheduler, D.DPMSolverSinglestepScheduler
    for order, name in ((2, "2m"), (3, "3m")):
        for n in (10, 20):
            plus = M(solver_order=order, algorithm_type="dpmsolver++")
            by_sigma(f"dpmpp_{name} {n}", f'sampler = "dpmpp_{name}"', plus, n, False)
    heun = M(solver_order=2, solver_type="heun", use_karras_sigmas=True)
    by_sigma("dpmpp_2m heun karras", 'sampler = "dpmpp_2m"\ncorrection = "heun"', heun, 10, False)
    free = M(solver_order=2, lower_order_final=False, euler_at_final=True)
    by_sigma("dpmpp_2m euler at final", 'sampler = "dpmpp_2m"\nlower_order_final = false\neuler_at_final = true', free, 10, False)
    minimum = M(solver_order=2, final_sigmas_type="sigma_min")
    by_sigma("dpmpp_2m to sigma_min", 'sampler = "dpmpp_2m"', minimum, 20, False)
    for solver in ("midpoint", "heun"):
        sde = M(solver_order=2, algorithm_type="sde-dpmsolver++", solver_type=solver)
        by_sigma(f"dpmpp_2m_sde {solver}", f'sampler = "dpmpp_2m_sde"\ncorrection = "{solver}"', sde, 10, False, 3)
        noise = M(solver_order=2, algorithm_type="dpmsolver", solver_type=solver, final_sigmas_type="sigma_min")
        by_sigma(f"dpm_2m {solver}", f'sampler = "dpm_2m"\ncorrection = "{solver}"', noise, 10, False)
        sde = M(solver_order=2, algorithm_type="sde-dpmsolver", solver_type=solver, final_sigmas_type="sigma_min")
        by_sigma(f"dpm_2m_sde {solver}", f'sampler = "dpm_2m_sde"\ncorrection = "{solver}"', sde, 10, False, 3)
        for order in (2, 3):
            one = S(solver_order=order, solver_type=solver)
            by_sigma(f"dpmpp_{order}s {solver}", f'sampler = "dpmpp_{order}s"\ncorrection = "{solver}"', one, 11, False)
            one = S(solver_order=order, solver_type=solver, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
            by_sigma(f"dpm_{order}s {solver}", f'sampler = "dpm_{order}s"\ncorrection = "{solver}"', one, 11, False)
    three = M(solver_order=3, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    by_sigma("dpm_3m", 'sampler = "dpm_3m"', three, 20, False)
    for order in (1, 2, 3):
        for bh in ("bh1", "bh2"):
            # Their bh1 has no number for the step to clean data.
            end = "zero" if bh == "bh2" else "sigma_min"
            unipc = D.UniPCMultistepScheduler(solver_order=order, solver_type=bh, final_sigmas_type=end)
            by_sigma(f"unipc {order} {bh}", f'sampler = "unipc"\norder = {order}\nbh = "{bh}"', unipc, 12, False)
    for order, tau in ((1, 1.0), (2, 1.0), (2, 0.4), (3, 0.7), (4, 1.0)):
        tau_of = lambda _, tau=tau: torch.tensor(tau)
        sa = D.SASolverScheduler(predictor_order=order, corrector_order=order, tau_func=tau_of)
        config = f'sampler = "sa_solver"\norder = {order}\ntau = {tau}'
        by_sigma(f"sa_solver {order} {tau}", config, sa, 12, False, 13)
    for order in (1, 2, 3):
        deis = D.DEISMultistepScheduler(solver_order=order)
        by_sigma(f"deis {order}", f'sampler = "deis"\norder = {order}', deis, 12, False)
    by_alpha("ddim", 'sampler = "ddim"', D.DDIMScheduler(**clean), 10)
    noisy = lambda s, e, t, x, d: s.step(e, t, x, eta=0.5, variance_noise=d.next()).prev_sample
    by_alpha("ddim eta", 'sampler = "ddim"\neta = 0.5', D.DDIMScheduler(**clean), 10, noisy)
    by_alpha("ddpm", 'sampler = "ddpm"', D.DDPMScheduler(**clean), 10, seed=4)
    large = D.DDPMScheduler(variance_type="fixed_large", **clean)
    by_alpha("ddpm large", 'sampler = "ddpm"\nvariance = "large"', large, 10, seed=4)
    leading = list(range(900, -1, -100))
    plms = D.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True)
    by_alpha("plms", 'sampler = "plms"', plms, 10, timesteps=leading)
    pndm = D.PNDMScheduler(skip_prk_steps=False, set_alpha_to_one=True)
    by_alpha("pndm", 'sampler = "pndm"', pndm, 10, timesteps=leading)
    by_alpha("lcm", 'sampler = "lcm"', D.LCMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02), 4, seed=8)
    tcd = D.TCDScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    jump = lambda s, e, t, x, d: s.step(e, t, x, eta=0.3).prev_sample
    by_alpha("tcd", 'sampler = "tcd"\ngamma = 0.3', tcd, 4, jump, seed=9, end="first step")
    flow("flow euler", 'sampler = "euler"', D.FlowMatchEulerDiscreteScheduler(shift=3.0), 8)
    flow("flow heun", 'sampler = "heun"', D.FlowMatchHeunDiscreteScheduler(shift=3.0), 8)
    wild = D.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    flow("stochastic flow", 'sampler = "stochastic_flow"', wild, 8, 10)
    consistency()
    scm()
    sde_ve()
    ipndm()
    head = dict(diffusers=D.__version__, means=MEANS, stds=STDS, weights=WEIGHTS)
    body = ",\n".join(json.dumps(case, separators=(",", ":"), allow_nan=False) for case in CASES)
    text = json.dumps(head, separators=(",", ":"))[:-1] + ',"cases":[\n' + body + "\n]}\n"
    OUT.write_text(text)
    print(f"{OUT.name}: {len(CASES)} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
