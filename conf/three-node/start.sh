#!/bin/sh
# Starts three nodes of one cluster on this machine, waits until they serve, and stops them at Ctrl-C.
#
#   conf/three-node/start.sh [DIRECTORY]      by default ./three-node-data; start it again to go on with what is there
#
# CONVEYORD names the program; FIRST_PORT the port of the first node's RPC (7401): its HTTP port is 80 above.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
directory=${1:-three-node-data}
first=${FIRST_PORT:-7401}
program=${CONVEYORD:-$here/../../.venv/bin/conveyord}
[ -x "$program" ] || program=$(command -v conveyord) || {
    echo "conveyord is not there; run make setup, or name it in CONVEYORD" >&2
    exit 2
}
mkdir -p "$directory"

join=""
for n in 1 2 3; do
    join="$join --join 127.0.0.1:$((first + n - 1))"
done

pids=""
stop() {
    trap '' INT TERM
    [ -z "$pids" ] || kill -TERM $pids 2>/dev/null || true
    wait
    echo "all nodes have ended; their logs are $directory/node*.log"
}
trap 'stop; exit 0' INT TERM

for n in 1 2 3; do
    # In a session of its own, or Ctrl-C would reach it beside the signal that `stop` sends, and be the second one.
    setsid "$program" start --config "$here/node$n.toml" --data-dir "$directory/node$n" \
        --rpc "127.0.0.1:$((first + n - 1))" --http "127.0.0.1:$((first + n + 79))" $join \
        >>"$directory/node$n.log" 2>&1 </dev/null &
    pids="$pids $!"
    eval "pid$n=$!"
done

ready() {  # whether the node at an HTTP port is ready
    "$(dirname "$program")/python" - "$1" <<'END' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/readyz", timeout=2)
END
}

check() {  # that no node has ended
    for m in 1 2 3; do
        eval "pid=\$pid$m"
        if ! kill -0 "$pid" 2>/dev/null; then
            echo "node$m has ended:" >&2
            tail -n 3 "$directory/node$m.log" >&2
            stop
            exit 1
        fi
    done
}

for n in 1 2 3; do
    until ready $((first + n + 79)); do
        check
        sleep 0.2
    done
done

echo "three nodes serve, with their data in $directory:"
for n in 1 2 3; do
    eval "pid=\$pid$n"
    echo "  node$n  http://127.0.0.1:$((first + n + 79))  process $pid"
done
echo "look: conveyorctl status --server http://127.0.0.1:$((first + 80)) --data-dir $directory/node1; try it: kill -9 one of them. Ctrl-C stops all."

# A node that was killed leaves the others serving; when all have gone there is nothing left to do.
for n in 1 2 3; do
    eval "pid=\$pid$n"
    wait "$pid" || echo "node$n has ended with exit code $?"
done
echo "no node is left; their logs are $directory/node*.log"
exit 1
