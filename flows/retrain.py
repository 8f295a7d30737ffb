"""The retrain flow: curate → train → evaluate → register → embed → index → gate → promote.

`coembed retrain` runs it here; a Prefect worker runs it from a deployment. Every run works in a git
worktree of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from coembed.console import print_rows
from coembed.errors import CoembedError
from flows import tasks


@flow(name="retrain", persist_result=False)
def retrain(project: str = ".", overrides: list[str] | None = None) -> dict[str, Any]:
    """Bring the model, the registry and the index up to date with the pool and params.yaml.

    Args:
        project: the project's folder, a git repository.
        overrides: `section.key=value`, each changes one setting for this run only.
    """
    run_id = flow_run.get_id() or "local"
    with tasks.opened(Path(project).resolve(), run_id, overrides or []) as run:
        tasks.reconcile(run)
        outcomes: dict[str, str] = {"curate": tasks.curate(run)}
        tasks.show_data(run, outcomes["curate"])
        outcomes["train"], mlflow_run = tasks.train(run)
        outcomes["evaluate"] = tasks.evaluate(run)
        version = tasks.register(run, mlflow_run)
        outcomes["register"] = f"model version {version['version']}"
        outcomes["embed"] = tasks.embed(run)
        collection = tasks.index(run, version["version"])
        outcomes["index"] = collection["collection"]
        judged = tasks.gate(run, version["version"], collection["collection"])
        outcomes["gate"] = judged.decision.verdict
        decision = tasks.promote(run, judged)
        outcomes["promote"] = decision["reason"]
        outcomes["publish"] = tasks.publish(run)
        tasks.show(run, outcomes, version)
        tasks.leave_receipt(run, outcomes, version, decision)
    return {"outcomes": outcomes, "version": version, "decision": decision}


def main() -> None:
    """Run the flow in this process and print what it did."""
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=__doc__)
    parser.add_argument("--project", default=".")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    try:
        done = retrain(arguments.project, arguments.overrides)
    except CoembedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print_rows("Retrain", tuple(done["outcomes"].items()))


if __name__ == "__main__":
    main()
