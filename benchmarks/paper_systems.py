"""What `paper` trains, as plain data: the systems of DREAM's paper (arXiv 2312.00210) at the size of a
CPU and as published, their arms, and what each table and figure of the paper needs of them. It
imports nothing, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class System(NamedTuple):
    """config: that of the standard arm; its `train.steps` are those of the arms with DREAM."""

    title: str
    config: str
    hr: tuple[str, ...]  # pictures of evaluation
    count: int
    crop: int  # centre crop, HR pixels
    sampling: tuple[int, ...]  # numbers of sampling steps, the full one last
    is_face: bool
    scales: tuple[int, ...] = ()  # others than that of the training, at which it works too
    regression: str | None = None  # config of a network that predicts the picture in one call


FACES = ("../shared/data/faces_congress128/val",)
PHOTOS = ("../shared/data/val_photos/opennature", "../shared/data/val_photos/openimages")
CELEBA = ("data/celebahq_128-eval100.txt",)
DIV2K = ("data/DIV2K_valid_HR",)
FEW, MANY, LATENT = (4, 10, 20, 50, 100), (100, 200, 500, 1000, 2000), (3, 5, 10, 25, 50)
SYSTEMS = {
    "cpu": {
        name: System(title, f"configs/tiny/{config}.yaml", *others)
        for name, (title, config, *others) in {
            "resshift-ddpm": (
                "ResShift as DDPM, photos", "ddpm-latent", PHOTOS, 24, 128, LATENT, False,
            ),
            "sr3-face": (
                "SR3, faces", "sr3-face", FACES, 24, 64, FEW, True, (), "configs/tiny/regression.yaml",
            ),
            "idm-face": ("IDM, faces", "idm-face", FACES, 24, 64, FEW, True),
            "sr3-photo": ("SR3, photos", "sr3-photo", PHOTOS, 24, 128, FEW, False, (2, 3, 5)),
        }.items()
    },
    "paper": {
        name: System(title, f"configs/{config}.yaml", *others)
        for name, (title, config, *others) in {
            "resshift-ddpm": (
                "ResShift as DDPM, photos", "resshift/ddpm-4x", DIV2K, 100, 512, LATENT, False,
            ),
            "sr3-face": (
                "SR3, faces", "sr3/face-8x", CELEBA, 100, 128, MANY, True, (),
                "configs/sr3/regression-8x.yaml",
            ),
            "idm-face": ("IDM, faces", "idm/face-8x", CELEBA, 100, 128, MANY, True),
            "sr3-photo": (
                "SR3, photos", "sr3/div2k-4x", DIV2K, 100, 512, (50, 100, 200, 500, 1000), False,
                (2, 3, 5),
            ),
        }.items()
    },
}  # fmt: skip
BICUBIC, ORIGINAL = "bicubic", "original"  # beside the arms
STANDARD, DREAM, REGRESSION = "standard", "p = 1", "regression"
# arm -> its knobs; in the order of the paper's Table 1
ARMS: dict[str, list[str]] = {
    STANDARD: ["loss.strength=0"],
    "p = 0": ["loss.strength=1", "loss.p=0"],
    DREAM: ["loss.strength=1", "loss.p=1"],
    "p = 2": ["loss.strength=1", "loss.p=2"],
    "p = 3": ["loss.strength=1", "loss.p=3"],
}
MAIN = (STANDARD, DREAM)  # with every seed; the others with the first
SHARES = (0.125, 0.25, 0.5)  # of the training, at which MAIN arms are scored before its end
DISCREPANCY = "discrepancy"  # kind of the rows of `discrepancy.py`
STEPS, TIME = "steps", "time"  # what `Point.equal` may be


class Point(NamedTuple):
    """What is scored: weights after this share of the training, sampled in so many steps. equal: with
    the other arms, at share 1: number of training steps, or time. enlarge: by how much, at which the
    network works itself; None: its own scale.
    """

    share: float
    equal: str
    steps: int
    enlarge: int | None = None


def ends(arm: str, system: System) -> list[Point]:
    """At the end of the training, by steps of sampling; the last is what the pictures show."""
    sampling = (1,) if arm == REGRESSION else system.sampling
    return [Point(1.0, STEPS, steps) for steps in sampling]


def points(arm: str, system: System) -> list[Point]:
    found, full = ends(arm, system), system.sampling[-1]
    if arm in MAIN:
        found += [Point(share, STEPS, full) for share in SHARES]
        found += [Point(1.0, STEPS, full, scale) for scale in system.scales]
    if arm == STANDARD:
        found += [Point(1.0, TIME, steps) for steps in system.sampling]
        found += [Point(1.0, TIME, full, scale) for scale in system.scales]
    return found


def in_a_name(arm: str) -> str:
    """As files and folders have it."""
    return arm.replace(" = ", "")


class Job(NamedTuple):
    """One training, and the scores of it."""

    system: str
    arm: str
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.system}-{in_a_name(self.arm)}-{self.seed}"


class Need(NamedTuple):
    """What a table or figure is about, and the trainings that it needs: of which systems, which arms."""

    text: str
    arms: tuple[str, ...] = MAIN
    of: Callable[[System], bool] = lambda system: True


TABLES = {
    1: Need("faces and photos, every p", tuple(ARMS)),
    2: Need("faces", (*MAIN, REGRESSION), lambda system: system.is_face),
    3: Need("photos", of=lambda system: not system.is_face),
    4: Need("other scales", of=lambda system: bool(system.scales)),
    5: Need("time and memory of a step, from the rows of `train-step`", ()),
}
FIGURES = {
    "convergence": Need("Figures 1, 7, 10-12: scores against steps of training"),
    "discrepancy": Need("Figure 3: estimates in training and in sampling"),
    "steps": Need("Figures 8, 13, 14: scores against steps of sampling"),
    "pictures": Need("Figures 4-6, 9, 15-22: pictures side by side"),
}


def jobs(
    scale: str, tables: list[int], figures: list[str], systems: list[str], seeds: list[int]
) -> Iterator[Job]:
    """Trainings that these need, the ones that say most first."""
    needs = [TABLES[n] for n in tables] + [FIGURES[name] for name in figures]
    wanted = {
        (name, arm)
        for name in systems
        for need in needs
        if need.of(SYSTEMS[scale][name])
        for arm in need.arms
        if arm != REGRESSION or SYSTEMS[scale][name].regression
    }
    ordered = [
        (name, arm) for name in systems for arm in (*ARMS, REGRESSION) if (name, arm) in wanted
    ]
    for seed in seeds:
        yield from (Job(name, arm, seed) for name, arm in ordered if arm in MAIN)
    yield from (Job(name, arm, seeds[0]) for name, arm in ordered if arm not in MAIN)
