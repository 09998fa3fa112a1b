"""The broker interface over RabbitMQ (3.10 and 4.x), with aio-pika."""

from broker.amqp.client import AmqpBroker

__all__ = ["AmqpBroker"]
