"""From latents to the network: the pipes, the transmit process, and the sinks."""
