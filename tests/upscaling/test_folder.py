import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from processes import IMPORTED

from ldm_dream.commands.upscale import main as upscale_command
from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.stopping import stoppable
from ldm_dream.upscaling import folder as upscaling
from ldm_dream.upscaling.devices import TooLittleMemory, UpscaleError
from ldm_dream.upscaling.folder import (
    Work,
    check_one,
    summary,
    upscale_all,
    upscale_plan,
    write_report,
)
from ldm_dream.upscaling.planning import BatchError, Job, Naming, Plan, check_places, plan_jobs
from ldm_dream.upscaling.sizes import Size
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.writing import WriteError, whole_file


def picture(height=3, width=5) -> Image:
    return Image(np.full((height, width, 3), 99, np.uint8))


def double(image: Image) -> Image:
    alpha = None if image.alpha is None else image.alpha.repeat(2, 0).repeat(2, 1)
    return replace(image, pixels=image.pixels.repeat(2, 0).repeat(2, 1), alpha=alpha)


DOUBLE = Work(double, Size(2))


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
    results = list(upscale_all(plan_jobs(folder, tmp_path / "out").jobs, DOUBLE))
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


def test_a_picture_that_the_device_has_no_memory_for_does_not_end_the_folder(folder, tmp_path):
    def upscale(image):
        if image.pixels.shape[1] > 5:
            raise TooLittleMemory("cuda:0 has too little memory for the smallest tiles.")
        return double(image)

    write_image(folder / "aa.png", picture(width=9))
    results = list(upscale_all(plan_jobs(folder, tmp_path / "out").jobs, Work(upscale, Size(2))))
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert "aa.png: cuda:0 has too little memory" in results[1].error


def test_errors_of_the_program_are_not_taken_for_bad_pictures(folder, tmp_path):
    def broken(image):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(upscale_all(plan_jobs(folder, tmp_path / "out").jobs, Work(broken, Size(2))))


def test_recursive_keeps_subfolders_suffix_and_ext_name_the_outputs(folder, tmp_path):
    jobs = plan_jobs(folder, tmp_path / "out", True, Naming("_x4", "webp")).jobs
    assert [str(job.target.relative_to(tmp_path / "out")) for job in jobs] == [
        "a_x4.webp",
        "b_x4.webp",
        "sub/c_x4.webp",
    ]
    assert all(r.status == "done" for r in upscale_all(jobs, DOUBLE))
    assert read_image(tmp_path / "out/sub/c_x4.webp").pixels.shape == (6, 10, 3)


def test_one_file_goes_into_a_folder_or_to_the_name_given(folder, tmp_path):
    for out, target in (("out", "out/a.png"), ("x.tif", "x.tif")):
        plan = plan_jobs(folder / "a.png", tmp_path / out)
        assert plan == Plan([Job(folder / "a.png", tmp_path / target)])
    dotted = tmp_path / "v1.5"
    dotted.mkdir()
    assert plan_jobs(folder / "a.png", dotted).jobs[0].target == dotted / "a.png"


def test_skip_existing_computes_only_what_is_missing(folder, tmp_path):
    jobs = plan_jobs(folder, tmp_path / "out").jobs
    list(upscale_all(jobs[:1], DOUBLE))
    before = jobs[0].target.stat().st_mtime_ns
    assert [r.status for r in upscale_all(jobs, replace(DOUBLE, skip_existing=True))] == [
        "skipped",
        "done",
    ]
    assert jobs[0].target.stat().st_mtime_ns == before


def test_results_inside_the_input_folder_are_not_inputs_of_the_next_run(folder):
    first = plan_jobs(folder, folder / "out", recursive=True)
    list(upscale_all(first.jobs, DOUBLE))
    again = plan_jobs(folder, folder / "out", recursive=True)
    marked = [replace(job, may_be_own=True) for job in first.jobs]
    assert again == Plan(marked, {"earlier result": 3})


