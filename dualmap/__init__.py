"""The scheduling core: values in, values out; no clock, no chance, no I/O.

`choose` picks the instance of a request, `order` the next of a queue, `plan_moves` what leaves a hot
instance. `Admission` is that queue: the only state here, and jobs bring what starts and stops them. Time
comes in as `now_s`, chance as a seed, so a service and a simulator drive the same code.
"""
