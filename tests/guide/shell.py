"""Shell blocks: every line of one is run, or held against what it names.

Owns which commands are run (`stateset-agents`, in this process, in a folder of its own) and what is
asked of the others: that a make target, a module, its flags, an extra or a script exist. A line
that no rule knows is a failure, so nothing is left out in silence.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.guide.pages import ROOT, Block

_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=.*")
_ENDED_BY_ITSELF = ("cd", "export", "curl", "docker", "git", "kubectl", "dvc", "prefect")


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words; comments are gone, continued lines are one."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        part: list[str] = []
        for word in words:
            if word in ("&&", "||", ";", "|", "&"):
                yield part
                part = []
            else:
                part.append(word)
        if part:
            yield part


def without_assignments(words: Sequence[str]) -> list[str]:
    """The command after `NAME=value` words."""
    rest = list(words)
    while rest and _ASSIGNMENT.fullmatch(rest[0]):
        rest.pop(0)
    return rest


def check(words: Sequence[str]) -> None:
    """Hold a command that is not run against what it names.

    Raises:
        AssertionError: it names what is not there, or no rule knows it.
    """
    words = without_assignments(words)
    if not words:
        return
    program, *arguments = words
    name = Path(program).name
    if name == "make":
        _check_make(arguments)
    elif name.startswith("python"):
        _check_python(arguments)
    elif name == "pip":
        _check_pip(arguments)
    elif name == "pytest":
        assert all((ROOT / one).exists() for one in arguments if not one.startswith("-"))
    elif name in ("torchrun", "accelerate"):
        return
    elif program == ".":
        assert arguments == [".venv/bin/activate"], words
    elif "/" in program:
        assert (ROOT / program).is_file(), f"{program} is not a file of the project"
    else:
        assert name in _ENDED_BY_ITSELF, f"no rule for {words}: run it, or add what it is held to"


def _check_make(arguments: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    for argument in arguments:
        if not argument.startswith("-") and "=" not in argument:
            assert argument in targets, f"make has no target {argument}"


def _check_python(arguments: Sequence[str]) -> None:
    if "-m" not in arguments:
        script = next(one for one in arguments if not one.startswith("-"))
        assert (ROOT / script).is_file() or "/" not in script, f"{script} is not there"
        return
    module, *flags = arguments[list(arguments).index("-m") + 1 :]
    if module in ("venv", "pip", "pytest", "mkdocs", "torch.distributed.run"):
        return
    found = importlib.util.find_spec(module)
    assert found is not None, f"there is no module {module}"
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    folder = Path(found.origin).parent
    if module.startswith("tasks."):
        source += (folder / "entry.py").read_text(encoding="utf-8")
    if found.submodule_search_locations:
        source += (folder / "__main__.py").read_text(encoding="utf-8")
    for flag in flags:
        if flag.startswith("--"):
            name = flag.partition("=")[0]
            known = name == "--help" or f'"{name}"' in source
            assert known, f"{module} has no flag {name}"


def _check_pip(arguments: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for argument in arguments:
        named = re.fullmatch(r"stateset-agents(?:\[(?P<extras>[\w,-]+)\])?", argument)
        for extra in (named["extras"] or "").split(",") if named else ():
            known = project["optional-dependencies"]
            assert not extra or extra in known, f"there is no extra {extra}"
