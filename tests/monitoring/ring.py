"""A ring of real processes, each of which a test may kill, stop and start again at its address."""

import contextlib
import http.client
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

PATIENCE_SECONDS = 90
# Requests that a decode server takes at a time.
ROWS = 4


def wait_for(what, probe, seconds=PATIENCE_SECONDS):
    """Looks until `probe` gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.1)


def claim_port():
    """A free port below the range of outgoing connections, and the claim that keeps other tests off
    it while this process lives: the Rust tests claim theirs by the same names."""
    start = os.getpid() * 61 + secrets.randbelow(1000)
    for step in range(20_000):
        number = 12_000 + (start + step) % 20_000
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0tandem-test-port-{number}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", number))
        except OSError:
            claim.close()
            continue
        return number, claim
    raise OSError("no port from 12000 to 32000 is free")


def get(url):
    """Status and body; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Process:
    """One member of the ring, or Prometheus."""

    def __init__(self, name, command, folder):
        self.name, self.command, self.child = name, command, None
        self.log = folder / f"{name}.log"

    def start(self, *flags):
        assert self.child is None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.child = subprocess.Popen([*self.command, *flags], stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=log)

    def signal(self, number):
        self.child.send_signal(number)

    def kill(self):
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None

    def is_stopped(self):
        return ") T " in pathlib.Path(f"/proc/{self.child.pid}/stat").read_text()

    @contextlib.contextmanager
    def hiccups(self, stopped, running):
        """Stops and continues it, seconds each, until the end of the block."""
        ended = threading.Event()

        def beat():
            while not ended.is_set():
                self.signal(signal.SIGSTOP)
                time.sleep(stopped)
                self.signal(signal.SIGCONT)
                ended.wait(running)

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Ring:
    """Two prefill servers, one by each of the transports of this machine, two decode servers, and a
    gateway with a short queue that tries nothing twice."""

    def __init__(self, programs, model, folder):
        self.folder, self.members, self.addresses, self.claims = folder, {}, {}, []
        key = folder / "key"
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600)
        common = {"model": str(model), "key_file": str(key), "compat_metrics": True,
                  "served_model_name": "monitored"}
        server = {**common, "threads": 1, "drain_seconds": 5}
        decodes = [self.address() for _ in range(2)]
        prefills = [self.address() for _ in range(2)]
        for index, listen in enumerate(decodes):
            self.add(programs, f"decode-{index}", {
                **server, "listen": listen, "admin": self.address(), "transport": "auto",
                "max_total_tokens": 16384, "max_running_requests": ROWS})
        for index, (listen, transport) in enumerate(zip(prefills, ("ucx", "tcp"))):
            self.add(programs, f"prefill-{index}", {
                **server, "listen": listen, "admin": self.address(), "transport": transport,
                "decode": decodes, "max_total_tokens": 16384, "chunked_prefill_size": 256})
        self.add(programs, "gateway", {
            **common, "listen": self.address(), "prefill": prefills, "decode": decodes,
            "max_queued": 12, "retries": 0,
            # Nobody listens there, so that traces are dropped.
            "otlp_endpoint": f"http://{self.address()}"})
        self.url = f"http://{self.addresses['gateway']}"

    def address(self):
        number, claim = claim_port()
        self.claims.append(claim)
        return f"127.0.0.1:{number}"

    def add(self, programs, name, config):
        path = self.folder / f"{name}.toml"
        # Of strings, numbers, booleans and lists, TOML's values are JSON's.
        lines = [f"id = {json.dumps(name)}"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in config.items()]
        path.write_text("\n".join(lines) + "\n")
        program = programs / f"tandem-{name.split('-')[0]}"
        self.members[name] = Process(name, [str(program), "--config", str(path)], self.folder)
        self.addresses[name] = config.get("admin", config["listen"])

    def __getitem__(self, name):
        return self.members[name]

    def named(self, role):
        return [name for name in self.members if name.startswith(role)]

    def start(self):
        for name in (*self.named("decode"), *self.named("prefill"), "gateway"):
            self[name].start()
        self.wait_whole()

    def restart(self, name, *flags):
        self[name].kill()
        self[name].start(*flags)

    def wait_whole(self):
        """Until the gateway has both pairs of both, all joined."""
        def whole():
            status, body = get(f"{self.url}/server_info")
            if status != 200:
                return False
            info = json.loads(body)
            up = all(server["up"] for server in info["prefill"] + info["decode"])
            epochs = {server.get("epoch") for server in info["decode"]}
            return up and all(epochs <= set(server["joined"]) for server in info["prefill"])
        wait_for("a whole ring", whole)

    def close(self):
        for process in self.members.values():
            process.kill()


class Load:
    """So many clients that ask again and again, streamed, half of them with a common beginning."""

    COMMON = "You are a careful assistant. " * 24

    def __init__(self, url, clients, max_tokens):
        self.url, self.max_tokens, self.ended = url, max_tokens, threading.Event()
        self.answered = self.refused = 0
        self.why = None  # the last one was refused
        self.threads = [threading.Thread(target=self.client, args=(number,), daemon=True)
                        for number in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def client(self, number):
        turn = 0
        while not self.ended.is_set():
            turn += 1
            # Of many lengths, so that quantiles of lengths move.
            start = self.COMMON if turn % 2 else f"{number} and {turn}. " * (7 * turn % 60)
            # One in five ends by length; others may stop.
            body = {"prompt": f"{start} Question {number}, {turn}: why?", "stream": True,
                    "max_tokens": self.max_tokens, "ignore_eos": turn % 5 == 0}
            if not self.ask(body):
                self.ended.wait(0.2)

    def ask(self, body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", data,
                                         {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                while response.readline() and not self.ended.is_set():
                    pass
            self.answered += 1
            return True
        except (OSError, http.client.HTTPException) as error:
            self.refused += 1
            self.why = f"{error!r} {error.read() if hasattr(error, 'read') else ''}"
            return False
