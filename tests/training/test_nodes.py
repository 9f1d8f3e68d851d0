"""Two machines of two processes each, both on this one: they train as one process, and one of them
may be lost.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from processes import as_ranks, in_a_new_process
from safetensors.torch import load_file
from torch.distributed import TCPStore
from torch.distributed.run import parse_args

import machines
from ldm_dream.config.files import load_config
from ldm_dream.training import distributed
from ldm_dream.training.distributed import ProcessesError
from ldm_dream.training.train import train
from ldm_dream.training.trainer import Trainer
from runs import diffusion_run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A config for four processes, and its run by one that accumulates four micro-batches."""
    tmp = tmp_path_factory.mktemp("nodes")
    values = diffusion_run(tmp, steps=STEPS, save_every=1).model_dump(
        mode="json", exclude_unset=True
    )
    values["autoencoder"]["kind"] = "vqgan"
    (tmp / "run.yaml").write_text(yaml.safe_dump(values))
    in_a_new_process(train_alone, tmp / "run.yaml", tmp / "one")
    return tmp


def train_alone(config: Path, run_dir: Path) -> None:
    torch.set_num_threads(1)
    machines.note_batches(machines.notes_of(run_dir), 0)
    train(load_config(config, ["train.accumulate=4"]), run_dir)


def is_as_alone(made: Path, run_dir: Path) -> None:
    one = machines.batches_used(machines.notes_of(made / "one"), 4)
    assert one == {step: set(range(4 * step, 4 * step + 4)) for step in range(STEPS)}
    assert machines.batches_used(machines.notes_of(run_dir), 4) == one
    want, got = (load_file(run / "model/model.safetensors") for run in (made / "one", run_dir))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=0)


NOTED = """
import os, runpy, sys
sys.path.insert(0, {tests!r})
import machines
machines.note_batches(machines.Path({notes!r}), int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
sys.argv[0] = {tool!r}
runpy.run_path({tool!r}, run_name="__main__")
"""


def test_two_machines_train_as_one_process_that_accumulates(made):
    """As people start them: by torchrun's command, once on each machine."""
    script, run_dir = made / "noted.py", made / "two"
    tool, notes = str(ROOT / "tools/train.py"), str(machines.notes_of(run_dir))
    script.write_text(NOTED.format(tests=str(ROOT / "tests"), notes=notes, tool=tool))
    port = machines.free_port()
    launched = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                *machines.options(port, "2", "two", hosts),
            ]
            + [script, made / "run.yaml", "--run-dir", run_dir],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for hosts in (True, False)
    ]
    said = [process.communicate()[0] for process in launched]
    assert [process.returncode for process in launched] == [0, 0], "\n".join(said)
    assert "batch: 8 samples a step (4 micro-batches of 2, shared by 4 processes)" in "".join(said)
    is_as_alone(made, run_dir)


def test_a_run_goes_on_when_a_machine_is_lost(made):
    """That of the first process, which held the lock of the run folder."""
    run_dir, port = made / "lost", machines.free_port()
    first, other = (
        machines.start_machine(
            machines.options(port, "1:2", "lost", hosts), made / "run.yaml", run_dir
        )
        for hosts in (False, True)
    )
    machines.wait_for(run_dir, 2, first, other)
    machines.lose(first)
    other.join()
    assert other.exitcode == 0
    is_as_alone(made, run_dir)


def train_until_told(config: Path, run_dir: Path) -> int:
    """The second process is told to end, as a machine that is taken away."""
    real = Trainer.step

    def told(self, step):
        if step == 1 and self.rank.number == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, step)

    Trainer.step = told
    return train(load_config(config), run_dir)


def test_where_one_process_is_told_to_end_none_says_that_the_run_is_done(made):
    assert as_ranks(2, train_until_told, made / "run.yaml", made / "told") == [143, 138]
    assert (made / "told/checkpoints/step-00000002").is_dir()
    assert not (made / "told/model").exists()


