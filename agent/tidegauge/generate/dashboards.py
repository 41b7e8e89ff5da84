"""All dashboards."""

from __future__ import annotations

from tidegauge.generate import agent_board, column_board, fleet_board, gpu_board, model_board
from tidegauge.generate.dashboard import Dashboard
from tidegauge.generate.plan import Plan


def dashboards(plan: Plan) -> dict[str, Dashboard]:
    """Each by its file's name, without `.json`."""
    return {
        "fleet": fleet_board.board(plan),
        "model": model_board.board(plan),
        "feature": column_board.features(plan),
        "output": column_board.outputs(plan),
        "gpu": gpu_board.board(plan),
        "agent": agent_board.board(plan),
    }
