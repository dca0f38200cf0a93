"""The supervisor's client for the voter's control socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from deploy.errors import DeployError

__all__ = ["VoterControl", "VoterRefused", "VoterUnreachable"]

CALL_TIMEOUT = 5.0
"""Seconds."""


class VoterUnreachable(DeployError):
    """The voter's control socket does not answer."""

    error_code = "TV0224"


class VoterRefused(VoterUnreachable):
    """The voter answered with an error; ``detail`` is its reason, ``status`` that of HTTP."""

    def __init__(self, method: str, path: str, detail: str, *, status: int) -> None:
        super().__init__(f"the voter rejected {method} {path}: {detail}")
        self.detail = detail
        self.status = status

    error_code = "TV0225"


class VoterControl:
    """Sends requests to one node's voter, whichever process that is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def status(self) -> dict[str, Any]:
        """Return the voter's status.  Raises VoterUnreachable."""
        return await self._call("GET", "/status")

    async def trace(self, name: str) -> dict[str, Any]:
        """Return what happened to a request.  Raises VoterUnreachable; VoterRefused: unknown."""
        return await self._call("GET", f"/trace/{quote(name, safe=':+=@~')}")

    async def admit(self, name: str) -> None:
        """Admit a replica that was restored.  Raises VoterUnreachable."""
        await self._call("POST", f"/replicas/{name}/admit")

    async def expel(self, name: str, reason: str) -> None:
        """Remove a replica from the vote.  Raises VoterUnreachable."""
        await self._call("POST", f"/replicas/{name}/expel", {"reason": reason})

    async def checkpoint(self) -> None:
        """Ask for a checkpoint soon.  Raises VoterUnreachable."""
        await self._call("POST", "/checkpoint")

    async def change_roles(
        self,
        version: int,
        roles: Mapping[str, str],
        reason: str,
        *,
        active: int = 0,
        voters: int = 0,
    ) -> None:
        """Change the roles of these replicas, if the table has this version.

        ``active``: so many voters must be active afterwards, if that is more than a majority;
        ``voters``: so many there are to be, m to n, if not as many as now or n.  Returns once the
        change is durable.  Raises VoterUnreachable; VoterRefused with status 409: the table has
        another version, or the change is impossible now.
        """
        body = {
            "version": version, "roles": dict(roles), "reason": reason, "active": active,
            "voters": voters,
        }  # fmt: skip
        await self._call("POST", "/roles", body)

    async def stop(self) -> None:
        """End the voter once it has answered its open requests.  Raises VoterUnreachable."""
        await self._call("POST", "/stop")

    async def events(self, since: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the changes of replicas after ``since``, as they come.  Raises VoterUnreachable."""
        async for event in self._stream("events", since):
            yield event

    async def differences(self, since: int) -> AsyncIterator[dict[str, Any]]:
        """Yield what replicas without a vote answered otherwise, after ``since``, as it comes.

        Raises VoterUnreachable.
        """
        async for difference in self._stream("differences", since):
            yield difference

    async def _stream(self, name: str, since: int) -> AsyncIterator[dict[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT)
        url = f"http://voter/{name}?since={since}"
        try:
            async with self._client.get(url, timeout=timeout) as answer:
                async for line in answer.content:
                    if line.strip():
                        yield json.loads(line)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise VoterUnreachable(f"the voter's {name} ended: {error}") from error

    @property
    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._path)),
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT),
            )
        return self._session

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            async with self._client.request(method, f"http://voter{path}", json=body) as answer:
                text = await answer.text()
                value = json.loads(text) if text.strip() else {}
                if answer.status >= 400:
                    detail = str(value.get("detail", "")) if isinstance(value, dict) else ""
                    raise VoterRefused(method, path, detail or text[:300], status=answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise VoterUnreachable(
                f"the voter does not answer {method} {path}: {str(error) or type(error).__name__}"
            ) from error
        return value if isinstance(value, dict) else {}
