"""tools/prepare_data.py: what it prints, and its exit status."""

import runpy
import sys
from pathlib import Path

import pytest

from preparing import archives
from preparing.archives import picture, write_folder, write_zip

TOOL = Path(__file__).resolve().parents[2] / "tools/prepare_data.py"


@pytest.fixture
def tool(monkeypatch, tmp_path, capsys):
    """The tool in `tmp_path`, on one worker: words -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *words, "--workers", "1"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


def test_all_is_well(tool):
    write_zip(Path("downloads/CelebAMask-HQ.zip"), archives.celebamask())
    status, out, err = tool("celebahq", "--sizes", "16,24", "--eval-count", "2")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "data/celebahq_16: 5 pictures, from 5 (its publisher names 30,000)",
        "data/celebahq_24: 5 pictures, from 5 (its publisher names 30,000)",
        "data/celebahq_16-eval2.txt: the pictures to evaluate on",
        "data/celebahq_24-eval2.txt: the pictures to evaluate on",
    ]


def test_a_broken_picture_is_status_1(tool):
    files = archives.ffhq(3) | {"images1024x1024/00000/00001.png": b"broken"}
    write_folder(Path("elsewhere"), files)
    status, out, err = tool("ffhq", "--from", "elsewhere", "-o", "mine", "--sizes", "16")
    assert status == 1
    assert out.startswith("mine/ffhq_16: 2 pictures, from 3")
    assert err.splitlines() == [
        "failed: elsewhere/images1024x1024/00000/00001.png: no picture, or its header is broken"
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["cifar"], "there is no recipe 'cifar'; there are ffhq, celebahq, div2k"),
        ([], "name a data set; there are ffhq"),
        (["ffhq"], "downloads: no such file or folder; put the archives there"),
        (["div2k", "--sizes", "16"], "div2k has no sizes to choose; leave --sizes out"),
        (["ffhq", "--scale", "2"], "ffhq has no scale to choose; leave --scale out"),
        (["ffhq", "--sizes", "4"], "--sizes 4: give sides of 8 to 1024 pixels"),
        (["realsr", "--scale", "8"], "--scale 8: realsr comes in 2, 3 and 4"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tool, words, text):
    status, out, err = tool(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_check_says_what_is_there_and_what_is_missing(tool):
    write_zip(Path("downloads/DIV2K_train_HR.zip"), {"0001.png": picture(1, 500, 620)})
    status, out, _ = tool("div2k", "--check")
    assert status == 1
    lines = [line.strip() for line in out.splitlines()]
    assert "get it at https://data.vision.ee.ethz.ch/cvl/DIV2K/" in lines
    train = lines.index(
        "data/DIV2K_train_HR_sub  (wanted by configs/sr3/div2k-4x.yaml, "
        "configs/resshift/ddpm-4x.yaml)"
    )
    assert lines[train + 1 : train + 4] == [
        "source: 1 pictures of 800, 1 wanted",
        "made: 0 pictures",
        "to do: 1 pictures, about 0.02 GB",
    ]
    assert "source: missing: DIV2K_valid_HR.zip (0.4 GB)" in lines
    assert "source: not there, and not needed: DIV2K_train_LR_bicubic_X4.zip" in lines
    assert lines[-1].startswith("space: about 0.0 GB needed")
    assert not Path("data").exists()


def test_check_is_content_when_all_is_made(tool):
    archives.lsun(Path("downloads"), "tower", packed=True)
    status, out, _ = tool("lsun-tower", "--check", "--sizes", "16")
    assert status == 0 and "to be unpacked" in out
    assert tool("lsun-tower", "--sizes", "16")[0] == 0
    for path in Path("downloads").iterdir():
        path.unlink()
    status, out, _ = tool("lsun-tower", "--check", "--sizes", "16")
    assert status == 0 and "made: 4 pictures" in out and "missing" not in out


def test_the_list_names_pages_terms_and_configs(tool):
    status, out, _ = tool("--list")
    assert status == 0
    assert "get it at https://github.com/NVlabs/ffhq-dataset" in out
    assert "wanted by configs/sr3/face-8x.yaml" in out
    assert out.count("terms: ") == 9