@pytest.mark.parametrize("skip", [False, True])
def test_results_beside_the_inputs_are_not_inputs_of_the_next_run(folder, skip):
    for status in ("done", "skipped" if skip else "done"):
        plan = plan_jobs(folder, folder, naming=Naming("_x4"))
        check_places(plan)
        results = list(upscale_all(plan.jobs, replace(DOUBLE, skip_existing=skip)))
        assert [r.status for r in results] == [status] * 2
    assert plan.left_out == {"earlier result": 2, "subfolder": 1}
    names = {path.name for path in folder.iterdir()}
    assert names == {"a.png", "a_x4.png", "b.png", "b_x4.png", "sub"}


def test_a_picture_of_the_user_that_is_named_as_a_result_is_kept(folder):
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # its upright size counts
    PillowImage.new("RGB", (5, 3)).save(folder / "b.png", exif=exif)
    write_image(folder / "a_x2.png", picture(7, 7))
    (folder / "b_x2.png").write_text("no picture")
    before = (folder / "a_x2.png").read_bytes()

    def end(**options):
        plan = plan_jobs(folder, folder, naming=Naming("_x2"))
        check_places(plan)
        return list(upscale_all(plan.jobs, replace(DOUBLE, **options)))

    for result in end():
        assert result.status == "failed" and "is no result of this command" in result.error
    assert (folder / "a_x2.png").read_bytes() == before
    (folder / "b_x2.png").unlink()
    assert [r.status for r in end()] == [r.status for r in end()] == ["failed", "done"]
    assert [r.status for r in end(skip_existing=True)] == ["skipped", "skipped"]


def test_kinds_of_one_name_beside_the_inputs_may_be_done_again(folder):
    PillowImage.new("RGB", (5, 3), "red").save(folder / "a.gif")
    for _ in range(2):
        plan = plan_jobs(folder, folder, naming=Naming("_x2"))
        assert [r.status for r in upscale_all(plan.jobs, DOUBLE)] == ["done"] * 3
        assert [job.target.name for job in plan.jobs] == [
            "a_gif_x2.png",
            "a_x2.png",
            "b_x2.png",
        ]


@pytest.mark.parametrize(
    "out, options", [(".", {}), ("../in", {}), (".", {"naming": Naming(ext="png")})]
)
def test_an_input_is_never_overwritten(folder, out, options):
    with pytest.raises(BatchError, match="is an input and would be overwritten"):
        plan_jobs(folder, folder / out, **options)


def test_an_output_that_is_another_input_or_a_link_to_one_is_refused(folder, tmp_path):
    (tmp_path / "link.png").symlink_to(folder / "b.png")
    with pytest.raises(BatchError, match="link.png is an input"):
        plan_jobs(folder / "b.png", tmp_path / "link.png")


def test_two_inputs_with_one_output_are_refused(folder, tmp_path):
    write_image(folder / "a.jpg", picture())
    with pytest.raises(BatchError, match=r"a\.jpg and .*a\.png would both become"):
        plan_jobs(folder, tmp_path / "out", naming=Naming(ext="png"))


@pytest.mark.parametrize(
    "source, out, options, error, says",
    [
        ("none", "out", {}, ImageError, "no such file or folder"),
        ("in", "file", {}, BatchError, "is a file"),
        ("in", "x" * 300, {}, BatchError, "too long"),
        ("in/a.png", "x" * 300 + ".png", {}, BatchError, "too long"),
        ("x" * 300, "out", {}, ImageError, "no such file or folder"),
        ("in/a.png", "x.bmp", {}, BatchError, "cannot write .bmp"),
        ("in/a.png", "x.png", {"naming": Naming("_x4")}, BatchError, "names the output file"),
    ],
)
def test_impossible_plans_are_one_sentence(folder, tmp_path, source, out, options, error, says):
    (tmp_path / "file").touch()
    with pytest.raises(error, match=says) as caught:
        plan_jobs(tmp_path / source, tmp_path / out, **options)
    assert "\n" not in str(caught.value)


def test_files_and_folders_together_are_one_plan(folder, tmp_path):
    write_image(tmp_path / "more/d.png", picture())
    sources = [tmp_path / "more/d.png", folder, folder / "a.png"]
    plan = plan_jobs(sources, tmp_path / "out", recursive=True)
    found = [(job.source.name, str(job.target.relative_to(tmp_path / "out"))) for job in plan.jobs]
    names = (("a.png", "a.png"), ("b.png", "b.png"), ("c.png", "sub/c.png"), ("d.png", "d.png"))
    assert sorted(found) == [*names] and plan.left_out == {"given twice": 1}


