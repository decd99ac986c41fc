"""A node for Maelstrom's `lin-kv` workload: `python tests/maelstrom/node.py`.

    maelstrom test -w lin-kv --bin tests/maelstrom/node.py --node-count 3 --concurrency 4n --rate 30 --time-limit 60 \\
        --nemesis partition --nemesis-interval 10

JSON lines on stdin and stdout, logs on stderr. Data are in a private directory, or in
`$CONVEYORD_MAELSTROM_DIR/<node id>` if that is set: then a node that was killed can be started again on them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # Maelstrom starts it in a directory of its own
    from tests.maelstrom.server import run

    run()
