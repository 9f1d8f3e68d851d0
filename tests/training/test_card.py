"""The model card of a run says what happened, and nothing that is not known."""

from dataclasses import replace

import pytest
import yaml

from ldm_dream.config.run import AutoencoderRun, DiffusionRun
from ldm_dream.training.card import Facts, card, shortened

FACTS = Facts(
    name="mine",
    step=150,
    command="tools/train.py /home/ada/work/my runs/a.yaml",
    commit="0123abc-dirty",
    versions={"ldm_dream": "0.1.0", "torch": "2.14"},
    pictures={"/home/ada/photos/div2k/HR": 800, "data/own": 3},
    validation={"val/psnr_y": 25.3744, "val/ssim_y": 0.7},
    validation_step=100,
    history=[],
)


def front_matter(text: str) -> dict:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_a_card_says_what_happened():
    run = DiffusionRun(
        seed=7, description="Mine.", loss={"strength": 1.0, "p": 3.0}, train={"steps": 200}
    )
    text = card(run, FACTS)
    for line in (
        "# mine",
        "Its config says: Mine.",
        "- Steps: 150 of 200 made.",
        "- Loss: l1, with DREAM (https://arxiv.org/abs/2312.00210), strength 1, p 3.",
        "- Seed: 7.",
        "- Validation at step 100: val/psnr_y 25.37, val/ssim_y 0.7.",
        "- 800 pictures of `div2k/HR`.",
        "- 3 pictures of `data/own`.",
        "- Their licence: not given.",
        "- Commit: 0123abc-dirty.",
        "- Versions: ldm_dream 0.1.0, torch 2.14.",
    ):
        assert line in text.splitlines()
    assert "expected" not in text.lower()


def test_a_card_says_whether_lr_pictures_were_made_or_given():
    made, given = (
        card(DiffusionRun(data={"train": ("t",), **data}), FACTS) for data in ({}, {"lr": ("l",)})
    )
    assert "- Patches of 128 pixels; LR pictures made of them: bicubic." in made.splitlines()
    assert "- Patches of 128 pixels; LR pictures given." in given.splitlines()


def test_the_front_matter_is_what_the_hub_reads():
    run = DiffusionRun(
        loss={"strength": 1.0},
        data={"license": "cc0-1.0"},
        train={"init_from": "hf:me/start"},
        autoencoder={"kind": "vqgan", "pretrained": "hf:me/vq"},
    )
    assert front_matter(card(run, FACTS)) == {
        "library_name": "ldm_dream",
        "pipeline_tag": "image-to-image",
        "license": "cc0-1.0",
        "tags": ["super-resolution", "diffusion", "dream", "resshift", "residual-shift"],
        "base_model": ["me/start", "me/vq"],
    }


def test_nothing_is_invented():
    run = DiffusionRun(train={"init_from": "runs/a/model"})
    facts = replace(FACTS, commit=None, versions={}, pictures={}, validation=None, command="")
    text = card(run, facts)
    assert front_matter(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "dream" not in front_matter(text)["tags"]
    for words in ("plain, without DREAM", "Validation: none", "Pictures: not known", "no checkout"):
        assert words in text
    assert "Weights it began with: `a/model`" in text


@pytest.mark.parametrize(
    "loss, tag", [({"strength": 1.0, "p": 0.0}, "drm"), ({"strength": 0.5}, "dream"), ({}, None)]
)
def test_only_a_run_with_dream_is_tagged_so(loss, tag):
    tags = front_matter(card(DiffusionRun(loss=loss), FACTS))["tags"]
    assert [name for name in tags if name in ("dream", "drm")] == ([tag] if tag else [])


def test_a_licence_in_words_is_other_by_its_name():
    run = DiffusionRun(data={"license": "CC0 and CC BY 2.0"})
    matter = front_matter(card(run, FACTS))
    assert (matter["license"], matter["license_name"]) == ("other", "CC0 and CC BY 2.0")
    assert "- Their licence: CC0 and CC BY 2.0." in card(run, FACTS)


def test_changes_on_the_way_are_told_with_their_step():
    history = [
        {"step": 20, "key": "train.steps", "old": 100, "new": 200},
        {"step": 30, "key": "data.train", "old": ["/home/ada/a/b"], "new": ["/mnt/disk/x/y/z"]},
        {"step": 40, "key": "description", "old": "", "new": "long " * 100},
    ]
    text = card(DiffusionRun(), replace(FACTS, history=history))
    assert "- From step 20: `train.steps` `100` -> `200`." in text
    assert "- From step 30: `data.train` `['a/b']` -> `['y/z']`." in text
    assert max(map(len, text.splitlines())) < 200


def test_an_autoencoder_has_a_card_too():
    run = AutoencoderRun(loss={"adversarial": 0.5, "lpips": 0.0})
    text = card(run, FACTS)
    assert front_matter(text)["tags"] == ["super-resolution", "autoencoder", "vqgan"]
    assert "- Loss: 1 l1 + 1 codebook + 0.5 adversarial." in text


@pytest.mark.parametrize(
    "path, want",
    [
        ("/home/ada/photos", "photos"),
        ("/home/ada/photos/div2k/HR", "div2k/HR"),
        ("/Users/ada/x", "x"),
        ("/root/runs/a", "runs/a"),
        ("/data/div2k/HR/", "div2k/HR"),
        ("../../shared/data", "shared/data"),
        ("~/photos", "photos"),
        ("../../../home/ada", "."),
        ("photos", "photos"),
        ("/home/ada", "."),
        ("/", "."),
    ],
)
def test_a_folder_is_named_without_its_disk(path, want):
    assert shortened(path) == want


def test_no_path_of_the_disk_is_in_a_card():
    command = (
        "/home/ada/env/bin/tools/train.py '/home/ada/my files/a b/c.yaml' --set "
        "'data.train=[/home/ada/p/q/r, \"/home/ada/s/t\"]' lpips_weights=/home/ada/w.pth "
        "--run-dir=/home/ada/runs/x train.steps=5 ~/y/z.yaml ../../home/ada/u/v"
    )
    facts = replace(FACTS, command=command, name="a`\x1b[2J\nb")
    run = DiffusionRun(
        train={"init_from": "/home/ada/runs/a/model"},
        autoencoder={"kind": "vqgan", "pretrained": "/home/ada/m/vq"},
    )
    text = card(run, facts)
    assert "ada" not in text and "home" not in text and "\x1b" not in text
    for words in ("'a b/c.yaml'", "q/r, ", "train.steps=5", "lpips_weights=w.pth", "runs/x"):
        assert words in text, words
    assert "# a' [2J b" in text.splitlines()
