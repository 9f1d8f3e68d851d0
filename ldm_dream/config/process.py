"""The process between picture and noise, how it is walked back, and what DREAM does. Imports no
torch.
"""

from __future__ import annotations

from math import log, log1p
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ldm_dream.config.strict import Strict

Timesteps = Annotated[int, Field(ge=2, le=100_000)]
Beta = Annotated[float, Field(ge=1e-9, lt=1)]
LEAST_SIGNAL = 1e-30  # of a DDPM's last step: abar, which float32 must hold
# schedule -> share of its steps over which beta rises from beta_start to beta_end, where it stays
RISES = {"linear": 1.0, "sqrt_linear": 1.0, "warmup50": 0.5, "warmup10": 0.1, "const": 0.0}
Schedule = Literal["linear", "sqrt_linear", "warmup10", "warmup50", "const", "jsd", "cosine"]
_ENDS = ("beta_start", "beta_end")
UNREAD: dict[str, tuple[str, ...]] = {"const": _ENDS[:1], "jsd": _ENDS, "cosine": _ENDS}


class DDPMConfig(Strict):
    """Variance-preserving process on a fixed schedule of betas (Ho et al., arXiv 2006.11239). SR3's
    schedules: warmup10 and warmup50 rise in the first 10 or 50 % of the steps, const is beta_end, jsd
    1/T, 1/(T-1), .., 1 and cosine that of arXiv 2102.09672; these two have no ends to be set.
    """

    kind: Literal["ddpm"] = "ddpm"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: Timesteps = Field(default=2000, description="Steps of the schedule (SR3: 2000).")
    beta_start: Beta = Field(default=1e-6, description="beta of the first step (SR3: 1e-6).")
    beta_end: Beta = Field(default=1e-2, description="beta of the last step (SR3: 1e-2).")
    schedule: Schedule = Field(
        default="linear",
        description="How beta goes from beta_start to beta_end; sqrt_linear: its square root is linear "
        '(SR3: "quad", LDM: "linear").',
    )
    respace: int | None = Field(
        default=None,
        ge=1,
        description="Keep so many steps n of the schedule, int(i * num_timesteps / n); null: all. "
        "The paper's latent system keeps 50 of 2000.",
    )
    continuous: bool = Field(
        default=False,
        description="Training draws noise levels between two neighbouring steps, which one batch "
        "shares, as SR3 does.",
    )

    @model_validator(mode="after")
    def _the_picture_is_never_all_gone(self):
        if self.respace and self.respace > self.num_timesteps:
            raise ValueError(
                f"respace={self.respace} keeps more steps than num_timesteps={self.num_timesteps} has"
            )
        for name in UNREAD.get(self.schedule, ()):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect with schedule={self.schedule}; leave it out"
                )
        # where betas rise, the mean of log(1 - beta) is at most that of the two ends
        rising = self.num_timesteps * RISES.get(self.schedule, 0.0)
        signal = rising / 2 * (log1p(-self.beta_start) + log1p(-self.beta_end))
        signal += (self.num_timesteps - rising) * log1p(-self.beta_end)
        if self.schedule in RISES and signal < log(LEAST_SIGNAL):
            raise ValueError(
                f"num_timesteps={self.num_timesteps} with beta from {self.beta_start:g} to {self.beta_end:g} "
                "leaves nothing of the picture long before the last step; lower beta_end or num_timesteps"
            )
        return self

    @property
    def steps(self) -> int:
        return self.respace or self.num_timesteps

    @property
    def ends_in_noise(self) -> bool:
        """Whether the last step holds nothing of the picture."""
        return self.schedule == "jsd" and self.steps == self.num_timesteps


