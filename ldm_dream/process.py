"""Linear-Gaussian processes between a clean z0 and noise: z_t = a z0 + b z_lr + s eps.

A process is four numbers a step; all else follows here, once for every system:
    DDPM           a = sqrt(abar),  b = 0,    s = sqrt(1 - abar)     weight = sqrt(1 - abar)   (Ho 2020, Eq. 4; SR3, DREAM)
    ResidualShift  a = 1 - eta,     b = eta,  s = kappa sqrt(eta)    weight = sqrt(eta)        (ResShift, arXiv 2307.12348, Eq. 2)
    Flow           a = 1 - sigma,   b = 0,    s = sigma              weight = sigma            (rectified flow, arXiv 2209.03003)
Regression, the baseline without diffusion, is a residual shift of one step with kappa = 0.
Backwards, from step t to a less noisy step u (`t_prev`), every one of them takes the form of DDIM
(arXiv 2010.02502, Eq. 12):
    z_u = a_u z0 + b_u z_lr + sqrt(s_u^2 - sigma^2) eps_hat + sigma n,     0 <= sigma^2 <= s_u^2 (1 - (carry s_u / s_t)^2)
where carry is the factor of z_u in the forward step u -> t. The upper end is the exact posterior
q(z_u | z_t, z0), which is DDPM's Eq. 7 and ResShift's Eq. 7 at once; z_lr drops out of it, since
b_u = carry (s_u / s_t)^2 b_t whenever b is not 0.

Nothing here waits for a device. Steps drawn on the host have their numbers worked out there.

Symbols: t = index 0 .. num_timesteps - 1, noise grows with t; t = -1 is the clean end (a = 1, b = s
= 0), so the last step divides nothing by zero. abar = cumulative product of 1 - beta. z: [B,C,h,w];
coefficients: [B,1,1,1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from ldm_dream.config.process import (
    DDPMConfig,
    FlowConfig,
    ProcessConfig,
    RegressionConfig,
    ResidualShiftConfig,
)
from ldm_dream.schedules import ProcessError, abar_of, exponential_sqrt_eta, respaced

# what an output may be: eps, z0, v = a eps - s z0, residual = z_lr - z0, eps_scale = s eps,
# flow = eps - z0; each gives both z0 and eps
PREDICTIONS = ("eps", "z0", "v", "residual", "eps_scale", "flow")


@dataclass(frozen=True)
class Numbers:
    """What a process says of one step a sample: a, b, s and weight, [B,1,1,1] each, and what the
    network is told of it, [B]: the ORIGINAL timestep or the noise level a.

    rows: all of them, [5,B].
    """

    rows: Tensor

    @cached_property
    def _each(self) -> tuple[Tensor, ...]:
        return self.rows.view(5, -1, 1, 1, 1).unbind()

    @property
    def a(self) -> Tensor:
        return self._each[0]

    @property
    def b(self) -> Tensor:
        return self._each[1]

    @property
    def s(self) -> Tensor:
        return self._each[2]

    @property
    def weight(self) -> Tensor:
        return self._each[3]

    @cached_property
    def told(self) -> Tensor:
        return self.rows[4]

    def of(self, samples: Tensor) -> Numbers:
        """Of some samples, int64 [n] on its device."""
        return Numbers(self.rows.index_select(1, samples))


Steps: TypeAlias = Tensor | Numbers  # indices [B], or what `Process.at` says of them


class Process:
    """Tables of a, b, s and weight (float64, [T]) and what follows from them. Subclasses fill the
    tables.

    timesteps: int64 [T], the ORIGINAL timestep the network sees at each index (after respacing);
    default 0 .. T-1. Tables stay float64 on the CPU; a coefficient comes out on t's device, rounded
    once, at its use.
    """

    samplers: tuple[str, ...] = ()  # that fit it: keys of `sampler.SAMPLERS`

    def __init__(
        self, a: Tensor, b: Tensor, s: Tensor, weight: Tensor, timesteps: Tensor | None = None
    ):
        self.num_timesteps = len(a)
        self.timesteps = torch.arange(len(a)) if timesteps is None else timesteps
        clean = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        rows = torch.stack([a, b, s, weight, self.timesteps.to(a.dtype)], 1)
        self._rows = torch.cat([clean, rows]).T.contiguous()  # column t + 1
        self._ready: dict[tuple, Tensor] = {}
        self.blind = frozenset((a == 0).nonzero().flatten().tolist())  # steps of pure noise

    # ------------------------------------------------------------------- the four numbers of a step

    def at(
        self, t: Tensor, dtype: torch.dtype = torch.float32, noise_level: bool = False
    ) -> Numbers:
        """t: int64 [B] in -1 .. T-1 -> its numbers, on t's device. noise_level: the network is told
        a (SR3, IDM), else the timestep.
        """
        return Numbers(self._table(t.device, dtype, noise_level)[:, t + 1])

    def a(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factor of z0. t: int64 [B] in -1 .. T-1 -> [B,1,1,1] on t's device."""
        return self.at(t, dtype).a

    def b(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factor of z_lr, as `a`."""
        return self.at(t, dtype).b

    def s(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factor of the unit noise eps, as `a`."""
        return self.at(t, dtype).s

    def weight(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """DREAM's adaptive strength before its power p, in [0, 1], growing with t; as `a`."""
        return self.at(t, dtype).weight

    def carry(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """Factor of z at t_prev in the forward step to t (float64)."""
        return self.a(t, torch.float64) / self.a(t_prev, torch.float64)

    # ------------------------------------------------------------------------ what the network sees

    def model_t(self, t: Tensor, noise_level: bool = False) -> Tensor:
        """What the network is told at t, float32 [B]: the ORIGINAL timestep, or the factor a."""
        return self.at(t, noise_level=noise_level).told

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Steps to train on, on the generator's device: int64 [count], uniform over all; real
        ones of a DDPM that is `continuous`.
        """
        return torch.randint(
            self.num_timesteps, (count,), generator=generator, device=generator.device
        )

    def model_input(self, z_t: Tensor, t: Steps) -> Tensor:
        """z_t as the network receives it."""
        return z_t

    # -------------------------------------------------------------------------------- forward

    def prior(self, z_lr: Tensor, eps: Tensor) -> Tensor:
        """Where sampling starts. N(0, I) as published, though a at the last step is small rather
        than 0 for DDPM.
        """
        return eps

    def q_sample(self, z0: Tensor, z_lr: Tensor, eps: Tensor, t: Steps) -> Tensor:
        """z_t = a z0 + b z_lr + s eps."""
        at = self._at(t, z0)
        return at.a * z0 + at.b * z_lr + at.s * eps

    # -------------------------------------------------------------------------- what an output says

    def refuse_blind(self, prediction: str, steps: list[int]) -> None:
        """Raises ProcessError for eps at a step of pure noise, which holds nothing of z0."""
        if prediction in ("eps", "eps_scale") and self.blind.intersection(steps):
            raise ProcessError(
                f"prediction 'eps' cannot give z0 at the last step of {type(self).__name__}, which is pure noise; "
                "use prediction 'v' or 'z0'."
            )

    def to_z0(self, output: Tensor, z_t: Tensor, z_lr: Tensor, t: Steps, prediction: str) -> Tensor:
        """The z0 that `output` implies at z_t; for eps not at a step of pure noise (see
        `refuse_blind`).
        """
        check_prediction(prediction)
        if prediction in ("z0", "residual"):
            return output if prediction == "z0" else z_lr - output
        at = self._at(t, z_t)
        y = z_t - at.b * z_lr  # a z0 + s eps
        if prediction in ("eps", "eps_scale"):
            return (y - (at.s * output if prediction == "eps" else output)) / at.a
        if prediction == "flow":
            return (y - at.s * output) / (at.a + at.s)
        return (at.a * y - at.s * output) / (at.a * at.a + at.s * at.s)  # 1 only for DDPM

    def to_eps(
        self, output: Tensor, z_t: Tensor, z_lr: Tensor, t: Steps, prediction: str
    ) -> Tensor:
        """The eps that `output` implies at z_t."""
        check_prediction(prediction)
        if prediction == "eps":
            return output
        at = self._at(t, z_t)
        if prediction == "eps_scale":
            return output / at.s
        if prediction in ("z0", "residual"):
            z0 = output if prediction == "z0" else z_lr - output
            return (z_t - at.a * z0 - at.b * z_lr) / at.s
        y = z_t - at.b * z_lr
        if prediction == "flow":
            return (y + at.a * output) / (at.a + at.s)
        return (at.s * y + at.a * output) / (at.a * at.a + at.s * at.s)

    # -------------------------------------------------------------------------------- backward

    def posterior(
        self, z0: Tensor, z_t: Tensor, t: Tensor, t_prev: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q(z_u | z_t, z0) with u = t_prev (-1: clean) -> mean [B,C,h,w], variance [B,1,1,1]. t,
        t_prev: int64 [B].
        """
        c0, ct = self.posterior_factors(t, t_prev)
        return like(c0, z0) * z0 + like(ct, z_t) * z_t, like(
            self.posterior_variance(t, t_prev), z_t
        )

    def posterior_factors(self, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of z0 and z_t in the posterior mean, float64."""
        s_u, s_t = self.s(t_prev, torch.float64), self.s(t, torch.float64)
        ct = self.carry(t, t_prev) * over(s_u, s_t) ** 2
        return self.a(t_prev, torch.float64) - ct * self.a(t, torch.float64), ct

    def posterior_variance(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """s_u^2 (1 - (carry s_u / s_t)^2), float64; 0 at the last step ("fixed small")."""
        s_u, s_t = self.s(t_prev, torch.float64), self.s(t, torch.float64)
        return s_u**2 * (1 - over(self.carry(t, t_prev) * s_u, s_t) ** 2)

    def forward_variance(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """Variance that the forward step t_prev -> t adds, float64: beta of the (respaced) schedule
        ("fixed large").
        """
        return (
            self.s(t, torch.float64) ** 2
            - (self.carry(t, t_prev) * self.s(t_prev, torch.float64)) ** 2
        )

    def _at(self, t: Steps, z: Tensor) -> Numbers:
        # a bfloat16 z must not round a = 0.9999 to 1
        return t if isinstance(t, Numbers) else self.at(t, wide(z.dtype))

    def _table(self, device: torch.device, dtype: torch.dtype, noise_level: bool) -> Tensor:
        """[5,T+1], one copy a device and dtype: no transfer inside a training step, and no float64
        on devices that lack it.
        """
        key = (device, dtype, noise_level)
        if key not in self._ready:
            rows = [0, 1, 2, 3, 0] if noise_level else slice(None)
            self._ready[key] = self._rows[rows].to(device, dtype)
        return self._ready[key]


class DDPM(Process):
    """Variance-preserving process from abar (float64 [T]); `timesteps` keeps these steps of it
    (respacing).

    Keeping a subset of abar is the respaced chain with beta_i = 1 - abar_i / abar_prev
    (guided-diffusion, respace.py). continuous: training draws noise levels between the steps, as
    SR3 does; such a step is a real t in [-1, T-1], at which a = sqrt(abar) lies on the straight
    line between its neighbours and s = sqrt(1 - a^2).
    """

    samplers = DDPMConfig.samplers

    def __init__(
        self, alphas_cumprod: Tensor, timesteps: Tensor | None = None, continuous: bool = False
    ):
        abar = alphas_cumprod.double() if timesteps is None else alphas_cumprod.double()[timesteps]
        s = (1 - abar).sqrt()
        super().__init__(abar.sqrt(), torch.zeros_like(s), s, s, timesteps)
        self.continuous = continuous

    def at(
        self, t: Tensor, dtype: torch.dtype = torch.float32, noise_level: bool = False
    ) -> Numbers:
        if not t.is_floating_point():
            return super().at(t, dtype, noise_level)
        a, told = self._between(t, noise_level).unbind()
        s = (1 - a**2).sqrt()
        return Numbers(torch.stack([a, torch.zeros_like(a), s, s, told]).to(dtype))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """With `continuous` float32 [count]: one step for all, and each at its own place between it
        and the step before.
        """
        if not self.continuous:
            return super().draw(count, generator)
        step = super().draw(1, generator)
        return step - torch.rand(count, generator=generator, device=generator.device)

    def _between(self, t: Tensor, noise_level: bool) -> Tensor:
        """sqrt(abar) and what the network is told at real t -> [2,B] float64 (float32 where the
        device has no float64).
        """
        dtype = torch.float32 if t.device.type == "mps" else torch.float64
        below = t.floor().clamp(max=self.num_timesteps - 2)
        table, index = self._table(t.device, dtype, noise_level)[::4], below.long() + 1
        return torch.lerp(table[:, index], table[:, index + 1], (t - below).to(dtype))


class ResidualShift(Process):
    """ResShift's process from a table of sqrt(eta) (float64 [T]), which grows within (0, 1)."""

    samplers = ResidualShiftConfig.samplers

    def __init__(
        self,
        sqrt_eta: Tensor,
        kappa: float,
        normalize_input: bool = True,
        timesteps: Tensor | None = None,
        latent_flag: bool = True,
    ):
        sqrt_eta = sqrt_eta.double()
        eta = sqrt_eta**2
        super().__init__(1 - eta, eta, kappa * sqrt_eta, sqrt_eta, timesteps)
        self.normalize_input, self.latent_flag = normalize_input, latent_flag
        self._most = kappa * sqrt_eta[-1].item()

    def carry(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """The forward step only adds: z_t = z_u + alpha (z_lr - z0) + kappa sqrt(alpha) n
        (ResShift, Eq. 1).
        """
        return torch.ones_like(self.s(t, torch.float64))

    def model_input(self, z_t: Tensor, t: Steps) -> Tensor:
        """z_t / sqrt(1 + kappa^2 eta): about unit variance at every step; of pixels z_t / (1 + 3
        kappa sqrt(eta)): within about [-1, 1] (ResShift, _scale_input).
        """
        if not self.normalize_input:
            return z_t
        s = self._at(t, z_t).s
        return z_t / ((1 + s * s).sqrt() if self.latent_flag else 1 + 3 * s)

    def prior(self, z_lr: Tensor, eps: Tensor) -> Tensor:
        """z_lr + kappa sqrt(eta_T) eps: published sampling takes b = 1 at the start, not eta_T."""
        return z_lr + self._most * eps


class Flow(Process):
    """Straight line from z0 to noise; sigma = (t + 1) / T, so the last step is pure noise."""

    samplers = FlowConfig.samplers

    def __init__(self, num_timesteps: int):
        sigma = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        super().__init__(1 - sigma, torch.zeros_like(sigma), sigma, sigma)


def build_process(cfg: ProcessConfig) -> Process:
    """Config -> process."""
    if isinstance(cfg, DDPMConfig):
        abar = abar_of(cfg.num_timesteps, cfg.beta_start, cfg.beta_end, cfg.schedule)
        return DDPM(
            abar,
            None if cfg.respace is None else respaced(cfg.num_timesteps, cfg.respace),
            cfg.continuous,
        )
    if isinstance(cfg, ResidualShiftConfig):
        sqrt_eta = exponential_sqrt_eta(
            cfg.num_timesteps, cfg.sqrt_eta_start, cfg.sqrt_eta_end, cfg.power
        )
        return ResidualShift(sqrt_eta, cfg.kappa, cfg.normalize_input, latent_flag=cfg.latent_flag)
    if isinstance(cfg, RegressionConfig):  # no noise (kappa = 0), no z0: one step from z_lr alone
        process = ResidualShift(torch.ones(1), kappa=0.0)
        process.samplers = cfg.samplers
        return process
    assert isinstance(cfg, FlowConfig), f"no process for {type(cfg).__name__}"
    return Flow(cfg.num_timesteps)


def over(x: Tensor, s: Tensor) -> Tensor:
    """x / s; 0 where x is 0: at the clean end, also of a process without noise (s = 0)."""
    return torch.where(x == 0, x, x / s)


@cache
def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or dtype if that is wider: of coefficients."""
    return torch.promote_types(dtype, torch.float32)


def like(coefficient: Tensor, z: Tensor) -> Tensor:
    """A coefficient on z's device, in z's dtype or float32 if that is wider."""
    return coefficient.to(wide(z.dtype)).to(z.device)


def check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ProcessError(
            f"prediction {prediction!r} is not known; use one of {', '.join(PREDICTIONS)}."
        )