@pytest.fixture
def agent(monkeypatch):
    """The store that torchrun keeps over all its starts of the processes."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in (("ADDR", "localhost"), ("PORT", str(store.port))):
        monkeypatch.setenv(f"MASTER_{name}", value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


def test_each_start_has_a_part_of_the_store_of_its_own(agent):
    """Whatever earlier starts, of as many processes or others, have left in the store."""
    for world in (3, 2, 3):
        with ThreadPoolExecutor(world) as pool:
            met = [pool.submit(distributed._meet, number, world) for number in range(world)]
        counts = [future.result().add("count", 1) for future in met]
        assert counts == list(range(1, world + 1))


def test_a_first_process_out_of_reach_is_one_sentence(agent, monkeypatch):
    monkeypatch.setattr(distributed, "MEET", timedelta(seconds=0.5))
    for number, said in ((0, "1 came"), (1, "timeout")):  # the other one is not there
        with pytest.raises(ProcessesError, match=f"process {number} did not meet all 2.*{said}"):
            distributed._meet(number, 2)
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(ProcessesError, match="no-such-host.invalid.*--local-addr"):
        distributed._meet(1, 2)


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ProcessesError, match="has 2 GPUs .* --nproc-per-node 2"):
        distributed._own_gpu()


@pytest.mark.parametrize(
    ("micro_batches", "world", "said"),
    [
        (1, 1, "batch: 16 samples a step (1 micro-batch of 16)"),
        (8, 4, "batch: 128 samples a step (8 micro-batches of 16, shared by 4 processes)"),
        (4, 3, "batch: 64 samples a step (4 micro-batches of 16, shared by 3 processes)"),
    ],
)
def test_the_log_says_how_many_samples_a_step_sees(micro_batches, world, said):
    assert distributed.batch_of_a_step(16, micro_batches, world) == said


def block_of_scale(language: str) -> str:
    text = (ROOT / "docs/scale.md").read_text()
    return text.partition(f"```{language}\n")[2].partition("```")[0]


STANDINS = {
    "scontrol": """[ "$1" = show ] && echo host-a host-b | tr ' ' '\\n' || echo "$@" >> told.txt""",
    "srun": """echo "$@" >> told.txt; touch begun
trap 'exit 1' USR1
for i in $(seq ${LAST:-100}); do sleep 0.1; done""",
}


@pytest.mark.parametrize("in_time", [True, False])
def test_the_slurm_script_asks_for_another_turn_where_time_ran_out(tmp_path, monkeypatch, in_time):
    for name, body in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    own = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "host-[a-b]"}
    for name, value in (own | ({"LAST": "1"} if in_time else {})).items():
        monkeypatch.setenv(name, value)
    job = subprocess.Popen(["bash", "-c", block_of_scale("sbatch")], cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    if not in_time:
        time.sleep(0.2)  # srun is listening
        job.send_signal(signal.SIGUSR1)
    assert job.wait() == (0 if in_time else 1)
    launched, *later = (tmp_path / "told.txt").read_text().splitlines()
    assert "--nnodes 2" in launched and "--rdzv-endpoint host-a:29500 --rdzv-id 77" in launched
    assert later == ([] if in_time else ["requeue 77"])


@pytest.mark.parametrize("language", ["sbatch", "yaml"])
def test_the_templates_for_schedulers_train_a_config_that_is_there(language):
    block = block_of_scale(language)
    if language == "yaml":
        worker = yaml.safe_load(block)["spec"]["pytorchReplicaSpecs"]["Worker"]
        (container,) = worker["template"]["spec"]["containers"]
        block = " ".join(container["command"])
    words = block.split()
    config = words[words.index("tools/train.py") + 1]
    assert (ROOT / config).is_file() and "--run-dir" in words


def test_torchrun_takes_what_the_slurm_script_gives_it():
    words = block_of_scale("sbatch").replace("\\\n", " ").partition(" torchrun ")[2].split("&")[0]
    told = shlex.split(words.replace("$SLURM_NNODES", "2"))
    options = parse_args(told)
    assert options.signals_to_handle.split(",")[-1] == "SIGUSR1"
    assert options.training_script == "tools/train.py" and options.nnodes == "2"
