"""A discrete-event simulation of a fleet: the services' own core over simulated engines, in simulated time."""
