"""Exceptions of Ray and of Ray Train in one line, without their wrappers."""

from collections.abc import Mapping


def describe(error: BaseException) -> str:
    """The class of an exception and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def unwrap(error: BaseException) -> BaseException:
    """The exception that a task or a rank raised, out of the wrapper of Ray or of Ray Train."""
    for attribute in ("cause", "_base_exc"):
        inner = getattr(error, attribute, None)
        if isinstance(inner, BaseException):
            return inner
    return error


def describe_training_failure(error: BaseException) -> str:
    """What the lowest rank failed with if `error` is Ray Train's TrainingFailedError, else `error` itself."""
    failures = getattr(error, "worker_failures", {})
    return describe(unwrap(failures[min(failures)]) if failures else error)


def root_cause(failures: Mapping[int, BaseException]) -> str:
    """Why a group of ranks ended, from the failure of each.

    Ranks that died come first: the others then fail in what they share with them. Without a death it is the
    failure of the lowest rank.
    """
    deaths: dict[int, BaseException] = {}
    for rank, failure in sorted(failures.items()):
        death = getattr(failure, "health_check_failure", None)
        if death is not None:
            deaths[rank] = death
    if not deaths:
        rank = min(failures)
        return f"worker {rank} failed with {describe(unwrap(failures[rank]))}"
    out_of_memory = any("OutOfMemory" in type(death).__name__ for death in deaths.values())
    reason = "out of memory" if out_of_memory else "killed, or its machine was lost"
    return f"worker {' and '.join(map(str, deaths))} died ({reason})"
