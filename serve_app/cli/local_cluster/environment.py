"""The environment variables that `animegan run` starts Ray with. What they bought, and their price: docs/cluster.md.

A variable that is set already keeps its value.
"""

from serve_app.deployments.proxy import CALLBACK, CALLBACK_VARIABLE

LOGS = {
    "RAY_ROTATION_MAX_BYTES": "1000000",  # of each of Ray's two dozen logs, and one older part of each
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
# Ray and Serve look after large clusters many times a second. For one machine seldomer will do.
PERIODS = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # from 0.1: replicas start and stop by so much later
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",  # from 100; Ray itself reports them every 10 s
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # so that new logs are looked for at the next interval,
    "LOG_NAME_UPDATE_INTERVAL_S": "2",  # not ten times a second
    "REPORTER_UPDATE_INTERVAL_MS": "15000",  # from 5000: figures of the machine, for metrics
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",  # from 0.4
    "RAY_raylet_report_resources_period_milliseconds": "1000",  # from 100; to the GCS, for other nodes
    "RAY_raylet_check_gc_period_milliseconds": "1000",  # from 100
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",  # from 1000; for the autoscaler of a cluster
    "RAY_local_fs_monitor_interval_ms": "1000",  # from 100; is the disk full?
    "RAY_object_manager_timer_freq_ms": "1000",  # from 100; for transfers between nodes
    "RAY_kill_idle_workers_interval_ms": "1000",  # from 200
    "RAY_event_stats": "false",  # durations of each event in Ray's C++ loops, which only its own debug logs show
}
# A proxy that is not ready after three times this ends the start of the service; its imports take long on busy cores.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20"}  # from 5
WITHOUT_DASHBOARD = {"RAY_task_events_report_interval_ms": "0"}  # nobody else asks for lists of tasks


def ray_environment(dashboard: bool) -> dict[str, str]:
    """Returns the variables.

    Args:
        dashboard: whether Ray's dashboard is started too.
    """
    return {CALLBACK_VARIABLE: CALLBACK, **LOGS, **PERIODS, **PATIENCE, **({} if dashboard else WITHOUT_DASHBOARD)}
