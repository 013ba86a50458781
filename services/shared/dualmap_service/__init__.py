"""What every service needs and nothing more: settings, logs, lifecycle, child processes, store, registry."""
