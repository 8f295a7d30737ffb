"""imagededup: perceptual hashes of a folder and the files within a Hamming distance.

    python imagededup_phash.py FOLDER DISTANCE

Prints JSON: seconds (imports left out), pairs of file names it calls duplicates, unreadable files.
"""

import json
import logging
import sys
import time
from pathlib import Path

from imagededup.methods import PHash

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    folder, distance = Path(sys.argv[1]), int(sys.argv[2])
    begun = time.perf_counter()
    method = PHash(verbose=False)
    hashes = method.encode_images(image_dir=folder)
    found = method.find_duplicates(encoding_map=hashes, max_distance_threshold=distance)
    seconds = time.perf_counter() - begun
    pairs = sorted({tuple(sorted((name, other))) for name, near in found.items() for other in near})
    unreadable = sorted({path.name for path in folder.iterdir()} - set(hashes))
    print(json.dumps({"seconds": seconds, "pairs": pairs, "unreadable": unreadable}))
