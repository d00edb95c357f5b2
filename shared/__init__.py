"""What every service uses: server start-up, errors, settings, logs, metrics, files and frames."""
