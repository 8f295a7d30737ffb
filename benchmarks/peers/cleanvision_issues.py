"""cleanvision: all of its checks on a folder.

    python cleanvision_issues.py FOLDER

Prints JSON: seconds (imports left out), pairs of file names in its sets of exact and near
duplicates, and files by issue.
"""

import contextlib
import io
import itertools
import json
import sys
import time
from pathlib import Path

from cleanvision import Imagelab


def pairs_of(sets: list[list[str]]) -> list[tuple[str, str]]:
    return sorted(
        {
            pair
            for names in sets
            for pair in itertools.combinations(sorted(Path(name).name for name in names), 2)
        }
    )


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        begun = time.perf_counter()
        lab = Imagelab(data_path=sys.argv[1])
        lab.find_issues(verbose=False)
        seconds = time.perf_counter() - begun
    issues = {
        column.removeprefix("is_").removesuffix("_issue"): sorted(
            Path(name).name for name in lab.issues.index[lab.issues[column].astype(bool)]
        )
        for column in lab.issues.columns
        if column.endswith("_issue")
    }
    print(
        json.dumps(
            {
                "seconds": seconds,
                "exact_pairs": pairs_of(lab.info["exact_duplicates"]["sets"]),
                "pairs": pairs_of(lab.info["near_duplicates"]["sets"]),
                "issues": issues,
            }
        )
    )
