"""What a pipeline definition may say."""
