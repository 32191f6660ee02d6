"""A downstream system: wait for a released model, and score the rows of a CSV file with the newest.

It knows nothing of fedmq: any AMQP client and any msgpack decoder will do. Of one federation the newest model is the
one with the largest (epoch, version), not the one that came last. Whoever stays keeps that rule over time as well.

    python score_released.py amqp://user:password@host/ patients.csv
"""

import asyncio
import csv
import math
import sys
import zlib

import aio_pika
import msgpack


async def next_model(url: str, queue_name: str = "downstream.scores") -> dict:
    """Return the newest of the models that wait in a durable queue of our own, or the next one where there is none."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        exchange = await channel.get_exchange("fedmq.released")  # the aggregator's to declare
        queue = await channel.declare_queue(queue_name, durable=True)
        await queue.bind(exchange, "#")
        print("waiting for a model", file=sys.stderr, flush=True)
        async with queue.iterator() as messages:
            message = await anext(messages)
        model = msgpack.unpackb(message.body)
        while another := await queue.get(fail=False):
            message, model = another, newest([model, msgpack.unpackb(another.body)])
        await message.ack(multiple=True)
        return model


def newest(models: list) -> dict:
    """Return the model to keep: one that was delayed may come behind a newer one."""
    return max(models, key=lambda model: (model["epoch"], model["version"]))


def names(features: list | dict) -> list:
    """Return the names of the columns: very many of them come compressed, with a zero byte between each two."""
    return zlib.decompress(features["data"]).decode().split("\0") if isinstance(features, dict) else features


def estimates(model: dict) -> dict:
    """Return the coefficient of each column by name, on its original scale."""
    if model["coefficients"]:
        return {each["name"]: each["estimate"] for each in model["coefficients"]}
    scale = model["standardisation"]["scale"] or [1.0] * len(model["weights"])  # of very many columns
    return {name: w / s for name, w, s in zip(names(model["features"]), model["weights"], scale, strict=True)}


def score(model: dict, row: dict) -> float:
    """Return the probability of class 1 for one row: values by column name, on their original scale."""
    margin = model["intercept_coefficient"]["estimate"]
    margin += sum(estimate * float(row[name]) for name, estimate in estimates(model).items())
    return 1.0 / (1.0 + math.exp(-margin))


if __name__ == "__main__":
    url, path = sys.argv[1:]
    released = asyncio.run(next_model(url))
    print(f"model of {released['federation']}, version {released['version']}", file=sys.stderr)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            print(f"{score(released, row):.6f}")
