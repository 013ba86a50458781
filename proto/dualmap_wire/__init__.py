"""The wire: protobuf frames, telemetry messages, Redis keys and the Redis functions. Written once, here."""
