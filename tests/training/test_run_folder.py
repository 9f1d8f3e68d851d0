"""A run folder holds one run, one process trains it, and a stopped run goes on as if it never was."""

import errno
import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from ldm_dream.config.files import dump_config, load_config
from ldm_dream.errors import ConfigError
from ldm_dream.model_folder import ModelError, read_run
from ldm_dream.training import run_folder, validation
from ldm_dream.training.check import check_run
from ldm_dream.training.checkpoint import latest_checkpoint
from ldm_dream.training.run_folder import RunFolderError, claim
from ldm_dream.training.state import StateError
from ldm_dream.training.train import train
from ldm_dream.training.trainer import Trainer
from runs import autoencoder_folder, diffusion_run, pictures, rows_of

OF_THE_MACHINE = ("steps_per_second", "eta_s", "data_wait", "memory_gib")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps with a checkpoint at each, and the folder of what it was made from."""
    tmp = tmp_path_factory.mktemp("made")
    assert train(diffusion_run(tmp, steps=2, save_every=1, val_every=1), tmp / "run") == 0
    return tmp


@pytest.fixture
def run_dir(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def changed(made, **changes):
    run = diffusion_run(made, steps=2, save_every=1, val_every=1)
    sections = {
        key: getattr(run, key).model_copy(update=value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return run.model_copy(update=sections)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "history.jsonl"
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"strength": 0.0, "p": 3.0}}, "loss.strength was 1.0 and is now 0.0, loss.p was"),
        ({"seed": 7}, "seed was 0 and is now 7"),
        ({"train": {"batch_size": 3}}, "train.batch_size was 2 and is now 3"),
        ({"network": {"model_channels": 32}}, "network.model_channels was 16 and is now 32"),
    ],
)
@pytest.mark.parametrize("steps", [2, 4], ids=["finished", "unfinished"])
def test_a_folder_of_another_run_is_refused_and_left_as_it_is(made, run_dir, changes, said, steps):
    before = contents(run_dir)
    run = changed(made, **changes)
    run = run.model_copy(update={"train": run.train.model_copy(update={"steps": steps})})
    with pytest.raises(RunFolderError, match=f"{said}.*give another --run-dir"):
        train(run, run_dir)
    assert contents(run_dir) == before


def test_what_may_change_goes_on_and_is_kept_as_history(made, run_dir, capsys):
    moved = shutil.copytree(made / "hr", made / "elsewhere", dirs_exist_ok=True)
    run = changed(made, train={"steps": 3, "learning_rate": 1e-4}, data={"train": (str(moved),)})
    assert train(run, run_dir) == 0
    assert "changed since the last checkpoint: train.steps 2 -> 3" in capsys.readouterr().out
    found = latest_checkpoint(run_dir)
    assert found and found.step == 3
    assert found.meta["history"][-1]["changed"]["train.learning_rate"] == [5e-5, 1e-4]
    assert [row["step"] for row in found.meta["history"]] == [0, 2]


def test_other_pictures_are_refused(made, run_dir, tmp_path):
    fewer = pictures(tmp_path / "fewer", count=4)
    before, starts = contents(run_dir), (run_dir / "history.jsonl").read_text()
    with pytest.raises(StateError, match="4 pictures that are not the 5"):
        train(changed(made, train={"steps": 3}, data={"train": (str(fewer),)}), run_dir)
    assert contents(run_dir) == before and (run_dir / "history.jsonl").read_text() == starts


def test_a_finished_run_is_left_as_it_is(made, run_dir):
    before = contents(run_dir)
    assert train(changed(made), run_dir) == 0
    assert contents(run_dir) == before


def test_a_checkpoint_that_lacks_a_part_is_refused(made, run_dir):
    from safetensors.torch import load_file, save_file

    for name in ("optimizer.", "ema."):
        path = run_dir / "checkpoints/step-00000002/state.safetensors"
        kept = {k: v for k, v in load_file(path).items() if not k.startswith(name)}
        save_file(kept, path)
        (path.parent / "SHA256SUMS").unlink(missing_ok=True)
        with pytest.raises(StateError, match=f"step 2 lacks {name[:-1]}"):
            train(changed(made, train={"steps": 3}), run_dir)


@pytest.mark.parametrize(
    "name", ["model", "config.yaml", "metrics.jsonl", "checkpoints", "samples", "history.jsonl"]
)
def test_a_folder_of_something_else_is_not_taken(made, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=f"holds {name} but no run"):
        train(changed(made), tmp_path)
    assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    with claim(tmp_path) as said:
        assert said is None
        assert (tmp_path / "lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"
        with (
            pytest.raises(RunFolderError, match=f"process {os.getpid()} on .* trains this run"),
            claim(tmp_path),
        ):
            pass
    with claim(tmp_path) as said:
        assert said is None  # it was given back
    (tmp_path / "lock").write_text(f"{socket.gethostname()} 12345\n")  # as a kill leaves it
    with claim(tmp_path) as said:
        assert said and "process 12345" in said and "is taken over" in said
    (tmp_path / "lock").write_text("elsewhere 12345\n")
    with (
        pytest.raises(RunFolderError, match=r"process 12345 on elsewhere.*remove .*lock"),
        claim(tmp_path),
    ):
        pass


def test_a_restarted_job_takes_over_the_lock_of_its_lost_machine(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    for job, left, taken in (
        ("job 7", "elsewhere 12345 job7\n", True),
        ("job8", "elsewhere 12345 job7\n", False),
        ("job8", "elsewhere 12345\n", False),
        ("none", "elsewhere 12345 none\n", False),  # torchrun without --rdzv-id
    ):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        lock.write_text(left)
        if taken:
            with claim(tmp_path) as said:
                assert said and "process 12345 on elsewhere, which is gone" in said
                assert lock.read_text() == f"{socket.gethostname()} {os.getpid()} job7\n"
            assert lock.read_text() == ""
        else:
            with pytest.raises(RunFolderError, match="on elsewhere trains"), claim(tmp_path):
                pass


def test_a_restarted_job_waits_until_the_system_gives_its_lock_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    earlier = ExitStack()
    earlier.enter_context(claim(tmp_path))
    threading.Timer(0.3, earlier.close).start()
    with claim(tmp_path):
        assert (tmp_path / "lock").read_text().endswith(" job7\n")


@pytest.mark.parametrize("left", [os.getpid(), os.getppid()], ids=["own", "parent"])
def test_a_restarted_container_has_the_number_of_the_one_before(tmp_path, monkeypatch, left):
    """On a disk without locks a number that runs is another process, unless it is this one."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    (tmp_path / "lock").write_text(f"{socket.gethostname()} {left}\n")
    expected = nullcontext() if left == os.getpid() else pytest.raises(RunFolderError)
    with expected, claim(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138), ("SIGHUP", 129)]
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_goes_on_as_if_never_stopped(
    made, tmp_path, monkeypatch, capsys, number, status
):
    real = Trainer.step

    def signalled(self, step):
        if step == 0:
            os.kill(os.getpid(), getattr(signal, number))
        return real(self, step)

    run = changed(made, train={"save_every": 1000})
    monkeypatch.setattr(Trainer, "step", signalled)
    assert train(run, tmp_path / "run") == status
    assert "stopped at step 1, checkpoint written" in capsys.readouterr().out
    monkeypatch.setattr(Trainer, "step", real)
    assert train(run, tmp_path / "run") == 0
    for name in ("checkpoints/step-00000002/state.safetensors", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (made / "run" / name).read_bytes()


@pytest.mark.parametrize("at", [1, 2], ids=["on its way", "last step"])
def test_a_signal_ends_a_validation_at_once(made, tmp_path, monkeypatch, capfd, at):
    """Which may take hours; it is made anew when the run goes on."""
    real, judged = validation._judge, []

    def signalled(trainer, pairs, numbers):
        judged.append(numbers)
        assert latest_checkpoint(tmp_path / "run").step == len(judged), "saved first"
        if len(judged) == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)  # the work of hours
            judged.append("all of it")
        return real(trainer, pairs, numbers)

    monkeypatch.setattr(validation, "_judge", signalled)
    assert train(changed(made), tmp_path / "run") == 143
    assert "all of it" not in judged
    said = capfd.readouterr()
    assert "SIGTERM: the run ends now." in said.err
    assert f"stopped at step {at}, checkpoint written" in said.out
    assert [row["step"] for row in rows_of(tmp_path / "run") if "val/psnr_y" in row] == [1][
        : at - 1
    ]
    monkeypatch.setattr(validation, "_judge", real)
    assert train(changed(made), tmp_path / "run") == 0
    for name in ("checkpoints/step-00000002/state.safetensors", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (made / "run" / name).read_bytes()
    assert [row["step"] for row in rows_of(tmp_path / "run") if "val/psnr_y" in row] == [1, 2]


def test_a_signal_to_another_process_ends_the_validation_here_too(
    made, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(validation.distributed, "anywhere", lambda stopped: True)
    assert train(changed(made), tmp_path / "run") == 143
    assert "stopped at step 1, checkpoint written" in capsys.readouterr().out
    assert not any("val/psnr_y" in row for row in rows_of(tmp_path / "run"))


def test_a_row_of_the_log_stands_once_and_a_half_one_is_dropped(made, run_dir):
    shutil.rmtree(run_dir / "checkpoints/step-00000002")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/net')
    assert train(changed(made), run_dir) == 0
    timeless = [
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows_of(d)]
        for d in (run_dir, made / "run")
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0]] == [1, 1, 2, 2]


