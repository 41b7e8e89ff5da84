"""The configurations of deploy/long-term: a Prometheus with each sends what an agent says to a real receiver.

The receiver is a second Prometheus: Mimir, Cortex and Thanos take the same protocol at other paths.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

pytestmark = pytest.mark.e2e

CONFIGS = sorted((Path(__file__).parents[2] / "deploy" / "long-term").glob("*.yaml"))
BUILD = 'tidegauge_build_info{cluster="eu-1",replica="a"}'

config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


@config
def test_promtool_finds_nothing(tool: Callable[[str, str], Path], config: Path) -> None:
    command = [str(tool("prometheus", "promtool")), "check", "config", str(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@config
def test_what_the_agent_says_arrives(
    config: Path,
    tool: Callable[[str, str], Path],
    start_agent: Callable[..., Any],
    start_process: Callable[..., Any],
    get: Callable[..., str],
    until: Callable[..., Any],
    ports: Callable[[], int],
    tmp_path: Path,
) -> None:
    binary, sender, receiver = str(tool("prometheus", "prometheus")), ports(), ports()
    written = yaml.safe_load(config.read_text())
    # Its own address, a pace for tests, and the agent that runs here.
    written["global"]["scrape_interval"] = "1s"
    [scrape], [remote] = written["scrape_configs"], written["remote_write"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{start_agent().pages}"]}]
    remote["url"] = f"http://127.0.0.1:{receiver}/api/v1/write"
    (tmp_path / "sender.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "receiver.yaml").write_text("{}")
    features = ["--enable-feature=native-histograms"]
    for name, port, more in (
        ("receiver", receiver, [*features, "--web.enable-remote-write-receiver"]),
        ("sender", sender, features),
    ):
        command = [
            binary,
            f"--config.file={tmp_path / name}.yaml",
            f"--storage.tsdb.path={tmp_path / name}-tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        start_process(name, [*command, *more], {})

    def arrived() -> bool:
        try:
            answer = json.loads(
                get(f"http://127.0.0.1:{receiver}/api/v1/query?{urlencode({'query': BUILD})}")
            )
        except OSError:  # it does not listen yet
            return False
        return bool(answer["data"]["result"])

    until(arrived, 60)
