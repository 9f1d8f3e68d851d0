"""Laws of runs that cannot be: one sentence before torch is imported, and what is possible passes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.files import load_config
from ldm_dream.config.networks import IDMConfig, LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.config.run import DiffusionRun
from ldm_dream.errors import UserError
from ldm_dream.training.check import check_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SR3 = {
    "network.model_channels=10": "norm_groups=16 does not divide model_channels=10",
    "network.norm_groups=7": "norm_groups=7 does not divide",
    "network.in_channels=1": "network.in_channels=1, but a latent has 3; set it to 3",
    "network.in_channels=4": "network.in_channels=4, but a latent has 3",
    "network.out_channels=4": "network.out_channels=4, but a latent has 3",
    "network.cond_channels=6": "cond_channels=6, but condition=['z_lr'] has 3",
    "condition=[]": "condition=[] shows the network nothing",
    "condition=[lr,lr]": "names a part twice",
    "network.channel_mult=[]": "`network.channel_mult` is []; it should not be empty",
    "network.channel_mult=[0]": "`network.channel_mult` is 0",
    "network.image_size=1": "image_size=1 is too small for 3 levels; use 4 or more",
    "network.model_channels=100000": "billion parameters",
    "network.num_res_blocks=100000": "less than or equal to 100",
    "network.attention_resolutions=[0]": "`network.attention_resolutions` is 0",
    "train.betas=[1.0,0.9]": "`train.betas` is 1.0; input should be less than 1",
    "train.betas=[true,0.9]": "takes neither true nor false",
    'train.freeze=[""]': "`train.freeze` is ''; it should not be empty",
    'data.train=["a\\0b"]': r"'\x00' is in no name of a file",
    "seed=99999999999999999999": "should be below 2 ** 63",
    "seed=-1": "greater than or equal to 0",
    "process.num_timesteps=1000000000": "less than or equal to 100000",
    "process.num_timesteps=1": "greater than or equal to 2",
    "process.beta_end=0.9": "leaves nothing of the picture",
    "process.respace=2000": "respace=2000 keeps more steps than num_timesteps=1000",
    "train.batch_size=100000000": "lower one of them",
    "train.accumulate=100000000": "lower one of them",
    "lpips_weights=README.md": "lpips_weights=README.md: no file of weights",
    "lpips_weights=/dev": "lpips_weights=/dev: cannot be read",
    "loss.lpips=1": "loss.lpips is set but lpips_weights is not",
    "train.steps=true": "steps=True takes neither true nor false",
    "scale=3": "data.patch=64 is not a multiple of scale=3; set it to 63",
    "sampler.steps=[]": "`sampler.steps` is []",
    "train.val_crop=16": "train.val_crop=16 is less than 32 pixels",
    "autoencoder={kind: vqgan, pretrained: vq-f4-tiny}": "in_channels=3, but a latent has 8",
    "autoencoder={kind: vqgan, ch: 10}": "32 groups, which do not divide ch=10",
    "autoencoder={kind: vqgan, ch_mult: [1,1,1,1,1,1,1,1]}": "no",
    "data.degradation={kind: blind, first: {kernel_size: [99999,99999]}}": "equal to 255",
    "data.degradation={kind: blind, first: {resize: [0.5,1000000]}}": "less than or equal to 16",
    "process={kind: residual_shift, sqrt_eta_end: 0.01}": "the noise must grow",
    "process={kind: residual_shift, kappa: 1e300}": "less than or equal to 1000",
}
LATENT = {
    "network.cond_channels=3": "cond_channels=3, but condition=['lr', 'z_lr'] has 11",
    "data.cache_latents=1000000000": "takes more than",
    "autoencoder.embed_dim=4": "embed_dim=4 has no effect: vq-f4-tiny brings its own, 8",
    "autoencoder.pretrained=dream-latent-x4-tiny": "a super-resolution model, no autoencoder",
    "network.num_res_blocks=[1,2]": "num_res_blocks has 2 numbers for 3 levels",
    "network.num_head_channels=48": "num_head_channels=48 does not divide swin_embed_dim=128",
    "network.mlp_ratio=0.001": "mlp_ratio=0.001 leaves no channel",
    "network.window_size=4096": "less than or equal to 64",
    "network.swin_embed_dim=100000000": "billion parameters",
}
CASES = [("sr3-dream", *case) for case in SR3.items()]
CASES += [("dream-latent-x4-tiny", *case) for case in LATENT.items()]


@pytest.mark.parametrize("name, change, says", CASES)
def test_an_impossible_run_is_one_sentence_at_once(name, change, says, tmp_path):
    start = time.process_time()
    with pytest.raises(UserError) as error:
        check_run(load_config(CONFIGS / f"tiny/{name}.yaml", [change]), tmp_path, starts=False)
    assert time.process_time() - start < 1
    assert says in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_shipped_passes(path, tmp_path):
    check_run(load_config(path), tmp_path, starts=False)


@pytest.mark.parametrize("kind", [SR3Config, IDMConfig, LDMConfig, ResShiftNetConfig])
def test_the_least_parameters_are_no_more_than_there_are(kind):
    """Of the published networks, whose numbers stand in their docstrings."""
    published = int(
        " ".join(kind.__doc__.split()).rpartition("defaults: ")[2].split()[0].replace(",", "")
    )
    assert 0.2 * published < kind().least_parameters < published


def test_a_pretrained_that_is_not_here_is_judged_when_it_starts(tmp_path):
    run = DiffusionRun(autoencoder=VQGANConfig(pretrained=str(tmp_path / "none")))
    check_run(run, tmp_path, starts=False)
    with pytest.raises(UserError, match="neither a model folder"):
        check_run(run, tmp_path)


def test_a_run_is_judged_without_torch():
    code = "import ldm_dream.training.check, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
