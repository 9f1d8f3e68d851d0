"""Small archives that look like those of the publishers: folders, names and kinds are theirs."""

import io
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import PIL.Image

TERMS = b"terms of use"


def picture(seed: int, height: int = 40, width: int = 40, kind: str = "PNG") -> bytes:
    """A picture of smooth colours, another one for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def decoded(data: bytes | Path) -> np.ndarray:
    file = data if isinstance(data, Path) else io.BytesIO(data)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    mode = "w:gz" if path.suffix in {".gz", ".tgz"} else "w"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, mode))
    return path


def write_lmdb(folder: Path, values: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as writing:
        for key, data in values.items():
            writing.put(key.encode(), data)
    return folder


def read_lmdb(folder: Path) -> dict[str, bytes]:
    with lmdb.open(str(folder), readonly=True, lock=False) as database, database.begin() as reading:
        return {bytes(key).decode(): bytes(value) for key, value in reading.cursor()}


# ------------------------------------------------------------------------------------- data sets


def ffhq(count: int = 5) -> dict[str, bytes]:
    names = (f"images1024x1024/{n // 1000 * 1000:05d}/{n:05d}.png" for n in range(count))
    files = {name: picture(n) for n, name in enumerate(names)}
    return {
        **files,
        "LICENSE.txt": TERMS,
        "thumbnails128x128/00000/00009.png": picture(9),
    }


def celebamask(count: int = 5) -> dict[str, bytes]:
    top = "CelebAMask-HQ"
    return {
        **{f"{top}/CelebA-HQ-img/{n}.jpg": picture(n, kind="JPEG") for n in range(count)},
        f"{top}/CelebAMask-HQ-mask-anno/0/00000_hair.png": picture(50),
        f"{top}/README.txt": TERMS,
    }


def div2k(downloads: Path) -> None:
    """Two pictures for training, one for validation, each with its LR picture."""
    for split, numbers in (("train", (1, 2)), ("valid", (801,))):
        write_zip(
            downloads / f"DIV2K_{split}_HR.zip",
            {f"DIV2K_{split}_HR/{n:04d}.png": picture(n, 500, 620) for n in numbers},
        )
        write_zip(
            downloads / f"DIV2K_{split}_LR_bicubic_X4.zip",
            {f"DIV2K_{split}_LR_bicubic/X4/{n:04d}x4.png": picture(n, 125, 155) for n in numbers},
        )


def flickr2k() -> dict[str, bytes]:
    return {
        "Flickr2K/Flickr2K_HR/000001.png": picture(1, 484, 480),
        "Flickr2K/Flickr2K_LR_bicubic/X4/000001x4.png": picture(1, 121, 120),
        "Flickr2K/Flickr2K_LR_bicubic/X2/000001x2.png": picture(1, 242, 240),
    }


def cat(count: int = 8) -> dict[str, bytes]:
    files = {}
    for n in range(count):
        name = f"CAT_0{n % 2}/0000000{n}_00{n}.jpg"
        files |= {name: picture(n, 30, 40, "JPEG"), f"{name}.cat": b"9 1 2 3 4 5 6 7 8 9"}
    return files


def lsun(downloads: Path, scene: str, packed: bool) -> None:
    for split, count in (("train", 4), ("val", 2)):
        values = {f"{n:040x}": picture(n, 24, 32, "WEBP") for n in range(count)}
        folder = write_lmdb(downloads / f"{scene}_{split}_lmdb", values)
        if packed:
            files = {f"{folder.name}/{file.name}": file.read_bytes() for file in folder.iterdir()}
            write_zip(downloads / f"{folder.name}.zip", files)
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def imagenet(downloads: Path) -> None:
    synsets = {
        f"n0000000{s}.tar": tar_bytes(
            {f"n0000000{s}_{n}.JPEG": picture(10 * s + n, 30, 40, "JPEG") for n in range(3)}
        )
        for s in (1, 2)
    }
    write_tar(downloads / "ILSVRC2012_img_train.tar", synsets)
    write_tar(
        downloads / "ILSVRC2012_img_val.tar",
        {f"ILSVRC2012_val_{n:08d}.JPEG": picture(n, 30, 40, "JPEG") for n in range(1, 4)},
    )


def realsr() -> dict[str, bytes]:
    files = {}
    for camera in ("Canon", "Nikon"):
        for split, n in (("Train", 1), ("Test", 2)):
            for scale in (2, 4):
                top = f"RealSR(V3)/{camera}/{split}/{scale}/{camera}_{n:03d}"
                files[f"{top}_HR.png"] = picture(n, 48, 32)
                files[f"{top}_LR{scale}.png"] = picture(n, 48 // scale, 32 // scale)
    return files