def test_the_autoencoder_of_a_run_stays_when_its_folder_changes(made, run_dir, tmp_path):
    shutil.copytree(made / "hr", tmp_path / "hr")
    path = autoencoder_folder(tmp_path / "vq")
    run = diffusion_run(tmp_path, steps=1, save_every=1)
    assert train(run, tmp_path / "latent") == 0
    shutil.rmtree(path)
    more = run.model_copy(update={"train": run.train.model_copy(update={"steps": 2})})
    assert train(more, tmp_path / "latent") == 0
    kept = tmp_path / "latent/model"
    assert (kept / "autoencoder.safetensors").is_file()
    assert read_run(kept).autoencoder.pretrained is None
    other = run.autoencoder.model_copy(update={"pretrained": "vq-f4-tiny"})
    with pytest.raises(RunFolderError, match="autoencoder.sha256 was"):
        train(more.model_copy(update={"autoencoder": other}), tmp_path / "latent")


def test_the_model_is_written_at_each_validation_and_the_best_is_kept(made, run_dir):
    by_step = {row["step"]: row["val/psnr_y"] for row in rows_of(run_dir) if "val/psnr_y" in row}
    assert sorted(by_step) == [1, 2]
    best = max(by_step, key=lambda step: by_step[step])
    last = (run_dir / "model/model.safetensors").read_bytes()
    assert ((run_dir / "model-best/model.safetensors").read_bytes() == last) == (best == 2)


