"""Laws of kept pictures and of their parts: whatever is kept or decoded, the pixels are the same."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import PIL.Image
import pytest
import pyvips
import torch

from ldm_dream.config.data import BicubicConfig, BlindConfig, DataConfig
from ldm_dream.data import kept, memory
from ldm_dream.data.images import read_image, read_window
from ldm_dream.data.kept import Piece, Pieces
from ldm_dream.data.memory import available, handed_over, mapped, new_area, room_for_pictures
from ldm_dream.data.pairs import PairDataset, Request
from ldm_dream.data.resize import imresize_levels, imresize_levels_part, rows_needed
from ldm_dream.data.sources import DataError, Files, Pictures

SIZE = 90, 70  # height, width


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def written(folder) -> dict[str, bool]:
    """Pictures of each way to be read -> whether a part of it is read without the rest."""
    rgb, gray, rgba = (noise(*SIZE, 3), noise(*SIZE), noise(*SIZE, 4))
    picture, made = PIL.Image.fromarray, {}
    for name, image, options, in_rows in (
        ("rgb.png", picture(rgb), {}, True),
        ("gray.png", picture(gray), {}, True),
        ("alpha.png", picture(rgba), {}, True),
        ("palette.png", picture(rgb).quantize(32), {}, True),
        ("rgb.jpg", picture(rgb), {"quality": 80}, True),
        ("progressive.jpg", picture(rgb), {"quality": 80, "progressive": True}, True),
        ("gray.jpg", picture(gray), {}, True),
        ("cmyk.jpg", picture(rgba, "CMYK"), {}, False),
        ("rgb.webp", picture(rgb), {}, False),
    ):
        image.save(folder / name, **options)
        made[name] = in_rows
    deep = pyvips.Image.new_from_array(noise(*SIZE, 3, dtype=np.uint16))
    deep.copy(interpretation="rgb16").pngsave(str(folder / "deep.png"))
    pyvips.Image.new_from_array(rgb).pngsave(str(folder / "interlaced.png"), interlace=True)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    picture(rgb).save(folder / "turned.jpg", exif=turned)
    return made | {"deep.png": True, "interlaced.png": True, "turned.jpg": False}


def test_a_part_of_a_picture_is_that_of_the_whole_picture(tmp_path):
    for name, in_rows in written(tmp_path).items():
        whole = read_image(tmp_path / name).pixels
        for rows, columns in [((0, 9), (0, 70)), ((31, 60), (5, 64)), ((80, 90), (69, 70))]:
            part = read_window(tmp_path / name, slice(*rows), slice(*columns))
            assert (part is not None) == in_rows, name
            if part is not None:
                wanted = whole[slice(*rows), slice(*columns)]
                np.testing.assert_array_equal(part, wanted, err_msg=name)


def test_a_repaired_jpeg_is_as_good_at_each_visit_as_at_its_first(tmp_path, caplog):
    for name, progressive in (("baseline.jpg", False), ("progressive.jpg", True)):
        path = tmp_path / name
        PIL.Image.fromarray(noise(*SIZE, 3)).save(path, quality=80, progressive=progressive)
        path.write_bytes(path.read_bytes()[:-2])  # without its end marker
    found = {}
    for gib in (0, 1):
        cfg = DataConfig(train=(str(tmp_path),), patch=64, keep_gib=gib, max_bad_fraction=1)
        data = PairDataset(cfg, scale=1, seed=0)
        found[gib] = [data.batch(number, 4).hr for number in range(4)]
        assert not data.bad
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1]))


@pytest.mark.parametrize("degradation", [BicubicConfig(), BlindConfig()], ids=lambda x: x.kind)
def test_no_batch_depends_on_what_is_kept(tmp_path, monkeypatch, degradation):
    written(tmp_path)
    decoded = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda *x: decoded.append(x[1]) or read(*x))

    def batches(gib: float | None):
        cfg = DataConfig(train=(str(tmp_path),), patch=16, keep_gib=gib, degradation=degradation)
        data = PairDataset(cfg, scale=4, seed=0)
        decoded.clear()
        return data, [data.batch(number, 4) for number in range(6)]

    everything, wanted = batches(None)
    assert everything.hr.keeps == 12 and len(decoded) == 12, "each is decoded once"
    half, found = batches(6.5 * 3 * SIZE[0] * SIZE[1] / 2**30)
    nothing, others = batches(0)
    assert half.hr.keeps == 6 and nothing.hr.keeps == 0
    assert 12 < len(decoded) < 24, "each is decoded whole at its first visit, some at each"
    for one, two, three in zip(wanted, found, others):
        assert one.draws == two.draws == three.draws
        assert torch.equal(one.hr, two.hr) and torch.equal(one.lr, two.lr)
        assert torch.equal(one.hr, three.hr) and torch.equal(one.lr, three.lr)


@pytest.mark.parametrize("gib", [0, 1])
def test_a_broken_picture_is_found_whichever_part_is_asked_for(tmp_path, gib):
    PIL.Image.fromarray(noise(*SIZE, 3)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[: len(data) * 9 // 10])
    cfg = DataConfig(train=(str(tmp_path),), patch=16, keep_gib=gib, max_bad_fraction=1)
    pairs = PairDataset(cfg, scale=4, seed=0)
    for _ in range(2):  # each time, not the first time alone
        with pytest.raises(DataError, match=r"1 of 1 pictures cannot be read.*x\.png: broken"):
            pairs.load(Request((0, 1), 16))


def test_a_picture_that_is_replaced_while_a_run_goes_on_is_named(tmp_path):
    PIL.Image.fromarray(noise(*SIZE, 3)).save(tmp_path / "x.png")
    pairs = PairDataset(DataConfig(train=(str(tmp_path),), patch=16), scale=4, seed=0)
    PIL.Image.fromarray(noise(50, 60, 3)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png: is 60x50, but 70x90 when the run began"):
        pairs.batch(0, 1)


def test_memory_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(12, "Cannot allocate memory")

    PIL.Image.fromarray(noise(*SIZE, 3)).save(tmp_path / "x.png")
    monkeypatch.setattr(kept, "mapped", refused)
    with pytest.raises(DataError, match=r"data\.keep_gib: 0\.0 GiB cannot be reserved \(Cannot"):
        Pieces(Pictures((str(tmp_path),), (), "data.train"), [0], np.array([SIZE]), 10**6)


def test_an_area_outlives_its_descriptor_and_goes_from_process_to_process():
    for tensor in (torch.arange(12, dtype=torch.uint8).view(3, 4).t(), torch.ones(2, 3)):
        rebuilt, arguments = handed_over(tensor)
        found = rebuilt(*pickle.loads(ForkingPickler.dumps(arguments)))
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype
    area = new_area(5)
    mapped(area, 5).fill_(7)
    assert mapped(area, 5).tolist() == [7] * 5


# ---------------------------------------------------------------------------------------- memory


def machine(root, groups: str, **files: str):
    """A tree with what the kernel says; MemAvailable is 1000 KiB."""
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n",
        "proc/self/cgroup": groups,
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(where: str, limit: str, used: int, cache: int) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{where}memory.max": f"{limit}\n",
        f"sys/fs/cgroup/{where}memory.current": f"{used}\n",
        f"sys/fs/cgroup/{where}memory.stat": f"anon 1\ninactive_file {cache}\n",
    }


def test_memory_is_what_machine_and_control_groups_leave(tmp_path):
    plain = machine(tmp_path / "plain", "0::/\n")
    assert available(plain) == 1000 * 1024
    above = group("a/", "5000", 3000, 500) | group("a/b/", "max", 2000, 500)
    assert available(machine(tmp_path / "two", "0::/a/b\n", **above)) == 2500
    full = group("", "5000", 6000, 0)
    assert available(machine(tmp_path / "full", "0::/\n", **full)) == 0
    old = {
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4000",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "1000",
        "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 9\ntotal_inactive_file 100\n",
    }
    assert available(machine(tmp_path / "one", "3:cpu:/x\n7:memory:/a\n", **old)) == 3100


def test_more_memory_than_is_free_is_not_used_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr(memory, "available", lambda: 10 * 2**30)
    assert room_for_pictures(10.0) == 10 * 2**30 and not caplog.text
    assert room_for_pictures(11.0) == 9 * 2**30
    assert "data.keep_gib=11: 10.0 GiB of memory are free here; pictures are kept in 9.0 GiB." in (
        caplog.text
    )


def test_processes_of_a_machine_share_the_room(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    alone = room_for_pictures(2.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert alone == 2 * 2**30 and room_for_pictures(2.0) == alone // 4


# ------------------------------------------------------------------------------------------- LR


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_an_lr_patch_is_that_of_the_whole_lr_picture(scale):
    height, width, side = 11, 23, 5  # LR pixels
    hr = torch.from_numpy(noise(3, height * scale, width * scale))
    lr = imresize_levels(hr, height, width)
    for top in range(height - side + 1):
        for left in (0, 1, 9, width - side - 1, width - side):
            rows, columns = slice(top, top + side), slice(left, left + side)
            high = rows_needed(height * scale, height, rows)
            wide = rows_needed(width * scale, width, columns)
            cut = Piece(hr[:, high, wide], high.start, wide.start).cut
            sizes = (height * scale, width * scale), (height, width)
            assert torch.equal(
                imresize_levels_part(cut, *sizes, rows, columns), lr[:, rows, columns]
            )
