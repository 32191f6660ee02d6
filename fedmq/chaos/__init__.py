"""Federations that are made to suffer: production's services on a virtual clock, and one checker of what is promised.

A seed is a world: sites and their rows, a strategy, and the faults that befall them. For a while everything that a
network, a broker, a disk and a process can do wrong goes wrong; then all of it heals, and nobody helps. What was seen
from outside the services is a history, and a checker that knows nothing else looks whether the promises held::

    command      the command, its table, and what it says of a failing seed
    runs         seeds to results, several at a time
    broken       variants of the product that break a promise, to prove the checker
    federation   one federation through its faults
    incidents    what befalls it, or one of its services, at a time
    services     the services, for one life
    life         a service that dies, and who starts it again
    stage        what the services share and what outlives them
    transport    connections to the broker
    broker       the broker
    disks        stores and outboxes that are slow, full, or the last thing a service did
    checker      history -> violations
    pooled       what a fit of all rows at one place would be
    history      what was seen
    world        what a seed is
"""
