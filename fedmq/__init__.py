"""fedmq: federated logistic regression as an asyncio message-queue pipeline. The rows stay where they are."""

__version__ = "0.1.0"
