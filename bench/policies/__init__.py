"""Every table and plot of docs/results.md: `make bench-policies TRACE=conversation.jsonl`."""
