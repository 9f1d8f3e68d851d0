"""What the models of a run say about themselves, for people (`markdown`) and for editors
(`json_schema`). Imports no torch.

`tools/config_reference.py` writes both into docs/, where a test holds them to these functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter

from ldm_dream.config.explain import kinds
from ldm_dream.config.run import TASKS, Run

BASE = (
    "A config file, relative to this one, that this file changes: only the differences stand here. "
    "Its description and expected are not taken over."
)
INTRO = """# Every knob of a config

<!-- Written by tools/config_reference.py out of ldm_dream/config/; change the text there. -->

A config is a YAML file that `ldm-dream train` reads. Every knob has a default, so a file holds only what differs from it. `--set a.b=value` changes a knob for one call, such as `--set train.steps=1000`; `--dry-run` prints all knobs with their values. A section with a `kind` has the knobs of that kind alone. `base: other.yaml` names a config that this one changes: sections are merged knob by knob, lists are replaced, and a section that gets another `kind` starts from the defaults of that kind; `description` and `expected` are of one run and not taken over. What is unknown, out of range or does not fit together is refused with one sentence before anything is built.

An editor can complete and check a config by `docs/config.schema.json`. With the YAML language server (in VS Code: the extension "YAML" by Red Hat) one comment in the first line does it, with the path from the config to the schema:

```yaml
# yaml-language-server: $schema=../../docs/config.schema.json
```

Every key is optional there, as the file that `base` names may hold it.
"""  # noqa: E501  (a paragraph is one line of Markdown)


# -------------------------------------------------------------------------------------- for editors


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 07, which editors know best) of one config file. Nothing is required and a
    section without its `kind` may be of any, since `base` may bring them.
    """
    schema = TypeAdapter(Run).json_schema()
    definitions = {name: _plain(node) for name, node in schema["$defs"].items()}
    for run in TASKS.values():
        properties = definitions[run.__name__]["properties"]
        base = {"type": "string", "description": BASE}
        definitions[run.__name__]["properties"] = {"base": base, **properties}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A config of ldm_dream",
        "anyOf": [_plain(node) for node in schema["anyOf"]],
        "definitions": definitions,
    }


# what of pydantic's schema (draft 2020-12) is kept: draft 07 has it too, and it tells something
KEPT = {
    *(
        "$ref",
        "type",
        "enum",
        "const",
        "items",
        "anyOf",
        "allOf",
        "properties",
        "additionalProperties",
    ),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minItems", "maxItems", "default", "description"),
}


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A schema of pydantic -> the same in draft 07, without titles, what is required, and defaults
    of whole sections.
    """
    found = {}
    for word, value in node.items():
        word = {"oneOf": "anyOf", "prefixItems": "items"}.get(word, word)
        whole_section = word == "default" and isinstance(node[word], dict)
        said_by_const = word == "enum" and "const" in node  # pydantic before 2.10 gives both
        if word not in KEPT or whole_section or said_by_const:
            continue
        if word == "$ref":
            reference = {"$ref": value.replace("#/$defs/", "#/definitions/")}
            # draft 07 ignores what stands beside a $ref
            found |= {"allOf": [reference]} if "description" in node else reference
        elif word == "properties":
            found[word] = {name: _plain(child) for name, child in value.items()}
        elif word == "description":
            found[word] = " ".join(value.split())
        else:
            found[word] = _plain_value(value)
    return found


def _plain_value(value: Any) -> Any:
    """A keyword's value with the schemas in it made plain, and 1.0 as 1, as pydantic's versions
    differ in that.
    """
    if isinstance(value, list):
        return [_plain_value(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _plain(value) if isinstance(value, dict) else value


# --------------------------------------------------------------------------------------- for people


def markdown() -> str:
    """The text of docs/config.md: a table of knobs for each task, section and kind."""
    headings: dict[type[BaseModel], str] = {}
    for task, run in TASKS.items():
        headings[run] = f"task: {task}"
        _collect(run, "", task, headings)
    definitions = json_schema()["definitions"]
    blocks = [INTRO]
    for model, heading in headings.items():
        rows = "\n".join(_rows(model, definitions[model.__name__]["properties"], headings))
        table = f"| knob | allowed | default | meaning |\n|---|---|---|---|\n{rows}"
        blocks.append(f"## {heading}\n\n{_about(model)}\n\n{table if rows else 'No knobs.'}\n")
    return "\n".join(blocks)


def _collect(
    model: type[BaseModel], prefix: str, task: str, headings: dict[type[BaseModel], str]
) -> None:
    """Adds the heading of each section below `model` that has none yet, in the order of a config."""
    for key in model.model_fields:
        sections = kinds(model, key)
        for kind, section in sections.items():
            if section in headings:
                continue
            path = f"{prefix}{key}"
            heading = f"{path} (kind: {kind})" if len(sections) > 1 else path
            headings[section] = (
                f"{path} (task: {task})" if heading in headings.values() else heading
            )
            _collect(section, f"{path}.", task, headings)


def _about(model: type[BaseModel]) -> str:
    """Its docstring, and of a process what fits to it."""
    text = " ".join((model.__doc__ or "").split())
    for words, name in (("Predictions", "predictions"), ("Samplers", "samplers")):
        if options := getattr(model, name, None):
            text += f" {words}: {_choice(options)}."
    return text


def _rows(
    model: type[BaseModel], properties: dict[str, Any], headings: dict[type[BaseModel], str]
) -> Iterator[str]:
    for key, node in properties.items():
        sections = kinds(model, key) if key in model.model_fields else {}
        if "const" in node:  # kind or task, which the heading says
            continue
        if sections:
            links = [
                f"[{kind if len(sections) > 1 else 'section'}](#{_anchor(headings[section])})"
                for kind, section in sections.items()
            ]
            default = model.model_fields[key].default
            shown = f"`kind: {default.kind}`" if len(sections) > 1 else ""
            yield _row(key, ", ".join(links), shown, node["description"])
        else:
            shown = f"`{json.dumps(node['default'])}`" if "default" in node else ""
            yield _row(key, _allowed(node), shown, node["description"])


def _row(key: str, *cells: str) -> str:
    return " | ".join([f"| `{key}`", *(cell.replace("|", "\\|") for cell in cells)]) + " |"


BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
TYPES = {"integer": "integer", "number": "number", "string": "text", "null": "`null`"}


def _allowed(node: dict[str, Any]) -> str:
    """What a plain knob may be, in a few words."""
    if "enum" in node:
        return _choice(node["enum"])
    if "anyOf" in node:
        return " or ".join(_allowed(each) for each in node["anyOf"])
    if node["type"] == "boolean":
        return "`true`, `false`"
    if node["type"] == "array":
        items = node["items"]
        length = f" of {len(items)}" if isinstance(items, list) else ""
        item = items[0] if isinstance(items, list) else items  # the places of ours are all alike
        return f"list{length}, each {'one of ' if 'enum' in item else ''}{_allowed(item)}"
    bounds = [f"{sign} {node[word]:g}" for word, sign in BOUNDS.items() if word in node]
    if "multipleOf" in node:
        bounds.append(f"a multiple of {node['multipleOf']}")
    return " ".join([TYPES[node["type"]], ", ".join(bounds)]).strip()


def _choice(options: Iterable[Any]) -> str:
    return ", ".join(f"`{option}`" for option in options)


def _anchor(heading: str) -> str:
    """Where GitHub puts a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
