"""Whether a port can be listened on, and who holds it when not."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import psutil

from deploy.errors import PortInUse

if TYPE_CHECKING:
    from deploy.config import HustingsConfig


def listened_on(config: HustingsConfig) -> dict[str, tuple[str, int]]:
    """Hosts and ports that `up` will listen on, by the key of the port; those that it chooses itself aren't there."""
    feedback, schedule = config.feedback, config.train.schedule
    wanted = {
        "serve.port": (config.serve.host, config.serve.port),
        "feedback.broker_port": ("127.0.0.1", feedback.broker_port if feedback.kafka is None else 0),
        "feedback.curator_metrics_port": (feedback.curator_metrics_host, feedback.curator_metrics_port),
        "train.schedule.metrics_port": (schedule.metrics_host, schedule.metrics_port),
    }
    return {key: (host, port) for key, (host, port) in wanted.items() if port}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on just now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int, remedy: str) -> None:
    """Return if `port` can be listened on.

    Raises:
        PortInUse: the message names who holds it, where that can be known, and `remedy`; or that `host` isn't ours.
    """
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise PortInUse(f"port {port} may be used by root only; {remedy}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(f"port {port} on {host} is in use{_holder(port)}; {remedy}") from error
            raise PortInUse(
                f"nothing can listen on {host} here ({error.strerror}); give an address of this machine"
            ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
