"""Brokers behind TLS, and with logins: the embedded one behind a proxy, for it speaks neither, and Apache Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)

from feedback.broker import broker_command, free_port, wait_for_port
from tests.feedback.brokers import ApacheKafka
from tests.feedback.certificates import Papers

USER = "curator,of=us"
"""With the two characters that RFC 5802 escapes."""
LIMITED = "limited"
"""May do what docs/deployment.md says that Hustings needs, and nothing else."""
PASSWORD = "sasl-password-of-the-test"


def _rights() -> Iterator[ACL]:
    """As docs/deployment.md lists them."""
    topics = ResourcePattern(ResourceType.TOPIC, "hustings.", ACLResourcePatternType.PREFIXED)
    groups = ResourcePattern(ResourceType.GROUP, "hustings-curator")
    rights = {topics: ("CREATE", "DESCRIBE", "READ", "WRITE", "DELETE"), groups: ("READ", "DESCRIBE")}
    for pattern, operations in rights.items():
        for name in operations:
            yield ACL(f"User:{LIMITED}", "*", ACLOperation[name], ACLPermissionType.ALLOW, pattern)


class TlsFront:
    """A port that speaks TLS before one that doesn't."""

    def __init__(self, port: int, behind: int, papers: Path) -> None:
        self._port, self._behind = port, behind
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(papers)
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._listens.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _serve(self) -> None:
        self._loop.set_exception_handler(lambda *_: None)  # handshakes that a test has fail
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", self._port, ssl=self._context)
        self._listens.set()
        await self._stopping.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            await asyncio.gather(_copy(reader, their_writer), _copy(their_reader, writer))
        finally:
            for end in (writer, their_writer):
                end.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
        target.transport.abort()


@contextlib.contextmanager
def embedded_behind_tls(papers: Path) -> Iterator[tuple[str, str]]:
    """The embedded broker's address through TLS, and the one behind that, which speaks in the clear."""
    behind, before = free_port(), free_port()
    command = broker_command(behind)
    command[command.index("--advertised-listener-url") + 1] = f"tcp://localhost:{before}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        try:
            wait_for_port(behind, process)
            front = TlsFront(before, behind, papers)
            try:
                yield f"localhost:{before}", f"127.0.0.1:{behind}"
            finally:
                front.close()
        finally:
            process.kill()


class SecureKafka:
    """One Apache Kafka that listens in the clear, with TLS and a login, and with TLS and certificates of clients."""

    def __init__(self, script: Path, data: Path, papers: Papers) -> None:
        self._ports = {"LOGIN": free_port(), "MUTUAL": free_port(), "OPEN": free_port()}
        kinds = {"LOGIN": "SASL_SSL", "MUTUAL": "SSL", "OPEN": "SASL_PLAINTEXT"}
        jaas = "org.apache.kafka.common.security"

        def own(port: int) -> list[str]:
            inner = {"PLAINTEXT": port, "CONTROLLER": port + 1}
            listening = [f"{name}://127.0.0.1:{at}" for name, at in (inner | self._ports).items()]
            told = [f"PLAINTEXT://127.0.0.1:{port}", *(f"{name}://localhost:{at}" for name, at in self._ports.items())]
            kind = ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", *(f"{name}:{is_}" for name, is_ in kinds.items())]
            users = f'user_{"ann"}="{PASSWORD}"'
            return [
                f"listeners={','.join(listening)}",
                f"advertised.listeners={','.join(told)}",
                f"listener.security.protocol.map={','.join(kind)}",
                "ssl.keystore.type=PEM",
                f"ssl.keystore.location={papers.broker}",
                "ssl.truststore.type=PEM",
                f"ssl.truststore.location={papers.ca}",
                "listener.name.mutual.ssl.client.auth=required",
                "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512",
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                f"super.users=User:ANONYMOUS;User:ann;User:{USER};User:CN=client",
                "listener.name.open.sasl.enabled.mechanisms=PLAIN",
                *(
                    f"listener.name.{name}.plain.sasl.jaas.config={jaas}.plain.PlainLoginModule required {users};"
                    for name in ("login", "open")
                ),
                f"listener.name.login.scram-sha-512.sasl.jaas.config={jaas}.scram.ScramLoginModule required;",
            ]

        self._broker = ApacheKafka(script, data, own)
        self.plain = self._broker.address
        self.login, self.mutual, self.open = (f"localhost:{port}" for port in self._ports.values())
        admin = KafkaAdminClient(bootstrap_servers=self.plain)
        admin.alter_user_scram_credentials(
            [UserScramCredentialUpsertion(user, "SCRAM_SHA_512", PASSWORD.encode()) for user in (USER, LIMITED)]
        )
        assert not admin.create_acls(list(_rights()))["failed"]
        admin.close()

    def stop(self) -> None:
        self._broker.stop()
