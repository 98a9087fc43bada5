"""How a command ends: an error is two lines, or one JSON document, and an exit code; never a traceback of ours.

====  =======================================================================
code  meaning
====  =======================================================================
0     done
1     failed; also when the reader of stdout closed it
2     the command line, or a setting, cannot be used
130   interrupted with Ctrl-C
====  =======================================================================

With ``--json`` the error is one line on stdout, ``{"error": {"code": …, "detail": …, "remedy": …}}``, so that a program
always reads JSON from stdout. Without ``--json`` the error is written to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from prismcache.errors import PrismError

INTERRUPTED = 130
UsageError: Any = typer.BadParameter.__base__  # click's own, which some releases of typer carry in themselves


class _PlainFlags:
    """Help screens that do not show ``<bool>`` beside a flag, which takes no value."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)  # type: ignore[misc]  # of the class beside this one
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class Command(_PlainFlags, TyperCommand):
    """One command."""


class CommandGroup(_PlainFlags, TyperGroup):
    """The commands; their errors end in lines and an exit code."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read what stands before the command."""
        self._words = list(args)
        with self._usage_errors_shown():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the words name."""
        try:
            with self._usage_errors_shown():
                result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a reader that closed stdout can be handled
        except BrokenPipeError:
            _mute_stdout()
            raise typer.Exit(1) from None
        except OSError as error:
            if error.filename is not None:  # not a write to an open stream, so a bug
                raise
            _mute_stdout()
            from prismcache.errors import StorageError

            message = f"standard output cannot be written: {error.strerror or error}"
            show_error(
                StorageError(message, remedy="Write the output to another place; crops that were fetched stay cached.")
            )
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; no half-written file counts as cached", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            from prismcache.errors import PrismError  # not sooner: --help must not wait for pydantic

            if not isinstance(error, PrismError):
                raise
            show_error(error, as_json=self._wants_json())
            raise typer.Exit(exit_code(error)) from None
        return result

    @contextmanager
    def _usage_errors_shown(self) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            if type(error).show is not UsageError.show:  # no error, but the help of a group without a command
                raise
            from prismcache.errors import RequestError

            message, option = str(error.format_message()), getattr(error, "option_name", "")
            message = re.sub(r"Input should be a valid (\w+), unable .*", "write a number", message)
            names = {parameter.name for parameter in error.ctx.command.params} if error.ctx else set()
            if re.fullmatch(r"-\d", option) and names & {"crop", "crops"}:  # a negative number is a crop, not an option
                number = next(word for word in self._words if word.startswith(option))
                message = f"there is no crop {number}; crops are numbered from 0"
            command = error.ctx.command_path if error.ctx else "prismcache"
            remedy = f"`{command} --help` shows the arguments and examples."
            show_error(RequestError(message, remedy=remedy), as_json=self._wants_json())
            raise typer.Exit(2) from None

    def _wants_json(self) -> bool:
        return "--json" in self._words


def exit_code(error: PrismError) -> int:
    """Return 2 if another command line or setting is needed, else 1."""
    from prismcache.errors import ConfigError, MissingExtraError, RequestError, UnknownSplitError

    usage = isinstance(error, ConfigError) and not isinstance(error, MissingExtraError)
    return 2 if usage or type(error) in (RequestError, UnknownSplitError) else 1


def show_error(error: PrismError, *, as_json: bool = False) -> None:
    """Print the error with its notes and remedy: lines on stderr, or one line of JSON on stdout."""
    from prismcache.errors import REMEDY

    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith(REMEDY)]
    if as_json:
        document = {"code": error.code, "detail": str(error), "remedy": error.remedy}
        typer.echo(json.dumps({"error": document | ({"notes": notes} if notes else {})}))
        return
    plain = os.environ.get("NO_COLOR") or sys.stderr is None or not sys.stderr.isatty()
    code = f"error[{error.code}]:"
    typer.echo(f"{code if plain else typer.style(code, fg='red', bold=True)} {error}", err=True)
    for note in notes:
        typer.echo(f"  {note}", err=True)
    if error.remedy:
        typer.echo(f"  remedy: {error.remedy}", err=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print warnings of what a source lacks as ``warning: …``, each time, without the line of code that Python adds."""
    from prismcache.errors import SourceWarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SourceWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            python_shows(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SourceWarning)
        python_shows, warnings.showwarning = warnings.showwarning, show
        yield


def _mute_stdout() -> None:
    """Discard what is still buffered for stdout, which Python would complain about at exit."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
