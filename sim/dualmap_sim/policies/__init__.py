"""Placement policies of the simulator: DualMap's own, from the core, and every baseline, a file each."""
