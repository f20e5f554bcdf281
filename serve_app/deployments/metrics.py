"""Names of the service's metrics. Ray publishes them on its Prometheus port with the prefix `ray_`."""

BATCH_SIZE = "animegan_batch_size"  # images
QUEUE_SECONDS = "animegan_queue_seconds"  # of each image, from its arrival at a Stylizer to its batch
BATCH_SECONDS = "animegan_batch_seconds"  # on the device
WAITING_PICTURES = "animegan_waiting_pictures"  # at a Stylizer
WAITING_PIXELS = "animegan_waiting_pixels"
INSIDE_PICTURES = "animegan_inside_pictures"  # admitted by an Ingress and not yet answered
INSIDE_PIXELS = "animegan_inside_pixels"
PIXELS_PER_SECOND = "animegan_pixels_per_second"  # that an Ingress measures, and admits by
REFUSALS = "animegan_refusals"  # by code
JOB_ENDS = "animegan_job_ends"  # attempts of a JobRunner at jobs, by outcome
JOBS_AT_WORK = "animegan_jobs_at_work"
JOBS_WAITING_PIXELS = "animegan_jobs_waiting_pixels"
WEBHOOKS = "animegan_webhooks"  # attempts at webhooks, by outcome
GUARD_REFUSALS = "animegan_guard_refusals"  # of each HTTP proxy's guard, as are the next five; by code
GUARD_UPLOADS = "animegan_guard_uploads"
GUARD_MEMORY_BYTES = "animegan_guard_memory_bytes"
GUARD_DISK_BYTES = "animegan_guard_disk_bytes"
GUARD_WAITING = "animegan_guard_waiting"
GUARD_FORWARDED = "animegan_guard_forwarded"
GUARD_STREAMS = "animegan_guard_streams"

BATCH_SIZES = [1.0, 2, 3, 4, 6, 8, 12, 16, 24, 32]
SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
