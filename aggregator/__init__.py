"""The aggregator: how updates become the next model, decided in a pure core, carried out by one service."""
