"""Monitoring: the supervisor's metrics, alert rules, a Grafana dashboard, Prometheus' settings."""

__all__: list[str] = []
