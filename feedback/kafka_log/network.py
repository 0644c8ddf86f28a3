"""The client's network layer, and what kafka-python 3.0.12 lacks in it:

- An end of the TLS handshake: a port that speaks another protocol may never answer. Ours has the connection's time.
- Why there is no connection: the client logs it, and raises a time-out. `Reasons` keeps the last one.
- What a broker says last: bytes that come together with the connection's end are dropped, such as why it refuses us.
- An end after a refused login: it goes on as often as its time allows, and brokers may lock out who fails so often.
- Topics that nobody asked for: the option that forbids to make them on sight doesn't reach the request.
"""

from __future__ import annotations

import ssl
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport


class NoHandshake(kafka_errors.KafkaConnectionError):  # type: ignore[misc]  # untyped
    """The other end leaves the TLS handshake unanswered."""


_OUT_OF_TIME = (kafka_errors.KafkaTimeoutError, kafka_errors.RequestTimedOutError, NoHandshake)


class Reasons:
    """Why there is no connection; None since there was one."""

    def __init__(self) -> None:
        self.last: BaseException | None = None

    def connected(self, _: object) -> None:
        """There is one."""
        self.last = None

    def failed(self, error: BaseException) -> None:
        """An attempt failed, or a connection broke. That time ran out tells less than what went before."""
        if self.last is None or not isinstance(error, _OUT_OF_TIME):
            self.last = error


def network(reasons: Reasons, **configs: Any) -> Any:
    """The network layer of one client. A client that can't be made leaves it running: whoever wanted it closes it."""
    net = NetworkSelector(**configs)
    client = KafkaNetClient(net=net, manager=_Manager(net, reasons, **configs), **configs)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # untyped
    def __init__(self, net: Any, reasons: Reasons, **configs: Any) -> None:
        super().__init__(net, **configs)
        self._reasons = reasons

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        options = self.config["socket_options"]
        sock = await create_connection(self._net, node.host, node.port, options, timeout_at=timeout_at)
        if not self.ssl_enabled:
            return _Plain(self._net, sock, host=node.host)
        transport: Any = None
        try:
            transport = _Tls(self._net, sock, host=node.host, **self.config)
            await _shake_hands(self._net, transport._sock, timeout_at)
        except BaseException as error:
            (transport._sock if transport else sock).close()
            if isinstance(error, OSError | ValueError):
                raise kafka_errors.KafkaConnectionError(f"TLS handshake: {error}") from error
            raise
        return transport

    async def _connect(self, node: Any, conn: Any, **how: Any) -> None:
        conn.init_future.add_callback(self._reasons.connected)
        conn.close_future.add_errback(self._failed)
        await super()._connect(node, conn, **how)
        error = conn.init_future.exception
        if isinstance(error, kafka_errors.SaslAuthenticationFailedError) and not self.bootstrapped:
            self._auth_failures[node.node_id] = error  # ends the attempt to connect

    def _failed(self, error: BaseException) -> None:
        if not self.closed:  # else it is we who hang up
            self._reasons.failed(error)


class _LastWords:
    """What came together with the connection's end is read first; the end is met again by the next look."""

    def _sock_recv(self) -> tuple[bytes, Any]:
        received, error = super()._sock_recv()  # type: ignore[misc]
        return received, None if received else error


class _Plain(_LastWords, KafkaTCPTransport):  # type: ignore[misc]  # untyped
    pass


class _Tls(_LastWords, KafkaSSLTransport):  # type: ignore[misc]  # untyped
    pass


async def _shake_hands(net: Any, sock: ssl.SSLSocket, timeout_at: float | None) -> None:
    """The TLS handshake, within the connection's time.

    Raises:
        NoHandshake: the other end doesn't answer.
        OSError: one of the two ends refuses.
    """
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            waiting = net.wait_read(sock, timeout_at=timeout_at)
        except ssl.SSLWantWriteError:
            waiting = net.wait_write(sock, timeout_at=timeout_at)
        else:
            return
        try:
            await waiting
        except kafka_errors.KafkaTimeoutError as error:
            raise NoHandshake("no answer to the TLS handshake") from error
