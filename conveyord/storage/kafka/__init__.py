"""Kafka by librdkafka. Everything here blocks; nothing else in conveyord imports confluent_kafka."""
