"""What `attnbench new-plugin` writes: a package with one attention, its test, and a README."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from attnbench.errors import StorageError, UserInputError, cannot_write

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
FILES = {  # template to file
    "pyproject.toml.j2": "pyproject.toml",
    "module.py.j2": "{module}.py",
    "test_module.py.j2": "test_{module}.py",
    "README.md.j2": "README.md",
}


def write_plugin(name: str, parent: Path) -> Path:
    """Write the package `attnbench-NAME` into a new folder below `parent`; return the folder.

    Raises UserInputError on a bad or taken name and where the folder exists already or cannot be made.
    """
    _check_name(name)
    folder, module = parent / f"attnbench-{name}", f"attnbench_{name.replace('-', '_')}"
    if folder.exists():
        raise UserInputError(f"{folder} exists already, and nothing in it is touched; choose another name")
    if not parent.is_dir():
        raise UserInputError(f"--folder: {parent} is not a folder; create it first")
    texts = {file.format(module=module): _render(template, name, module) for template, file in FILES.items()}
    try:
        folder.mkdir()
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(cannot_write(folder, error)) from error
    return folder


def _check_name(name: str) -> None:
    from attnbench.plugins import registry

    if not NAME.fullmatch(name):
        raise UserInputError(
            f"{name!r} cannot name a backend; allowed: lower-case letters and digits in words joined by "
            "single hyphens, a letter first, e.g. my-attention"
        )
    if name.split("-")[0] == "attnbench":
        raise UserInputError(f"{name!r}: leave out the prefix, the package is called attnbench-NAME anyway")
    if name in registry().backends:
        owner = registry().backends[name]
        raise UserInputError(
            f"a backend called {name!r} is there already, from {owner.plugin} ({owner.origin}); "
            "choose another name"
        )


def _render(template: str, name: str, module: str) -> str:
    import jinja2

    text = resources.files("attnbench.scaffold").joinpath("templates", template).read_text(encoding="utf-8")
    words = "".join(word.capitalize() for word in name.split("-")).removesuffix("Attention")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(text).render(name=name, module=module, prefix=words or "Linear")
