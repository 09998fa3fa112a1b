"""A private RabbitMQ node and a private Postgres server, for tests and benches: own ports on 127.0.0.1, own folders.

Methods block, for seconds where a server starts: call them in a thread from a running event loop.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.guard import Guard

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


class ServiceMissing(RuntimeError):
    """The server's binaries are not installed."""


class ServiceFailed(RuntimeError):
    """The server did not start; the message ends with its log."""


PORTS = range(10_000, 32_000)
"""Below those that the system gives to whoever connects or asks for any: between choice and use nobody takes one."""


def free_port() -> int:
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = random.SystemRandom().choice(PORTS)  # tests seed the shared generator, in every process alike
            probe.bind(("127.0.0.1", port))
            return port


def answers(port: int) -> bool:
    """Whether something accepts connections there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def tail(path: Path, lines: int = 30) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


class RabbitMQ:
    """One node without plugins, with an epmd of its own."""

    def __init__(self) -> None:
        self._bin = self._find()
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-rabbitmq-"))
        self.port = free_port()
        self._environment = self._make_environment()
        self._guard: Guard | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None

    @staticmethod
    def _find() -> Path:
        # Debian's commands on the PATH switch to the user rabbitmq; the ones behind them do not.
        for folder in (Path("/usr/lib/rabbitmq/bin"), *map(Path, os.get_exec_path())):
            if (folder / "rabbitmq-server").exists():
                return folder
        raise ServiceMissing("rabbitmq-server is not installed (`make services` installs it)")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def _make_environment(self) -> dict[str, str]:
        (self._folder / "enabled_plugins").write_text("[].\n")
        (self._folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\nlog.console = false\n")
        return (
            os.environ
            | {
                "HOME": str(self._folder),  # where the Erlang cookie is made
                "LANG": "C.UTF-8",
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "ERL_EPMD_PORT": str(free_port()),
                "RABBITMQ_CONF_ENV_FILE": "/dev/null",
                "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
                "RABBITMQ_LOG_BASE": str(self._folder / "log"),
                "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.port),
                "RABBITMQ_NODENAME": f"headrace-{uuid.uuid4().hex[:8]}@localhost",
                # No busy waiting: the cores belong to the tests.
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none"
                " -kernel inet_dist_use_interface {127,0,0,1}",
            }
        )

    def start(self) -> None:
        """Returns when the node takes connections. Raises ServiceFailed."""
        if self._guard is None or self._epmd is None:
            self._guard = Guard(self._folder)
            self._epmd = self._spawn("epmd", "-address", "127.0.0.1", "-port", self._environment["ERL_EPMD_PORT"])
        self._node = self._spawn(str(self._bin / "rabbitmq-server"))
        self._guard.watch(-self._epmd.pid, -self._node.pid)
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(self.port):
            if self._node.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServiceFailed(f"RabbitMQ did not start:\n{tail(self._folder / 'output.log')}")
            time.sleep(0.1)
        self.control("await_startup")  # it listens a moment before it takes commands

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl ARGUMENTS` prints."""
        command = [str(self._bin / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_TIMEOUT,
        )
        if done.returncode != 0:
            raise ServiceFailed(done.stdout.decode(errors="replace"))
        return done.stdout.decode()

    def raise_memory_alarm(self) -> None:
        """From now on connections that publish are blocked."""
        self.control("set_vm_memory_high_watermark", "0.00001")

    def clear_memory_alarm(self) -> None:
        self.control("set_vm_memory_high_watermark", "0.4")

    def queues(self, url: str) -> set[str]:
        """Names of the queues of a virtual host."""
        return set(self.control("list_queues", "--vhost", url.rsplit("/", 1)[1], "--no-table-headers", "name").split())

    def close_connections(self) -> None:
        """Close every client's connection from the broker's side."""
        self.control("close_all_connections", "--global", "closed by the operator")

    def add_vhost(self) -> str:
        """The URL of a new, empty virtual host."""
        url = self.url + uuid.uuid4().hex
        self._make_vhost(url)
        return url

    def renew_vhost(self, url: str) -> None:
        """Take a virtual host away with all that it holds, and put an empty one in its place."""
        self.control("delete_vhost", url.rsplit("/", 1)[1])
        self._make_vhost(url)

    def _make_vhost(self, url: str) -> None:
        name = url.rsplit("/", 1)[1]
        self.control("add_vhost", name)
        self.control("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")

    def stop(self) -> None:
        """Shut down in order; data stays."""
        if self._node is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._node.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._node.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """SIGKILL; data stays."""
        if self._node is not None:
            end_group(self._node)
            self._node = None
            while answers(self.port):  # the script that we started is dead; so must be the node that it started
                time.sleep(0.02)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._node is not None
        os.killpg(self._node.pid, signal.SIGSTOP)
        while not is_stopped(self._node.pid):  # on busy cores its threads go on for a moment, and answer
            time.sleep(0.005)

    def resume(self) -> None:
        assert self._node is not None
        os.killpg(self._node.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Kill what runs and delete the data."""
        self.kill()
        if self._epmd is not None:
            end_group(self._epmd)
            self._epmd = None
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        shutil.rmtree(self._folder, ignore_errors=True)


def _unprivileged_user() -> pwd.struct_passwd:
    """postgres where there is one, else nobody."""
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT)


def is_stopped(group: int) -> bool:
    """Whether no thread of a process group runs any more."""
    for status in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "TZX":
                return False
    return True


class Postgres:
    """One server without durable writes; a killed server loses nothing as long as the machine runs."""

    def __init__(self) -> None:
        self._bin = self._find()
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
        self.port = free_port()
        self._guard: Guard | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._user = _unprivileged_user() if os.geteuid() == 0 else None  # Postgres refuses to run as root
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)

    @staticmethod
    def _find() -> Path:
        debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
        for folder in (*debian, *map(Path, os.get_exec_path())):
            if (folder / "initdb").exists():
                return folder
        raise ServiceMissing("Postgres is not installed (`make services` installs it)")

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def start(self) -> None:
        """Returns when the server takes connections. Raises ServiceFailed."""
        if not self._data.exists():
            self._guard = Guard(self._folder)
            self._run("initdb", "-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D", str(self._data))
        self._server = self._spawn_server()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if self._server.poll() is not None and "shared memory block" in tail(self._log, 3):
                self._server = self._spawn_server()  # the children of a killed server need a moment to leave
            elif self._server.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServiceFailed(f"Postgres did not start:\n{tail(self._log)}")
            time.sleep(0.05)

    def _spawn_server(self) -> subprocess.Popen[bytes]:
        where = ["-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1", "-c", "unix_socket_directories="]
        assert self._guard is not None
        with self._log.open("ab") as output:
            server = subprocess.Popen(
                [str(self._bin / "postgres"), *where, "-c", "fsync=off"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **self._as_user(),
            )
        self._guard.watch(-server.pid)
        return server

    def _as_user(self) -> dict[str, Any]:
        user = self._user
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}

    def _is_ready(self) -> bool:
        try:
            self._run("pg_isready", *self._client_options())
        except ServiceFailed:
            return False
        return True

    def stop(self) -> None:
        """Shut down in order, open connections notwithstanding; data stays."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the server; its children follow by themselves. Data stays."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(STOP_TIMEOUT)
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop what runs and delete the data."""
        self.stop()
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_database(self) -> str:
        """The name of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self._run("createdb", *self._client_options(), name)
        return name

    def drop_database(self, name: str) -> None:
        self._run("dropdb", *self._client_options(), "--force", name)

    def _client_options(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def _run(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / command), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_TIMEOUT,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise ServiceFailed(f"{command}: {done.stdout.decode(errors='replace')}")
