"""Handling of signals that ask a process to stop."""

import signal
import time


class StopSignal:
    """Context manager: SIGTERM, SIGUSR1 and Ctrl-C only set `requested`; a second Ctrl-C raises KeyboardInterrupt.

    Clusters send SIGTERM or SIGUSR1 before they reclaim a machine, both to launchers, which forward it, and to
    processes: one signal may arrive several times.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    REPEAT = 1                       # seconds within which a second Ctrl-C counts as the first one, forwarded

    def __init__(self):
        self.requested, self._since = False, None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._request) for number in self.NUMBERS}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        now = time.monotonic()
        if number == signal.SIGINT and self.requested and now - self._since > self.REPEAT:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, now
