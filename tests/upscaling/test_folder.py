import json
from pathlib import Path

import numpy as np
import pytest

from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.upscaling.folder import BatchError, Job, plan_jobs, upscale_all, write_report


def picture(height=3, width=5) -> Image:
    return Image(np.full((height, width, 3), 99, np.uint8))


def double(image: Image) -> Image:
    return Image(image.pixels.repeat(2, 0).repeat(2, 1), image.alpha, image.icc, image.was_gray)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in/sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        write_image(tmp_path / "in" / name, picture())
    return tmp_path / "in"


def test_a_folder_run_goes_on_past_bad_files_and_names_them(folder, tmp_path):
    (folder / "aa.png").write_text("no picture")
    (folder / "bb.png").touch()
    cut = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 2])
    results = list(upscale_all(plan_jobs(folder, tmp_path / "out"), double))
    assert [(Path(r.source).name, r.status) for r in results] == [
        ("a.png", "done"),
        ("aa.png", "failed"),
        ("b.png", "done"),
        ("bb.png", "failed"),
        ("cut.png", "failed"),
    ]
    assert all(Path(r.source).name in r.error for r in results if r.status == "failed")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert (results[0].size_in, results[0].size_out) == ((5, 3), (10, 6))


def test_errors_of_the_program_are_not_taken_for_bad_pictures(folder, tmp_path):
    def broken(image):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(upscale_all(plan_jobs(folder, tmp_path / "out"), broken))


def test_recursive_keeps_subfolders_suffix_and_ext_name_the_outputs(folder, tmp_path):
    jobs = plan_jobs(folder, tmp_path / "out", recursive=True, suffix="_x4", ext="webp")
    assert [str(job.target.relative_to(tmp_path / "out")) for job in jobs] == [
        "a_x4.webp",
        "b_x4.webp",
        "sub/c_x4.webp",
    ]
    assert all(r.status == "done" for r in upscale_all(jobs, double))
    assert read_image(tmp_path / "out/sub/c_x4.webp").pixels.shape == (6, 10, 3)


def test_one_file_goes_into_a_folder_or_to_the_name_given(folder, tmp_path):
    assert plan_jobs(folder / "a.png", tmp_path / "out") == [
        Job(folder / "a.png", tmp_path / "out/a.png")
    ]
    assert plan_jobs(folder / "a.png", tmp_path / "x.tif") == [
        Job(folder / "a.png", tmp_path / "x.tif")
    ]
    dotted = tmp_path / "v1.5"
    dotted.mkdir()
    assert plan_jobs(folder / "a.png", dotted)[0].target == dotted / "a.png"


def test_skip_existing_computes_only_what_is_missing(folder, tmp_path):
    jobs = plan_jobs(folder, tmp_path / "out")
    list(upscale_all(jobs[:1], double))
    before = jobs[0].target.stat().st_mtime_ns
    assert [r.status for r in upscale_all(jobs, double, skip_existing=True)] == ["skipped", "done"]
    assert jobs[0].target.stat().st_mtime_ns == before


def test_results_inside_the_input_folder_are_not_inputs_of_the_next_run(folder):
    first = plan_jobs(folder, folder / "out", recursive=True)
    list(upscale_all(first, double))
    assert plan_jobs(folder, folder / "out", recursive=True) == first


@pytest.mark.parametrize("out, options", [(".", {}), ("../in", {}), (".", {"ext": "png"})])
def test_an_input_is_never_overwritten(folder, out, options):
    with pytest.raises(BatchError, match="is an input and would be overwritten"):
        plan_jobs(folder, folder / out, **options)


def test_an_output_that_is_another_input_or_a_link_to_one_is_refused(folder, tmp_path):
    write_image(folder / "a_x4.png", picture())
    with pytest.raises(BatchError, match="a_x4.png is an input"):
        plan_jobs(folder, folder, suffix="_x4")
    (tmp_path / "link.png").symlink_to(folder / "b.png")
    with pytest.raises(BatchError, match="link.png is an input"):
        plan_jobs(folder / "b.png", tmp_path / "link.png")


def test_two_inputs_with_one_output_are_refused(folder, tmp_path):
    write_image(folder / "a.jpg", picture())
    with pytest.raises(BatchError, match=r"a\.jpg and .*a\.png would both become"):
        plan_jobs(folder, tmp_path / "out", ext="png")


@pytest.mark.parametrize(
    "source, out, options, error, says",
    [
        ("none", "out", {}, ImageError, "no such file or folder"),
        ("in", "file", {}, BatchError, "is a file"),
        ("in", "out", {"ext": "bmp"}, BatchError, "ext='bmp' cannot be written"),
        ("in/a.png", "x.bmp", {}, BatchError, "cannot write .bmp"),
        ("in/a.png", "x.png", {"suffix": "_x4"}, BatchError, "names the output file"),
    ],
)
def test_impossible_plans_are_one_sentence(folder, tmp_path, source, out, options, error, says):
    (tmp_path / "file").touch()
    with pytest.raises(error, match=says) as caught:
        plan_jobs(tmp_path / source, tmp_path / out, **options)
    assert "\n" not in str(caught.value)


def test_an_output_folder_that_cannot_be_made_fails_the_picture(folder, tmp_path):
    (tmp_path / "file").touch()
    result = next(upscale_all([Job(folder / "a.png", tmp_path / "file/out/a.png")], double))
    assert result.status == "failed" and "cannot be made" in result.error


def test_the_report_holds_settings_and_every_picture(folder, tmp_path):
    (folder / "bad.png").touch()
    results = list(upscale_all(plan_jobs(folder, tmp_path / "out"), double))
    write_report(tmp_path / "report.json", {"scale": 2, "input": folder}, results)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"] == {"scale": 2, "input": str(folder)}
    assert [p["status"] for p in report["pictures"]] == ["done", "done", "failed"]
    assert (
        report["pictures"][0]["size_out"] == [10, 6] and "empty" in report["pictures"][2]["error"]
    )
    with pytest.raises(BatchError, match="report cannot be written"):
        write_report(tmp_path / "missing/report.json", {}, results)
