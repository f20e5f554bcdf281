"""The environment variables that `animegan run` starts Ray with. What they bought, and their price: docs/cluster.md.

A variable that is set already keeps its value.
"""

from serve_app.cli.one_machine import PERIODS, WITHOUT_DASHBOARD
from serve_app.deployments.proxy import CALLBACK, CALLBACK_VARIABLE

LOGS = {
    "RAY_ROTATION_MAX_BYTES": "1000000",  # of each of Ray's two dozen logs, and one older part of each
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
# A proxy that is not ready after three times this ends the start of the service; its imports take long on busy cores.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20"}  # from 5


def ray_environment(dashboard: bool) -> dict[str, str]:
    """Returns the variables.

    Args:
        dashboard: whether Ray's dashboard is started too.
    """
    return {CALLBACK_VARIABLE: CALLBACK, **LOGS, **PERIODS, **PATIENCE, **({} if dashboard else WITHOUT_DASHBOARD)}
