"""How a command ends that is one of torchrun's ranks."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, NoReturn

import click

from grace_moe.errors import GraceError, printable

if TYPE_CHECKING:
    from grace_moe.runtime.job.ranks import Membership


def end_with(error: Exception, member: Membership | None) -> NoReturn:
    """Say an error, once where several ranks have it, and leave with its exit code; one that is not ours is said whole.

    Args:
        member: None = this rank has not joined the others.
    """
    from grace_moe.runtime.job.ranks import first_to_say, leave

    ours = isinstance(error, GraceError)
    if member is None or first_to_say(member, error):
        click.echo(f"error: {printable(str(error))}" if ours else traceback.format_exc(), err=True)
    leave(error.exit_code if isinstance(error, GraceError) else 1)
