"""data-juicer: its size, ratio, caption and duplicate operators on a table of pairs.

    python data_juicer_filters.py FOLDER TABLE

TABLE is JSON Lines of file name and caption. Prints JSON: seconds (imports left out) and the file
names that stayed.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

from data_juicer.config import init_configs
from data_juicer.core import DefaultExecutor

if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    rows = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):
        table = Path(work) / "pairs.jsonl"
        table.write_text(
            "\n".join(
                json.dumps(
                    {
                        "text": f"<__dj__image> {row['caption']}",
                        "images": [str(folder / row["path"])],
                        "name": row["path"],
                    }
                )
                for row in rows
            )
        )
        config = Path(work) / "config.yaml"
        config.write_text(
            json.dumps(
                {
                    "project_name": "benchmark",
                    "dataset_path": str(table),
                    "export_path": str(Path(work) / "out.jsonl"),
                    "np": 2,
                    "use_cache": False,
                    "open_tracer": False,
                    "open_monitor": False,
                    "process": [
                        {"image_shape_filter": {"min_width": 32, "min_height": 32}},
                        {"image_aspect_ratio_filter": {"min_ratio": 0.25, "max_ratio": 4.0}},
                        {"text_length_filter": {"min_len": 3}},
                        {"image_deduplicator": {"method": "phash", "consider_text": False}},
                    ],
                }
            )
        )
        begun = time.perf_counter()
        executor = DefaultExecutor(init_configs(["--config", str(config)]))
        executor.run()
        seconds = time.perf_counter() - begun
        kept = [
            json.loads(line)["name"] for line in (Path(work) / "out.jsonl").read_text().splitlines()
        ]
    print(json.dumps({"seconds": seconds, "kept": sorted(kept)}))
