"""`conveyord` with a clock that is wrong by the seconds in `CLOCK_WRONG_SECONDS`."""

from __future__ import annotations

import os
import time

WRONG_SECONDS = float(os.environ["CLOCK_WRONG_SECONDS"])
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + WRONG_SECONDS
time.time_ns = lambda: _time_ns() + int(WRONG_SECONDS * 1e9)

if __name__ == "__main__":
    from conveyord.__main__ import main

    main()
