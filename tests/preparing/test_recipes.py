"""Every recipe, on small archives that look like its publisher's, and what the configs name."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from ldm_dream.preparing.job import Job
from ldm_dream.preparing.recipe import Options, PrepareError
from ldm_dream.preparing.recipes import RECIPES
from preparing import archives
from preparing.archives import decoded, picture, write_folder, write_tar, write_zip

ROOT = Path(__file__).resolve().parents[2]


def prepared(recipe: str, places, out: Path, as_lmdb: bool = False, **options) -> Job:
    """The recipe done in this process; nothing may fail."""
    job = Job.of(RECIPES[recipe], places, out, Options(**options), as_lmdb)
    list(job.run(workers=1))
    assert not job.failures
    return job


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


@pytest.mark.parametrize("pack", [write_folder, write_zip, write_tar])
def test_ffhq_in_two_sizes_from_a_folder_a_zip_or_a_tar(tmp_path, pack):
    suffix = {write_folder: "", write_zip: ".zip", write_tar: ".tar"}[pack]
    place = pack(tmp_path / f"downloads/ffhq-dataset{suffix}", archives.ffhq())
    prepared("ffhq", [place.parent], tmp_path / "data", sizes=(16, 24))
    for side in (16, 24):
        folder = tmp_path / f"data/ffhq_{side}"
        assert names(folder) == [f"{n:05d}.png" for n in range(5)]
        # as SR3's code: Pillow's bicubic, straight from the whole picture
        whole = PIL.Image.fromarray(decoded(picture(3)))
        smaller = whole.resize((side, side), PIL.Image.Resampling.BICUBIC)
        assert np.array_equal(decoded(folder / "00003.png"), np.asarray(smaller))


def test_squares_are_those_of_torchvision(tmp_path):
    """Which SR3's code cuts them by."""
    from torchvision.transforms import functional

    from ldm_dream.preparing.pictures import Square

    for height, width in [(30, 47), (47, 30), (33, 33), (16, 29), (100, 17)]:
        image = PIL.Image.fromarray(decoded(picture(0, height, width)))
        smaller = functional.resize(image, 16, functional.InterpolationMode.BICUBIC)
        expected = np.asarray(functional.center_crop(smaller, 16))
        ((_, made),) = Square(16)(image, "a")
        assert np.array_equal(np.asarray(made), expected)


@pytest.mark.parametrize(
    "files",
    [
        archives.celebamask(),
        {f"data256x256/{n:05d}.jpg": picture(n, kind="JPEG") for n in range(5)},
        {f"celeba_hq_256/{n:05d}.jpg": picture(n, kind="JPEG") for n in range(5)},
    ],
    ids=["CelebAMask-HQ", "data256x256", "celeba_hq_256"],
)
def test_celebahq_with_a_list_to_evaluate_on(tmp_path, files):
    others = {"img_align_celeba/000001.jpg": picture(1, 48, 40, "JPEG")}
    place = write_zip(tmp_path / "archive.zip", {**files, **others})
    job = prepared("celebahq", [place], tmp_path / "data", sizes=(16,), eval_count=2)
    assert names(tmp_path / "data/celebahq_16") == [f"{n:05d}.png" for n in range(5)]
    first, *lines = (tmp_path / "data/celebahq_16-eval2.txt").read_text().splitlines()
    assert first.startswith("#")
    assert lines == ["celebahq_16/00000.png", "celebahq_16/00002.png"]
    assert all((tmp_path / "data" / line).is_file() for line in lines)
    assert "5 pictures, from 5 (its publisher names 30,000)" in "\n".join(job.summary())


def test_the_hundred_of_dream_are_taken_as_they_are(tmp_path):
    files = {f"celebahq_16_128/{kind}/{n:05d}.png": picture(n, side, side)
             for kind, side in (("lr_16", 8), ("hr_128", 16), ("sr_16_128", 16))
             for n in (7, 30)}  # fmt: skip
    place = write_zip(tmp_path / "celebahq_16_128.zip", files)
    prepared("celebahq", [place], tmp_path / "data", sizes=(16,))
    assert names(tmp_path / "data/celebahq_16") == ["00007.png", "00030.png"]
    made = decoded(tmp_path / "data/celebahq_16/00030.png")
    assert np.array_equal(made, decoded(picture(30, 16, 16)))
    assert (tmp_path / "data/celebahq_16-eval100.txt").is_file()


