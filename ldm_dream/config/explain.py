"""A ValidationError of pydantic -> one sentence: which file, which key, what was given, what is
allowed, the nearest name.

Knows no knob: the models come in as `tasks`, task name -> model of a run. A section of a run is a
field that holds a model, or one of several models told apart by their `kind`. Imports no torch.
"""

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Tasks = Mapping[str, type[BaseModel]]


def explain(
    error: ValidationError, tasks: Tasks, values: dict, origin: dict[tuple, str], where: str
) -> str:
    """The first mistake as one sentence. `values`: what was validated; `origin`: key path -> file;
    `where`: the file else.
    """
    problems = error.errors(include_url=False)
    places = [_place(problem["loc"], tasks) for problem in problems]
    first, (keys, model) = problems[0], places[0]
    if first["type"].startswith("union_tag"):
        choices, context = list(kinds(model, keys[-1]) if model else tasks), first.get("ctx", {})
        keys = (*keys, context["discriminator"].strip("'"))
        sentence = _choice_sentence(".".join(keys), context.get("tag"), choices)
    elif first["type"] == "extra_forbidden" and model:
        sentence = f"unknown key `{short('.'.join(keys))}`; {_hint(keys, model, tasks[values['task']], values)}"
    else:
        sentence = _value_sentence(
            short(".".join(keys)), first["type"], first["input"], first["msg"]
        )
    source = next((origin[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origin), where)
    more = len({keys for keys, _ in places}) - 1
    return f"{source}: {sentence}" + (f" ({more} more after this one.)" if more else "")


def short(text: object, most: int = 100) -> str:
    """`text`, with dots in place of its middle where it is long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def _value_sentence(name: str, kind: str, given: Any, message: str) -> str:
    message, value = message.removeprefix("Value error, "), short(repr(given))
    if kind == "value_error":  # raised by one of our models, which names its keys itself
        return f"`{name}`: {message}." if name else f"{message}."
    if kind in ("model_type", "model_attributes_type"):
        return f"`{name}` is {value}; it is a section, with keys of its own below it."
    if kind == "tuple_type":
        return f"`{name}` is {value}; it should be a list, such as [a, b]."
    if kind in ("too_short", "string_too_short"):
        return f"`{name}` is {value}; it should not be empty."
    return f"`{name}` is {value}; {message[0].lower()}{message[1:]}."


def _choice_sentence(name: str, given: str | None, choices: list[str]) -> str:
    near = difflib.get_close_matches(short(given), choices, n=1, cutoff=0.5)
    stated = "is missing" if given is None else f"is {short(given)!r}"
    return f"`{name}` {stated}; choose one of {', '.join(choices)}." + (
        f" Did you mean {near[0]}?" if near else ""
    )


def _place(loc: tuple, tasks: Tasks) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """Location of pydantic -> (keys as the user wrote them, model that holds the last one; None for
    the run itself).

    A location also holds the tag of each union that was passed and, behind a leaf, list indices and
    names of types.
    """
    parts, keys, holder = iter(loc[1:]), (), None
    model = tasks[loc[0]] if loc else None
    for part in parts:
        keys, holder = (*keys, str(part)), model
        models = kinds(model, str(part)) if model else {}
        if not models:
            break
        tag = str(next(parts, "")) if len(models) > 1 else next(iter(models))
        model = models.get(tag)
    return keys, holder


def kinds(model: type[BaseModel], key: str) -> dict[str, type[BaseModel]]:
    """Models that the section `key` of `model` may hold, by their `kind`; empty for a plain value
    or an unknown key.
    """
    field = model.model_fields.get(key)
    models = _models_of(field.annotation) if field else []
    return {m.model_fields["kind"].default if "kind" in m.model_fields else key: m for m in models}


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    # first: on Python 3.10, tuple[int, ...] also passes for a type
    if args := get_args(annotation):
        return [m for arg in args for m in _models_of(arg)]
    return (
        [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    )


def _hint(keys: tuple[str, ...], model: type[BaseModel], run: type[BaseModel], values: dict) -> str:
    """Nearest name beside the unknown key, else the same name in another section of the run, else
    all names known there.
    """
    known = [*model.model_fields, *(["base"] if len(keys) == 1 else [])]
    if near := difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.6):
        return f"did you mean `{'.'.join((*keys[:-1], near[0]))}`?"
    homes = {
        name: section
        for section in run.model_fields
        for name in _names(run, section, values.get(section))
    }
    if near := difflib.get_close_matches(keys[-1], homes, n=1, cutoff=0.8):
        return f"did you mean `{homes[near[0]]}.{near[0]}`?"
    return f"known here: {', '.join(sorted(known))}."


def _names(run: type[BaseModel], section: str, given: Any) -> list[str]:
    """Keys of a section, of the kind that the config chose there."""
    models = kinds(run, section)
    chosen = models.get(str(given.get("kind"))) if isinstance(given, dict) else None
    return list((chosen or next(iter(models.values()))).model_fields) if models else []
