"""What a key-value cache is called in a file: inputs `past_key_values.0.key`, outputs `present.0.key`."""

PAST, PRESENT = "past_key_values.", "present."
