"""The recipes: each data set with the page that gives it, its terms, and what is made of it.

Names and folders in the archives are those that the publishers, or the pages that SR3, IDM, BasicSR
and ResShift send to, were seen to use. Terms are said in a few words; the page decides.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ldm_dream.errors import did_you_mean
from ldm_dream.preparing.pictures import AsItIs, Crop, Square, SubImages
from ldm_dream.preparing.recipe import Part, PrepareError, Recipe

_DF2K = ("configs/sr3/div2k-4x.yaml", "configs/resshift/ddpm-4x.yaml")
_FACES = {
    128: ("configs/sr3/face-8x.yaml", "configs/idm/face-8x.yaml"),
    512: ("configs/sr3/face-8x-512.yaml",),
}
_LARGE = (
    "configs/resshift/resshift-4x.yaml",
    "configs/ldm/ldm-4x.yaml",
    "configs/autoencoder/vq-f4.yaml",
)
_2K = 40 * 0.48**2  # megapixels of the sub-images of a picture of DIV2K
_NO_LR = r"(?!(?:.*/)?[ls]r_\d)"  # no folder lr_16 or sr_16_128, of SR3's data/prepare_data.py
_ANY = Square(8)  # in the place of a cut that follows from the size


def _squares(
    part: Part, sizes: tuple[int, ...], configs: dict[int, tuple[str, ...]] | None = None
) -> list[Part]:
    """The part for each size; its output has `{side}` in its name."""
    return [
        replace(
            part,
            output=part.output.format(side=side),
            cut=Square(side),
            megapixels=side**2 / 1e6,
            configs=(configs or {}).get(side, ()),
        )
        for side in sizes
    ]


def _ffhq(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """images1024x1024/00000/00000.png .. 69999.png, or another place with ffhq in its path, such as
    ffhq_16_128/hr_128/00000.png as SR3's code has it. LR and upsampled pictures, thumbnails and
    photos in the wild are left alone.
    """
    part = Part(
        "ffhq_{side}",
        r"(?i)^(?!.*(?:thumbnails|in-the-wild|celeb))" + _NO_LR +
        r".*(?:ffhq|images1024x1024).*/(\d{5})\.(?:png|jpe?g|webp)$",
        _ANY, "images1024x1024 (89 GB, a folder, zip or tar), or one with ffhq in its name", 0,
        70_000,
    )  # fmt: skip
    return _squares(part, sizes, _FACES)


def _celebahq(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """CelebAMask-HQ/CelebA-HQ-img/0.jpg .. 29999.jpg (1024 pixels), data256x256/00001.jpg,
    celeba_hq_256/00000.jpg, and celebahq_16_128/hr_128/00000.png as SR3's and DREAM's code has it.
    Masks, LR pictures, and CelebA's own img_celeba and img_align_celeba are left alone.
    """
    part = Part(
        "celebahq_{side}",
        r"(?i)^(?!.*/img_|.*mask-anno)" + _NO_LR +
        r".*(?:celeb|data\d+x\d+).*/(\d{1,6})\.(?:png|jpe?g|webp)$",
        _ANY, "CelebAMask-HQ.zip (3 GB), or a folder or zip of CelebA-HQ", 0, 30_000,
        is_evaluation=True, is_listed=True, digits=5,
    )  # fmt: skip
    return _squares(part, sizes, _FACES)


def _div2k(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """DIV2K_train_HR/0001.png .. 0800.png, DIV2K_valid_HR/0801.png .. 0900.png,
    DIV2K_train_LR_bicubic/X4/0001x4.png.
    """
    lr = rf"_LR_bicubic(?:.*/X{scale}/|_X{scale}\b.*/)(\d{{4}})x{scale}\.png$"
    return [
        Part(
            "DIV2K_train_HR_sub", r"DIV2K_train_HR\b.*/(\d{4})\.png$", SubImages(480, 240),
            "DIV2K_train_HR.zip (3.5 GB)", _2K, 800, configs=_DF2K,
        ),
        Part(
            "DIV2K_valid_HR", r"DIV2K_valid_HR\b.*/(\d{4})\.png$", AsItIs(),
            "DIV2K_valid_HR.zip (0.4 GB)", 2.8, 100, is_evaluation=True, configs=_DF2K,
        ),
        Part(
            f"DIV2K_train_LR_bicubic_X{scale}_sub", f"DIV2K_train{lr}",
            SubImages(480 // scale, 240 // scale), f"DIV2K_train_LR_bicubic_X{scale}.zip",
            _2K / scale**2, 800, optional=True,
        ),
        Part(
            f"DIV2K_valid_LR_bicubic_X{scale}", f"DIV2K_valid{lr}", AsItIs(),
            f"DIV2K_valid_LR_bicubic_X{scale}.zip", 2.8 / scale**2, 100, is_evaluation=True,
            optional=True,
        ),
    ]  # fmt: skip


def _flickr2k(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """Flickr2K/Flickr2K_HR/000001.png .. 002650.png, Flickr2K/Flickr2K_LR_bicubic/X4/000001x4.png."""
    archive = "Flickr2K.tar (20 GB)"
    return [
        Part(
            "Flickr2K_sub", r"Flickr2K_HR\b.*/(\d{6})\.png$", SubImages(480, 240), archive, _2K,
            2650, configs=_DF2K,
        ),
        Part(
            f"Flickr2K_LR_bicubic_X{scale}_sub",
            rf"Flickr2K_LR_bicubic.*/X{scale}/(\d{{6}})x{scale}\.png$",
            SubImages(480 // scale, 240 // scale), archive, _2K / scale**2, 2650, optional=True,
        ),
    ]  # fmt: skip


def _cat(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """CAT_00/00000001_000.jpg beside 00000001_000.jpg.cat (landmarks, not used), up to CAT_06. Its
    publishers list no split, so some pictures are held out.
    """
    rest = Part(
        "cat_{side}", r"(CAT_0\d)/([\w-]+)\.(?i:jpe?g)$", _ANY,
        "CAT_DATASET_01.zip and CAT_DATASET_02.zip, or CAT_00 .. CAT_06", 0, share="rest",
    )  # fmt: skip
    held_out = replace(rest, output="cat_{side}_val", share="held out", is_evaluation=True)
    return [*_squares(rest, sizes), *_squares(held_out, sizes)]


def _lsun(sizes: tuple[int, ...], scale: int, scene: str, count: int, size: str) -> list[Part]:
    """bedroom_train_lmdb.zip with bedroom_train_lmdb/data.mdb, whose values are pictures (WebP) with
    256 pixels on the shorter side.
    """

    def of(split: str, ending: str, count: int, size: str, is_evaluation: bool) -> list[Part]:
        part = Part(
            f"lsun_{scene}_{{side}}{ending}", rf"{scene}_{split}_lmdb.*/data\.mdb/(\w+)$", _ANY,
            f"{scene}_{split}_lmdb.zip ({size})", 0, count, is_evaluation, is_evaluation,
        )  # fmt: skip
        return _squares(part, sizes)

    return [*of("train", "", count, size, False), *of("val", "_val", 300, "4 MB", True)]


def _imagenet(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """ILSVRC2012_img_train.tar, a tar of n01440764.tar .., or folders of them with
    n01440764_10026.JPEG; ILSVRC2012_img_val.tar with ILSVRC2012_val_00000001.JPEG.
    """
    parts = []
    for side in sizes:
        configs = _LARGE if side == 256 else ()
        parts += [
            Part(
                f"imagenet_{side}", r"/(n\d{8}_\d+)\.(?i:jpe?g)$", Crop(side),
                "ILSVRC2012_img_train.tar (138 GB)", side**2 / 1e6, limit=100_000, configs=configs,
            ),
            Part(
                f"imagenet_{side}_val", r"/(ILSVRC2012_val_\d{8})\.(?i:jpe?g)$",
                Crop(side, is_middle=True), "ILSVRC2012_img_val.tar (6.3 GB)", side**2 / 1e6,
                limit=3_000, is_evaluation=True, is_listed=True, configs=configs,
            ),
        ]  # fmt: skip
    return parts


def _realsr(sizes: tuple[int, ...], scale: int) -> list[Part]:
    """RealSR(V3)/Canon/Train/4/Canon_001_HR.png and Canon_001_LR4.png; Nikon and Test likewise."""
    return [
        Part(
            f"realsr_x{scale}_{split.lower()}/{kind}",
            rf"(?:Canon|Nikon)/{split}/{scale}/((?:Canon|Nikon)_\d+)_{ending}\.png$",
            AsItIs(), "RealSR(V3).tar.gz", megapixels, is_evaluation=split == "Test",
        )
        for split in ("Train", "Test")
        for kind, ending, megapixels in (("hr", "HR", 1.7), ("lr", f"LR{scale}", 1.7 / scale**2))
    ]  # fmt: skip


_LSUN_TERMS = "for research; the photos belong to their owners"

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "ffhq", "FFHQ: 70,000 faces", "https://github.com/NVlabs/ffhq-dataset",
            "CC BY-NC-SA 4.0, each photo by its own licence; not commercial",
            r"(?i)ffhq|images1024x1024", _ffhq, sizes=(128,),
        ),
        Recipe(
            "celebahq", "CelebA-HQ: 30,000 faces, for evaluation",
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA/CelebAMask_HQ.html",
            "for non-commercial research and education",
            r"(?i)celeb|data\d+x\d+", _celebahq, sizes=(128,),
        ),
        Recipe(
            "div2k", "DIV2K: 800 photos for training, 100 for evaluation",
            "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
            "for academic research; the photos belong to their owners",
            r"DIV2K", _div2k, scale=4,
        ),
        Recipe(
            "flickr2k", "Flickr2K: 2,650 photos, with DIV2K also called DF2K",
            "https://github.com/limbee/NTIRE2017",
            "no licence is named; the photos belong to their owners, use them for research",
            r"Flickr2K", _flickr2k, scale=4,
        ),
        Recipe(
            "cat", "CAT: about 10,000 photos of cats", "https://archive.org/details/CAT_DATASET",
            "no licence is named; the photos belong to their owners, use them for research",
            r"CAT_", _cat, sizes=(128,),
        ),
        Recipe(
            "lsun-bedroom", "LSUN bedroom: 3 million photos", "https://www.yf.io/p/lsun",
            _LSUN_TERMS, r"bedroom", partial(_lsun, scene="bedroom", count=3_033_042, size="43 GB"),
            sizes=(128,),
        ),
        Recipe(
            "lsun-tower", "LSUN tower: 700,000 photos", "https://www.yf.io/p/lsun",
            _LSUN_TERMS, r"tower", partial(_lsun, scene="tower", count=708_264, size="11 GB"),
            sizes=(128,),
        ),
        Recipe(
            "imagenet", "ImageNet (ILSVRC2012): crops of 100,000 photos, 3,000 for evaluation",
            "https://image-net.org/download.php",
            "for non-commercial research and education, after signing in",
            r"ILSVRC2012|imagenet|n\d{8}\.tar", _imagenet, sizes=(256,),
        ),
        Recipe(
            "realsr", "RealSR, version 3: photos of two cameras, in pairs of HR and LR",
            "https://github.com/csjcai/RealSR",
            "no licence is named; ask its authors for other uses than research",
            r"RealSR", _realsr, scale=4,
        ),
    )
}  # fmt: skip


def recipe_of(name: str | None) -> Recipe:
    """Raises PrepareError for a name that no recipe has."""
    if name is None:
        raise PrepareError(f"name a data set; there are {', '.join(RECIPES)}.")
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES, f"there are {', '.join(RECIPES)}.")
        raise PrepareError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]
