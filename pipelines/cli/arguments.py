"""Commands that take photos: surplus arguments are often a pattern that the shell has expanded."""

from typing import Any

from typer.core import TyperCommand

from diffbfr.errors import UsageError


class PhotosCommand(TyperCommand):
    """A command that takes photos; with surplus arguments its error says to quote a pattern."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Count the arguments before any is checked; UsageError if there are too many.

        Otherwise the second of three archives would be reported as an unknown stage.
        """
        _, too_many, _ = self.make_parser(ctx).parse_args(list(args))
        if too_many and not set(args) & set(ctx.help_option_names):
            raise UsageError(
                f"{ctx.command_path} has more arguments than it takes ({len(too_many)}, the last is "
                f"{too_many[-1]!r}); expected those of "
                f"{ctx.command_path} --help; if the shell has expanded a pattern of archives, quote it: "
                "'photos/*.zip'"
            )
        return super().parse_args(ctx, args)
