"""The latency model of a device."""
