"""fastdup: similar files of a folder at a threshold, and the files it could not read.

    python fastdup_similarity.py FOLDER THRESHOLD

Prints JSON: seconds (imports left out), pairs of file names, unreadable files.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["FASTDUP_PRODUCTION"] = "0"
os.environ["SENTRY_OPT_OUT"] = "1"

import fastdup

if __name__ == "__main__":
    folder, threshold = sys.argv[1], float(sys.argv[2])
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):
        begun = time.perf_counter()
        run = fastdup.create(work_dir=work, input_dir=folder)
        run.run(threshold=threshold, overwrite=True, print_summary=False, verbose=False)
        similar = run.similarity()
        seconds = time.perf_counter() - begun
        invalid = run.invalid_instances()
    similar = similar[similar["distance"] >= threshold]
    pairs = {
        tuple(sorted((Path(one).name, Path(other).name)))
        for one, other in zip(similar["filename_from"], similar["filename_to"], strict=True)
    }
    unreadable = sorted({Path(name).name for name in invalid["filename"]})
    print(json.dumps({"seconds": seconds, "pairs": sorted(pairs), "unreadable": unreadable}))