class ResidualShiftConfig(Strict):
    """ResShift's process (arXiv 2307.12348), which shifts HR to LR. sqrt(eta) grows from
    min(min_noise_level / kappa, min_noise_level) to sqrt_eta_end.
    """

    kind: Literal["residual_shift"] = "residual_shift"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v", "residual", "eps_scale")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "resshift")
    has_noise: ClassVar[bool] = True
    ends_in_noise: ClassVar[bool] = False
    num_timesteps: Timesteps = Field(default=15, description="Steps (ResShift: 15, v3: 4).")
    kappa: float = Field(
        default=2.0,
        ge=1e-3,
        le=1e3,
        description="Standard deviation of the noise in z_t over sqrt(eta).",
    )
    min_noise_level: float = Field(
        default=0.04,
        ge=1e-6,
        lt=1,
        description="Standard deviation of the noise at the first step, for kappa >= 1 (ResShift: 0.04, v3: 0.2).",
    )
    sqrt_eta_end: float = Field(default=0.99, gt=0, lt=1, description="sqrt(eta) of the last step.")
    power: float = Field(
        default=0.3,
        ge=0.01,
        le=100,
        description="Exponent p of the schedule (Eq. 9); a smaller one is noisier early.",
    )
    normalize_input: bool = Field(
        default=True, description="The network sees z_t divided by its size, as published."
    )
    latent_flag: bool = Field(
        default=True,
        description="That size: true: sqrt(1 + kappa^2 eta), of latents of variance 1; false: 1 + 3 "
        "kappa sqrt(eta), of pixels in [-1, 1].",
    )

    @model_validator(mode="after")
    def _grows(self):
        if not self.latent_flag and not self.normalize_input:
            raise ValueError("latent_flag=false has no effect with normalize_input=false")
        if self.sqrt_eta_start >= self.sqrt_eta_end:
            raise ValueError(
                f"sqrt_eta_end={self.sqrt_eta_end:g} is not above the first step's {self.sqrt_eta_start:g}, "
                "which min_noise_level and kappa give; the noise must grow"
            )
        return self

    @property
    def sqrt_eta_start(self) -> float:
        """sqrt(eta) of the first step."""
        return min(self.min_noise_level / self.kappa, self.min_noise_level)

    @property
    def steps(self) -> int:
        return self.num_timesteps


class FlowConfig(Strict):
    """Linear interpolation z_t = (1 - sigma) z0 + sigma eps with sigma = (t + 1) / num_timesteps."""

    kind: Literal["flow"] = "flow"
    predictions: ClassVar[tuple[str, ...]] = ("z0", "v", "flow")  # its last step is pure noise
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    ends_in_noise: ClassVar[bool] = True
    num_timesteps: Timesteps = Field(default=1000, description="Steps between picture and noise.")

    @property
    def steps(self) -> int:
        return self.num_timesteps


class RegressionConfig(Strict):
    """No diffusion: z_t is the enlarged LR picture, from which z0 is predicted in one call
    (Regression in DREAM's Table 2).
    """

    kind: Literal["regression"] = "regression"
    predictions: ClassVar[tuple[str, ...]] = ("z0",)
    samplers: ClassVar[tuple[str, ...]] = ("ancestral",)
    has_noise: ClassVar[bool] = False
    ends_in_noise: ClassVar[bool] = False
    steps: ClassVar[int] = 1


ProcessConfig = Annotated[
    DDPMConfig | ResidualShiftConfig | FlowConfig | RegressionConfig, Field(discriminator="kind")
]


# ------------------------------------------------------------------------------- sampling and DREAM


Steps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


ONLY_OF = {"karras": ("dpm-solver++",), "ldm": ("ddim",), "ldm_quad": ("ddim",)}  # kinds of sampler
Spacing = Literal["even", "leading", "trailing", "linspace", "karras", "ldm", "ldm_quad"]


