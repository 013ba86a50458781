"""Fidelity: the live system and the simulator run the same workload; how far apart are they?"""
