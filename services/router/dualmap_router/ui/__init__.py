"""The live page at `/` and its data under `/ui/`: what this router knows and what the store holds."""
