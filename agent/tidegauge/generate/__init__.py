"""Rules for Prometheus and dashboards for Grafana, made for one's own models and objectives."""
