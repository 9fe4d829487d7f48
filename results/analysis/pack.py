"""Pack the committed records: ``python results/analysis/pack.py [results]``.

Per-image scores and histories of α become ``.csv.gz``, which every verb reads. Of runs that only tuned something the sidecar
files go, since their scores are enough; masks stay of one seed a configuration. Records are not touched.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.files import SIDECARS
from harness.archive.masks import MASKS_FILE


def main(root: Path) -> None:
    archive = Archive(root)
    shown: set[tuple[object, ...]] = set()
    for record in sorted(archive.records, key=lambda record: record.run.seed):
        run = record.run
        only_tuned = bool(run.tuning) and "chosen" not in run.tuning
        row = (
            run.protocol_hash,
            run.backbone,
            run.checkpoint,
            run.benchmark,
            run.method,
            repr(sorted(run.changed.items())),
        )
        for name in SIDECARS:
            path = archive.store.path(record.key).with_suffix(f".{name}")
            if not path.is_file():
                continue
            if only_tuned or (name == MASKS_FILE and row in shown):
                path.unlink()
            elif name != MASKS_FILE:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
                path.unlink()
            else:
                shown.add(row)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
