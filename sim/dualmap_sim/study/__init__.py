"""Studies: runs, capacities and comparisons over policies, workloads, rates, seeds and fleets."""
