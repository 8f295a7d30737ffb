"""The search service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from coembed.cli._project import ProjectOption, SetOption, open_project, services


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.")] = 8000,
    processes: Annotated[
        int, typer.Option(help="Processes that share the port: about one a core.")
    ] = 1,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines ask without a key.")
    ] = False,
    project: ProjectOption = Path(),
    overrides: SetOption = None,
) -> None:
    """Search as a service, with a page at /. COEMBED_API_KEY is what requests have to bring.

    It follows promotions and rollbacks without a restart. GET /openapi.json describes the requests,
    GET /metrics is for Prometheus.
    """
    from coembed.serve import server

    here = open_project(project, overrides)
    server.run(
        here.cfg,
        services=services(here),
        place=server.Place(pool=here.path("pool"), runs=here.path("runs")),
        options=server.Options(
            host=host,
            port=port,
            processes=processes,
            api_key=os.environ.get("COEMBED_API_KEY") or None,
            insecure=insecure,
        ),
    )
