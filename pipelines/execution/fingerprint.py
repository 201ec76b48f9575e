"""The code of a step: a digest for each module that it reaches, so that a changed module runs the step again.

The modules are parsed, never imported. Docstrings, comments and layout are not code, nor are functions marked
`@driver_only` and the `StepDef`s that name them: they distribute work and decide no result.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffbfr.errors import UsageError

PACKAGES = ("diffbfr", "pipelines")
CONTENT_MODULES = (
    "diffbfr",
    "pipelines.dataset.aligned_photos",
    "pipelines.dataset.identity",
    "pipelines.dataset.retry",
    "pipelines.dataset.reuse",
    "pipelines.dataset.samples",
    "pipelines.dataset.shard_plan",
    "pipelines.evaluation",
    "pipelines.execution.model_ref",
    "pipelines.flows.restore_archive",
    "pipelines.flows.restore_output",
    "pipelines.flows.restore_plan",
    "pipelines.restoration",
    "pipelines.sources",
    "pipelines.steps",
)
"""Modules, and packages with all in them, whose code decides what an artifact holds."""
TRANSPORT_MODULES = (
    "pipelines.cluster",
    "pipelines.dataset.columns",
    "pipelines.dataset.commits",
    "pipelines.dataset.detector_copy",
    "pipelines.dataset.manifest",
    "pipelines.dataset.record_checks",
    "pipelines.dataset.sealed_json",
    "pipelines.dataset.shard_cache",
    "pipelines.dataset.tables",
    "pipelines.execution.artifact_store",
    "pipelines.execution.fingerprint",
    "pipelines.execution.staging",
    "pipelines.flows.places",
    "pipelines.progress",
    "pipelines.steps.definition",
    "pipelines.storage",
)
"""Modules that steps reach and that only move data: a change of them is no reason to run again."""
_ROOT = Path(__file__).resolve().parents[2]


def code_fingerprint(entry_modules: Sequence[str], root: Path = _ROOT) -> Mapping[str, str]:
    """Module name -> 20 hex digits, for every content module that the entries import, directly or not.

    Other modules are followed but not counted. Where an entry lies in another package than ours, the modules
    of that package are content. `root` is the folder of the packages. The digests hold within one minor
    version of Python, whose syntax trees they are made of.
    """
    guests = _packages(entry_modules).difference(PACKAGES)
    reached = sorted(reached_modules(entry_modules, root))
    counted = [name for name in reached if is_content(name) or name.partition(".")[0] in guests]
    return {name: _parse(file)[0] for name in counted if (file := _file(name, root)) is not None}


def reached_modules(entry_modules: Sequence[str], root: Path = _ROOT) -> set[str]:
    """The modules of our packages and the entries' that the entries import, themselves included."""
    packages = _packages(entry_modules).union(PACKAGES)
    reached: set[str] = set()
    waiting = list(entry_modules)
    for name in waiting:
        if _file(name, root) is None:
            raise UsageError(f"no module {name} under {root}; expected the code of a step; reinstall diffbfr")
    while waiting:
        name = waiting.pop()
        file = _file(name, root) if name.partition(".")[0] in packages else None
        if name in reached or file is None:
            continue
        reached.add(name)
        waiting += _parse(file)[1]
    return reached


def _packages(modules: Sequence[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def is_content(module: str) -> bool:
    """Whether the code of a module decides content; the outermost packages hold no code."""
    return (
        module not in PACKAGES and _within(module, CONTENT_MODULES) and not _within(module, TRANSPORT_MODULES)
    )


def is_declared(module: str) -> bool:
    """Whether it is declared what a module is, or it is a package on the way to modules that are."""
    places = (*CONTENT_MODULES, *TRANSPORT_MODULES)
    return _within(module, places) or any(f"{place}.".startswith(f"{module}.") for place in places)


def _within(module: str, places: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{place}.") for place in places)


def _file(module: str, root: Path) -> Path | None:
    """The source of a module; None if the name is something else, such as a function in a module."""
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _parse(file: Path) -> tuple[str, tuple[str, ...]]:
    facts = file.stat()
    return _parse_version(file, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=1024)
def _parse_version(file: Path, mtime_ns: int, num_bytes: int) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's code, and the names that it may import; cached until the file changes."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    tree.body = [statement for statement in tree.body if not _is_of_the_driver(statement)]
    imports = tuple(dict.fromkeys(_imports(tree, file)))
    nodes: list[ast.AST] = [tree]
    for node in nodes:  # grows while it is read
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept = [statement for statement in node.body if not _is_text(statement)]
            node.body = kept if kept or isinstance(node, ast.Module) else [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:20], imports


def _is_of_the_driver(statement: ast.stmt) -> bool:
    """A function marked `@driver_only`, or the assignment of a `StepDef`."""
    if isinstance(statement, ast.FunctionDef):
        return any(
            isinstance(mark, ast.Name) and mark.id == "driver_only" for mark in statement.decorator_list
        )
    return (
        isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == "StepDef"
    )


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, of a module, class or function, or under an attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _imports(node: ast.AST, file: Path) -> Iterator[str]:
    """Every name that an import statement may load, wherever it stands, without those under TYPE_CHECKING.

    The packages on the way to a module are included, because they are loaded with it.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # no expression holds a statement, and they are most of a tree
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _imports(ast.Module(child.orelse, []), file)
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield from _with_parents(alias.name)
        elif isinstance(child, ast.ImportFrom):
            if child.level:
                raise UsageError(
                    f"{file}:{child.lineno} has a relative import; expected the full name; write it out"
                )
            yield from _with_parents(child.module or "")
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child, file)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: length + 1]) for length in range(len(parts)))
