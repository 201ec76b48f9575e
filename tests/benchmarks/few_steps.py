"""Print how far Algorithm 1 and each solver are from the exact answer, for any number of evaluations
(`exact_score`).

    python -m tests.benchmarks.few_steps --evaluations 20 10 8

Seconds; one table, in 8-bit levels. A star marks the solver that the stage takes in mode `fast`.
"""

import argparse

from tests.benchmarks.exact_score import SOLVERS, moved_by_clamp, study


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Errors of the samplers on Gaussian images, in 8-bit levels."
    )
    parser.add_argument(
        "--evaluations", type=int, nargs=3, default=(20, 10, 8), metavar=("IRM1", "IRM2", "TEM")
    )
    parser.add_argument("--end", type=float, default=4.0, help="half-log-SNR of the last evaluation")
    parser.add_argument(
        "--clamp",
        action="store_true",
        help="also draw pictures, and tell how far the clamp of mode fast moves them",
    )
    given = parser.parse_args()
    head = [
        f"{'':18} {'Algorithm 1':>12} {'its posterior':>14}   n ",
        *(f"{solver:>14}" for solver in SOLVERS),
    ]
    print(" ".join(head) + ("  clamp" if given.clamp else ""))
    for row in study(given.evaluations, given.end):
        marked = [
            f"{row.few[solver]:.2f}{'*' if solver == row.sampler.solver else ' '}" for solver in SOLVERS
        ]
        print(
            f"{row.name:18} {row.algorithm_1:12.2f} {row.posterior:14.2f} {row.sampler.num_evaluations:3}  "
            + " ".join(f"{cell:>14}" for cell in marked)
            + (f"{moved_by_clamp(row.stage, row.sampler):7.3f}" if given.clamp else "")
        )


if __name__ == "__main__":
    main()
