"""A real PostgreSQL server for one test session: Debian's package, a cluster in a temporary folder, a free port, password log-in."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

PASSWORD = "s3cret/wörd#1"


@dataclass(frozen=True)
class Server:
    binaries: Path
    port: int

    def url(self, database: str = "hospital", *, user: str = "reader", password: str | None = PASSWORD, query: str = "") -> str:
        secret = "" if password is None else ":" + quote(password, safe="")
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}{query}"

    def sql(self, text: str, database: str = "hospital") -> str:
        """What psql prints, unaligned, as the owner."""
        command = [self.binaries / "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", self.url(database, user="owner", password=None)]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        named = shutil.which("initdb")
        if named is None:
            pytest.skip("no PostgreSQL server here (no /usr/lib/postgresql/*/bin/initdb); install Debian's package postgresql to run this test")
        return Path(named).parent
    return found[-1].parent


def _somebody() -> dict[str, str]:
    """The server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in names else "nobody", "group": "postgres" if "postgres" in names else "nogroup"}


@contextmanager
def running_server() -> Iterator[Server]:
    """Start, and stop at the end."""
    binaries, somebody = _binaries(), _somebody()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        root = Path(folder)
        (root / "password").write_text(PASSWORD, encoding="utf-8")
        if somebody:
            for path in (root, root / "password"):
                shutil.chown(path, somebody["user"], somebody["group"])

        def call(*command: str | Path) -> None:
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=root, check=False, **somebody)  # type: ignore[call-overload]
            log = root / "log"
            assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")

        data = root / "data"
        call(
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "owner",
            "-A",
            "scram-sha-256",
            f"--pwfile={root / 'password'}",
            "--no-sync",
            "-E",
            "UTF8",
            "--no-locale",
        )
        settings = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={root} -c fsync=off -c timezone=America/New_York"
        call(binaries / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", root / "log", "-o", f"-p {port} {settings}", "start")
        try:
            server = Server(binaries, port)
            server.sql(f"CREATE DATABASE hospital; CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'", "postgres")
            yield server
        finally:
            call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
