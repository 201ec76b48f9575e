"""What a step's code is: a digest for each module that it can reach, so that a change of code is a reason to run again.

The modules are parsed, never imported. Docstrings, comments and layout are not code: editing them changes no digest.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffbfr.errors import UsageError

PACKAGES = ("diffbfr", "pipelines")
_COUNTED = re.compile(
    r"(diffbfr\.|pipelines\.(steps\.|(apart|mirror|outcomes|sources)\b|flows\.(measuring|restore_archive|restore_plan)\b)).*"
)
"""Where content is decided: the paper, the steps, which faces are measured, what a photo or an archive is and its pictures' names."""
_ROOT = Path(__file__).resolve().parent.parent


def code_digests(entry_modules: Sequence[str], root: Path = _ROOT) -> Mapping[str, str]:
    """Module name -> 20 hex digits, for every module that decides content (`_COUNTED`) and that the entries import, directly or not.

    Other rooms of `pipelines/` are followed but not counted: they carry data and do not make it. `root` is the folder of the packages. The
    digests hold within one minor version of Python, whose syntax trees they are made of.
    """
    reached: set[str] = set()
    waiting = list(entry_modules)
    for name in waiting:
        if _file(name, root) is None:
            raise UsageError(f"no module {name} under {root}; expected the code of a step; reinstall diffbfr")
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        file = _file(name, root)
        if file is not None:
            waiting += [imported for imported in _parse(file)[1] if _file(imported, root) is not None]
    counted = sorted(name for name in reached if _COUNTED.fullmatch(name))
    return {name: _parse(file)[0] for name in counted if (file := _file(name, root)) is not None}


def _file(module: str, root: Path) -> Path | None:
    """The source of a module of ours; None if the name is something else, such as a function in a module."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _parse(file: Path) -> tuple[str, tuple[str, ...]]:
    facts = file.stat()
    return _parse_version(file, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=1024)
def _parse_version(file: Path, mtime_ns: int, num_bytes: int) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's code, and the names that it may import; kept for as long as the file stays as it is."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    imports = tuple(dict.fromkeys(_imports(tree, file)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept = [statement for statement in node.body if not _is_text(statement)]
            node.body = kept if kept or isinstance(node, ast.Module) else [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:20], imports


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, of a module, class or function, or under an attribute."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _imports(node: ast.AST, file: Path) -> Iterator[str]:
    """Every name that an import statement may load, wherever it stands, but for those that only a type checker sees.

    The packages on the way to a module are loaded with it, so they count too; the outermost hold no code.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _imports(ast.Module(child.orelse, []), file)
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield from _with_parents(alias.name)
        elif isinstance(child, ast.ImportFrom):
            if child.level:
                raise UsageError(f"{file}:{child.lineno} has a relative import; expected the full name; write it out")
            yield from _with_parents(child.module or "")
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child, file)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: length + 1]) for length in range(len(parts)))
