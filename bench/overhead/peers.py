"""Measures ours and others by the same code: here, or in a worker in the environment of a peer that has our name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from bench.overhead.contenders import Case
from bench.overhead.peer_findings import failed
from bench.peers import cost
from bench.peers.client import Peer, PeerError
from bench.peers.environment import Environment, PeerUnavailableError
from bench.results import Results

#: Seconds that the longest measurement may take.
TIMEOUT = 600.0


class Workers(contextlib.ExitStack):
    """The workers of the peers' environments, each started when it is first asked; a context manager."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads
        self.unavailable: dict[str, str] = {}
        self._peers: dict[str, Peer] = {}

    def run(self, version: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What ``cost.run`` gives there.

        Raises:
            PeerError: it failed there; the next request has a new worker.
            PeerUnavailableError: there is no such environment, and it cannot be made.
        """
        if version in self.unavailable:
            raise PeerUnavailableError(self.unavailable[version])
        try:
            if version not in self._peers:
                self._peers[version] = self.enter_context(Peer(Environment(version).make(), threads=self.threads))
            return dict(self._peers[version].ask("cost", timeout=TIMEOUT, **arguments))
        except PeerUnavailableError as error:
            self.unavailable[version] = str(error)
            raise
        except PeerError:
            self._peers.pop(version).close()
            raise


def measure(results: Results, cases: Iterable[Case], threads: int) -> dict[str, str]:
    """Add the rows that are not there yet, and those that failed when they were tried before.

    Returns:
        The versions whose environment is not available, and why; their rows are missing.
    """
    with Workers(threads) as workers:
        for case in cases:
            if case.key in results and not failed(results.rows[case.key]):
                continue
            try:
                found = cost.run(measure=case.measure, **case.arguments) if case.version is None else {}
                if case.version is not None:
                    found = workers.run(case.version, {"measure": case.measure, **case.arguments})
            except PeerUnavailableError:
                continue
            except PeerError as error:
                found = {"error": str(error).splitlines()[0]}
            results.add(case.key, {**case.described(), **found})
        return workers.unavailable