def test_the_faces_of_sr3_are_the_hr_ones_alone(tmp_path):
    """sr_16_128 has the size that is wanted, and would be taken for faces."""
    kinds = {"sr_16_128": 16, "lr_16": 16, "hr_128": 24}
    files = {
        f"ffhq_16_128/{kind}/{n:05d}.png": picture(100 * side + n, side, side)
        for kind, side in kinds.items()
        for n in (1, 2)
    }
    place = write_zip(tmp_path / "ffhq_16_128.zip", files)
    prepared("ffhq", [place], tmp_path / "data", sizes=(24,))
    assert names(tmp_path / "data/ffhq_24") == ["00001.png", "00002.png"]
    for n in (1, 2):
        made = decoded(tmp_path / f"data/ffhq_24/0000{n}.png")
        assert np.array_equal(made, decoded(picture(2400 + n, 24, 24)))


def test_numbered_pictures_are_faces_only_by_their_path(tmp_path):
    files = {"frames/00001.png": picture(1), "ffhq/00002.png": picture(2)}
    place = write_folder(tmp_path / "downloads", files)
    prepared("ffhq", [place], tmp_path / "data", sizes=(16,))
    assert names(tmp_path / "data/ffhq_16") == ["00002.png"]
    with pytest.raises(PrepareError, match="none of 1 pictures is of ffhq: give images1024x1024"):
        prepared("ffhq", [place / "frames"], tmp_path / "data", sizes=(16,))


def test_div2k_as_sub_images_with_lr_of_the_same_names(tmp_path):
    archives.div2k(tmp_path / "downloads")
    prepared("div2k", [tmp_path / "downloads"], tmp_path / "data")
    hr, lr = (tmp_path / f"data/DIV2K_train_{k}" for k in ("HR_sub", "LR_bicubic_X4_sub"))
    expected = [f"{n:04d}_s{i:03d}.png" for n in (1, 2) for i in (1, 2, 3, 4)]
    assert names(hr) == names(lr) == expected
    # the last of a row and of a column at the border, and LR from the same place
    assert np.array_equal(
        decoded(hr / "0002_s004.png"), decoded(picture(2, 500, 620))[20:500, 140:620]
    )
    assert np.array_equal(
        decoded(lr / "0002_s004.png"), decoded(picture(2, 125, 155))[5:125, 35:155]
    )
    valid = tmp_path / "data/DIV2K_valid_HR/0801.png"
    assert valid.read_bytes() == picture(801, 500, 620)  # as published
    assert names(tmp_path / "data/DIV2K_valid_LR_bicubic_X4") == ["0801.png"]


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        (480, 480, [(0, 0)]),
        (480, 720, [(0, 0), (0, 240)]),
        (481, 960, [(top, left) for top in (0, 1) for left in (0, 240, 480)]),
        (100, 500, [(0, 0), (0, 20)]),
    ],
)
def test_sub_images_are_those_of_basicsr(height, width, corners):
    from ldm_dream.preparing.pictures import SubImages

    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., :2], pixels[..., 2] = grid % 256, grid[..., 1] // 256
    made = SubImages(480, 240)(PIL.Image.fromarray(pixels), "a")
    assert [name for name, _ in made] == [f"a_s{n:03d}" for n in range(1, len(corners) + 1)]
    for (_, cut), (top, left) in zip(made, corners):
        assert np.array_equal(np.asarray(cut), pixels[top : top + 480, left : left + 480])


def test_flickr2k_at_its_scale(tmp_path):
    place = write_tar(tmp_path / "Flickr2K.tar", archives.flickr2k())
    prepared("flickr2k", [place], tmp_path / "data", scale=2)
    expected = ["000001_s001.png", "000001_s002.png"]
    assert names(tmp_path / "data/Flickr2K_sub") == expected
    lr = tmp_path / "data/Flickr2K_LR_bicubic_X2_sub"
    assert names(lr) == expected
    assert decoded(lr / "000001_s002.png").shape == (240, 240, 3)