def test_config_and_command_are_there_before_the_data(made, tmp_path):
    run = changed(made, data={"train": (str(tmp_path / "none"),)})
    with pytest.raises(Exception, match="no such file or folder"):
        train(run, tmp_path / "run")
    assert "none" in (tmp_path / "run/config.yaml").read_text()
    (row,) = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert json.loads(row)["command"] and json.loads(row)["versions"]["torch"]
    assert run_folder.commit() is None or len(run_folder.commit()) >= 40


def test_a_damaged_run_does_not_start_from_0(made, run_dir):
    for path in run_dir.glob("checkpoints/*/state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ModelError, match="no whole checkpoint"):
        train(changed(made), run_dir)


def test_a_lock_of_another_machine_is_taken_over_when_it_shows_no_life(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("elsewhere 12345\n")
    os.utime(lock, (time.time() - run_folder.STALE - 1,) * 2)
    with claim(tmp_path) as said:
        assert said and "process 12345 on elsewhere" in said


def test_a_run_whose_checkpoints_were_removed_does_not_start_from_0(made, run_dir):
    shutil.rmtree(run_dir / "checkpoints")
    before = contents(run_dir)
    with pytest.raises(RunFolderError, match="a log up to step 2 and no checkpoint"):
        train(changed(made), run_dir)
    assert contents(run_dir) == before


def test_a_run_goes_on_when_the_model_it_began_with_is_gone(made, tmp_path):
    base = shutil.copytree(made / "run/model", tmp_path / "base")
    run = changed(made, train={"steps": 1, "init_from": str(base)})
    assert train(run, tmp_path / "run") == 0
    shutil.rmtree(base)
    more = run.model_copy(update={"train": run.train.model_copy(update={"steps": 2})})
    check_run(more, tmp_path / "run")
    assert train(more, tmp_path / "run") == 0


def test_a_run_folder_is_not_among_its_own_data(made):
    run = changed(made, data={"train": (str(made),)})
    with pytest.raises(ConfigError, match="its samples would become data"):
        check_run(run, made / "run", starts=False)
    check_run(changed(made), made / "run", starts=False)


def test_figures_of_other_validation_pictures_do_not_choose_the_best(made, run_dir):
    """A smaller crop gives other figures: the first of them is the best so far."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "val/psnr_y": 99.0}) + "\n")
    before = (run_dir / "model-best/model.safetensors").read_bytes()
    assert train(changed(made, train={"steps": 3}), run_dir) == 0
    assert (run_dir / "model-best/model.safetensors").read_bytes() == before
    assert train(changed(made, train={"steps": 4, "val_crop": 32}), run_dir) == 0
    best, last = (run_dir / name / "model.safetensors" for name in ("model-best", "model"))
    assert best.read_bytes() == last.read_bytes() != before


def test_a_reader_that_goes_does_not_end_the_run(made, tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return spare.fileno()

    spare = (tmp_path / "spare").open("w")

    monkeypatch.setattr("sys.stdout", Closed())
    assert train(changed(made), tmp_path / "run") == 0
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 1, 2, 2]


def test_a_printed_config_can_be_trained_as_it_is(made, tmp_path):
    """Of a dry run too: the autoencoder's architecture in it is that of its folder."""
    run = check_run(changed(made), tmp_path / "run", starts=False)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(run))
    assert check_run(load_config(path), tmp_path / "run") == run
