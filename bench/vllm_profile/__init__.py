"""What a running vLLM's prefill and decode take, as an EngineProfile for the simulated engine."""
