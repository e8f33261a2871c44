"""Tasks as files: the library's, and anybody's own."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from cehrxgpt.config import from_dict, line_of, parse_yaml
from cehrxgpt.errors import ConfigError, TaskError, did_you_mean
from cehrxgpt.tasks.definition import Task


def parse_task(text: str, *, where: str) -> Task:
    """A task from YAML text; `where` names it in messages.

    Raises:
        TaskError: unknown key, wrong type, a set that is not defined, ...; the message has the line where it can be found.
    """
    try:
        return from_dict(Task, parse_yaml(text, where=where), where=where)
    except ConfigError as error:
        message = str(error).removeprefix(f"{where}: ").removeprefix(f"{where}:")
        line = "" if message.lstrip().startswith("line ") else f" line {line_of(text, error.at)}:" if text.strip() else ""
        raise TaskError(f"{where}:{line} {message.lstrip()}") from error


def library_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with the package, sorted."""
    folder = resources.files("cehrxgpt.tasks") / "library"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def library() -> dict[str, Task]:
    """name -> task, of all that come with the package."""
    return dict(_library())


@cache
def _library() -> dict[str, Task]:
    return {name: load_task(name) for name in library_tasks()}


def task_text(name: str) -> str:
    """The YAML of a library task.

    Raises:
        TaskError: there is none of that name; the message names the closest.
    """
    if name not in library_tasks():
        hint = did_you_mean(name.lower(), library_tasks(), count=3)
        own = "task of your own is given as its YAML file; `cehrxgpt tasks` lists the library"
        raise TaskError(f"no library task '{name}'; {f'{hint} A' if hint else 'a'} {own}")
    return (resources.files("cehrxgpt.tasks") / "library" / f"{name}.yaml").read_text(encoding="utf-8")


def load_task(name_or_path: str | Path | Task) -> Task:
    """A library task by name, or a task from a YAML file, ours or of ACES (anything with a slash or a `.yaml`/`.yml` ending is a path).

    Raises:
        TaskError: no such task or file, or it is malformed.
    """
    if isinstance(name_or_path, Task):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise TaskError(f"{path}: no such file; give a task's YAML file, or the name of a library task (`cehrxgpt tasks` lists them)") from error
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise TaskError(f"{path}: not a YAML text file") from error
        from cehrxgpt.tasks.aces import is_aces, load_aces

        task = load_aces(path) if is_aces(text) else parse_task(text, where=str(path))
        if task.name in library_tasks() and task != load_task(task.name):
            # Labels carry a task's name alone: a forecast of them would look for the library's outcome.
            line = "" if is_aces(text) else f" line {line_of(text, ('name',))}:"
            raise TaskError(f"{path}:{line} name '{task.name}' is that of a library task that asks something else; give this one a name of its own")
        return task
    return parse_task(task_text(str(name_or_path)), where=f"task {name_or_path}")
