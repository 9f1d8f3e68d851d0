"""Cases by which any implementation of DREAM (arXiv 2312.00210, Algorithm 3) can be checked, and the
command that writes them: numpy in float64, straight from the paper's formulas, no code of ours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ldm_dream.writing import whole_file

STEPS, SHAPE = 10, (3, 2, 4, 4)  # of the schedule; samples, channels, height, width
PREDICTIONS, POWERS = ("eps", "z0", "v"), (0, 1, 2, 3)
ABOUT = {
    "source": "DREAM, arXiv 2312.00210, Algorithm 3, Eq. 14 and 15",
    "a, s": "sqrt(abar_t), sqrt(1 - abar_t); abar_t = prod of (1 - betas) up to t",
    "z_t": "a z0 + s eps",
    "network": "output[b] = weight @ z[b] + bias[t[b]], over channels, at every pixel; it predicts "
    "eps, z0, or v = a eps - s z0",
    "eps_hat": "of the network's output at z_t, without gradient: eps, (z_t - a z0) / s, or a v + s z_t",
    "lam": "s ** p",
    "z_t_rectified": "z_t + s lam (eps - eps_hat)",
    "target": "for eps: eps + lam (eps - eps_hat); z0 stays z0; for v: a target_of_eps - s z0",
    "l1, l2": "mean over channels and pixels of |output(z_t_rectified) - target| and of its square",
}


def main(args: argparse.Namespace) -> None:
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = cases()
    with whole_file(folder / "dream.safetensors") as draft:
        draft.write_bytes(save(tensors))
    about = {"about": ABOUT, "predictions": PREDICTIONS, "p": POWERS}
    about["tensors"] = {name: [*value.shape] for name, value in tensors.items()}
    with whole_file(folder / "dream.json") as draft:
        draft.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{folder}: {len(PREDICTIONS) * len(POWERS)} cases")


def cases() -> dict[str, np.ndarray]:
    """Inputs by their names, and results as PREDICTION/pP/NAME; the same at every call."""
    random = np.random.default_rng(2312_00210)
    channels = SHAPE[1]
    made = {
        "betas": np.linspace(0.01, 0.4, STEPS),
        "t": np.array([0, 4, STEPS - 1]),
        "z0": random.uniform(-1, 1, SHAPE),
        "eps": random.standard_normal(SHAPE),
        "weight": random.standard_normal((channels, channels)),
        "bias": random.standard_normal((STEPS, channels)),
    }
    z0, eps, t = made["z0"], made["eps"], made["t"]
    abar = np.cumprod(1 - made["betas"])[t].reshape(-1, 1, 1, 1)
    a, s = np.sqrt(abar), np.sqrt(1 - abar)
    made["z_t"] = z_t = a * z0 + s * eps

    def network(z: np.ndarray) -> np.ndarray:
        return np.einsum("ij,bjhw->bihw", made["weight"], z) + made["bias"][t][:, :, None, None]

    output = network(z_t)
    estimates = {"eps": output, "z0": (z_t - a * output) / s, "v": a * output + s * z_t}
    for prediction in PREDICTIONS:
        eps_hat = estimates[prediction]
        made[f"{prediction}/eps_hat"] = eps_hat
        for p in POWERS:
            lam = s**p
            rectified = z_t + s * lam * (eps - eps_hat)
            of_eps = eps + lam * (eps - eps_hat)
            target = {"eps": of_eps, "z0": z0, "v": a * of_eps - s * z0}[prediction]
            error = network(rectified) - target
            found = {"lam": lam.reshape(-1), "z_t_rectified": rectified, "target": target}
            found |= {"l1": np.abs(error).mean((1, 2, 3)), "l2": (error**2).mean((1, 2, 3))}
            made |= {f"{prediction}/p{p}/{name}": value for name, value in found.items()}
    return made
