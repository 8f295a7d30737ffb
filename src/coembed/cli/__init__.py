"""`coembed VERB`: load the config, call one function, print the result.

Every verb imports what it needs when it is called, so that `coembed --help` stays quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from coembed.cli import about, data, decisions, effects, releases, reproduce, run, serve, stages
from coembed.cli.data_versions import data_app
from coembed.cli.pairs import pairs_app
from coembed.errors import CoembedError

_VERBS: dict[str, dict[str, Callable[..., None]]] = {
    "1 · Data": {"demo-pool": data.demo_pool, "ingest": data.ingest},
    "2 · Stages, one at a time": {
        "curate": stages.curate,
        "train": stages.train,
        "evaluate": stages.evaluate,
        "embed": stages.embed,
        "export": stages.export,
    },
    "3 · Effects, one at a time": {
        "register": effects.register,
        "index": effects.index,
        "gate": decisions.gate,
        "approve": decisions.approve,
        "promote": decisions.promote,
        "fetch": effects.fetch,
    },
    "4 · What is served, and was": {
        "models": releases.models,
        "releases": releases.releases,
        "compare": decisions.compare,
        "rollback": releases.rollback,
        "audit": releases.audit,
        "reconcile": releases.reconcile,
    },
    "5 · All at once, and search": {
        "retrain": run.retrain,
        "reproduce": reproduce.reproduce,
        "search": run.search,
        "serve": serve.serve,
    },
    "6 · Help": {"doctor": about.doctor},
}

app = typer.Typer(
    name="coembed",
    help="From pairs to a joint-embedding model, a registry, an index and a search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _panel, _verbs in _VERBS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, rich_help_panel=_panel)(_verb)

app.add_typer(pairs_app, name="pairs", rich_help_panel="1 · Data")
app.add_typer(data_app, name="data", rich_help_panel="1 · Data")

config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
config_app.command("schema")(about.config_schema)
config_app.command("show")(about.config_show)
app.add_typer(config_app, name="config", rich_help_panel="6 · Help")


def main() -> None:
    """The entry point.

    Exit codes: 0 done, 1 our fault or a service's, 2 the user's mistake, 3 the gate said no.
    """
    try:
        app()
    except CoembedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
