"""The engine of vLLM servers on other GPUs or machines (`egogrpo serve --for-training`), which a run holds for itself.

A group stays on one server. A server that fails loses the groups that it is at; others sample them, within a bound, and
what none samples is left out. A server that comes back gets the weights again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Lock

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from grpo.groups import Group, Prompt
from grpo.rollout import OnGroup, Sampling
from grpo.rollout.own_server import OwnServer
from grpo.rollout.server_client import ServerClient, ServerError, ServerGone
from grpo.rollout.server_transfer import Transfer
from grpo.rollout.sync_proof import SyncProof

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64
"""The most requests of a process at a time; vLLM makes its batches of them."""
RETRY_S = 0.5
LOST_TIMEOUT_S = 30.0
"""How long a server that is lost may take to say that it is back; one that hangs would hold up each sync."""
WATCH_S = 5.0
"""How often servers that are asked are looked at, whether they have ended."""


class ServerEngine:
    """The engine that samples through servers."""

    def __init__(
        self,
        clients: Sequence[ServerClient],
        transfer: Transfer,
        *,
        check: Callable[[ServerClient], None],
        timeout_s: float,
        max_tries: int,
        proof: SyncProof | None = None,
        own: OwnServer | None = None,
        overlap: bool = False,
    ) -> None:
        """Hold the servers for a run; raise ServerError if one does not answer, or another run holds it.

        check: raises ValueError for a server that does not fit the run. timeout_s: how long the engine waits for a
        server when none is left. max_tries: how many servers a group is given to, one after another. proof: what
        each server is asked after a sync; None: nothing. own: the server that this process has started, if it has.
        overlap: the learner may update while groups are sampled.
        """
        self.clients, self.transfer, self.check = clients, transfer, check
        self.timeout_s, self.max_tries, self.own = timeout_s, max_tries, own
        self.is_cancelled, self.overlap = False, overlap
        self.state = PartialState()
        self.proofs = {client: replace(proof) for client in clients} if proof is not None else {}
        self.number = 0
        """The number of syncs."""
        self.lost: dict[ServerClient, str] = {}
        """The servers that are not asked, and why."""
        self.none_since: float | None = None
        """When the last server was lost, if none is left."""
        self.busy: Counter[ServerClient] = Counter()
        """How many requests each server is at."""
        self.lock, self.revival = Lock(), Lock()
        if self.state.is_main_process:
            for client in clients:
                check(client)
                client.hold()

    @property
    def version(self) -> str:
        """The version of the weights that were sent last."""
        name, _, secret = str(self.clients[0].run).partition("#")
        digest = hashlib.blake2b(secret.encode(), digest_size=4).hexdigest()
        return f"{name}#{digest}/{self.number}"

    def prepare(self, prompts: Sequence[Prompt], step: int) -> None: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Sample as `Engine.generate` describes; groups that no server gives are left out."""
        for prompt in prompts:
            self.clients[0].family.check_vision_tokens(prompt)
        # The longest first, since what is left at the end is sampled with few others.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].token_ids))
        groups: dict[int, Group] = {}
        with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
            asked = {
                pool.submit(self._group, prompts[index], sampling, seeds[index]): index for index in order
            }
            try:
                for future in self._finished(asked):
                    group = future.result()
                    if group is None:
                        continue
                    groups[asked[future]] = group
                    if on_group is not None:
                        on_group(group)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                # What the other requests would give is of no use any more.
                for client in self.clients:
                    client.hang_up()
                raise
        return [groups[index] for index in sorted(groups)]

    def _finished(self, asked: Iterable[Future[Group | None]]) -> Iterator[Future[Group | None]]:
        """Yield requests as they come to an end; those to servers that have ended do so early.

        A vLLM server that is told to end closes its port, and then waits for connections whose requests it will never
        answer.
        """
        left, look_at = {*asked}, time.monotonic() + WATCH_S
        while left:
            done, left = wait(left, timeout=WATCH_S, return_when=FIRST_COMPLETED)
            yield from done
            if time.monotonic() > look_at:
                for client in self.clients:
                    if self.busy[client] and client.has_ended():
                        client.hang_up()
                look_at = time.monotonic() + WATCH_S

    def _group(self, prompt: Prompt, sampling: Sampling, seed: int) -> Group | None:
        """Return a group from one server, another one if that fails; None if none gives it."""
        for _ in range(self.max_tries):
            client = self._take()
            if client is None:
                break
            try:
                return client.generate(prompt, sampling, seed, version=self.version)
            except ServerGone as error:
                self._lose(client, error)
            finally:
                with self.lock:
                    self.busy[client] -= 1
        return None

    def _take(self) -> ServerClient | None:
        """Return the server that is least busy, one more request on its account; None if there is none in time.

        The time is that since the last one was lost, for all groups and the next sync together. ServerError is raised
        when the engine is cancelled.
        """
        while True:
            if self.is_cancelled:
                raise ServerError("what was being sampled is not needed any more")
            with self.lock:
                live = [client for client in self.clients if client not in self.lost]
                if live:
                    client = min(live, key=lambda each: self.busy[each])
                    self.busy[client] += 1
                    self.none_since = None
                    return client
                if self.none_since is None:
                    self.none_since = time.monotonic()
                if self._own_problem() or time.monotonic() > self.none_since + self.timeout_s:
                    return None
            self._revive()
            time.sleep(RETRY_S)

    def _lose(self, client: ServerClient, error: ServerError) -> None:
        with self.lock:
            if client not in self.lost:
                logger.warning("rollout: %s", error)
            self.lost[client] = str(error)

    def _revive(self) -> None:
        """Try the servers that are lost once more; one thread does, for all.

        Weights that go from GPU to GPU wait for the next sync: the learner may be exchanging its own meanwhile.
        """
        if not self.revival.acquire(blocking=False):
            return
        try:
            for client in [*self.lost]:
                try:
                    self._start(client, sends=self.transfer.is_beside or not self.overlap)
                except ServerError as error:
                    self.lost[client] = str(error)
                else:
                    del self.lost[client]
        finally:
            self.revival.release()

    def _own_problem(self) -> str | None:
        """Return a line that says how the server that this process has started has ended, if it has."""
        return self.own.problem() if self.own is not None else None

    def _start(self, client: ServerClient, *, sends: bool = True) -> None:
        """Make a server ready to be asked; raise ServerError if it is not.

        Weights are sent by the first process, and the others find them there. sends: whether they may be sent now.
        """
        about = client.about(timeout_s=min(LOST_TIMEOUT_S, self.timeout_s) if client in self.lost else None)
        if self.state.is_main_process and not about["holds"]:
            self.check(client)
            client.hold()
        if about["version"] == self.version:
            if self.state.is_main_process:
                # An install that was cut short behind its last weight left the server paused.
                client.post("/resume")
            return
        if not (self.state.is_main_process and sends):
            raise ServerGone(f"{client.url} has the weights {about['version']!r}")
        # What was computed with other weights goes: prefixes, vision features, inputs.
        client.post("/pause?mode=abort")
        client.post("/collective_rpc", {"method": "end_update"})
        self.transfer.install(client, self.version)
        client.post("/resume")

    def sync(self) -> None:
        """Send the policy's weights to all servers; raise ServerError if none takes them in time."""
        self.number += 1
        self.transfer.collect()
        failures: list[ServerError | None] = [None] * len(self.clients)
        if self.state.is_main_process:
            give_up_at = (self.none_since or time.monotonic()) + self.timeout_s
            failures = self._install()
            # Nobody waits where each one answers that it does not fit.
            while all(failures) and any(isinstance(failure, ServerGone) for failure in failures):
                if time.monotonic() > give_up_at or self._own_problem():
                    break
                time.sleep(RETRY_S)
                failures = self._install()
        # Only the first process knows of its own server.
        why, *failures = broadcast_object_list([self._why(failures), *failures])
        pairs = zip(self.clients, failures, strict=True)
        self.lost, self.none_since = (
            {client: str(failure) for client, failure in pairs if failure is not None},
            None,
        )
        if len(self.lost) == len(self.clients):
            raise ServerError(why)
        for client, proof in self.proofs.items():
            if client not in self.lost:
                self._prove(client, proof)

    def _why(self, failures: Sequence[ServerError | None]) -> str:
        """Return why no server is left, in words of the setting that they are of."""
        if (problem := self._own_problem()) is not None:
            return problem
        reasons = "; ".join(str(failure) for failure in failures if failure is not None)
        if self.own is not None:
            return f"rollout.engine=vllm_process: its server fails: {reasons}; see {self.own.log}"
        return f"rollout.servers: none is left: {reasons}"

    def _prove(self, client: ServerClient, proof: SyncProof) -> None:
        """Have a server prove that it has the policy's weights; the first process asks, for all."""

        def ask(prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[Group]:
            [group] = broadcast_object_list([self._asked(client, prompts[0], sampling, seeds[0])])
            if group is None:
                raise ServerGone(client.url)
            return [group]

        def differing() -> list[str] | None:
            try:
                return self.transfer.differing(client) if self.state.is_main_process else []
            except ServerError as error:
                # The weights are wrong, whether or not the server can tell which.
                logger.warning("rollout: %s", error)
                return None

        try:
            proof.after_sync(ask, differing)
        except ServerGone as error:
            self.lost.setdefault(client, str(error))

    def _asked(self, client: ServerClient, prompt: Prompt, sampling: Sampling, seed: int) -> Group | None:
        """Return a server's group in the first process; None if it fails, and in the others."""
        if not self.state.is_main_process:
            return None
        try:
            return client.generate(prompt, sampling, seed, version=self.version)
        except ServerGone as error:
            self._lose(client, error)
            return None

    def _install(self) -> list[ServerError | None]:
        """Send the weights to all servers at once; returns why it failed for each, None where it did not."""

        def install(client: ServerClient) -> ServerError | None:
            try:
                self._start(client)
            except ServerError as error:
                # One that does not fit has been started anew, in another way.
                self._lose(client, error)
                return error
            return None

        with ThreadPoolExecutor(len(self.clients) if self.transfer.is_beside else 1) as pool:
            return [*pool.map(install, self.clients)]

    def sleep(self) -> None: ...

    def cancel(self) -> None:
        """Have `generate` raise, and end all requests under way."""
        self.is_cancelled = True
        for client in self.clients:
            client.cancel()

    def close(self) -> None:
        self.transfer.close()
        for client in self.clients:
            client.close()
        if self.own is not None:
            self.own.close()
