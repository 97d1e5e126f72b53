"""A task manager with BEE's loop: one background job that submits tasks and then updates all of them, every INTERVAL seconds.

    taskmanager.py DRIVER_DIR SOCKET INTERVAL

Commands on stdin: `want WF TASK IMAGE`, `cancel WF TASK`, `end`. Each tick is a line of JSON on stdout: when it was due and how late it began, how
long it took, how many tasks that already run were updated, and what changed; a task is submitted to the scheduler in the tick in which its image is
ready.
"""

import json
import sys
import threading
import time

sys.path.insert(0, sys.argv[1])
import skimfs_bee  # noqa: E402

lock = threading.Lock()
commands = []


def listen():
    for line in sys.stdin:
        with lock:
            commands.append(line.split())


def main():
    interval = float(sys.argv[3])
    images = skimfs_bee.Images(address=sys.argv[2], root="/skimfs", budget=5.0)  # a tick that waits for a conversion would show
    threading.Thread(target=listen, daemon=True).start()
    running = {}  # tasks at the scheduler → how often their state was updated
    due = time.monotonic()
    while True:
        time.sleep(max(0, due - time.monotonic()))
        begun = time.monotonic()
        with lock:
            todo, commands[:] = commands[:], []
        for command in todo:
            if command[0] == "end":
                return
            {"want": images.want, "cancel": images.cancel}[command[0]](*command[1:])
        changes = images.tick()
        submitted = [c.task_id for c in changes if c.state == skimfs_bee.READY]
        for task in submitted:
            running.setdefault(task, 0)
        for task in running:
            running[task] += 1
        print(json.dumps({
            "late": begun - due, "took": time.monotonic() - begun, "available": images.available, "submitted": submitted, "running": running,
            "changes": [c._asdict() for c in changes],
        }), flush=True)
        due += interval


main()
