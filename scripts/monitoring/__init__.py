"""Makes the dashboard for Grafana."""
