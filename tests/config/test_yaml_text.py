"""Laws of reading YAML: whatever the text, a value or one sentence, in less than a second."""

import time

import pytest

from ldm_dream.config.files import load_config
from ldm_dream.config.yaml_text import MOST_BYTES, parse_yaml
from ldm_dream.errors import ConfigError, shown

LEVELS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
HOSTILE = {
    "aliases that multiply": (f"a0: &a0 [x, x, x]\n{LEVELS}", "values; a config has"),
    "an alias of itself": ("a: &a [*a]", "stands inside of what it names"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "levels of nesting"),
    "deep, in many lines": ("\n".join(" " * i + "a:" for i in range(300)), "levels of nesting"),
    "many values": (f"a: [{'x,' * 40_000}]", "values; a config has"),
    "long": ("x" * (MOST_BYTES + 1), "characters; a config has at most"),
    "an endless number": ("seed: 0x" + "f" * 6000, "a number of 6002 characters"),
    "base 60": ("seed: 1" + ":1" * 6000, "a number of 12001 characters"),
    "no digits": ("seed: 0x_", "not valid YAML"),
    "a tag": ("a: !!timestamp x", "a tag (tag:yaml.org,2002:timestamp)"),
    "a tag of ours": ("a: !!bool x", "a tag"),
    "a merge key": ("x: &x {steps: 5}\ntrain: {<<: *x}", "the merge key <<"),
    "a list as key": ("? [a, b]\n: 3", "a list or mapping as a key"),
    "half a character": (r'a: "\ud800"', r"'\ud800', half of a character"),
    "NUL": ("a: \0", "not valid YAML"),
}


@pytest.mark.parametrize("text, says", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_one_short_sentence_at_once(text, says):
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "x.yaml")
    assert time.process_time() - start < 1
    assert says in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text, value",
    [
        ("a: 2024-13-01", "2024-13-01"),
        ("on: yes", True),
        ("5: 2e-4", 2e-4),
        ("? null\n: [&x [1, 2], *x]", [[1, 2], [1, 2]]),
        ("a: &x {b: {c: 1}}", {"b": {"c": 1}}),
    ],
)
def test_keys_are_texts_and_values_what_they_look_like(text, value):
    ((key, got),) = parse_yaml(text, "x").items()
    assert isinstance(key, str) and got == value


@pytest.mark.parametrize(
    "base, says",
    [
        ("a" * 300 + ".yaml", "File name too long"),
        (r'"a\0b.yaml"', "a\0b.yaml: no name of a file"),
        ("loop.yaml", "loop.yaml"),
        ("folder", "no such config file"),
        ("tail.yaml", "UTF-8"),
        ("large.yaml", "larger than 100000 bytes"),
    ],
)
def test_a_base_that_is_no_file_is_one_sentence(tmp_path, base, says):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder").mkdir()
    (tmp_path / "tail.yaml").write_bytes(b"seed: 1\xff")
    (tmp_path / "large.yaml").write_text("#" * (MOST_BYTES + 1))
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {base}")
    with pytest.raises(ConfigError, match=says) as error:
        load_config(path)
    assert len(str(error.value)) < 500


def test_a_chain_of_bases_has_an_end(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml")
    with pytest.raises(ConfigError, match="more than 16 files by `base`"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize("key", ["a" + ".a" * 5000, "a." * 20 + "a"])
def test_an_override_of_many_parts_is_one_short_sentence(tmp_path, key):
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(ConfigError, match="write it as") as error:
        load_config(tmp_path / "run.yaml", [f"{key}=1"])
    assert len(str(error.value)) < 300


def test_what_a_terminal_would_obey_is_shown_escaped():
    assert shown("a\x1b[31m\n\u202e\ud800é") == r"a\x1b[31m\n\u202e\ud800" + "é"
