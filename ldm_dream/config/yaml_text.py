"""YAML text -> plain values, and back. A config is small and flat, so whatever costs time or memory
is refused while it is read: large files, deep nesting, aliases that multiply, endless numbers.

Of YAML it knows mappings, lists, texts, numbers, true, false and null; a date is a text. Keys are
texts. No tags, no merge keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ldm_dream.errors import ConfigError

MOST_BYTES = 100_000  # of a file; the longest config that is shipped has 2,000
MOST_NODES = 4_000  # values in a file, where an alias counts as all that it stands for
MOST_LEVELS = 20
MOST_DIGITS = 100  # of a number
_HALF = re.compile("[\ud800-\udfff]")  # of a character, which no UTF-8 can hold
_EXPONENT = re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$")
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NO_DATE = "tag:yaml.org,2002:timestamp"


class YamlError(ConfigError):
    """A text that is no YAML, or none that a config may be."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the limits above, for which 2e-4 is a number (YAML 1.1 wants 2.0e-4)."""

    yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] != _NO_DATE]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self._count = self._level = 0
        self._sizes: dict[int, int] = {}  # id of a node -> values in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Raises ComposerError for what a config does not hold."""
        event, before = self.peek_event(), self._count
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _error(event, f"more than {MOST_LEVELS} levels of nesting; a config has about 4")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error(event, f"a tag ({event.tag}); write the value alone, a text in quotes")
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _error(event, f"*{event.anchor} stands inside of what it names")
            self._count += self._sizes[id(node)]
        else:
            self._check(node, event)
            self._count += 1
            self._sizes[id(node)] = self._count - before
        if self._count > MOST_NODES:
            raise _error(event, f"more than {MOST_NODES} values; a config has about 100")
        self._level -= 1
        return node

    def _check(self, node: yaml.Node | None, event: yaml.Event) -> None:
        if isinstance(node, yaml.ScalarNode):
            if half := _HALF.search(node.value):
                raise _error(event, f"{ascii(half[0])}, half of a character; leave it out")
            if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
                raise _error(event, f"a number of {len(node.value)} characters; give a shorter one")


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text such as "2e-4", which _Loader would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    values = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error(key, "a list or mapping as a key; a key is a word")
        if key.tag == _MERGE:
            raise _error(key, "the merge key <<; write the keys out, or share them by `base`")
        if key.value in values:
            raise _error(key, f"the key {key.value!r} is given twice")
        values[key.value] = loader.construct_object(value, deep=True)
    return values


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """YAML text -> its value. Raises YamlError, which begins with `where`."""
    if len(text) > MOST_BYTES:
        raise YamlError(
            f"{where}: {len(text)} characters; a config has at most {MOST_BYTES}, and about 2000."
        )
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (_Loader is a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}: {place}{error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number such as 0x_
        raise YamlError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path, asked: str = "") -> dict[str, Any]:
    """The mapping in a YAML file; an empty file gives none. Raises YamlError. asked: who named
    the file, for the message.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise YamlError(
                f"{path}: larger than {MOST_BYTES} bytes{asked}; this is no config, which has about 2000."
            )
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(
            f"{path}: cannot be read as a text file in UTF-8{asked}: {error}."
        ) from None
    return parse_mapping(text, str(path))


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """As `parse_yaml`, of a text that holds keys; an empty one gives none."""
    values = {} if (parsed := parse_yaml(text, where)) is None else parsed
    if not isinstance(values, dict):
        raise YamlError(
            f"{where}: a config is a mapping of keys to values, this is a {type(values).__name__}."
        )
    return values


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)


def _error(at: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
