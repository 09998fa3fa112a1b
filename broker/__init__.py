"""The one road between the tiers: an interface with two implementations, RabbitMQ (`amqp`) and embedded (`memory`)."""
