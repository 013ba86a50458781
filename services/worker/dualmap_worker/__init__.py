"""The worker: owns one engine's admission queue, relays its bytes, publishes what it sees."""
