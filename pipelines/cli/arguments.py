"""How a command reads its arguments: those beyond what it takes are often a pattern that the shell has
written out.
"""

from typing import Any

from typer.core import TyperCommand

from diffbfr.errors import UsageError


class PhotosCommand(TyperCommand):
    """A command that takes photos: arguments too many are one line, which says to quote a pattern."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Count before anything is checked: of three archives in place of one, the second would be taken
        for a stage.
        """
        _, too_many, _ = self.make_parser(ctx).parse_args(list(args))
        if too_many and not set(args) & set(ctx.help_option_names):
            raise UsageError(
                f"{ctx.command_path} has more arguments than it takes ({len(too_many)}, the last is "
                f"{too_many[-1]!r}); expected those of "
                f"{ctx.command_path} --help; if the shell has written out a pattern of archives, quote it: "
                "'photos/*.zip'"
            )
        return super().parse_args(ctx, args)
