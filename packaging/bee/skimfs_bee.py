"""Container images for BEE's task manager, without waiting for them.

The task manager says which task wants which image, and asks once per tick what has changed:

    images = Images(root="/skimfs/images.example.org")
    images.want(wf_id, task_id, "docker.io/library/gcc:13")       # remembers, talks to nobody
    for change in images.tick():                                  # at most `budget` seconds
        ...                                                       # BUILDING, READY, BUILD_FAIL, CANCELLED

The work is done by `skimfs publishd`. What was wanted is remembered there under the key WORKFLOW/TASK: after a restart of the task manager
`want` the same again, and the same work goes on. A publishd that is away costs a tick nothing but an attempt to connect; nothing is lost.

Needs Python 3.8 and no package. One thread uses an object at a time, as BEE's one background job does.
"""

import collections
import http.client
import json
import logging
import os
import socket
import time
import urllib.parse

log = logging.getLogger(__name__)

BUILDING, READY, BUILD_FAIL, CANCELLED = "BUILDING", "READY", "BUILD_FAIL", "CANCELLED"

# What tick returns. state is one of the above, detail says in words how far it is or what is wrong, reason is a word of publishd's fixed list
# if it went wrong. image is the name in the repository, digest the image's, path where nodes find it (if Images knows its root).
Change = collections.namedtuple("Change", "wf_id task_id state detail reason image digest path")


class Problem(Exception):
    """publishd's answer to what it refuses."""

    def __init__(self, status, body):
        super().__init__(body.get("detail", "status %d" % status))
        self.status = status
        self.reason = body.get("reason", "INTERNAL")


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("publishd", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class _Task:
    def __init__(self, image):
        self.image = image
        self.operation = None  # its id, once publishd has answered
        self.asked = False  # a submission may have arrived
        self.cancelled = False
        self.told = None  # the last (state, detail) that was returned


class Images:
    """The images that tasks wait for.

    address is publishd's socket, root the directory at which nodes mount the repository. budget bounds a tick in seconds.
    """

    def __init__(self, address="/run/skimfs-publishd/publishd.sock", root=None, budget=1.0):
        self.address = address
        self.root = root
        self.budget = budget
        self.available = True  # publishd answered in the last tick
        self._tasks = {}
        self._http = None

    def want(self, wf_id, task_id, image):
        """Note that a task needs an image; the next tick submits it. The same again changes nothing."""
        self._tasks.setdefault((wf_id, task_id), _Task(image))

    def cancel(self, wf_id, task_id):
        """Note that a task is not wanted any more; the next tick says so to publishd and returns it as CANCELLED."""
        task = self._tasks.get((wf_id, task_id))
        if task is not None:
            task.cancelled = True

    def pending(self):
        """The tasks (wf_id, task_id) whose images are not ready."""
        return list(self._tasks)

    def tick(self):
        """Submit what is wanted, cancel what is not, and return what has changed. A task leaves with READY, BUILD_FAIL or CANCELLED."""
        end = time.monotonic() + self.budget
        changes = []
        try:
            self._cancel(end, changes)
            self._submit(end, changes)
            self._look(end, changes)
            self.available = True
        except (OSError, http.client.HTTPException, ValueError) as err:
            if self.available:
                log.warning("publishd at %s: %s; trying again with each tick", self.address, err)
            self.available = False
        finally:
            self._disconnect()
        return changes

    # --- what a tick does -----------------------------------------------------------------------------------------

    def _cancel(self, end, changes):
        for key, task in [item for item in self._tasks.items() if item[1].cancelled]:
            if task.asked:
                try:
                    if task.operation is None:  # its answer was lost: the same key gives the same operation
                        task.operation = _id(self._submission(end, key, task))
                    self._call(end, "POST", "/v1/operations/%s:cancel" % task.operation)
                except Problem as err:
                    if _again(err):
                        continue
            self._leave(changes, key, CANCELLED, "the workflow cancelled it", reason="CANCELLED")

    def _submit(self, end, changes):
        for key, task in list(self._tasks.items()):
            if task.operation is not None or task.cancelled:
                continue
            if time.monotonic() > end:
                return  # the rest with the next tick
            task.asked = True
            try:
                task.operation = _id(self._submission(end, key, task))
            except Problem as err:
                if not _again(err):
                    self._leave(changes, key, BUILD_FAIL, str(err), reason=err.reason)

    def _submission(self, end, key, task):
        body = {"source": task.image, "labels": {"workflow": key[0], "task": key[1]}, "request_id": "bee/%s/%s" % key}
        return self._call(end, "POST", "/v1/images:convert", body)

    def _look(self, end, changes):
        """One question per workflow, however many tasks it has."""
        for wf_id in {key[0] for key, task in self._tasks.items() if task.operation is not None}:
            waiting = {task.operation: key for key, task in self._tasks.items() if key[0] == wf_id and task.operation is not None}
            for operation in self._operations(end, wf_id):
                key = waiting.pop(_id(operation), None)
                if key is not None:
                    self._report(changes, key, operation)
            for key in waiting.values():
                self._tasks[key].operation = None  # publishd forgot it: submit it anew

    def _operations(self, end, wf_id):
        query = {"label": "workflow=%s" % wf_id, "page_size": 1000}
        while True:
            page = self._call(end, "GET", "/v1/operations?" + urllib.parse.urlencode(query))
            yield from page["operations"]
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def _report(self, changes, key, operation):
        about = operation["metadata"]
        if about["state"] == "SUCCEEDED":
            self._leave(changes, key, READY, "converted", about)
        elif about["state"] == "FAILED":
            self._leave(changes, key, BUILD_FAIL, operation["error"]["detail"], about, operation["error"]["reason"])
        elif about["state"] == "CANCELLED":
            self._leave(changes, key, CANCELLED, "somebody cancelled operation %s" % _id(operation), about, "CANCELLED")
        else:
            detail = " ".join(word for word in (about["state"], about.get("stage")) if word)
            task = self._tasks[key]
            if task.told != detail:
                task.told = detail
                changes.append(self._change(key, BUILDING, detail, about, about.get("problem", {}).get("reason")))

    def _leave(self, changes, key, state, detail, about=None, reason=None):
        changes.append(self._change(key, state, detail, about or {}, reason))
        del self._tasks[key]

    def _change(self, key, state, detail, about, reason):
        image = about.get("as")
        path = os.path.join(self.root, image + ".sqfs") if self.root and image else None
        return Change(key[0], key[1], state, detail, reason, image, about.get("digest"), path)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _call(self, end, method, path, body=None):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer within %g s" % self.budget)
        if self._http is None:
            self._http = _Connection(self.address, left)
        self._http.timeout = left
        if self._http.sock is not None:
            self._http.sock.settimeout(left)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._http.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._http.getresponse()
        text = json.loads(answer.read())
        if answer.status >= 400:
            raise Problem(answer.status, text)
        return text

    def _disconnect(self):
        if self._http is not None:
            self._http.close()
            self._http = None


def _id(operation):
    return operation["name"].split("/", 1)[1]


def _again(problem):
    """Whether the same request may succeed later: the queue is full, or the service is not ready."""
    return problem.status in (429, 503)
