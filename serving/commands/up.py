"""`modelyard up`: a yard in the foreground.

Owns: its options. Never: what a yard does (serving.control.yard), drawing (screen).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

import typer

from serving.commands.options import StateDirectory, application

app = application()
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk answers, mostly without naming a file."""


@app.command()
def up(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration file.")],
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the router listens [config].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The router's port; 0 takes any [config].")] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The admin API's port; 0 takes any [config].")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Router worker processes [config].")] = None,
    ready_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long to wait for the engines.")
    ] = 600.0,
    require_keys: Annotated[
        bool, typer.Option("--require-keys", help="Refuse requests without an API key, even while there is none.")
    ] = False,
    allow_public_without_keys: Annotated[
        bool, typer.Option("--allow-public-without-keys", help="Listen beyond this machine although no key is needed.")
    ] = False,
    state_dir: StateDirectory = None,
) -> None:
    """Start engines, router and admin API from a configuration, and stay in the foreground.

    Fetches what is missing, registers the versions and waits until their engines answer. Ctrl-C finishes the requests
    in flight and stops everything; a second one stops at once. Options win over the configuration.

    An address beyond this machine is refused as long as nobody needs an API key: see `modelyard keys create --help`.

    \b
    Examples:
      modelyard up configs/quickstart.yaml
      modelyard up configs/quickstart.yaml --port 9000 --admin-port 9001 --state-dir /var/lib/modelyard
      modelyard up configs/quickstart.yaml --host 0.0.0.0 --require-keys
    """
    import logging  # noqa: PLC0415

    import uvloop  # noqa: PLC0415 - all of this costs over a second

    from registry.errors import ArtifactError, RegistryError  # noqa: PLC0415
    from registry.state import STATE_DIR_VARIABLE, StateDir  # noqa: PLC0415
    from registry.terminal import NotThereError, UserError  # noqa: PLC0415
    from serving.commands.screen import LOUD_LOGGERS, Screen, ScreenLog  # noqa: PLC0415
    from serving.control.ui import Options  # noqa: PLC0415
    from serving.control.yard import run  # noqa: PLC0415

    named = state_dir or os.environ.get(STATE_DIR_VARIABLE)  # another terminal has to be told of it
    screen = Screen(state_dir=Path(named).absolute() if named else None)
    logger, handler = logging.getLogger(LOUD_LOGGERS), ScreenLog(screen)
    logger.addHandler(handler)
    logger.propagate = False
    if port and port == admin_port:
        raise UserError(f"--port and --admin-port are both {port}: give them different ports")
    options = Options(
        host=host,
        port=port,
        admin_port=admin_port,
        workers=workers,
        ready_timeout_s=ready_timeout,
        require_keys=require_keys,
        allow_public_without_keys=allow_public_without_keys,
    )
    try:
        uvloop.run(run(config, StateDir.find(state_dir), options, screen))
    except ArtifactError as error:
        raise NotThereError(str(error)) from error
    except RegistryError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        root = StateDir.find(state_dir).root
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        if error.errno not in FULL and not (named and (named.is_relative_to(root) or root.is_relative_to(named))):
            raise
        reason = f"{error.strerror}{f': {named}' if named else ''}"
        raise NotThereError(
            f"the state directory {root} cannot be used ({reason}): mend that, or name another with --state-dir"
        ) from error
    finally:
        screen.close()
        logger.removeHandler(handler)
    screen.stopped()