def test_a_link_in_a_folder_is_a_picture_of_its_own(folder, tmp_path):
    (folder / "link.png").symlink_to(folder / "a.png")
    plan = plan_jobs([folder], tmp_path / "out")
    assert [job.source.name for job in plan.jobs] == ["a.png", "b.png", "link.png"]


def test_an_earlier_result_that_is_also_given_itself_is_an_input(folder):
    write_image(folder / "c_x2.png", picture())
    naming = Naming("_x2")
    assert folder / "c_x2.png" not in [
        job.source for job in plan_jobs([folder], folder, naming=naming).jobs
    ]
    plan = plan_jobs([folder, folder / "c_x2.png"], folder, naming=naming)
    assert folder / "c_x2_x2.png" in [job.target for job in plan.jobs]


def test_a_plan_of_many_files_looks_at_each_a_few_times(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"{number}.bmp").touch()
    sources, real, looks = sorted(tmp_path.iterdir()), Path.resolve, []

    def resolve(path, *strict):
        looks.append(path)
        return real(path, *strict)

    monkeypatch.setattr(Path, "resolve", resolve)
    assert len(plan_jobs([*sources, sources[0]], tmp_path / "out").jobs) == len(sources)
    assert len(looks) < 10 * len(sources)


def test_several_inputs_that_cannot_be_one_plan_are_one_sentence(folder, tmp_path):
    write_image(tmp_path / "more/a.png", picture())
    several = [folder / "a.png", folder / "b.png"]
    for sources, out, says in (
        ([folder, tmp_path / "more"], "out", r"more/a\.png would both become"),
        (several, "out.png", "names one file, but several inputs are given"),
        (several, "in/a.png", "is a file; the output of a folder or of several inputs"),
        ([*several, tmp_path / "more/a.png"], "more", "is an input and would be overwritten"),
    ):
        with pytest.raises(BatchError, match=says):
            plan_jobs(sources, tmp_path / out)


def test_earlier_results_of_several_folders_are_no_inputs(folder, tmp_path):
    write_image(tmp_path / "more/d.png", picture())
    for _ in range(2):
        plan = plan_jobs([folder, tmp_path / "more"], folder, naming=Naming("_x2"))
        assert [job.target.name for job in plan.jobs] == ["a_x2.png", "b_x2.png", "d_x2.png"]
        assert {r.status for r in upscale_all(plan.jobs, DOUBLE)} == {"done"}
    assert plan.left_out == {"subfolder": 1, "earlier result": 3}


def test_impossible_names_and_scales_are_one_sentence():
    for naming, says in (({"ext": "bmp"}, "ext='bmp' cannot"), ({"suffix": "/x"}, "no part of")):
        with pytest.raises(BatchError, match=says):
            Naming(**naming)
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UpscaleError, match="is not possible"):
            Work(double, Size(scale))


def never(image):
    pytest.fail("computed")


def test_what_cannot_be_written_is_refused_before_it_is_computed(folder, tmp_path):
    clear, wide = replace(picture(), alpha=np.zeros((3, 5), np.uint8)), picture(1, 9000)
    for image, scale, out, why in (
        (clear, 2, "x.jpg", "JPEG cannot hold transparency"),
        (wide, 2, "x.webp", "WebP ends at 16383"),
        (wide, 8, "x.jpg", "JPEG ends at 65500"),
    ):
        write_image(folder / "a.png", image)
        jobs = plan_jobs(folder / "a.png", tmp_path / out).jobs
        assert why in str(next(upscale_all(jobs, Work(never, Size(scale)))).error)
    assert not list(tmp_path.rglob("*.jpg"))


