"""What is written is whole or not there, and nothing else is removed."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ldm_dream import processes, writing
from ldm_dream.digests import SUMS, damaged
from ldm_dream.writing import (
    WriteError,
    check_folder,
    check_outputs,
    claim_file,
    place_folder,
    whole_file,
    whole_folder,
)


def fill(folder, text="1"):
    with whole_folder(folder) as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "weights.safetensors").write_text(text)
        (draft / "README.md").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def nothing_swept(monkeypatch):
    monkeypatch.setattr(writing, "_swept", set())


def test_a_folder_is_replaced_whole_and_can_be_checked_by_sha256sum(tmp_path):
    fill(fill(tmp_path / "model"), "2")
    assert (tmp_path / "model/README.md").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=tmp_path / "model", check=True)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_at_no_moment_of_a_replacement_is_the_old_folder_gone(tmp_path, monkeypatch, can_exchange):
    """A kill at any system call leaves the old one or the new one, under a name that says so."""
    folder = fill(tmp_path / "model")
    if not can_exchange:
        monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    seen = []

    def watch(event, args):
        if event in ("os.rename", "shutil.rmtree", "os.rmdir") and active:
            names = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
            seen.append(
                [(p / "README.md").read_text() for p in names if (p / "README.md").exists()]
            )

    active = True
    sys.addaudithook(watch)
    fill(folder, "2")
    active = False
    assert seen and all(seen)


def test_folders_that_hold_something_else_are_refused_and_moved_aside(tmp_path, caplog):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    check_folder(foreign, holds="README.md")  # empty
    (foreign / "cat.jpg").write_text("a cat")
    edited = fill(tmp_path / "edited")
    (edited / "README.md").write_text("my notes")
    extra = fill(tmp_path / "extra")
    (extra / "mine").mkdir()
    link = tmp_path / "link"
    link.symlink_to(foreign)
    for folder, what in (
        (foreign, "cat.jpg"),
        (edited, "README.md"),
        (extra, "mine"),
        (link, "a link"),
    ):
        with pytest.raises(WriteError, match=f"holds {what}, which was not written here"):
            check_folder(folder, holds="README.md")
        fill(folder)  # where it is too late to refuse
    assert (tmp_path / "photos.kept-1/cat.jpg").read_text() == "a cat"
    assert (tmp_path / "edited.kept-1/README.md").read_text() == "my notes"
    assert (tmp_path / "extra.kept-1/mine").is_dir() and (tmp_path / "link.kept-1").is_symlink()
    assert "it is now photos.kept-1" in caplog.text
    with pytest.raises(
        WriteError, match="holds README.md"
    ):  # of another kind, such as a checkpoint
        check_folder(foreign, holds="model.safetensors")
    check_folder(foreign, holds="README.md")


def test_a_folder_filled_over_several_runs_takes_only_a_free_name(tmp_path):
    (tmp_path / "built").mkdir()
    (tmp_path / "built/data.mdb").write_text("1")
    place_folder(tmp_path / "built", tmp_path / "done")
    assert (tmp_path / "done/data.mdb").read_text() == "1" and not (tmp_path / "built").exists()
    with pytest.raises(WriteError, match="is there already"):
        place_folder(tmp_path / "done", fill(tmp_path / "other"))
    assert (tmp_path / "done").exists() and (tmp_path / "other/README.md").exists()


def test_a_failure_leaves_the_old_one_and_no_draft(tmp_path):
    folder = fill(tmp_path / "model")
    with (
        pytest.raises(WriteError, match="No space left"),
        whole_folder(folder) as draft,
    ):
        (draft / "half").write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), whole_file(tmp_path / "x.json") as draft:
        draft.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "README.md").read_text() == "1"


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o022)
    try:
        with whole_folder(tmp_path / "model") as draft:
            os.close(os.open(draft / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600))
        with whole_file(tmp_path / "model" / "x.safetensors") as draft:
            draft.unlink()
            os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {0o644}


def test_drafts_of_processes_that_are_gone_are_removed(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    living = os.getppid()
    for process in (gone.pid, living):
        (tmp_path / f".draft-{processes.HOST}-{process}-0").mkdir()
        (tmp_path / f".draft-{processes.HOST}-{process}-1.png").touch()
    (tmp_path / f".draft-00000000-{gone.pid}-0").mkdir()  # of another machine
    (tmp_path / f".step-00000001.{gone.pid}.tmp").mkdir()  # of an earlier version
    with whole_file(tmp_path / "x.txt") as draft:
        draft.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            f".draft-{processes.HOST}-{living}-0",
            f".draft-{processes.HOST}-{living}-1.png",
            f".draft-00000000-{gone.pid}-0",
            "x.txt",
        ]
    )


def test_the_longest_name_can_be_written(tmp_path):
    name = "圖" * 82 + ".png"
    with whole_file(tmp_path / name) as draft:
        draft.touch()
    assert (tmp_path / name).exists()


def test_outputs_are_no_inputs_by_any_name(tmp_path):
    picture = tmp_path / "a.png"
    picture.touch()
    hard, soft = tmp_path / "hard.json", tmp_path / "soft.json"
    os.link(picture, hard)
    soft.symlink_to(picture)
    for output in (picture, hard, soft):
        with pytest.raises(WriteError, match="is an input"):
            check_outputs([output], [picture])
    with pytest.raises(WriteError, match="is a folder"):
        check_outputs([tmp_path], [])
    with pytest.raises(WriteError, match="a file stands where a folder is needed"):
        check_outputs([picture / "new" / "report.json"], [])
    check_outputs([tmp_path / "new" / "report.json"], [picture])
    assert (tmp_path / "new").is_dir()


def test_one_flipped_bit_is_found(tmp_path):
    path = fill(tmp_path / "model") / "README.md"
    assert damaged(path) is None
    path.write_text("3")
    assert "not those that were written" in (damaged(path) or "")


def test_folders_of_a_run_and_of_inputs_are_no_place_for_others(tmp_path):
    run = tmp_path / "run"
    fill(run / "model")
    fill(run / "checkpoints" / "step-1")
    (run / "history.jsonl").touch()
    for folder in (run / "model", run / "new", run / "checkpoints" / "step-1"):
        with pytest.raises(WriteError, match="belongs to a training run"):
            check_folder(folder, holds="README.md")
    mine = fill(tmp_path / "mine")
    with pytest.raises(WriteError, match=r"holds .*README.md, which is read"):
        check_folder(mine, holds="README.md", inputs=[mine / "README.md"])
    (mine / "sub/weights.safetensors").write_text("my own")
    with pytest.raises(WriteError, match=r"holds sub/weights.safetensors, which was not written"):
        check_folder(mine, holds="README.md")


def test_only_regular_files_are_written_over_and_links_lead_on(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(WriteError, match="is no regular file"):
        check_outputs([pipe], [])
    with pytest.raises(WriteError, match="cannot be used: File name too long"):
        check_outputs([tmp_path / ("x" * 300)], [])
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with whole_file(tmp_path / "link") as draft:
        draft.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"


@pytest.mark.parametrize("text", ["", "0123  another.file\n"])
def test_digests_that_lack_a_file_do_not_vouch_for_it(tmp_path, text):
    folder = fill(tmp_path / "model")
    (folder / SUMS).write_text(text)
    assert "does not list it" in (damaged(folder / "README.md") or "")


def test_a_draft_of_another_machine_goes_after_a_week(tmp_path):
    for age in (writing.WEEK + 60, 60):
        path = tmp_path / f".draft-00000000-1-{age}"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    with whole_file(tmp_path / "x.txt") as draft:
        draft.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".draft-00000000-1-60", "x.txt"]


def test_only_one_of_many_claims_a_file_and_it_has_its_text_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: claim_file(tmp_path / "claim", f"{n}"), range(32)))
    assert claims.count(True) == 1
    assert (tmp_path / "claim").read_text() == str(claims.index(True))
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]
    with pytest.raises(WriteError, match="cannot be written"):
        claim_file(tmp_path / ("x" * 300), "")


def test_machines_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "localhost")
    hosts = []
    for boot in ("one", "one", "other"):
        (tmp_path / "boot").write_text(boot)
        monkeypatch.setattr(processes, "_BOOT", tmp_path / "boot")
        hosts.append(processes._host())
    monkeypatch.setattr(processes, "_BOOT", tmp_path / "not there")
    hosts.append(processes._host())
    assert hosts[0] == hosts[1] and len(set(hosts)) == 3


def test_a_process_of_this_machine_is_known_to_be_gone_others_never_are():
    child = subprocess.Popen([sys.executable, "-c", ""])
    host = processes.this_process().rpartition("-")[0]
    child.wait()
    names = processes.this_process(), f"{host}-{child.pid}", f"0badcafe-{child.pid}"
    assert [processes.is_known_gone(name) for name in names] == [False, True, False]
