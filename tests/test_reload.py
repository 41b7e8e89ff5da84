"""Reload of a running agent: SIGHUP, a ConfigMap's swap, certificates and tokens; and no secret anywhere."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import grpc
import pytest
import trustme
import yaml

from tidegauge.config_file import load

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SECRETS = {
    "token": "bearer-secret-of-pages",
    "next": "bearer-secret-of-tomorrow",
    "users": "prometheus:basic-secret-of-pages",
    "push": "bearer-secret-of-the-collector",
    "header": "header-secret-of-the-collector",
}


def eventually(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds} s")


class Mount:
    """A folder as a ConfigMap or a Secret is mounted, whose contents are swapped at once."""

    def __init__(self, folder):
        self.folder, self.version = folder, 0
        folder.mkdir()

    def put(self, contents):
        self.version += 1
        version = self.folder / f"..{self.version}"
        version.mkdir()
        for name, content in contents.items():
            (version / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        (self.folder / "..data_tmp").symlink_to(version.name)
        os.replace(self.folder / "..data_tmp", self.folder / "..data")

    def __truediv__(self, name):
        return str(self.folder / name)


@pytest.fixture
def mount(tmp_path):
    return Mount(tmp_path / "mount")


def certificates(ca):
    leaf = ca.issue_cert("localhost", "127.0.0.1")
    return {
        "tls.crt": leaf.cert_chain_pems[0].bytes(),
        "tls.key": leaf.private_key_pem.bytes(),
        "ca.crt": ca.cert_pem.bytes(),
    }


class Running:
    """`tidegauge run` with a configuration that stands in a mount."""

    def __init__(self, mount, settings, log):
        self.mount, self.log = mount, log
        command = [sys.executable, "-m", "tidegauge", "run", "--config", mount / "agent.yaml"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        eventually(lambda: "is ready" in self.text or self.process.poll() is not None, 300)
        found = re.search(r"Flight on \S+:(\d+), .*OTLP/HTTP on \S+:(\d+), /metrics on \S+:(\d+)", self.text)
        assert found, self.text
        self.grpc, self.http, self.pages = map(int, found.groups())

    @property
    def text(self):
        return self.log.read_text()

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def get(self, path, token=None, context=None):
        scheme = "http" if context is None else "https"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{scheme}://localhost:{self.pages}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def sample(self, line, **options):
        found = re.search(rf"^{re.escape(line)} (\S+)$", self.get("/metrics", **options)[1], re.M)
        return None if found is None else float(found[1])

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


def settings(**changes):
    base = {
        "receivers": {"grpc": {"endpoint": "127.0.0.1:0"}, "http": {"endpoint": "127.0.0.1:0"}},
        "exporters": {"prometheus": {"endpoint": "127.0.0.1:0"}},
        "pipeline": {"publish_interval": "100ms"},
        "reload": {"interval": "200ms"},
        "scrapers": {"nvml": {"enabled": False}},
    }
    return base | changes


@pytest.fixture
def start(mount, tmp_path):
    agents = []

    def begin(settings, **files):
        mount.put({"agent.yaml": yaml.safe_dump(settings), **files})
        agents.append(Running(mount, settings, tmp_path / "agent.log"))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.stop()


SUCCESSFUL = "tidegauge_config_last_reload_successful"


def test_sighup_takes_what_can_change_and_refuses_the_rest(start, mount):
    slow = {"interval": "1h"}
    agent = start(settings(reload=slow))
    hash_of = re.compile(r'^tidegauge_config_info\{hash="(\w+)"\} 1', re.M)

    def shown():
        found = hash_of.findall(agent.get("/metrics")[1])
        return found[0] if len(found) == 1 else None

    first = eventually(shown)
    assert agent.sample(SUCCESSFUL) == 1

    judged = {"threshold": 0.25, "min_rows": 50}
    mount.put({"agent.yaml": yaml.safe_dump(settings(reload=slow, drift=judged, log={"level": "debug"}))})
    agent.hang_up()
    second = eventually(lambda: shown() not in (None, first) and shown())
    assert "changed: drift.min_rows, drift.threshold, log.level" in agent.text
    assert agent.sample('tidegauge_reloads_total{outcome="taken",setting="config"}') == 1

    both = settings(reload=slow, log={"level": "info"}, drift={"window": "2h"}, logs={"max_series": 7})
    mount.put({"agent.yaml": yaml.safe_dump(both)})
    agent.hang_up()
    eventually(lambda: agent.sample(SUCCESSFUL) == 0)
    assert shown() == second
    for path in ("drift.window", "logs.max_series"):
        assert f"{path}: cannot change while the agent runs" in agent.text
    assert agent.sample('tidegauge_reload_failing{setting="config"}') == 1

    mount.put({"agent.yaml": "log: [unfinished"})
    agent.hang_up()
    eventually(lambda: "is not YAML: line 1" in agent.text)
    assert shown() == second

    mount.put({"agent.yaml": yaml.safe_dump(settings(reload=slow))})
    agent.hang_up()
    eventually(lambda: shown() == first and agent.sample(SUCCESSFUL) == 1)
    assert agent.process.poll() is None


def test_certificates_and_tokens_of_a_mount_are_taken_when_its_link_is_swapped(start, mount, tmp_path):
    old, new = trustme.CA(), trustme.CA()
    tls = {"cert_file": mount / "tls.crt", "key_file": mount / "tls.key"}
    secured = settings(
        receivers={
            "grpc": {"endpoint": "127.0.0.1:0", "tls": tls | {"client_ca_file": mount / "ca.crt"}},
            "http": {"endpoint": "127.0.0.1:0"},
        },
        exporters={
            "prometheus": {
                "endpoint": "127.0.0.1:0",
                "tls": tls,
                "auth": {"bearer_token_file": mount / "token"},
            }
        },
    )
    agent = start(secured, token=SECRETS["token"], **certificates(old))

    def context(ca):
        made = ssl.create_default_context()
        ca.configure_trust(made)
        return made

    def status(ca, token):
        try:
            return agent.get("/metrics", token, context(ca))[0]
        except urllib.error.URLError as error:
            return type(error.reason).__name__

    def exports(ca, identity):
        shown = identity.private_key_pem.bytes(), identity.cert_chain_pems[0].bytes()
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), *shown)
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.secure_channel(f"localhost:{agent.grpc}", credentials, options) as channel:
            try:
                return channel.unary_unary(TRACES)(b"", timeout=10) == b""
            except grpc.RpcError:
                return False

    mine = old.issue_cert("me@example.org")
    assert status(old, SECRETS["token"]) == 200
    assert exports(old, mine)
    text = yaml.safe_dump(secured)
    mount.put({"agent.yaml": text, "token": SECRETS["next"], **certificates(new)})
    eventually(lambda: status(new, SECRETS["next"]) == 200)
    assert status(new, SECRETS["token"]) == 401
    assert status(old, SECRETS["next"]) == "SSLCertVerificationError"
    eventually(lambda: exports(new, new.issue_cert("me@example.org")))
    assert not exports(new, mine)

    mount.put({"agent.yaml": text, "token": "", **certificates(new), "tls.key": b"broken"})
    eventually(lambda: agent.text.count("will not do") >= 3)
    assert status(new, SECRETS["next"]) == 200
    page = agent.get("/metrics", SECRETS["next"], context(new))[1]
    for setting in ("exporters.prometheus.tls", "exporters.prometheus.auth", "receivers.grpc.tls"):
        assert f'tidegauge_reload_failing{{setting="{setting}"}} 1' in page
    assert "PRIVATE KEY" not in agent.text
    assert "andshake" not in agent.text  # of those that failed above
    told = explain("--url", f"https://localhost:{agent.pages}", "--ca-file", mount / "ca.crt")
    assert "wants a token: --token-file" in told
    (tmp_path / "mine").write_text(SECRETS["next"])
    options = ("--url", f"https://localhost:{agent.pages}", "--ca-file", mount / "ca.crt")
    assert "no model" in explain(*options, "--token-file", tmp_path / "mine").lower()


def test_no_secret_is_shown_by_check_log_or_pages(start, mount, tmp_path):
    secured = settings(
        exporters={
            "prometheus": {
                "endpoint": "127.0.0.1:0",
                "auth": {"bearer_token_file": mount / "token", "basic_auth_file": mount / "users"},
            },
            "otlp": {
                "endpoint": "http://127.0.0.1:9",
                "bearer_token_file": mount / "push",
                "headers": {"x-key": SECRETS["header"]},
                "interval": "100ms",
            },
        },
        log={"level": "debug"},
    )
    files = {name: SECRETS[name] for name in ("token", "users", "push")}
    agent = start(secured, **files)
    eventually(lambda: "takes nothing" in agent.text)
    for token in (None, "wrong-token", SECRETS["push"]):
        assert agent.get("/metrics", token)[0] == 401
    eventually(lambda: "tidegauge_denied_total" in agent.get("/metrics", SECRETS["token"])[1])
    shown = [
        agent.get(path, SECRETS["token"])[1]
        for path in ("/", "/metrics", "/api/v1/snapshot", "/healthz", "/readyz", "/no-such-page")
    ]
    mount.put({"agent.yaml": yaml.safe_dump(secured), **files, "users": SECRETS["token"], "token": "\xff\n"})
    eventually(lambda: "will not do" in agent.text)
    agent.hang_up()
    checked = [check(mount / "agent.yaml", cwd=tmp_path)]
    wrong = {"exporters": {"otlp": {"endpoint": "http://a:1", "headers": {"x": [SECRETS["header"]]}}}}
    wrong["receivers"] = {"grpc": {"auth": SECRETS["token"]}, "http": {"auth": {"token": SECRETS["next"]}}}
    for text in (yaml.safe_dump(wrong), f"exporters: {{otlp: {{headers: {{x: {SECRETS['header']}", "a: ]"):
        (tmp_path / "wrong.yaml").write_text(text)
        checked.append(check(tmp_path / "wrong.yaml", cwd=tmp_path))
        assert checked[-1]
    agent.stop()
    everything = "\n".join([*shown, *checked, agent.text])
    assert "tidegauge_denied_total" in everything
    for name, secret in SECRETS.items():
        assert secret.rpartition(":")[2] not in everything, name


def explain(*options):
    command = [sys.executable, "-m", "tidegauge", "explain", "--model", "m", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


def check(*arguments, cwd):
    command = [sys.executable, "-m", "tidegauge", "check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
    return done.stdout + done.stderr


def test_check_tells_beforehand_what_needs_a_restart(tmp_path):
    def checked(new, code):
        (tmp_path / "old.yaml").write_text(yaml.safe_dump(settings()))
        (tmp_path / "new.yaml").write_text(yaml.safe_dump(new))
        command = [sys.executable, "-m", "tidegauge", "check", "new.yaml", "--against", "old.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    live = checked(settings(log={"level": "debug"}), 0)
    assert "changes: log.level" in live
    assert "restart" not in live
    both = checked(settings(log={"level": "debug"}, drift={"bins": 30}), 1)
    assert "changes: log.level" in both
    assert "needs a restart: drift.bins: cannot change while the agent runs" in both


def test_secrets_that_the_environment_holds_are_not_shown_either(tmp_path):
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "no-pair-but-a-secret",
    }
    with pytest.raises(
        Exception, match="OTEL_EXPORTER_OTLP_HEADERS: a part of it is not key=value"
    ) as caught:
        load(None, environ)
    assert "secret" not in str(caught.value)