def test_places_are_checked_before_the_work(folder, tmp_path):
    plan = plan_jobs(folder, tmp_path / "out")
    (tmp_path / "hard.json").hardlink_to(folder / "a.png")
    (tmp_path / "soft.json").symlink_to(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    for report in (folder / "a.png", tmp_path / "hard.json", tmp_path / "soft.json"):
        with pytest.raises(WriteError, match="is an input"):
            check_places(plan, report)
    with pytest.raises(BatchError, match="is an output"):
        check_places(plan, tmp_path / "out/a.png")
    with pytest.raises(BatchError, match="too long"):
        check_places(plan, tmp_path / ("x" * 300))
    check_places(plan, tmp_path / "new/folder/report.json")
    assert (tmp_path / "new/folder").is_dir() and (folder / "a.png").read_bytes() == before


def test_a_place_that_cannot_be_written_fails_the_picture(folder, tmp_path):
    (tmp_path / "file").touch()
    jobs = [Job(folder / "a.png", tmp_path / "file/out/a.png")]
    result = next(upscale_all(jobs, DOUBLE))
    assert result.status == "failed" and "a file stands where a folder" in result.error


def test_kinds_that_are_not_written_become_png_and_it_is_said(folder, tmp_path):
    for name in ("a.gif", "c.bmp"):
        PillowImage.new("RGB", (5, 3), "red").save(folder / name)
    PillowImage.new("RGBA", (5, 3), "#ff000080").save(folder / "d.jpg", "PNG")
    results = list(upscale_all(plan_jobs(folder, tmp_path / "out").jobs, DOUBLE))
    assert {Path(r.target).name: r.note for r in results} == {
        "a_gif.png": "as PNG: gif is not written",
        "a.png": "",
        "b.png": "",
        "c.png": "as PNG: bmp is not written",
        "d.png": "as PNG: jpg holds no transparency",
    }
    assert all(r.status == "done" for r in results) and "as PNG: gif" in str(results[0])
    assert read_image(tmp_path / "out/d.png").alpha is not None


def test_all_that_a_folder_run_leaves_out_is_counted(folder, tmp_path):
    for name in ("g.heic", "h.jxl", "noext", "note.txt", "b.txt", ".hidden.png"):
        (folder / name).write_bytes(b"x")
    plan = plan_jobs(folder, tmp_path / "out")
    results = list(upscale_all(plan.jobs, DOUBLE))
    said = summary(plan, results)
    kinds = {"hidden": 1, "subfolder": 1, "txt": 2, "without a suffix": 1}
    assert kinds.items() <= plan.left_out.items()
    assert sum(plan.left_out.values()) + len(results) == 9
    assert said.startswith("2 done") and "2 txt" in said
    for kind in ("heic", "JPEG XL"):  # left out, or read by the libvips at hand and then failed
        named = [str(r.error) for r in results if r.status == "failed"] + list(plan.left_out)
        assert any(kind.lower() in text.lower() for text in named)


NAMES = ["\u4e2d" * 82 + ".png", os.fsdecode(b"caf\xe9.png"), "new\nline\x1b[31m.png", "a.png"]


def test_every_name_is_written_and_shown_in_one_line(tmp_path):
    (tmp_path / "in").mkdir()
    for name in NAMES:
        write_image(tmp_path / "in" / name, picture())
    (tmp_path / "in" / "bad\x1b.png").touch()
    plan = plan_jobs(tmp_path / "in", tmp_path / "out")
    check_places(plan)
    results = list(upscale_all(plan.jobs, DOUBLE))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(NAMES)
    said = "".join(map(str, results)) + "".join(r.error or "" for r in results)
    assert said.isprintable() and "caf\\udce9.png" in said and "new\\nline\\x1b[31m" in said
    write_report(tmp_path / "report.json", {"input": plan.jobs[0].source}, plan, results)
    text = (tmp_path / "report.json").read_bytes().decode("utf-8")
    sources = [entry["source"] for entry in json.loads(text)["pictures"]]
    assert len(sources) == 5 and "".join(sources).encode("utf-8")


def test_a_result_whose_name_would_be_too_long_fails_alone(tmp_path):
    for name in ("\u4e2d" * 83 + ".png", "a.png"):
        write_image(tmp_path / "in" / name, picture())
    plan = plan_jobs(tmp_path / "in", tmp_path / "out", naming=Naming("_x4"))
    check_places(plan)
    results = list(upscale_all(plan.jobs, DOUBLE))
    assert [r.status for r in results] == ["done", "failed"]
    assert "too long" in results[1].error and "in/\u4e2d" in results[1].error


def test_metadata_is_kept_or_stripped(tmp_path):
    exif = PillowImage.Exif()
    exif[0x010F] = "Maker"
    PillowImage.new("RGB", (5, 3)).save(tmp_path / "a.png", exif=exif)
    for keep in (True, False):
        job = Job(tmp_path / "a.png", tmp_path / f"{keep}.png")
        list(upscale_all([job], replace(DOUBLE, keep_metadata=keep)))
        assert (PillowImage.open(job.target).getexif().get(0x010F) == "Maker") is keep


def test_every_failure_names_its_file(folder, tmp_path):
    def refuses(image):
        raise ImageError("the result is too large.")

    def hungry(image):
        raise MemoryError

    for upscale, why in ((refuses, "too large"), (hungry, "too little memory")):
        jobs = plan_jobs(folder, tmp_path / "out").jobs
        for result in upscale_all(jobs, Work(upscale, Size(2))):
            assert result.source in result.error and why in result.error


def test_the_report_holds_settings_and_every_picture(folder, tmp_path):
    (folder / "bad.png").touch()
    (folder / "note.txt").touch()
    plan = plan_jobs(folder, tmp_path / "out")
    results = list(upscale_all(plan.jobs, DOUBLE))
    write_report(tmp_path / "report.json", {"scale": 2, "input": folder}, plan, results[:2])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"] == {"scale": 2, "input": str(folder)}
    assert report["left_out"] == {"subfolder": 1, "txt": 1}
    assert report["summary"] == "2 done, 1 not reached; left out: 1 subfolder, 1 txt"
    assert [p["status"] for p in report["pictures"]] == ["done", "done"]
    assert report["pictures"][0]["size_out"] == [10, 6]
    with pytest.raises(WriteError, match="a file stands"):
        check_places(plan, tmp_path / "report.json/x.json")


def test_the_report_is_no_file_of_the_model_in_use(folder, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    plan = plan_jobs(folder, tmp_path / "out")
    with pytest.raises(WriteError, match="is an input"):
        check_places(plan, model / "model.safetensors", model)
    check_places(plan, model / "report.json", model)
    with pytest.raises(WriteError, match="is an input"):  # where the model is a file
        check_places(plan, model / "model.safetensors", model / "model.safetensors")
    assert (model / "model.safetensors").read_text() == "weights"


# ---------------------------------------------------------------------------------------- overlap


@pytest.fixture
def steps(monkeypatch):
    """("read" | "write", name) -> an event that is set when that step begins; `hold` names what a
    step waits for, until it gives up after 20 s.
    """

    class Steps(dict):
        hold: dict = {}

        def __missing__(self, key):
            return self.setdefault(key, threading.Event())

        def begin(self, step, path):
            self[step, path.name].set()
            if step_needed := self.hold.get((step, path.name)):
                assert self[step_needed].wait(20), f"{step_needed} does not begin"

    steps = Steps()

    def read(path):
        steps.begin("read", path)
        return read_image(path)

    def write(path, image, quality):
        steps.begin("write", path)
        write_image(path, image, quality)

    monkeypatch.setattr(upscaling, "read_image", read)
    monkeypatch.setattr(upscaling, "write_image", write)
    return steps


@pytest.fixture
def four(tmp_path):
    for number, name in enumerate(("1.png", "2.png", "3.png", "4.png")):
        write_image(tmp_path / "in" / name, picture(3 + number, 5))
    return plan_jobs(tmp_path / "in", tmp_path / "out").jobs


def test_reading_computing_and_writing_overlap(four, steps):
    """The first picture is written while the second is computed and the third is read."""
    steps.hold = {("write", "1.png"): ("compute", "2.png")}

    def compute(image):
        if image.pixels.shape[0] == 4:
            steps["compute", "2.png"].set()
            assert steps["write", "1.png"].wait(20) and steps["read", "3.png"].wait(20)
            assert not steps["read", "4.png"].wait(0.2)  # one picture ahead, not more
        return double(image)

    results = list(upscale_all(four, Work(compute, Size(2))))
    assert [(Path(r.source).name, r.status) for r in results] == [
        (job.source.name, "done") for job in four
    ]
    for job in four:
        wanted = double(read_image(job.source)).pixels
        assert np.array_equal(read_image(job.target).pixels, wanted)


def test_a_large_picture_is_alone(four, steps, monkeypatch):
    monkeypatch.setattr(upscaling, "ALONE_ABOVE", 4 * 5 * 4 - 1)  # the second, third and fourth

    def compute(image):
        if image.pixels.shape[0] in (4, 5):
            follower = {4: "3.png", 5: "4.png"}[image.pixels.shape[0]]
            assert not steps["read", follower].wait(0.2)
        return double(image)

    for before, result in enumerate(upscale_all(four, Work(compute, Size(2)))):
        assert result.status == "done"
        assert len(list(four[0].target.parent.iterdir())) == before + 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_computed_is_written_and_told_before_a_stop(four, steps, stop):
    steps.hold = {("write", "1.png"): ("compute", "2.png")}

    def compute(image):
        if image.pixels.shape[0] == 4:
            steps["compute", "2.png"].set()
            raise stop
        return double(image)

    told, noted = [], []
    work = Work(compute, Size(2), note=lambda job, result: noted.append(job))
    with pytest.raises(stop):
        told.extend(upscale_all(four, work))
    assert [path.name for path in four[0].target.parent.iterdir()] == ["1.png"]
    assert noted == four[:1]

    told = []
    with pytest.raises(stop):
        for result in upscale_all(four, work):
            told.append(result.status)
    assert told == ["done"]


def test_a_picture_that_is_written_is_told_before_the_next_is_computed(four):
    computed = []

    def compute(image):
        computed.append(image)
        threading.Event().wait(0.3)
        return double(image)

    work = Work(compute, Size(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upscaling, "PATIENCE", 50)
        assert next(upscale_all(four, work)).status == "done" and len(computed) == 1


def _writes_for_a_minute(folder: Path) -> None:
    def write(path, image, quality):
        with whole_file(path):
            (folder / "begun").touch()
            time.sleep(60)

    upscaling.write_image = write
    plan = plan_jobs(folder / "in", folder / "out")
    settings = {"json_report": folder / "report.json"}
    with stoppable("all is whole") as last:
        upscale_plan(plan, DOUBLE, settings, lambda line: None, last)


def test_ctrl_c_ends_while_a_picture_is_written_and_leaves_no_draft(four, tmp_path):
    took = []
    while len(took) < 3 and min(took, default=1) >= 1:  # seconds; others may keep the machine busy
        (tmp_path / "begun").unlink(missing_ok=True)
        child = IMPORTED.Process(target=_writes_for_a_minute, args=(tmp_path,))
        child.start()
        while not (tmp_path / "begun").exists():
            assert child.is_alive()
            time.sleep(0.05)
        begin = time.monotonic()
        os.kill(child.pid or 0, signal.SIGINT)
        child.join(30)
        took.append(time.monotonic() - begin)
        assert child.exitcode == 130 and not list((tmp_path / "out").iterdir())
        assert "4 not reached" in (tmp_path / "report.json").read_text()
    assert min(took) < 1, took


@pytest.mark.parametrize(
    "words, says",
    [
        (
            ["-s", "1e9", "-o", "o.png"],
            "o.png: PNG ends at 2147483647 .* 5000000000x3000000000; make",
        ),
        (["-s", "2e4", "-o", "o.jpg"], "o.jpg: JPEG ends at 65500 .*; write png or tif."),
        (["--max-pixels", "9", "-s", "2", "-o", "o.png"], "a.png: the result has 60 pixels"),
        (["--max-pixels", "9", "-o", "o.png"], "a.png: the result has 240 pixels, more than the 9"),
    ],
)
def test_a_size_that_is_not_possible_is_told_before_the_model_is_loaded(
    folder, monkeypatch, capsys, words, says
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Upscaler, "from_pretrained", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as end:
        upscale_command(["a.png", *words])
    assert end.value.code == 2
    assert re.search(says, capsys.readouterr().err)


def test_an_early_refusal_has_the_sentence_of_the_work(folder, tmp_path):
    job = Job(folder / "a.png", tmp_path / "o.png")
    later = next(upscale_all([job], replace(DOUBLE, size=Size(1e9)))).error
    with pytest.raises(BatchError) as early:
        check_one(job, Size(1e9), 100)
    assert str(early.value) == later
    job.target.touch()
    check_one(job, Size(1e9), 100, skip_existing=True)
