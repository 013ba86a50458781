"""What the router costs: CPU per request and per streamed chunk, decision latency, memory."""