def test_cat_holds_some_out(tmp_path):
    place = write_zip(tmp_path / "CAT_DATASET_01.zip", archives.cat())
    prepared("cat", [place], tmp_path / "data", sizes=(16,), eval_count=2)
    held, rest = (names(tmp_path / f"data/{name}") for name in ("cat_16_val", "cat_16"))
    assert len(held) == 2 and len(rest) == 6 and not {*held} & {*rest}
    assert held[0] == "CAT_00-00000000_000.png"


@pytest.mark.parametrize("scene", ["bedroom", "tower"])
@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_lsun_from_its_lmdb(tmp_path, scene, packed):
    archives.lsun(tmp_path / "downloads", scene, packed)
    prepared(f"lsun-{scene}", [tmp_path / "downloads"], tmp_path / "data", sizes=(16,))
    train = tmp_path / f"data/lsun_{scene}_16"
    assert names(train) == [f"{n:040x}.png" for n in range(4)]
    assert decoded(train / names(train)[0]).shape == (16, 16, 3)
    assert len(names(tmp_path / f"data/lsun_{scene}_16_val")) == 2
    assert not (tmp_path / "data/.unpacked").exists()


@pytest.mark.parametrize("unpacked", [False, True], ids=["tars", "folders"])
def test_imagenet_has_crops_of_some(tmp_path, unpacked):
    downloads = tmp_path / "downloads"
    if unpacked:
        files = {f"ILSVRC/train/n1/n0000000{s}_{n}.JPEG": picture(n, 30, 40, "JPEG")
                 for s in (1, 2) for n in range(3)}  # fmt: skip
        write_folder(downloads, files)
    else:
        archives.imagenet(downloads)
    prepared("imagenet", [downloads], tmp_path / "data", sizes=(24,), limit=2)
    train = tmp_path / "data/imagenet_24"
    assert names(train) == ["n00000001_0.png", "n00000002_0.png"]  # from all synsets
    assert decoded(train / "n00000001_0.png").shape == (24, 24, 3)
    if not unpacked:
        val = tmp_path / "data/imagenet_24_val"
        whole = decoded(picture(1, 30, 40, "JPEG"))
        assert np.array_equal(decoded(val / "ILSVRC2012_val_00000001.png"), whole[3:27, 8:32])


def test_realsr_in_pairs_from_a_packed_tar(tmp_path):
    place = write_tar(tmp_path / "RealSR(V3).tar.gz", archives.realsr())
    prepared("realsr", [place], tmp_path / "data")
    for split, n in (("train", 1), ("test", 2)):
        hr, lr = (tmp_path / f"data/realsr_x4_{split}/{kind}" for kind in ("hr", "lr"))
        assert names(hr) == names(lr) == [f"Canon_{n:03d}.png", f"Nikon_{n:03d}.png"]
        assert decoded(hr / names(hr)[0]).shape == (48, 32, 3)
        assert decoded(lr / names(lr)[0]).shape == (12, 8, 3)


# ------------------------------------------------------------------------------------------ configs


def test_configs_name_the_folders_that_recipes_make():
    """Every data/... of a config is what a recipe makes, the recipe knows of the config, and the
    config says the command.
    """
    made, wanted = {}, {}
    for recipe in RECIPES.values():
        sizes = {128, 512} if 128 in recipe.sizes else recipe.sizes
        for part in recipe.parts(Options(sizes=tuple(sizes) or None)):
            made[f"data/{part.output}"] = recipe.name
            made[f"data/{part.output}-eval100.txt"] = recipe.name
            for config in part.configs:
                wanted.setdefault(config, set()).add(recipe.name)
    found = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text()
        data = yaml.safe_load(text).get("data", {})
        ours = [name for key in ("train", "val") for name in data.get(key, ())]
        ours = [name for name in ours if name.startswith("data/")]
        if ours:
            recipes = {made.get(name, f"no recipe makes {name}") for name in ours}
            found[path.relative_to(ROOT).as_posix()] = recipes
            head = re.match(r"(#.*\n)+", text)[0]
            for recipe in recipes:
                assert re.search(rf"tools/prepare_data.py {recipe}\b", head), (path, recipe)
    assert found == wanted
