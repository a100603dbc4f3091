"""Run a real ComfyUI server with the pack, in a separate folder and on a separate port."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environment import REPOSITORY

PACK_FOLDER = "ComfyUI-Pastiche"
REQUEST_TIMEOUT = 30.0  # seconds; requests are answered even while a graph is executed


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_base_directory(folder: Path) -> Path:
    """Create a base directory for ComfyUI with the pack mounted in it, and return it."""
    for name in ("custom_nodes", "input", "output", "models/checkpoints", "models/loras"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    mounted = folder / "custom_nodes" / PACK_FOLDER
    if mounted.is_symlink():
        mounted.unlink()
    elif mounted.exists():
        shutil.rmtree(mounted)
    try:
        mounted.symlink_to(REPOSITORY, target_is_directory=True)
    except OSError:
        # Windows gives links to administrators only.
        ignored = shutil.ignore_patterns(".git", "assets", "benchmarks", "tests", "__pycache__")
        shutil.copytree(REPOSITORY, mounted, ignore=ignored)
    return folder


class ComfyServer:
    """A ComfyUI server process, which can be restarted on the same folder and port.

    Args:
        python: Interpreter that has ComfyUI's requirements.
        comfyui: ComfyUI's folder, which is only read.
        base_directory: Folder from ``make_base_directory`` for models, input, output and user files.
        variables: Environment variables of the process; this process's if None.
        port: Port on 127.0.0.1; a free one if None.
        log: File for the server's output; the caller's terminal if None.
    """

    def __init__(
        self,
        python: Path,
        comfyui: Path,
        base_directory: Path,
        *,
        variables: Mapping[str, str] | None = None,
        port: int | None = None,
        log: Path | None = None,
    ) -> None:
        self.python = python
        self.comfyui = comfyui
        self.base_directory = base_directory
        self.variables = dict(os.environ if variables is None else variables)
        self.port = port or free_port()
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyServer:
        """Start the server and wait until it responds."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the server."""
        self.stop()

    def start(self, timeout: float = 600.0) -> None:
        """Start the process and wait until it responds with its nodes.

        Raises:
            RuntimeError: The process ended, did not respond in time, or could not import the pack.
        """
        command = [str(self.python), str(self.comfyui / "main.py")]
        command += ["--base-directory", str(self.base_directory), "--port", str(self.port)]
        command += ["--listen", "127.0.0.1", "--disable-api-nodes", "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///:memory:", "--use-pytorch-cross-attention"]
        if not self._has_cuda():
            command.append("--cpu")
        output = None if self.log is None else self.log.open("ab")
        try:
            self.process = subprocess.Popen(
                command,
                env=self.variables,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
            )
        finally:
            if output is not None:
                output.close()
        try:
            self._wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and wait until it has ended; do nothing if none was started."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        """Stop the process and start a new one on the same folder and port."""
        self.stop()
        self.start()

    def log_text(self) -> str:
        """Return the server's output so far."""
        if self.log is None:
            raise RuntimeError("the server's output must go to a file to be read, got a terminal")
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **query: str) -> bytes:
        """Return the body of the response to a GET request."""
        address = self.url + urllib.parse.quote(path)
        if query:
            address += "?" + urllib.parse.urlencode(query)
        with urllib.request.urlopen(address, timeout=REQUEST_TIMEOUT) as answer:
            return answer.read()

    def object_info(self, node_id: str | None = None) -> dict[str, Any]:
        """Return the server's description of all nodes, or of one node."""
        return json.loads(self.get(f"/object_info/{node_id}" if node_id else "/object_info"))

    def queue(self, graph: Mapping[str, Any], client_id: str | None = None) -> str:
        """Queue an API graph and return its prompt id.

        Raises:
            ValueError: The server refused the graph; the message contains its response.
        """
        body: dict[str, Any] = {"prompt": graph}
        if client_id is not None:
            body["client_id"] = client_id
        try:
            return json.loads(self.post("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = error.read().decode("utf-8", errors="replace")
            raise ValueError(f"the server must accept the graph, got: {answer}") from error

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """Return the history entry of a graph that has ended; None while it waits or runs."""
        return json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """Return the graph's history entry once it has ended, with or without an error."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            entry = self.history(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.1)
        raise RuntimeError(f"the graph must end within {timeout:g} s, got none: {prompt_id}")

    def post_prompt(self, graph: Mapping[str, Any], timeout: float = 600.0) -> dict[str, Any]:
        """Queue an API graph and return its history entry once it has ended, with or without an error."""
        return self.wait(self.queue(graph), timeout)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt the running graph, or the one with this prompt id."""
        self.post("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    def free(self) -> None:
        """Let the server unload its models and drop its cached results."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Send ``body`` as JSON to ``path`` and return the body of the response."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT) as answer:
            return answer.read()

    def _has_cuda(self) -> bool:
        """Return whether torch finds a CUDA device.

        It is imported only if a driver is installed, because the import takes seconds.
        """
        if shutil.which("nvidia-smi") is None:
            return False
        question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        command = [str(self.python), "-c", question]
        return subprocess.run(command, env=self.variables, check=False).returncode == 0

    def _check_alive(self) -> None:
        code = None if self.process is None else self.process.poll()
        if self.process is None or code is not None:
            raise RuntimeError(f"the server must be running, got exit code {code}{self._tail()}")

    def _tail(self) -> str:
        return "" if self.log is None else "; its log ends:\n" + self.log_text()[-3000:]

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            try:
                self.object_info()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the server must answer within {timeout:g} s, got nothing{self._tail()}"
                    ) from None
            time.sleep(0.3)
        lines = [] if self.log is None else self.log_text().splitlines()
        for line in lines:
            if PACK_FOLDER in line and ("IMPORT FAILED" in line or "Cannot import" in line):
                raise RuntimeError(f"ComfyUI must import the pack, got a failure{self._tail()}")
