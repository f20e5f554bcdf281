"""The Ray Serve replicas of the service, their metrics and their autoscaling."""
