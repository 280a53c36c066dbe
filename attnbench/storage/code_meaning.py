"""What Python files compute, as a hash: a comment, a docstring or a corrected count is no other training."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attnbench.errors import DataError, cannot_read

DESCRIBING: Mapping[str, frozenset[str]] = {
    "AttentionBackend": frozenset(
        {"summary", "source", "macs", "supports", "complexity", "symmetry", "family", "expected_failures"}
    ),
    "FeatureExtractor": frozenset({"summary", "source", "notes"}),
}
"""Of the records of a plugin: what is said, counted or refused. It changes no number that is computed."""
READS_ITSELF = frozenset({"__doc__", "getdoc", "getsource", "getsourcelines", "getcomments"})
"""Code with one of these names may compute with its own text: it counts letter by letter."""
UNSEEN_USE = frozenset(
    {"globals", "vars", "locals", "eval", "exec", "builtins", "__dict__", "__globals__", "import_module"}
)
"""Code with one of these names may use a function without naming it: then no function is left out."""
NO_MEANING = frozenset({"ctx", "kind"})
"""Fields of Python's syntax trees that say nothing their place does not say."""


def code_sha256(files: Mapping[str, Path]) -> dict[str, str]:
    """Return for each file of one plugin, by its name, the SHA-256 of what its code computes: 64 hex digits.

    Left out are comments, layout, docstrings and other bare strings, what DESCRIBING lists, and functions
    that nothing but that uses. A file that is not Python's, cannot be parsed or reads its own text counts
    with its bytes. Independent of Python's version. Raises DataError where a file cannot be read.
    """
    contents = {name: _read(path) for name, path in files.items()}
    trees = {
        name: tree
        for name, path in files.items()
        if path.suffix == ".py" and (tree := _parsed(contents[name])) is not None
    }
    _leave_out(list(trees.values()), unseen_users=len(trees) < sum(p.suffix == ".py" for p in files.values()))
    return {
        name: _sha256(trees[name]) if name in trees else hashlib.sha256(content).hexdigest()
        for name, content in contents.items()
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error


def _parsed(content: bytes) -> ast.Module | None:
    """Return the tree of a file without its bare strings; None where the text itself may matter."""
    try:
        tree = ast.parse(content)
        if any(name in READS_ITSELF for node in ast.walk(tree) for name in _named(node)):
            return None
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # another Python's, or no text
        return None
    for node in ast.walk(tree):
        for statements in ("body", "orelse", "finalbody"):
            held = getattr(node, statements, None)
            if isinstance(held, list):
                setattr(node, statements, [s for s in held if not _is_bare_string(s)])
    return tree


def _is_bare_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _leave_out(trees: list[ast.Module], *, unseen_users: bool) -> None:
    """Take out of a plugin's files what its records only say, and the functions that only that uses."""
    uses = Counter(name for tree in trees for name in _names(tree))
    left_out: Counter[str] = Counter()
    unseen_users |= any(_uses_unseen(tree) for tree in trees)
    for tree in trees:
        own = set(_defined(tree))
        for node in ast.walk(tree):
            called = next(iter(_named(node.func)), "") if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or called in own:
                continue
            describing = DESCRIBING.get(called, frozenset())
            for keyword in [k for k in node.keywords if k.arg in describing]:
                left_out.update(_names(keyword.value))
                node.keywords.remove(keyword)
    if unseen_users or any(alias.name == "*" for tree in trees for alias in _imported(tree)):
        return  # somebody may use such a function, and cannot be seen to
    bound = Counter(name for tree in trees for statement in tree.body for name in _bound(statement))
    while found := next(_only_used_by(trees, uses, left_out, bound), None):
        tree, function = found
        tree.body.remove(function)
        left_out.update(_names(function))


def _only_used_by(
    trees: list[ast.Module], uses: Counter[str], left_out: Counter[str], bound: Counter[str]
) -> Iterator[tuple[ast.Module, ast.FunctionDef]]:
    """Yield functions of a module that what is left out uses, and nothing else but they themselves."""
    for tree in trees:
        for function in tree.body:
            if not isinstance(function, ast.FunctionDef) or function.decorator_list:
                continue  # a decorator may keep it
            if any(isinstance(node, ast.Global) for node in ast.walk(function)):
                continue  # it may change what the module computes with
            name, own = function.name, sum(name == function.name for name in _names(function))
            defaults = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
            runs_at_import = any(isinstance(n, ast.Call) for d in defaults for n in ast.walk(d))
            if (
                left_out[name]
                and uses[name] == left_out[name] + own
                and bound[name] == 1
                and not runs_at_import
            ):
                yield tree, function


def _uses_unseen(tree: ast.Module) -> bool:
    """Tell whether a file may use a function without its name being written somewhere."""
    plain = set()  # what calls with written texts alone call: import_module("natten") is an import
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and all(isinstance(a, ast.Constant) for a in node.args):
            plain.add(id(node.func))
    for node in ast.walk(tree):
        for name in UNSEEN_USE.intersection(_named(node)):
            if name == "eval" and isinstance(node, ast.Attribute):
                continue  # of a module of torch: no text is evaluated
            if name != "import_module" or id(node) not in plain:
                return True
    return False


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a file gives to something of its own, or to an import of another name."""
    for statement in tree.body:
        yield from _bound(statement)
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and node.asname not in (None, node.name):
            yield str(node.asname)


def _imported(tree: ast.Module) -> Iterator[ast.alias]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from node.names


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a module gives to something."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.id


def _names(tree: ast.AST) -> Iterator[str]:
    """Yield every mention of a name: as a variable, an attribute, an import, or a string."""
    for node in ast.walk(tree):
        yield from _named(node)


def _named(node: ast.AST) -> Iterable[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
            return (name,)
        case ast.Constant(value=str() as name):
            return (name,)
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return names
    return ()


def _sha256(tree: ast.Module) -> str:
    """Hash a tree by its node types and their fields; Python's own dump differs between its versions."""
    words: list[str] = []
    _write(tree, words)
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _write(value: Any, words: list[str]) -> None:
    if isinstance(value, ast.AST):
        words.append(f"({type(value).__name__}")
        for field in value._fields:
            held = getattr(value, field, None)
            if held is not None and held != [] and field not in NO_MEANING:  # newer versions add empty fields
                words.append(field)
                _write(held, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for item in value:
            _write(item, words)
        words.append("]")
    else:
        words.append(repr(value))
