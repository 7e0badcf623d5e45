"""`whatfits serve`: the web page and the REST API on this machine."""

from importlib.util import find_spec
from typing import Annotated

import typer


def serve(
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 8000,
    agent: Annotated[
        bool, typer.Option("--agent/--no-agent", help="Whether this machine measures, too; needs torch.")
    ] = True,
) -> None:
    """Start the web page and the REST API (http://127.0.0.1:8000, /api/v1)."""
    from whatfits.service.cli.failures import MissingExtraError

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise MissingExtraError(
            "serve needs the server, which is not installed: pip install 'whatfits[service]'"
        )

    from whatfits.service.settings import Settings, check_host

    _check_port_is_free(check_host(host, published_on=Settings().published_on), port)

    from whatfits.service.serve import run

    run(host, port, agent=agent)


def _check_port_is_free(host: str, port: int) -> None:
    """Say so before the server starts if something listens there already."""
    import socket

    from whatfits.service.cli.failures import ServiceStartError

    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        hint = "; choose another with --port" if port else ""
        raise ServiceStartError(f"cannot listen on {host} port {port}: {error.strerror}{hint}.") from error
