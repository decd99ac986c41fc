"""What the Kafka source and the Kafka sink are made of."""
