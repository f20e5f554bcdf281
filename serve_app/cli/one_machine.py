"""The environment variables that a Ray of one machine is started with, so that it costs less beside its work."""

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
WITHOUT_DASHBOARD = {"RAY_task_events_report_interval_ms": "0"}  # nobody else asks for lists of tasks
