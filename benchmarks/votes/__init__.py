"""Durable votes per second through HTTP, beside a raw Kafka producer and the database's own commits."""
