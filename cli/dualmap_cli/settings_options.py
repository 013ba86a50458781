"""Flags from settings: one option per field of a service's settings, and the start of a service from them."""

import ast
import asyncio
import functools
import inspect
import itertools
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, get_args, get_origin

import click
import msgspec

from dualmap_service.access import AccessSettings
from dualmap_service.errors import SettingsError
from dualmap_service.logs import setup_logs
from dualmap_service.settings import SharedSettings, load_settings

Flags = Mapping[str, str]
"""What was given on the command line, by field name, still as text."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=SharedSettings)


class BadSettings(click.ClickException):
    """A setting that is unknown or has no meaning: one line, exit status 2."""

    exit_code = 2


def settings_options(
    kind: type[AccessSettings], service: str
) -> Callable[[Callable[Concatenate[Flags, P], R]], Callable[..., R]]:
    """Give a command a flag per field; its function gets those that were used as its first argument."""
    fields = msgspec.structs.fields(kind)
    names = {field.name for field in fields}
    helps = _field_docs(kind)

    def decorate(function: Callable[Concatenate[Flags, P], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def with_flags(*args: Any, **given: Any) -> R:
            flags = {name: given.pop(name) for name in names & given.keys()}
            return function({k: v for k, v in flags.items() if v is not None}, *args, **given)

        command: Callable[..., R] = with_flags
        for field in reversed(fields):
            option = click.option(
                "--" + field.name.replace("_", "-"),
                field.name,
                metavar=_metavar(field.type),
                help=_help(field, helps.get(field.name, ""), service),
            )
            command = option(command)
        return command

    return decorate


def as_arguments(settings: Mapping[str, object]) -> list[str]:
    """The flags that give a service these settings."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def prepare(kind: type[T], service: str, flags: Flags) -> T:
    """Settings from environment and flags, with logs set up; BadSettings for what has no meaning."""
    try:
        settings = load_settings(kind, service, os.environ, flags).settings
    except SettingsError as exc:
        raise BadSettings(str(exc)) from exc
    setup_logs(settings.log_level, settings.log_format, service)
    return settings


def run_and_exit(main: Callable[[asyncio.Event], Awaitable[None]]) -> NoReturn:
    """Run a service until it is told to stop, and end the process with its status."""
    # Not above: it needs an extra that other commands do without.
    from dualmap_service.lifecycle import run_service

    sys.exit(run_service(main))


def _help(field: msgspec.structs.FieldInfo, doc: str, service: str) -> str:
    """The field's docstring, its default and its variable."""
    shared = {shared.name for shared in msgspec.structs.fields(SharedSettings)}
    owner = "" if field.name in shared else f"{service}_"
    facts = f"env: DUALMAP_{owner}{field.name}".upper().replace("ENV", "env", 1)
    if field.default is not msgspec.NODEFAULT and field.default != "":
        facts = f"default: {_shown(field.default)}; {facts}"
    elif field.required:
        facts = f"required; {facts}"
    return f"{doc} [{facts}]".strip()


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(kind: Any) -> str:
    """A word for a field's type."""
    origin = get_origin(kind)
    if origin is not None and hasattr(kind, "__metadata__"):
        return _metavar(get_args(kind)[0])
    if origin is tuple:
        return "LIST"
    choices = get_args(kind)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    return {bool: "true|false", int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")


def _field_docs(kind: type[AccessSettings]) -> dict[str, str]:
    """The string under each field in the source of a settings class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not (isinstance(base, type) and issubclass(base, AccessSettings)):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except OSError:
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                doc = _text(text)
                if doc:
                    docs[field.target.id] = doc
    return docs


def _text(statement: ast.stmt) -> str:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return ""
    value = statement.value.value
    return " ".join(value.split()) if isinstance(value, str) else ""
