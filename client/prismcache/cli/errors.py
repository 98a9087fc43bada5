"""How a command ends: errors as two lines and an exit code, never a traceback for what prismcache knows.

====  ===========================================================================
code  meaning
====  ===========================================================================
0     done
1     failed; also when the reader of stdout went away
2     the command line, or a setting, makes no sense
130   interrupted with Ctrl-C
====  ===========================================================================
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from prismcache.errors import PrismError

INTERRUPTED = 130
UsageError: Any = typer.BadParameter.__base__  # click's own, which some releases of typer carry in themselves


class CommandGroup(TyperGroup):
    """Commands whose errors end in lines on stderr and an exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read what stands before the command."""
        with _usage_errors_as_lines():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with _usage_errors_as_lines():
                result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, so that a reader who went away is noticed where it can be handled
        except BrokenPipeError:
            _mute_stdout()
            raise typer.Exit(1) from None
        except OSError as error:
            if error.filename is not None:  # not a write to an open stream, hence not foreseen
                raise
            _mute_stdout()
            _show_unwritable(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; nothing half-written counts as cached", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            from prismcache.errors import PrismError  # not sooner: --help must not wait for pydantic

            if not isinstance(error, PrismError):
                raise
            show_error(error)
            raise typer.Exit(exit_code(error)) from None
        return result


def exit_code(error: PrismError) -> int:
    """2 if another command line or setting is needed, 1 otherwise."""
    from prismcache.errors import ConfigError, MissingExtraError, RequestError, UnknownSplitError

    usage = isinstance(error, ConfigError) and not isinstance(error, MissingExtraError)
    return 2 if usage or type(error) in (RequestError, UnknownSplitError) else 1


def show_error(error: PrismError) -> None:
    """Print ``error[code]: message``, what else failed, and the remedy, on stderr."""
    typer.echo(f"{_red(f'error[{error.code}]:')} {error}", err=True)
    for note in getattr(error, "__notes__", ()):
        typer.echo(f"  {note}", err=True)
    if error.remedy:
        typer.echo(f"  remedy: {error.remedy}", err=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print our warnings as ``warning: …``, every time, without the line of code that Python adds."""
    from prismcache.errors import MissingChunksWarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, MissingChunksWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            python_shows(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", MissingChunksWarning)
        python_shows, warnings.showwarning = warnings.showwarning, show
        yield


@contextmanager
def _usage_errors_as_lines() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if type(error).show is not UsageError.show:  # no error, but help for who asks for nothing
            raise
        from prismcache.errors import RequestError

        command = error.ctx.command_path if error.ctx else "prismcache"
        show_error(RequestError(error.format_message(), remedy=f"`{command} --help` shows what it takes."))
        raise typer.Exit(2) from None


def _show_unwritable(error: OSError) -> None:
    from prismcache.errors import StorageError

    message = f"standard output cannot be written: {error.strerror or error}"
    show_error(StorageError(message, remedy="Write it somewhere else; what was fetched stays cached."))


def _red(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or sys.stderr is None or not sys.stderr.isatty()
    return text if plain else typer.style(text, fg="red", bold=True)


def _mute_stdout() -> None:
    """Let what is still buffered for stdout vanish, which Python would complain about at exit."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
