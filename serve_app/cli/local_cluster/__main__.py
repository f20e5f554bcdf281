"""Entry point of the serving process: `python -m serve_app.cli.local_cluster CONFIG`."""

import signal
import sys

# Importing Ray takes seconds. Until that is done SIGINT simply ends the process: an interrupted import would print a
# page of traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from serve_app.cli.local_cluster.service import main  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