class Sampling(Strict):
    """How the reverse process is walked. Spacings: leading, trailing and linspace are diffusers', also
    in where ddim's steps lead; karras goes by sigmas (arXiv 2206.00364), for dpm-solver++; ldm and
    ldm_quad are LDM's uniform and quad, which may be
    more steps, for ddim.
    """

    kind: Literal["ancestral", "ddim", "dpm-solver++", "resshift"] = Field(
        default="ancestral", description="The sampler; which of them fit is said at each process."
    )
    steps: Annotated[int, Field(ge=1)] | Steps | None = Field(
        default=None,
        description="Calls of the network, spaced as `spacing` says; null: every step of the process; a list: "
        "these steps, descending, counted from 0.",
    )
    spacing: Spacing = Field(
        default="even",
        description="Which steps, where `steps` is a number; even: from the last to the first one.",
    )
    steps_offset: int = Field(
        default=0, ge=0, description="Added to each step of spacing leading, as in diffusers."
    )
    end: Literal["clean", "first"] = Field(
        default="clean",
        description="Where ddim's and dpm-solver++'s last step leads; first: the schedule's first step "
        "(diffusers' set_alpha_to_one: false, final_sigmas_type: sigma_min).",
    )
    solver_type: Literal["midpoint", "heun"] = Field(
        default="midpoint", description="Of dpm-solver++'s steps of second order, as in diffusers."
    )
    lower_order_final: bool = Field(
        default=True,
        description="With fewer than 15 steps, dpm-solver++'s last one is of first order; with end: clean "
        "it always is.",
    )
    euler_at_final: bool = Field(
        default=False, description="dpm-solver++'s last step is of first order in any case."
    )
    eta: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Noise of ddim: 0 is deterministic, 1 has the variance of ancestral; the "
        "other samplers do not read it.",
    )
    variance: Literal["posterior", "forward"] = Field(
        default="posterior",
        description='Of the noise that ancestral and resshift add: the posterior\'s ("fixed small") '
        'or the forward step\'s ("fixed large").',
    )

    @field_validator("steps")
    @classmethod
    def _descends(cls, steps: int | tuple[int, ...] | None):
        if isinstance(steps, tuple) and any(t <= u for t, u in zip(steps, steps[1:])):
            raise ValueError(f"{list(steps)} does not descend; give steps from noisy to clean")
        return steps

    @model_validator(mode="after")
    def _all_of_it_is_read(self):
        solves, counted = self.kind == "dpm-solver++", isinstance(self.steps, int)
        read = {
            "spacing": counted and self.kind in ONLY_OF.get(self.spacing, (self.kind,)),
            "steps_offset": self.spacing == "leading",
            "end": solves or self.kind == "ddim",
            "solver_type": solves,
            # to the clean end the last step is of first order in any case
            "lower_order_final": solves and self.end == "first",
            "euler_at_final": solves and self.end == "first",
        }
        for name, has_effect in read.items():
            if not has_effect and getattr(self, name) != type(self).model_fields[name].default:
                given = {
                    "kind": self.kind,
                    "steps": self.steps,
                    "spacing": self.spacing,
                    "end": self.end,
                }
                others = ", ".join(f"{key}={value}" for key, value in given.items() if key != name)
                raise ValueError(f"{name}={getattr(self, name)} has no effect with {others}")
        return self

    @property
    def needs(self) -> int:
        """Steps that a process must have at least."""
        if isinstance(self.steps, tuple):
            return max(self.steps, default=0) + 1
        return self.steps or 1


class Dream(Strict):
    """The loss in the space of the prediction, and DREAM (CVPR 2024, Algorithm 3) on top of it."""

    kind: Literal["l1", "l2", "huber"] = Field(
        default="l1", description="huber: square up to an error of 1, straight beyond."
    )
    strength: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Factor on DREAM's rectification: 0 is the plain loss, 1 DREAM.",
    )
    p: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Exponent of the adaptive strength: 1 is DREAM (its latent system: 3), 0 DRM.",
    )
    min_lam: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Samples whose lam = strength * weight(t) ** p is lower stay plain and "
        "skip the extra pass.",
    )
    min_shift: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Likewise those whose a * lam is lower, the share of the error of z0 by which z_t "
        "would be moved: in DDPM small where nearly all is noise.",
    )
    estimate_precision: Literal["same", "bf16"] = Field(
        default="same",
        description="Precision of DREAM's extra pass; same: that of train.precision.",
    )
